// Adopt is the smallest client and server, before and after they use evenkeel: before.go and after.go have the same
// two functions, and the difference between them is all there is to do.
//
//	diff examples/adopt/before.go examples/adopt/after.go
//	go run ./examples/adopt
//
// It calls the service both ways, over an in-process registry, and prints the answers. An application would use
// registry/consul there, since its servers and clients are different processes.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/evenkeel/evenkeel/registry/memory"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "adopt:", err)
		os.Exit(1)
	}
}

// hello is the application's own code, which does not change.
func hello(_ context.Context, name string) (string, error) { return "hello, " + name, nil }

func run(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	reg := memory.New()
	pairs := []struct {
		server func(context.Context, net.Listener) error
		client func(context.Context, net.Addr) (string, error)
	}{
		{serverBefore, func(ctx context.Context, addr net.Addr) (string, error) { return clientBefore(ctx, addr.String()) }},
		{
			func(ctx context.Context, lis net.Listener) error { return serverAfter(ctx, lis, reg) },
			func(ctx context.Context, _ net.Addr) (string, error) { return clientAfter(ctx, reg) },
		},
	}
	for _, p := range pairs {
		if err := pair(ctx, out, p.server, p.client); err != nil {
			return err
		}
	}
	return nil
}

// pair runs a server for as long as its client needs it.
func pair(ctx context.Context, out io.Writer, server func(context.Context, net.Listener) error,
	client func(context.Context, net.Addr) (string, error)) error {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- server(serving, lis) }()
	answer, err := client(ctx, lis.Addr())
	stop() // with evenkeel, the server now drains for 5 s, so that every client has left before it goes
	if serveErr := <-ended; err == nil {
		err = serveErr
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, answer)
	return err
}
