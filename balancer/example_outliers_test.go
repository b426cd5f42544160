package balancer_test

import (
	"fmt"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/balancer/outlier"
)

// The default needs no configuration. Here slow instances get fewer calls besides, and nobody is ejected whose failure
// rate is not 20 points above that of the others.
func ExampleOutliers() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{Outliers: balancer.Outliers{Margin: 0.2, Slow: 3}}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"round_robin":{}},"outliers":{"margin":0.2,"slow":3}}}]}
}

// To see what it would do before it does anything: the log and balancer.Observe say so.
func ExampleOutliers_dryRun() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{Outliers: balancer.Outliers{DryRun: true}}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"round_robin":{}},"outliers":{"dryRun":true}}}]}
}

// gRPC's own outlier detection, by its defaults, for a fleet where everything else runs it. Runs of failures then hardly
// eject any more.
func ExampleOutliers_a50() {
	c := balancer.Config{
		Blacklist: balancer.Blacklist{Failures: 1000},
		Outliers: balancer.Outliers{A50: &outlier.A50{
			SuccessRateEjection:       &outlier.SuccessRateEjection{},
			FailurePercentageEjection: &outlier.FailurePercentageEjection{Threshold: 50},
		}},
	}
	js, err := balancer.LoadBalancingConfig(c)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(js))
	// Output:
	// {"evenkeel":{"strategy":{"round_robin":{}},"blacklist":{"failures":1000},"outliers":{"a50":{"successRateEjection":{},"failurePercentageEjection":{"threshold":50}}}}}
}
