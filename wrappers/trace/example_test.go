package trace_test

import (
	"context"
	"fmt"

	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/wrappers/trace"
)

func ExampleNew() {
	tracer := mocktracer.New() // in earnest: Jaeger's, or OpenTelemetry's bridge
	tracing, err := trace.New(trace.Config{Tracer: tracer})
	if err != nil {
		fmt.Println(err)
		return
	}
	// grpc.NewClient("lb:///orders", grpc.WithChainUnaryInterceptor(tracing.UnaryClientInterceptor(), ...))
	interceptor := tracing.UnaryClientInterceptor()

	invoker := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	if err := interceptor(context.Background(), "/shop.Orders/Create", nil, nil, nil, invoker); err != nil {
		fmt.Println(err)
	}
	for _, span := range tracer.FinishedSpans() {
		fmt.Println(span.OperationName, span.Tag(trace.TagStatus))
	}
	fmt.Printf("%+v\n", tracing.State().Client)
	// Output:
	// /shop.Orders/Create OK
	// {Started:1 Attempts:0 Open:0}
}

func ExampleTracing_Update() {
	tracing, err := trace.New(trace.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	// Log the messages of one service while calls run, say because it misbehaves tonight.
	err = tracing.Update(trace.Config{Methods: map[string]trace.Policy{
		"/shop.Orders/*": {Payloads: true, MaxPayload: 256},
	}})
	fmt.Println(err)
	err = tracing.Update(trace.Config{Policy: trace.Policy{MaxPayload: -1}})
	fmt.Println(err)
	// Output:
	// <nil>
	// trace: maxPayload = -1, want 0 or more
}
