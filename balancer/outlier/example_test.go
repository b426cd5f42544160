package outlier_test

import (
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/balancer/outlier"
)

// One of three endpoints begins to fail a third of its calls.
func ExampleNew() {
	d, err := outlier.New(outlier.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	hosts := []*outlier.Host{{}, {}, {}}
	for now := time.Duration(0); now < 10*time.Second; now += d.Interval() {
		for _, v := range d.Step(int64(now), hosts) {
			fmt.Printf("after %v host %d is to be ejected: %s\n", now, v.Host, v.Reason)
			hosts[v.Host].Out = true
		}
		for _, h := range hosts {
			h.Calls += 9
		}
		hosts[1].Failures += 3
	}
	// Output: after 1s host 1 is to be ejected: 6 of 18 calls failed in the last 1s, of the others' at most 1.1 % or so
}

// The same by gRFC A50, for a fleet of five.
func ExampleNewA50() {
	s, err := outlier.NewA50(outlier.A50{
		FailurePercentageEjection: &outlier.FailurePercentageEjection{Threshold: 30},
	}, func() uint64 { return 0 })
	if err != nil {
		fmt.Println(err)
		return
	}
	hosts := []*outlier.Host{{}, {}, {}, {}, {}}
	for now := time.Duration(0); now <= 20*time.Second; now += s.Interval() {
		for _, v := range s.Step(int64(now), hosts) {
			fmt.Printf("after %v host %d is to be ejected for %v: %s\n", now, v.Host, v.For, v.Reason)
			hosts[v.Host].Out = true
		}
		for _, h := range hosts {
			h.Calls += 60
		}
		hosts[1].Failures += 20
	}
	// Output: after 10s host 1 is to be ejected for 30s: 20 of 60 calls failed, more than 30 % (gRFC A50)
}
