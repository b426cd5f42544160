package main

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/server"
)

// serverAfter is the same server with evenkeel: server.Serve in place of s.Serve and the code that stopped it.
func serverAfter(ctx context.Context, lis net.Listener, reg registry.Registrar) error {
	s := grpc.NewServer()
	greeter.Register(s, greeter.HelloFunc(hello))
	return server.Serve(ctx, s, lis, server.Config{Registrar: reg, Service: "greeter"})
}

// clientAfter is the same client with evenkeel: another target, and one dial option more.
func clientAfter(ctx context.Context, reg registry.Watcher) (string, error) {
	conn, err := grpc.NewClient("lb:///greeter",
		grpc.WithResolvers(resolver.NewBuilder(reg, // where the instances are
			resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})))), // how to choose one
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return greeter.Hello(ctx, conn, "after", grpc.WaitForReady(true))
}
