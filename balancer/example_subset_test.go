package balancer_test

import (
	"fmt"
	"slices"

	"github.com/evenkeel/evenkeel/balancer"
)

// A thousand clients of three hundred instances connect to twelve each. This one is number 17.
func ExampleSubset() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{
		Subset: balancer.Subset{Size: 12, Client: 17, Clients: 1000},
	}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"round_robin":{}},"subset":{"size":12,"client":17,"clients":1000}}}]}
}

// What it would mean for the instances can be asked before.
func ExampleSubset_Plan() {
	var ids []string
	for i := range 300 {
		ids = append(ids, fmt.Sprintf("orders-%d", i))
	}
	plan := balancer.Subset{Size: 12, Clients: 1000}.Plan(ids)
	fmt.Printf("%d connections in the mean, %d at most\n", 12*1000/300, slices.Max(plan))
	// Output:
	// 40 connections in the mean, 48 at most
}
