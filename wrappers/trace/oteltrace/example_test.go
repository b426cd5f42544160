package oteltrace_test

import (
	"context"
	"fmt"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace/oteltrace"
)

func ExampleNew() {
	spans := tracetest.NewSpanRecorder() // in earnest: sdktrace.WithBatcher and an exporter
	tracing, err := oteltrace.New(oteltrace.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
	})
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
	for _, s := range spans.Ended() {
		fmt.Println(s.SpanKind(), s.Name(), s.Attributes()[2].Value.String())
	}
	// Output: client shop.Orders/Create OK
}

func ExampleWatch() {
	retrier, err := retry.New(retry.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	reader := sdkmetric.NewManualReader() // in earnest: a Prometheus or OTLP exporter
	stop, err := oteltrace.Watch(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)), oteltrace.Sources{
		Retriers: map[string]*retry.Retrier{"orders": retrier},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()

	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		fmt.Println(err)
		return
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if g, ok := m.Data.(metricdata.Gauge[float64]); ok {
			fmt.Println(m.Name, g.DataPoints[0].Attributes.ToSlice()[0].Value.String(), g.DataPoints[0].Value > 0)
		}
	}
	// Output: evenkeel.retry.budget orders true
}
