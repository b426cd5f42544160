package wrappers_test

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// serverOptions puts the wrappers around the handlers of a server.
func serverOptions() ([]grpc.ServerOption, error) {
	tr, err := trace.New(trace.Config{}) // nothing, unless there is a tracer
	if err != nil {
		return nil, err
	}
	lim, err := ratelimit.New(ratelimit.Config{
		Policy: ratelimit.Policy{Adaptive: ratelimit.Adaptive{Enabled: true}}, // sheds what it cannot do
	})
	if err != nil {
		return nil, err
	}
	br, err := breaker.New(breaker.Config{Policy: breaker.Policy{MaxConcurrent: 500}})
	if err != nil {
		return nil, err
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(tr.UnaryServerInterceptor(), lim.UnaryServerInterceptor(),
			retry.UnaryServerInterceptor(), br.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(tr.StreamServerInterceptor(), lim.StreamServerInterceptor(),
			retry.StreamServerInterceptor(), br.StreamServerInterceptor()),
	}, nil
}

// dialOptions puts the wrappers around the calls of a client.
func dialOptions() ([]grpc.DialOption, error) {
	tr, err := trace.New(trace.Config{})
	if err != nil {
		return nil, err
	}
	lim, err := ratelimit.New(ratelimit.Config{Policy: ratelimit.Policy{Rate: 500, Burst: 50}})
	if err != nil {
		return nil, err
	}
	re, err := retry.New(retry.Config{
		Methods: map[string]retry.Policy{"/evenkeel.Greeter/*": {Idempotent: true}}, // may be repeated after it was sent
	})
	if err != nil {
		return nil, err
	}
	br, err := breaker.New(breaker.Config{})
	if err != nil {
		return nil, err
	}
	return []grpc.DialOption{
		grpc.WithDisableRetry(), // gRPC's own would repeat each of ours
		grpc.WithChainUnaryInterceptor(tr.UnaryClientInterceptor(), lim.UnaryClientInterceptor(),
			re.UnaryClientInterceptor(), br.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(tr.StreamClientInterceptor(), lim.StreamClientInterceptor(),
			re.StreamClientInterceptor(), br.StreamClientInterceptor()),
	}, nil
}

// greet fails the first attempt of each call.
func greet(ctx context.Context, name string) (string, error) {
	if retry.PreviousAttempts(ctx) == 0 {
		return "", status.Error(codes.Unavailable, "warming up")
	}
	return "hello " + name, nil
}

// All four wrappers around a server and a client of it. They need neither evenkeel's balancer nor a registry; with them
// the second attempt would go to another instance.
func Example() {
	forServer, err := serverOptions()
	if err != nil {
		fmt.Println(err)
		return
	}
	s := grpc.NewServer(forServer...)
	greeter.Register(s, greeter.HelloFunc(greet))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(listener) }()
	defer func() { s.Stop(); <-ended }()

	forClient, err := dialOptions()
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := grpc.NewClient(listener.Addr().String(),
		append(forClient, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	fmt.Println(greeter.Hello(ctx, conn, "ada"))
	next, err := greeter.Tell(ctx, conn, "bob")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(next())
	fmt.Println(next())
	// Output:
	// hello ada <nil>
	// hello bob <nil>
	//  EOF
}
