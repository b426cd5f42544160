package memory_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
)

func ExampleNew() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	reg := memory.New()

	// What a server does; server.Serve does it for you.
	r, err := reg.Register(ctx, "orders", registry.Instance{ID: "orders-1", Addr: "127.0.0.1:9001", Version: "1.4.0"})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close(ctx)

	// What a client does; the resolver does it for you. Stopping in the update ends the watch after the first.
	err = reg.Watch(ctx, "orders", func(instances []registry.Instance) {
		for _, in := range instances {
			fmt.Println(in.ID, in.Addr, in.Version)
		}
		stop()
	})
	fmt.Println(err)
	// Output:
	// orders-1 127.0.0.1:9001 1.4.0
	// context canceled
}

func ExampleRegistry_Fail() {
	reg := memory.New()
	outage := errors.New("connection refused")
	watch := func(instances []registry.Instance) {
		fmt.Println(len(instances), "instances")
		reg.Fail(outage) // while the watch runs
	}
	fmt.Println(reg.Watch(context.Background(), "orders", watch))

	// A registration made meanwhile is no error, and is there afterwards.
	r, err := reg.Register(context.Background(), "orders", registry.Instance{ID: "orders-1", Addr: "127.0.0.1:9001"})
	if err != nil {
		log.Fatal(err)
	}
	reg.Recover()
	fmt.Println(reg.Watch(context.Background(), "orders", watch))
	fmt.Println(r.Close(context.Background()))
	// Output:
	// 0 instances
	// memory: watch of service "orders": connection refused
	// 1 instances
	// memory: watch of service "orders": connection refused
	// memory: deregister instance "orders-1" of service "orders": connection refused
}
