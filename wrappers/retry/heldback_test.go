package retry

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/wrappers/breaker"
)

// A hedge that a breaker refuses leaves the first attempt, which is well, alone.
func TestRefusedHedgeSparesTheFirstAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{Policy: Policy{Hedge: Hedge{Delay: 20 * time.Millisecond}}})
		b, err := breaker.New(breaker.Config{Policy: breaker.Policy{MaxConcurrent: 1}})
		if err != nil {
			t.Fatal(err)
		}
		f := newFleet(t, 3, ours, nil, func(i int, _ kind, s grpc.ServerStream) error { return after(100, nil)(i, s) },
			grpc.WithChainUnaryInterceptor(r.UnaryClientInterceptor(), b.UnaryClientInterceptor()))
		defer f.close()
		if _, err = f.hello(context.Background(), unaryKind.declared(), grpc.WaitForReady(true)); err != nil || f.total() != 1 {
			t.Errorf("the call ends with %v after %d handlers, want success of the first", err, f.total())
		}
	})
}

// A pushback that answers a hedge stops further hedges, and spares what is under way.
func TestPushbackToAHedge(t *testing.T) {
	for _, push := range []string{"-1", "5000"} {
		synctest.Test(t, func(t *testing.T) {
			r := newTest(t, Config{Policy: Policy{Hedge: Hedge{Delay: 20 * time.Millisecond, Max: 2}}})
			var n atomic.Int32
			f := newFleet(t, 3, ours, r, func(i int, _ kind, s grpc.ServerStream) error {
				if n.Add(1) == 1 {
					return after(100, nil)(i, s)
				}
				_ = grpc.SetTrailer(s.Context(), metadata.Pairs("grpc-retry-pushback-ms", push))
				return status.Error(codes.ResourceExhausted, "shed")
			})
			defer f.close()
			if _, err := f.hello(context.Background(), unaryKind.declared(), grpc.WaitForReady(true)); err != nil || f.total() != 2 {
				t.Errorf("pushback %s: %v after %d handlers, want success after 2", push, err, f.total())
			}
		})
	}
}
