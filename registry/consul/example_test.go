package consul_test

import (
	"context"
	"fmt"
	"os"

	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/consul"
)

func ExampleNew() {
	dir, err := os.MkdirTemp("", "evenkeel-consul-*")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	agent, err := testconsul.StartProcess(dir) // an application has one on its machine
	if err != nil {
		panic(err)
	}
	defer agent.Stop()

	reg, err := consul.New(consul.Config{Address: agent.Addr()})
	if err != nil {
		panic(err)
	}
	defer reg.Close() // deregisters, too
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err = reg.Register(ctx, "orders", registry.Instance{
		ID: "orders-7f9c", Addr: "10.0.0.7:9001", Version: "1.4.2", Labels: map[string]string{"track": "canary"},
	})
	if err != nil {
		panic(err)
	}

	// A resolver does this.
	err = reg.Watch(ctx, "orders", func(ins []registry.Instance) {
		for _, in := range ins {
			fmt.Println(in.ID, in.Addr, in.Version, in.Labels)
			cancel()
		}
	})
	fmt.Println(err)
	// Output:
	// orders-7f9c 10.0.0.7:9001 1.4.2 map[track:canary]
	// context canceled
}
