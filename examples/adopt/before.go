package main

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/evenkeel/evenkeel/internal/greeter"
)

// serverBefore is a server as it was: it serves until it is stopped, and whoever calls it is told its address.
func serverBefore(ctx context.Context, lis net.Listener) error {
	s := grpc.NewServer()
	greeter.Register(s, greeter.HelloFunc(hello))
	context.AfterFunc(ctx, s.GracefulStop)
	return s.Serve(lis)
}

// clientBefore is a client as it was: it calls one address.
func clientBefore(ctx context.Context, addr string) (string, error) {
	conn, err := grpc.NewClient("dns:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return greeter.Hello(ctx, conn, "before")
}
