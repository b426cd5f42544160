package retry_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// call makes a call of a client with the interceptor, to a server that fails a number of times.
func call(interceptor grpc.UnaryClientInterceptor, failures int) error {
	attempts := 0
	server := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		if attempts++; attempts <= failures {
			return status.Error(codes.Unavailable, "restarting")
		}
		return nil
	}
	err := interceptor(context.Background(), "/shop.Orders/Get", nil, nil, nil, server)
	fmt.Println(attempts, "attempts:", status.Code(err))
	return err
}

// One Retrier for unary calls and streams of a client, with a policy for a service whose proto file does not say that
// its methods are idempotent.
func ExampleNew() {
	r, err := retry.New(retry.Config{
		Methods: map[string]retry.Policy{"/shop.Orders/*": {Idempotent: true, AttemptTimeout: 200 * time.Millisecond}},
		OnRetry: func(e retry.Event) { fmt.Println("retry after", e.Last.Code) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := grpc.NewClient("dns:///orders:443",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), // grpc's own retries would run inside each attempt
		grpc.WithChainUnaryInterceptor(r.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(r.StreamClientInterceptor()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()

	_ = call(r.UnaryClientInterceptor(), 1)
	// Output:
	// retry after Unavailable
	// 2 attempts: OK
}

// The shorthand, when one policy for everything is enough.
func ExampleUnaryClientInterceptor() {
	_ = call(retry.UnaryClientInterceptor(retry.Policy{Idempotent: true}), 2)
	_ = call(retry.UnaryClientInterceptor(retry.Policy{}), 2) // a handler may have run: not repeated
	// Output:
	// 3 attempts: OK
	// 1 attempts: Unavailable
}

// What was tried can be read from the error, which is still the last attempt's status.
func ExampleError() {
	err := call(retry.UnaryClientInterceptor(retry.Policy{Idempotent: true}), 5)
	var tried *retry.Error
	if errors.As(err, &tried) {
		fmt.Println(len(tried.Attempts), tried.Attempts[2].Code, "-", tried.Reason)
	}
	fmt.Println(status.Convert(err).Message())
	// Output:
	// 3 attempts: Unavailable
	// 3 Unavailable - attempts exhausted
	// restarting
}

// Two clients of one backend share a budget: together they add a tenth of their calls at most, and one a second.
func ExampleNewBudget() {
	budget, err := retry.NewBudget(10, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	readers := retry.UnaryClientInterceptor(retry.Policy{Budget: budget, Idempotent: true})
	writers := retry.UnaryClientInterceptor(retry.Policy{Budget: budget})
	fmt.Println(readers != nil && writers != nil, budget)
	// Output: true 10% of calls plus 1 a second
}

// One call gets another policy.
func ExampleWithPolicy() {
	interceptor := retry.UnaryClientInterceptor(retry.Policy{Idempotent: true})
	once := retry.WithPolicy(retry.Policy{MaxAttempts: 1})
	err := interceptor(context.Background(), "/shop.Orders/Get", nil, nil, nil,
		func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
			fmt.Println("attempt")
			return status.Error(codes.Unavailable, "restarting")
		}, once)
	fmt.Println(status.Code(err))
	// Output:
	// attempt
	// Unavailable
}

// A handler that sees whether it serves a retry.
func ExamplePreviousAttempts() {
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(retry.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(retry.StreamServerInterceptor()))
	defer server.Stop()
	handler := func(ctx context.Context) { fmt.Println(retry.PreviousAttempts(ctx)) }
	handler(context.Background())
	// Output: 0
}

// answer is the end of a handler's call, of which gRPC tells the caller.
type answer struct{ grpc.ServerTransportStream }

func (answer) SetTrailer(md metadata.MD) error {
	fmt.Println("trailer", md)
	return nil
}

// A service in the middle of a chain: what it has tried again in vain, its callers are told not to repeat. Here the
// interceptors of its server and of its client are called by hand, as gRPC does.
func ExampleUnaryServerInterceptor() {
	serve := retry.UnaryServerInterceptor()
	orders := retry.UnaryClientInterceptor(retry.Policy{Idempotent: true, ChainStop: true})
	ctx := grpc.NewContextWithServerTransportStream(context.Background(), answer{})
	_, err := serve(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
		return nil, orders(ctx, "/shop.Orders/Get", nil, nil, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				fmt.Println("attempt")
				return status.Error(codes.Unavailable, "restarting")
			})
	})
	fmt.Println(status.Code(err))
	// Output:
	// attempt
	// attempt
	// attempt
	// trailer map[grpc-retry-pushback-ms:[-1]]
	// Unavailable
}

// For streams only.
func ExampleStreamClientInterceptor() {
	conn, err := grpc.NewClient("dns:///orders:443", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(retry.StreamClientInterceptor(retry.Policy{AttemptTimeout: time.Second})))
	fmt.Println(conn != nil, err)
	_ = conn.Close()
	// Output: true <nil>
}
