package balancer_test

import (
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/balancer"
)

// A client in the zone eu-1 calls instances there, as long as they are not much slower than the others.
func ExampleZone() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{
		Strategy: balancer.LeastRequest{},
		Zone:     balancer.Zone{Local: "eu-1"},
	}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"least_request":{}},"zone":{"local":"eu-1"}}}]}
}

// A new instance has half a minute to fill its caches.
func ExampleSlowStart() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{
		SlowStart: balancer.SlowStart{Window: 30 * time.Second},
	}))
	_, err := balancer.LoadBalancingConfig(balancer.Config{SlowStart: balancer.SlowStart{MinPercent: 5}})
	fmt.Println(err)
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"round_robin":{}},"slowStart":{"window":"30s"}}}]}
	// evenkeel: slowStart.window = 0 with other fields set, want a window such as 30s
}

// Weights follow what the instances report about themselves.
func ExampleWeighted() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{Strategy: balancer.Weighted{Load: "orca"}}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"weighted":{"load":"orca"}}}}]}
}
