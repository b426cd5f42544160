package peers

import (
	"context"
	"errors"
	"fmt"
	"path"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafegrpc"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	middleware "github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/retry"
	"github.com/opentracing/opentracing-go"
	"github.com/sony/gobreaker/v2"
	zbreaker "github.com/zeromicro/go-zero/core/breaker"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/bench"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// measured is a row: what it does, whose it is, and the thing itself.
type measured struct {
	wrapper, impl string
	w             bench.Wrapper
}

// rows are evenkeel's wrappers, each beside the libraries that do the same.
func rows() []measured {
	ours := bench.EvenkeelWrappers
	return []measured{
		{"retry+breaker+ratelimit", "evenkeel", bench.Around(ours().RateLimit, ours().Retry, ours().Breaker)},
		{"retry+breaker+ratelimit", "libraries", bench.Bare(libraries())},
		{"retry+breaker+ratelimit", "failsafe_go", bench.Around(failsafeAll())},
		{"retry", "evenkeel", bench.Around(ours().Retry)},
		{"retry", "go_grpc_middleware", bench.Around(middleware.UnaryClientInterceptor(middleware.WithMax(3)))},
		{"retry", "failsafe_go", bench.Around(failsafeOf(failsafegrpc.NewRetryPolicyBuilder[any]().Build()))},
		{"breaker", "evenkeel", bench.Around(ours().Breaker)},
		{"breaker", "gobreaker", bench.Bare(twoStep())},
		{"breaker", "go_zero", bench.Around(goZeroBreaker)},
		{"breaker", "failsafe_go", bench.Around(failsafeOf(circuitbreaker.NewWithDefaults[any]()))},
		{"ratelimit", "evenkeel", bench.Around(ours().RateLimit)},
		{"ratelimit", "x_time_rate", bench.Bare(allow())},
		{"ratelimit", "failsafe_go", bench.Around(failsafeOf(ratelimiter.NewBursty[any](1e9, time.Second)))},
		{"trace", "evenkeel_no_tracer", bench.Around(ours().Trace)},
		{"trace", "evenkeel_unsampled", unsampled()},
	}
}

// twoStep is gobreaker used as its documentation says, with the settings that evenkeel's zero policy comes down to.
func twoStep() func(context.Context) error {
	cb := gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Interval: 10 * time.Second, BucketPeriod: time.Second, Timeout: 5 * time.Second,
	})
	return func(context.Context) error {
		done, err := cb.Allow()
		if err != nil {
			return err
		}
		done(nil)
		return nil
	}
}

// allow is x/time/rate used as its documentation says.
func allow() func(context.Context) error {
	l := rate.NewLimiter(bench.Plenty, bench.Plenty/10)
	return func(context.Context) error {
		if !l.Allow() {
			return errors.New("refused")
		}
		return nil
	}
}

// libraries are both by hand: the floor for what builds on them. There is no library to retry a call that succeeds.
func libraries() func(context.Context) error {
	breaker, limit := twoStep(), allow()
	return func(ctx context.Context) error {
		if err := limit(ctx); err != nil {
			return err
		}
		return breaker(ctx)
	}
}

func failsafeOf(policies ...failsafe.Policy[any]) grpc.UnaryClientInterceptor {
	return failsafegrpc.NewUnaryClientInterceptor(policies...)
}

// failsafeAll has the order of evenkeel's chain: the outermost first.
func failsafeAll() grpc.UnaryClientInterceptor {
	return failsafeOf(ratelimiter.NewBursty[any](1e9, time.Second),
		failsafegrpc.NewRetryPolicyBuilder[any]().Build(), circuitbreaker.NewWithDefaults[any]())
}

// goZeroBreaker is go-zero's own interceptor, which it has in an internal package, word for word but for the codes.
func goZeroBreaker(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker,
	opts ...grpc.CallOption) error {
	return zbreaker.DoWithAcceptableCtx(ctx, path.Join(cc.Target(), method), func() error {
		return invoker(ctx, method, req, reply, cc, opts...)
	}, func(err error) bool { return err == nil })
}

// unsampled is evenkeel's trace in a handler that was called without sampling, when it calls on.
func unsampled() bench.Wrapper {
	t, err := trace.New(trace.Config{Tracer: tails{}})
	if err != nil {
		panic(err)
	}
	handler := context.Background()
	serve := func(ctx context.Context, _ any) (any, error) {
		handler = ctx
		return nil, nil
	}
	info := &grpc.UnaryServerInfo{FullMethod: "/shop.Orders/Get"}
	if _, err := t.UnaryServerInterceptor()(context.Background(), nil, info, serve); err != nil {
		panic(err)
	}
	return bench.Around(t.UnaryClientInterceptor()).With(handler)
}

// tails is a tracer that samples nothing, and says so in the metadata. Its spans are pointers, as those of real tracers
// are.
type tails struct{ opentracing.NoopTracer }

func (tails) StartSpan(string, ...opentracing.StartSpanOption) opentracing.Span {
	return &silent{opentracing.NoopTracer{}.StartSpan("")}
}

func (tails) Inject(_ opentracing.SpanContext, _, carrier any) error {
	carrier.(opentracing.TextMapWriter).Set("x-coin", "tails")
	return nil
}

type silent struct{ opentracing.Span }

func (*silent) Context() opentracing.SpanContext { return unrecorded{} }

// unrecorded is the context of a span that is not sampled.
type unrecorded struct{}

func (unrecorded) ForeachBaggageItem(func(k, v string) bool) {}
func (unrecorded) IsSampled() bool                           { return false }

// BenchmarkWrapper is what a wrapper adds to a call that succeeds. It is in the first file of the package by name, so that it
// runs first: in a heap through which 18 GB of some policy's pickers went a small allocation takes twice as long.
func BenchmarkWrapper(b *testing.B) {
	all := rows()
	for _, c := range []bench.Context{{}, {Deadline: true}} {
		for _, r := range all {
			b.Run(fmt.Sprintf("wrapper=%s/impl=%s/ctx=%v", r.wrapper, r.impl, c), func(b *testing.B) { r.w.Time(b, c) })
		}
	}
}

// TestWrapperAllocs is the budget of the wrappers: one allocation is retry's, one gobreaker's.
func TestWrapperAllocs(t *testing.T) {
	budget := map[string]float64{
		"retry+breaker+ratelimit evenkeel": 2, "retry evenkeel": 1, "breaker evenkeel": 1, "ratelimit evenkeel": 0,
		"trace evenkeel_no_tracer": 0, "trace evenkeel_unsampled": 0,
	}
	for _, r := range rows() {
		for _, c := range []bench.Context{{}, {Deadline: true}} {
			got := r.w.Allocs(t, c)
			want, ok := budget[r.wrapper+" "+r.impl]
			if ok && got > want+bench.Stray {
				t.Errorf("%s, %s, %v: %v allocations a call, want at most %v", r.wrapper, r.impl, c, got, want)
			}
		}
	}
}
