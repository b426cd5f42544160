package main

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/server"
)

// instance is one running server.
type instance struct {
	id, track string
	failing   atomic.Bool // answers UNAVAILABLE to everything
	stop      context.CancelFunc
	ended     chan error // gets what Serve returned
}

// startInstance starts a server on loopback and waits until the registry has it.
func startInstance(ctx context.Context, reg registry.Registrar, id, track, version string) (*instance, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	in := &instance{id: id, track: track, ended: make(chan error, 1)}
	s := grpc.NewServer()
	greeter.Register(s, greeter.HelloFunc(func(context.Context, string) (string, error) {
		if in.failing.Load() {
			return "", status.Error(codes.Unavailable, "told to fail")
		}
		return id, nil
	}))

	// The server outlives ctx: close stops it in order.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	in.stop = stop
	announced := make(chan struct{})
	go func() {
		in.ended <- server.Serve(serving, s, lis, server.Config{
			Registrar: reg,
			Service:   "greeter",
			Instance: registry.Instance{
				ID: id, Version: version,
				Labels: map[string]string{"track": track},
			},
			Announced:  func(*server.Announcement) { close(announced) },
			DrainDelay: 300 * time.Millisecond,
			NoSignals:  true,
		})
	}()
	select {
	case <-announced:
		return in, nil
	case err := <-in.ended:
		stop()
		return nil, fmt.Errorf("%s ended before it was announced: %w", id, err)
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		err = fmt.Errorf("%s was not announced within 10 s; is the registry there?", id)
	}
	stop()
	<-in.ended
	if err == nil {
		err = ctx.Err()
	}
	return nil, err
}

// shutDown stops the server in order: draining, a moment for everybody to notice, gone.
func (in *instance) shutDown() error {
	in.stop()
	return <-in.ended
}
