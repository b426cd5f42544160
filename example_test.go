package evenkeel_test

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/server"
)

// A service with a stable instance and a canary, a client that finds them, and a call that is routed to the canary.
// This is the README's code, over the in-process registry.
func Example() {
	reg := memory.New()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()

	// Two servers. Each is announced once it really serves, and drained when ctx ends.
	for _, track := range []string{"stable", "canary"} {
		s := grpc.NewServer()
		greeter.Register(s, greeter.HelloFunc(func(context.Context, string) (string, error) { return track, nil }))
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Println(err)
			return
		}
		ended := make(chan error, 1)
		go func() {
			ended <- server.Serve(ctx, s, listener, server.Config{
				Registrar:  reg,
				Service:    "orders",
				Instance:   registry.Instance{Version: "1.4.2", Labels: map[string]string{"track": track}},
				DrainDelay: 10 * time.Millisecond,
			})
		}()
		defer func() { stop(); <-ended }()
	}

	// A client: one more dial option, and another target.
	conn, err := grpc.NewClient("lb:///orders",
		grpc.WithResolvers(resolver.NewBuilder(reg, // where the instances are
			resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})))), // how to choose one
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()

	// A canary is one line.
	canary := filters.NewContext(ctx, filters.Label("track", "canary"), "orders")
	answer, err := greeter.Hello(canary, conn, "you", grpc.WaitForReady(true))
	fmt.Println(answer, err)
	// Output: canary <nil>
}
