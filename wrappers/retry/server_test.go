package retry

import (
	"context"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
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
	_, _ = UnaryServerInterceptor()(context.Background(), nil, nil, func(ctx context.Context, _ any) (any, error) {
		if got := PreviousAttempts(metadata.NewIncomingContext(ctx, metadata.Pairs(attemptsKey, "2"))); got != 2 {
			t.Errorf("%d where a first attempt's context has got the metadata of another call, want 2", got)
		}
		return nil, nil
	})
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
