package main

import (
	"context"
	"time"

	"github.com/opentracing/opentracing-go"
	bridge "go.opentelemetry.io/otel/bridge/opentracing"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/semconv/v1.41.0"
	oteltrace "go.opentelemetry.io/otel/trace"
)

type traceID = oteltrace.TraceID

// newTracer returns a tracer that speaks OpenTracing to us and sends its spans to a collector, under the name of a
// service. stop delivers what is left.
func newTracer(ctx context.Context, service, otlp string) (_ opentracing.Tracer, stop func() error, err error) {
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(otlp), otlptracegrpc.WithInsecure())
	if err != nil {
		return nil, nil, err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(semconv.ServiceName(service))))
	tracer := bridge.NewBridgeTracer()
	tracer.SetOpenTelemetryTracer(provider.Tracer("github.com/evenkeel/evenkeel/wrappers/trace"))
	tracer.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return tracer, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return provider.Shutdown(ctx)
	}, nil
}
