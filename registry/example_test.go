package registry_test

import (
	"context"
	"fmt"
	"log"

	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// An instance announces itself, changes while it runs, and leaves; whoever watches its service sees each step.
func Example() {
	var reg registry.Registry = memory.New() // or consul.New(...)
	ctx, stop := context.WithCancel(context.Background())

	seen := make(chan string)
	ended := make(chan error)
	go func() {
		ended <- reg.Watch(ctx, "orders", func(instances []registry.Instance) {
			line := fmt.Sprint(len(instances), " instances")
			for _, in := range instances {
				line += fmt.Sprintf(", %s track=%s draining=%t", in.ID, in.Labels["track"], in.Draining)
			}
			seen <- line
		})
	}()
	fmt.Println(<-seen)

	in := registry.Instance{ID: "orders-1", Addr: "127.0.0.1:9001", Labels: map[string]string{"track": "canary"}}
	r, err := reg.Register(ctx, "orders", in)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-seen)

	in = in.Clone() // what a registry was given must not be modified
	in.Draining = true
	if err := r.Update(ctx, in); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-seen)

	if err := r.Close(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-seen)

	stop()
	fmt.Println(<-ended)
	// Output:
	// 0 instances
	// 1 instances, orders-1 track=canary draining=false
	// 1 instances, orders-1 track=canary draining=true
	// 0 instances
	// context canceled
}

// What can never work is refused at once, by name.
func ExampleInstance_Validate() {
	in := registry.Instance{ID: "orders-1", Addr: "127.0.0.1:9001", Labels: map[string]string{"my track": "canary"}}
	fmt.Println(in.Validate())
	// Output:
	// registry: invalid instance: instance "orders-1": Labels: key = "my track", want 1 to 64 of A-Z a-z 0-9 _ -
}

// A resolver attaches the instance to the endpoint; the balancer, or a policy of your own, reads it there.
func ExampleSetInstance() {
	in := registry.Instance{ID: "orders-1", Addr: "127.0.0.1:9001", Zone: "eu-1"}
	ep := registry.SetInstance(gresolver.Endpoint{Addresses: []gresolver.Address{{Addr: in.Addr}}}, &in)

	fmt.Println(registry.FromEndpoint(ep).Zone)
	fmt.Println(registry.FromEndpoint(gresolver.Endpoint{}) == nil)
	// Output:
	// eu-1
	// true
}
