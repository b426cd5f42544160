package resolver_test

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
)

// A client calls "orders" by its name, wherever the registry says that it runs. With evenkeel's policy the config is
// balancer.ServiceConfig(balancer.Config{}).
func ExampleNewBuilder() {
	ctx := context.Background()
	reg := memory.New()

	// The server, and its record.
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go srv.Serve(lis)
	defer srv.Stop()
	if _, err := reg.Register(ctx, "orders", registry.Instance{ID: "orders-1", Addr: lis.Addr().String()}); err != nil {
		fmt.Println(err)
		return
	}

	// The client.
	conn, err := grpc.NewClient("lb:///orders",
		grpc.WithResolvers(resolver.NewBuilder(reg,
			resolver.WithServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	fmt.Println(answer.GetStatus(), err)
	// Output: SERVING <nil>
}

// Certificates name the instance, not the service, so the name to check against comes from the record.
func ExampleWithServerName() {
	reg := memory.New()
	b := resolver.NewBuilder(reg, resolver.WithServerName(func(in registry.Instance) string {
		return in.ID + ".orders.example.com"
	}))
	fmt.Println(b.Scheme())
	// Output: lb
}
