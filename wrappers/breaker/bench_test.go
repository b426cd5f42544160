package breaker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"
	"google.golang.org/grpc"
)

// bare is gobreaker used as its documentation says, with the settings of our zero policy.
func bare() *gobreaker.TwoStepCircuitBreaker[any] {
	return gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Interval: 10 * time.Second, BucketPeriod: time.Second, Timeout: 5 * time.Second,
	})
}

func nothing(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
	return nil
}

// BenchmarkSuccess is the cost of a successful call beside that of gobreaker's two steps alone.
func BenchmarkSuccess(b *testing.B) {
	ctx := context.Background()
	timed, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	policies := map[string]Config{
		"ours/zero":  {},
		"ours/slow":  {Policy: Policy{SlowCall: time.Second}},
		"ours/soon":  {Policy: Policy{Window: 100 * time.Hour}}, // the deadline is within a tenth of it
		"ours/scope": {Methods: map[string]Policy{"/a.B/*": {}, "/a.B/D": {}}},
	}
	b.Run("gobreaker", func(b *testing.B) {
		cb := bare()
		b.ReportAllocs()
		for b.Loop() {
			done, err := cb.Allow()
			if err != nil {
				b.Fatal(err)
			}
			done(nil)
		}
	})
	run := func(name string, c Config, ctx context.Context) {
		b.Run(name, func(b *testing.B) {
			br, err := New(c)
			if err != nil {
				b.Fatal(err)
			}
			call := br.UnaryClientInterceptor()
			b.ReportAllocs()
			for b.Loop() {
				if err := call(ctx, "/a.B/C", nil, nil, nil, nothing); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("ours/zero", policies["ours/zero"], ctx)
	run("ours/deadline", policies["ours/zero"], timed)
	run("ours/soon", policies["ours/soon"], timed)
	run("ours/slow", policies["ours/slow"], ctx)
	run("ours/scope", policies["ours/scope"], ctx)
	b.Run("gobreaker/parallel", func(b *testing.B) {
		cb := bare()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if done, err := cb.Allow(); err == nil {
					done(nil)
				}
			}
		})
	})
	b.Run("ours/parallel", func(b *testing.B) {
		br, err := New(Config{})
		if err != nil {
			b.Fatal(err)
		}
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				_ = br.unaryClient(ctx, "/a.B/C", nil, nil, nil, nothing)
			}
		})
	})
}

// BenchmarkRejected is the cost of a call that an open breaker turns away, without its error's text.
func BenchmarkRejected(b *testing.B) {
	br, err := New(Config{Policy: Policy{ConsecutiveFailures: 1, OpenFor: time.Hour}})
	if err != nil {
		b.Fatal(err)
	}
	_ = br.unaryClient(context.Background(), "/a.B/C", nil, nil, nil, fails)
	b.ReportAllocs()
	for b.Loop() {
		var e *Error
		if err := br.unaryClient(context.Background(), "/a.B/C", nil, nil, nil, nothing); !errors.As(err, &e) {
			b.Fatal(err)
		}
	}
}

// TestAllocations: on the success path only gobreaker allocates, once.
func TestAllocations(t *testing.T) {
	ctx := context.Background()
	timed, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	cb := bare()
	want := testing.AllocsPerRun(1000, func() {
		done, _ := cb.Allow()
		done(nil)
	})
	for name, p := range map[string]Policy{"zero": {}, "slow": {SlowCall: time.Second}, "full": {MaxConcurrent: 5},
		"service": {Key: Service}, "target": {Key: Target}, "soon": {Window: 100 * time.Hour}} {
		br, err := New(Config{Policy: p})
		if err != nil {
			t.Fatal(err)
		}
		for _, ctx := range []context.Context{ctx, timed} {
			got := testing.AllocsPerRun(1000, func() {
				if err := br.unaryClient(ctx, "/a.B/C", nil, nil, nil, nothing); err != nil {
					t.Error(err)
				}
			})
			if got != want {
				t.Errorf("%s: client: %v allocations a call, want %v, which are gobreaker's", name, got, want)
			}
		}
		info := &grpc.UnaryServerInfo{FullMethod: "/a.B/C"}
		handler := func(context.Context, any) (any, error) { return nil, nil }
		if got := testing.AllocsPerRun(1000, func() { _, _ = br.unaryServer(ctx, nil, info, handler) }); got != want {
			t.Errorf("%s: server: %v allocations a call, want %v, which are gobreaker's", name, got, want)
		}
	}
}
