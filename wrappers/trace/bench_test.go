package trace

import (
	"context"
	"testing"

	"github.com/opentracing/opentracing-go"
	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// quiet are the cases in which nothing is recorded: the goal is 100 ns and 0 allocations for a unary call.
func quiet(tb testing.TB, run func(name string, call func() error)) {
	tb.Helper()
	call := func(t *Tracing, ctx context.Context) func() error {
		chain := t.UnaryClientInterceptor()
		return func() error { return chain(ctx, "/orders.Orders/Create", nil, nil, nil, well) }
	}
	for name, tracer := range map[string]opentracing.Tracer{
		"no tracer": nil, "NoopTracer": opentracing.NoopTracer{}, "*NoopTracer": &opentracing.NoopTracer{},
	} {
		t, err := New(Config{Tracer: tracer})
		if err != nil {
			tb.Fatal(err)
		}
		run(name, call(t, tb.Context()))
	}
	t, _ := newCoin(tb, true)
	var handler context.Context
	handle(tb, t, func(ctx context.Context) { handler = ctx }, "x-coin", "tails")
	run("below an unsampled server span", call(t, handler))
	handle(tb, t, func(ctx context.Context) { handler = ctx }, "x-coin", "tails", "x-baggage-user", "ada")
	run("the same with baggage", call(t, metadata.AppendToOutgoingContext(handler, "mine", "1")))
	if err := t.Update(Config{Tracer: &coin{heads: true}, Policy: Policy{Disabled: true}}); err != nil {
		tb.Fatal(err)
	}
	run("disabled", call(t, tb.Context()))
}

func TestNothingIsAllocatedForNothing(t *testing.T) {
	quiet(t, func(name string, call func() error) {
		if n := testing.AllocsPerRun(1000, func() { _ = call() }); n != 0 {
			t.Errorf("%s: %v allocations a call, want 0", name, n)
		}
	})
	tracing, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	stream := tracing.StreamClientInterceptor()
	nothing := func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
		return nil, nil
	}
	server, info := tracing.UnaryServerInterceptor(), &grpc.UnaryServerInfo{FullMethod: "/a/B"}
	handler := func(context.Context, any) (any, error) { return nil, nil }
	for name, call := range map[string]func(){
		"stream client": func() { _, _ = stream(t.Context(), nil, nil, "/a/B", nothing) },
		"unary server":  func() { _, _ = server(t.Context(), nil, info, handler) },
	} {
		if n := testing.AllocsPerRun(1000, call); n != 0 {
			t.Errorf("%s without a tracer: %v allocations a call, want 0", name, n)
		}
	}
}

func BenchmarkUnaryClient(b *testing.B) {
	b.Run("no wrapper", func(b *testing.B) {
		invoke := grpc.UnaryInvoker(well)
		for b.Loop() {
			_ = invoke(b.Context(), "/orders.Orders/Create", nil, nil, nil)
		}
	})
	quiet(b, func(name string, call func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = call()
			}
		})
	})
	b.Run("below an unsampled span of the application", func(b *testing.B) {
		t, tracer := newCoin(b, false)
		ctx := opentracing.ContextWithSpan(b.Context(), tracer.StartSpan(""))
		chain := t.UnaryClientInterceptor()
		b.ReportAllocs()
		for b.Loop() {
			_ = chain(ctx, "/orders.Orders/Create", nil, nil, nil, well)
		}
	})
	b.Run("sampled, mocktracer", func(b *testing.B) {
		tracer := mocktracer.New()
		t, err := New(Config{Tracer: tracer})
		if err != nil {
			b.Fatal(err)
		}
		chain, n := t.UnaryClientInterceptor(), 0
		b.ReportAllocs()
		for b.Loop() {
			_ = chain(b.Context(), "/orders.Orders/Create", nil, nil, nil, well)
			if n++; n%1000 == 0 {
				tracer.Reset()
			}
		}
	})
}
