package ratelimit_test

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
)

// Several callers of a server, each with what it is entitled to, and a limit for the server itself.
func ExampleNew() {
	l, err := ratelimit.New(ratelimit.Config{
		Policy: ratelimit.Policy{
			Rate: 1.0 / 60, Burst: 2, Key: "func", // a call a minute for each user, two at once
			Adaptive: ratelimit.Adaptive{Enabled: true}, // and no more at once than the server can do
		},
		Methods: map[string]ratelimit.Policy{
			"/shop.Orders/Export": {Rate: 1, Burst: 1}, // one a second for all of them
		},
		KeyFunc: func(ctx context.Context, _ string) string { return ctx.Value(user{}).(string) },
		OnLimit: func(e ratelimit.Event) { fmt.Println("refused:", e.Caller, e.Method, e.Reason) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = grpc.NewServer(
		grpc.ChainUnaryInterceptor(l.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(l.StreamServerInterceptor()))

	// What the server does with a call:
	call := func(name, method string) {
		ctx := context.WithValue(context.Background(), user{}, name)
		_, err := l.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { return nil, nil })
		fmt.Println(name, method, status.Code(err))
	}
	call("ann", "/shop.Orders/Create")
	call("ann", "/shop.Orders/Create")
	call("ann", "/shop.Orders/Create")
	call("bob", "/shop.Orders/Create")
	// Output:
	// ann /shop.Orders/Create OK
	// ann /shop.Orders/Create OK
	// refused: ann /shop.Orders/Create rate
	// ann /shop.Orders/Create ResourceExhausted
	// bob /shop.Orders/Create OK
}

type user struct{}

// A client that sends what it may, one call a minute, and nothing beyond.
func ExampleUnaryClientInterceptor() {
	limit := ratelimit.UnaryClientInterceptor(ratelimit.Policy{Rate: 1.0 / 60, Burst: 1})
	_ = grpc.WithChainUnaryInterceptor(limit) // goes to grpc.NewClient

	send := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	for range 2 {
		err := limit(context.Background(), "/shop.Orders/Create", nil, nil, nil, send)
		fmt.Println(status.Code(err) == codes.ResourceExhausted)
	}
	// Output:
	// false
	// true
}

// Streams are limited by when they start.
func ExampleStreamClientInterceptor() {
	limit := ratelimit.StreamClientInterceptor(ratelimit.Policy{Rate: 1.0 / 60, Burst: 1})
	_ = grpc.WithChainStreamInterceptor(limit) // goes to grpc.NewClient

	start := func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string,
		...grpc.CallOption) (grpc.ClientStream, error) {
		return nil, nil
	}
	for range 2 {
		_, err := limit(context.Background(), new(grpc.StreamDesc), nil, "/shop.Orders/Watch", start)
		fmt.Println(status.Code(err))
	}
	// Output:
	// OK
	// ResourceExhausted
}

// A server that sheds what it cannot do.
func ExampleUnaryServerInterceptor() {
	one := ratelimit.Adaptive{Enabled: true, Initial: 1, Max: 1}
	shed := ratelimit.UnaryServerInterceptor(ratelimit.Policy{Adaptive: one})
	_ = grpc.NewServer(grpc.ChainUnaryInterceptor(shed))

	info := &grpc.UnaryServerInfo{FullMethod: "/shop.Orders/Create"}
	_, err := shed(context.Background(), nil, info, func(ctx context.Context, _ any) (any, error) {
		// While this call is in progress another one comes.
		_, err := shed(ctx, nil, info, func(context.Context, any) (any, error) { return nil, nil })
		fmt.Println("the second:", status.Code(err))
		return nil, nil
	})
	fmt.Println("the first:", status.Code(err))
	// Output:
	// the second: ResourceExhausted
	// the first: OK
}

// Streams of a server are limited by when they start; here each method has a bucket.
func ExampleStreamServerInterceptor() {
	limit := ratelimit.StreamServerInterceptor(ratelimit.Policy{Rate: 100, Burst: 10, PerMethod: true})
	s := grpc.NewServer(grpc.ChainStreamInterceptor(limit))
	fmt.Println(len(s.GetServiceInfo()))
	// Output: 0
}

// A call that is worth many, and one that rather waits.
func ExampleWithCost() {
	limit := ratelimit.UnaryClientInterceptor(ratelimit.Policy{Rate: 10, Burst: 100})
	send := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	export := func(opts ...grpc.CallOption) {
		err := limit(context.Background(), "/shop.Orders/Export", nil, nil, nil, send, opts...)
		fmt.Println(status.Code(err))
	}
	export(ratelimit.WithCost(90))
	export(ratelimit.WithCost(90))
	export(ratelimit.WithCost(11), ratelimit.WithWait(true)) // a tenth of a second
	// Output:
	// OK
	// ResourceExhausted
	// OK
}

// A call that must not be held up: a cancellation is worth more than fairness.
func ExampleBypass() {
	limit := ratelimit.UnaryClientInterceptor(ratelimit.Policy{Rate: 1.0 / 60, Burst: 1})
	send := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	call := func(method string, opts ...grpc.CallOption) {
		err := limit(context.Background(), method, nil, nil, nil, send, opts...)
		fmt.Println(method, status.Code(err))
	}
	call("/shop.Orders/Create")
	call("/shop.Orders/Create")
	call("/shop.Orders/Cancel", ratelimit.Bypass())
	// Output:
	// /shop.Orders/Create OK
	// /shop.Orders/Create ResourceExhausted
	// /shop.Orders/Cancel OK
}

// Another policy while calls are running, from a file.
func ExampleLimiter_Update() {
	l, err := ratelimit.New(ratelimit.Config{Policy: ratelimit.Policy{Rate: 100}})
	if err != nil {
		fmt.Println(err)
		return
	}
	var c ratelimit.Config
	file := `{"rate": 200, "methods": {"/shop.Orders/*": {"rate": 50, "wait": true}}}`
	if err := json.Unmarshal([]byte(file), &c); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Update(c))
	for _, s := range l.State().Scopes {
		fmt.Println(s.Scope, s.Policy.Rate, s.Policy.Burst)
	}
	c.Burst = -1
	fmt.Println(l.Update(c))
	// Output:
	// <nil>
	// * 200 20
	// /shop.Orders/* 50 5
	// ratelimit: burst = -1, want 0 (the default) to 1073741824
}
