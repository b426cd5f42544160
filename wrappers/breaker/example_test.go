package breaker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/wrappers/breaker"
)

// serve runs a greeter that is down, and returns a connection to it.
func serve(so []grpc.ServerOption, do ...grpc.DialOption) (*grpc.ClientConn, func()) {
	lis := bufconn.Listen(1 << 16)
	s := grpc.NewServer(so...)
	greeter.Register(s, greeter.HelloFunc(func(context.Context, string) (string, error) {
		return "", status.Error(codes.Unavailable, "the database is down")
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	conn, err := grpc.NewClient("passthrough:///orders", append(do, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		panic(err)
	}
	return conn, func() {
		conn.Close()
		s.Stop()
		<-done
	}
}

// A client that stops calling a service after two failures in a row. Unary calls and streams share the breakers.
func ExampleNew() {
	b, err := breaker.New(breaker.Config{
		Policy: breaker.Policy{ConsecutiveFailures: 2, OpenFor: time.Minute},
		OnStateChange: func(e breaker.StateChange) {
			fmt.Printf("%s: %v -> %v\n", e.Breaker, e.From, e.To)
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, stop := serve(nil, grpc.WithChainUnaryInterceptor(b.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(b.StreamClientInterceptor()))
	defer stop()

	for range 3 {
		_, err := greeter.Hello(context.Background(), conn, "Ada")
		var turnedAway *breaker.Error
		fmt.Println(status.Code(err), errors.As(err, &turnedAway))
	}
	fmt.Println(b.State().Breakers[0].Phase)
	// Output:
	// Unavailable false
	// /evenkeel.Greeter/Hello on passthrough:///orders: closed -> open
	// Unavailable false
	// Unavailable true
	// open
}

// A configuration in JSON.
func ExampleNew_json() {
	var c breaker.Config
	err := json.Unmarshal([]byte(`{
		"key": "service", "failureRatio": 0.3, "window": "20s",
		"methods": {"/shop.Orders/Export": {"slowCall": "30s", "maxConcurrent": 4}}
	}`), &c)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = breaker.New(c)
	fmt.Println(err)
	_, err = breaker.New(breaker.Config{Policy: breaker.Policy{Window: -time.Second}})
	fmt.Println(err)
	// Output:
	// <nil>
	// breaker: window = -1s, want 1ms to 8760h0m0s
}

// One line for a client that needs nothing else.
func ExampleUnaryClientInterceptor() {
	conn, stop := serve(nil, grpc.WithUnaryInterceptor(breaker.UnaryClientInterceptor(breaker.Policy{
		ConsecutiveFailures: 1,
		Fallback: func(_ context.Context, _ string, _, reply any, err error) error {
			reply.(*wrapperspb.StringValue).Value = "hello, whoever you are"
			return nil
		},
	})))
	defer stop()
	for range 2 { // the first one failed, the second one was turned away
		fmt.Println(greeter.Hello(context.Background(), conn, "Ada"))
	}
	// Output:
	// hello, whoever you are <nil>
	// hello, whoever you are <nil>
}

// Streams are turned away when they are opened.
func ExampleStreamClientInterceptor() {
	conn, stop := serve(nil, grpc.WithStreamInterceptor(breaker.StreamClientInterceptor(breaker.Policy{ConsecutiveFailures: 1})))
	defer stop()
	recv, err := greeter.Tell(context.Background(), conn, "Ada")
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = recv()
	fmt.Println(err)
	_, err = greeter.Tell(context.Background(), conn, "Ada")
	fmt.Println(status.Code(err))
	// Output:
	// rpc error: code = Unavailable desc = the database is down
	// Unavailable
}

// A server that spares a handler which fails.
func ExampleUnaryServerInterceptor() {
	conn, stop := serve([]grpc.ServerOption{grpc.UnaryInterceptor(breaker.UnaryServerInterceptor(breaker.Policy{ConsecutiveFailures: 1}))})
	defer stop()
	for range 2 {
		_, err := greeter.Hello(context.Background(), conn, "Ada")
		message, _, _ := strings.Cut(status.Convert(err).Message(), " since ")
		fmt.Println(message)
	}
	// Output:
	// the database is down
	// breaker "/evenkeel.Greeter/Hello on this server" is open
}

// The same for streaming handlers.
func ExampleStreamServerInterceptor() {
	conn, stop := serve([]grpc.ServerOption{grpc.StreamInterceptor(breaker.StreamServerInterceptor(breaker.Policy{ConsecutiveFailures: 1}))})
	defer stop()
	for range 2 {
		recv, err := greeter.Tell(context.Background(), conn, "Ada")
		if err != nil {
			fmt.Println(err)
			return
		}
		_, err = recv()
		message, _, _ := strings.Cut(status.Convert(err).Message(), " since ")
		fmt.Println(message)
	}
	// Output:
	// the database is down
	// breaker "/evenkeel.Greeter/Tell on this server" is open
}

// What the application gets, and what everything between it and the breaker sees.
func ExampleAcceptFallback() {
	metrics := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoker(ctx, method, req, reply, cc, opts...)
		fmt.Println("metrics:", status.Code(err))
		return err
	}
	p := breaker.Policy{FallbackFails: true, Fallback: func(_ context.Context, _ string, _, reply any, err error) error {
		reply.(*wrapperspb.StringValue).Value = "hello, whoever you are"
		return nil
	}}
	conn, stop := serve(nil, grpc.WithChainUnaryInterceptor(breaker.AcceptFallback(), metrics, breaker.UnaryClientInterceptor(p)))
	defer stop()
	fmt.Println(greeter.Hello(context.Background(), conn, "Ada"))
	// Output:
	// metrics: Unavailable
	// hello, whoever you are <nil>
}

// A command's configuration for Hystrix, as it is.
func ExampleHystrix_Policy() {
	var h breaker.Hystrix
	if err := json.Unmarshal([]byte(`{"timeout": 800, "error_percent_threshold": 25, "sleep_window": 3000}`), &h); err != nil {
		fmt.Println(err)
		return
	}
	p, err := h.Policy()
	fmt.Println(p.Timeout, p.FailureRatio, p.OpenFor, p.MinCalls, p.MaxConcurrent, err)
	// Output:
	// 800ms 0.25 3s 20 10 <nil>
}

// Calls of one shard have a breaker of their own.
func ExampleWithKey() {
	b, err := breaker.New(breaker.Config{Policy: breaker.Policy{ConsecutiveFailures: 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, stop := serve(nil, grpc.WithUnaryInterceptor(b.UnaryClientInterceptor()))
	defer stop()
	_, _ = greeter.Hello(context.Background(), conn, "Ada", breaker.WithKey("shard 7"))
	_, _ = greeter.Hello(context.Background(), conn, "Ada", breaker.Bypass())
	for _, s := range b.State().Breakers {
		fmt.Println(s.Name, "is", s.Phase)
	}
	// Output:
	// key shard 7 on passthrough:///orders is open
}

// A report may take a minute where other calls have a second, and has to wait while there is much to do.
func ExampleWithOverride() {
	breakers, err := breaker.New(breaker.Config{Policy: breaker.Policy{Timeout: time.Second, MaxConcurrent: 100}})
	if err != nil {
		fmt.Println(err)
		return
	}
	report := breaker.WithOverride(breaker.Override{Timeout: time.Minute, MaxConcurrent: 10}) // made once
	call := breakers.UnaryClientInterceptor()
	for _, opts := range [][]grpc.CallOption{nil, {report}} {
		err := call(context.Background(), "/shop.Orders/Report", nil, nil, nil,
			func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				d, _ := ctx.Deadline()
				fmt.Println("has more than ten seconds:", time.Until(d) > 10*time.Second)
				return nil
			}, opts...)
		if err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// has more than ten seconds: false
	// has more than ten seconds: true
}
