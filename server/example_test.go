package server_test

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/server"
)

// A server announces itself, turns itself into a canary, and goes down in order.
func ExampleServe() {
	reg := memory.New()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	s := grpc.NewServer() // with the app's services registered on it
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	err = server.Serve(ctx, s, lis, server.Config{
		Registrar:  reg,
		Service:    "orders",
		Instance:   registry.Instance{Version: "1.4.2", Labels: map[string]string{"track": "stable"}},
		DrainDelay: 10 * time.Millisecond, // for the example; 5 s unless set
		Announced: func(a *server.Announcement) {
			in := a.Instance()
			fmt.Println("announced", in.Version, in.Labels["track"], in.Addr == lis.Addr().String())
			in.Labels["track"] = "canary"
			fmt.Println("updated", a.Update(ctx, in))
			cancel() // an app would wait for SIGTERM
		},
	})
	fmt.Println("stopped", err)
	// Output:
	// announced 1.4.2 stable true
	// updated <nil>
	// stopped <nil>
}
