package bench

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// Plenty is the rate, in calls a second, of a limiter that is measured: it counts every call and refuses none.
const Plenty = 1e9

// Wrapper is what is measured around a call that does nothing: one wrapper, or several. Make it with [Around] or
// [Bare]. It belongs to one goroutine.
type Wrapper struct {
	call    func(context.Context) error
	warming *bool // nil if there is no invoker
}

// nothing is the call that is measured.
func nothing(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
	return nil
}

// answer is the call before: as grpc-go does, it serves the options by which evenkeel's retry finds out whether grpc-go
// gets to see its options at all on this connection. It asks until it knows.
func answer(_ context.Context, _ string, _, _ any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.TrailerCallOption:
			*o.TrailerAddr = nil
		case grpc.OnFinishCallOption:
			o.OnFinish(nil)
		}
	}
	return nil
}

// Around nests interceptors, the outermost first. The chain is made here and once: grpc-go makes the part of it that
// stands below an interceptor anew in every call, an allocation for each but the innermost, which is the same for
// everybody's interceptors and is measured with the whole calls.
func Around(interceptors ...grpc.UnaryClientInterceptor) Wrapper {
	warming := new(bool)
	var chain grpc.UnaryInvoker = func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
		if *warming {
			return answer(ctx, m, req, reply, cc, opts...)
		}
		return nothing(ctx, m, req, reply, cc, opts...)
	}
	for i := len(interceptors) - 1; i >= 0; i-- {
		outer, inner := interceptors[i], chain
		chain = func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
			return outer(ctx, m, req, reply, cc, inner, opts...)
		}
	}
	conn := new(grpc.ClientConn) // of which wrappers want the target and the identity
	req, reply := new(wrapperspb.StringValue), new(wrapperspb.StringValue)
	opts := []grpc.CallOption{grpc.StaticMethod()} // as generated code has it
	return Wrapper{func(ctx context.Context) error { return chain(ctx, method, req, reply, conn, opts...) }, warming}
}

// Bare is a library used by hand, as its documentation says, without an interceptor around it.
func Bare(call func(context.Context) error) Wrapper { return Wrapper{call: call} }

// With returns w with another context for its calls, such as a handler's, in place of the one that is measured with.
func (w Wrapper) With(ctx context.Context) Wrapper {
	call := w.call
	w.call = func(context.Context) error { return call(ctx) }
	return w
}

// warmCalls are made before anything is measured: more than the 1,024 first calls of a method, each of which evenkeel's
// retry measures.
const warmCalls = 2000

// Time times calls, one after another.
func (w Wrapper) Time(b *testing.B, c Context) {
	ctx, stop := w.warm(b, c)
	defer stop()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := w.call(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// Allocs is how many allocations a call makes on average, without timing anything, to the nearest hundredth.
func (w Wrapper) Allocs(tb testing.TB, c Context) float64 {
	ctx, stop := w.warm(tb, c)
	defer stop()
	var failed error
	const calls = 100
	average := testing.AllocsPerRun(50, func() {
		for range calls {
			if err := w.call(ctx); err != nil {
				failed = err
			}
		}
	})
	if failed != nil {
		tb.Fatal(failed)
	}
	return average / calls
}

func (w Wrapper) warm(tb testing.TB, c Context) (ctx context.Context, stop func()) {
	ctx, stop = c.app(nil)
	if w.warming != nil {
		*w.warming = true
		defer func() { *w.warming = false }()
	}
	for range warmCalls {
		if err := w.call(ctx); err != nil {
			stop()
			tb.Fatal(err)
		}
	}
	return ctx, stop
}

// Stray is how much more than a budget [Wrapper.Allocs] may return: other goroutines of the process, such as a library's
// statistics, allocate as well, and the slower the machine the more of it falls into a measurement.
const Stray = 0.2

// Wrappers are evenkeel's, each with its zero policy; the limiter, which has no limit by itself, with [Plenty].
type Wrappers struct {
	Trace, RateLimit, Retry, Breaker grpc.UnaryClientInterceptor
}

// EvenkeelWrappers makes them anew, so that nothing is shared between measurements. Trace has no tracer.
func EvenkeelWrappers() Wrappers {
	return Wrappers{
		Trace:     trace.UnaryClientInterceptor(trace.Policy{}),
		RateLimit: ratelimit.UnaryClientInterceptor(ratelimit.Policy{Rate: Plenty}),
		Retry:     retry.UnaryClientInterceptor(retry.Policy{}),
		Breaker:   breaker.UnaryClientInterceptor(breaker.Policy{}),
	}
}

// All are the four in the order in which docs/wrappers.md chains them.
func (w Wrappers) All() []grpc.UnaryClientInterceptor {
	return []grpc.UnaryClientInterceptor{w.Trace, w.RateLimit, w.Retry, w.Breaker}
}
