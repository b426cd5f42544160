package retry

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// TestPreviousAttempts: handlers of every kind see the number, interceptor or not.
func TestPreviousAttempts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []string
		want   int
	}{
		{"a first attempt", nil, 0}, {"a retry", []string{"2"}, 2}, {"ours and grpc's", []string{"1", "3"}, 3},
		{"nonsense", []string{"-1", "x", "", "99999999"}, 0},
	} {
		ctx := metadata.NewIncomingContext(context.Background(), metadata.MD{attemptsKey: tt.values})
		if got := PreviousAttempts(ctx); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
		_, _ = UnaryServerInterceptor()(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
			if got := PreviousAttempts(metadata.NewIncomingContext(ctx, nil)); got != tt.want {
				t.Errorf("%s, metadata replaced: %d, want %d", tt.name, got, tt.want)
			}
			return nil, nil
		})
	}
	if n := PreviousAttempts(context.Background()); n != 0 {
		t.Errorf("%d outside of a handler, want 0", n)
	}
	for _, k := range kinds {
		synctest.Test(t, func(t *testing.T) {
			var seen log
			f := newFleet(t, 3, noBlacklist, newTest(t, Config{}), func(_ int, _ kind, s grpc.ServerStream) error {
				seen.add("%d", PreviousAttempts(metadata.NewIncomingContext(s.Context(), nil)))
				return errDown
			})
			defer f.warm().close()
			ctx := metadata.AppendToOutgoingContext(context.Background(), "other", "kept")
			_, _ = f.exchange(ctx, k, k.declared())
			want := "0; 1; 2"
			if k.desc().ClientStreams {
				want = "0"
			}
			if seen.String() != want {
				t.Errorf("%v: handlers see %s, want %s", k, seen.String(), want)
			}
		})
	}
}

// TestChainStop: A calls B, B calls C, C calls D, D is down. A retries; with ChainStop nobody else does for a retry.
func TestChainStop(t *testing.T) {
	run := func(stop bool) (atD int64) {
		synctest.Test(t, func(t *testing.T) {
			p := Policy{ChainStop: stop, MaxAttempts: 3, Budget: budget(t, 1000, 10)}
			relay := func(to *fleet) handler {
				return func(i int, _ kind, s grpc.ServerStream) error {
					_, err := to.hello(s.Context(), unaryKind.declared(), grpc.WaitForReady(true))
					return status.Error(status.Code(err), "further down")
				}
			}
			d := newFleet(t, 1, roundRobin, nil, failing(errDown))
			defer d.close()
			c := newFleet(t, 1, roundRobin, nil, relay(d))
			defer c.close()
			b := newFleet(t, 1, roundRobin, nil, relay(c))
			defer b.close()
			var closers []func() error
			for _, f := range []*fleet{b, c, d} { // each client has its own Retrier
				f.conn.Close()
				conn, err := grpc.NewClient("fleet:///test", append(f.dial(true),
					grpc.WithUnaryInterceptor(newTest(t, Config{Policy: p}).UnaryClientInterceptor()))...)
				if err != nil {
					t.Fatal(err)
				}
				f.conn = conn
				closers = append(closers, conn.Close)
			}
			if _, err := b.hello(context.Background(), unaryKind.declared(), grpc.WaitForReady(true)); status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
			atD = d.total()
			for _, c := range closers {
				_ = c()
			}
		})
		return atD
	}
	with, without := run(true), run(false)
	t.Logf("D is called %d times with ChainStop, %d without", with, without)
	if without != 27 {
		t.Errorf("%d calls without ChainStop, want 3 x 3 x 3 = 27", without)
	}
	// The first attempt of A has B retry, and only the first of those has C retry: 3 + 1 + 1, and 1 for each of A's two
	// retries.
	if with != 7 {
		t.Errorf("%d calls with ChainStop, want 7", with)
	}
}

// TestServerStreamContext: a first attempt's stream is passed as it is.
func TestServerStreamContext(t *testing.T) {
	ss := &oneMessage{ctx: context.Background()}
	var same atomic.Bool
	_ = StreamServerInterceptor()(nil, ss, nil, func(_ any, s grpc.ServerStream) error {
		same.Store(s == ss)
		return nil
	})
	if !same.Load() {
		t.Error("the stream of a first attempt was wrapped, want it as it is")
	}
}
