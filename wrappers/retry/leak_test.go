package retry

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/leak"
)

// TestNoGoroutineIsLeft hedges and retries in real time, where a timer fires at any moment. (The tests in bubbles
// show the same for exact moments: a bubble fails when a goroutine is left in it.)
func TestNoGoroutineIsLeft(t *testing.T) {
	leak.Check(t)
	p := Policy{Hedge: Hedge{Delay: time.Millisecond, Max: 2}, Backoff: Backoff{Base: time.Microsecond}, Budget: budget(t, 1000, 0)}
	f := newFleet(t, 3, noBlacklist, newTest(t, Config{Policy: p}), func(i int, _ kind, s grpc.ServerStream) error {
		if i == 0 {
			return errDown
		}
		if err := takes(s.Context(), time.Duration(i)*time.Millisecond); err != nil {
			return err
		}
		return echo(i, s)
	})
	defer f.close()
	for end := time.Now().Add(10 * time.Second); f.calls[0].Load() == 0 || f.calls[1].Load() == 0 || f.calls[2].Load() == 0; {
		if time.Now().After(end) {
			t.Fatal("not every server got a call within 10s")
		}
		_, _ = f.hello(context.Background(), unaryKind.plain(), grpc.WaitForReady(true))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				if _, err := f.hello(ctx, unaryKind.declared(), grpc.WaitForReady(true)); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
}
