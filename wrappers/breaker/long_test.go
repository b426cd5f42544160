package breaker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// serve makes a call at a server whose handler takes a while and ends with err.
func (r *rig) serve(ctx context.Context, err error, takes time.Duration) {
	_, _ = r.unaryServer(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
		<-time.NewTimer(takes).C
		return nil, err
	})
}

// TestLongCalls: a success counts for as long as a failure that took the same time, also if that is longer than the
// window, so that the breaker sees the share of calls that really failed.
func TestLongCalls(t *testing.T) {
	for i, x := range []struct {
		takes    time.Duration
		deadline time.Duration // 0: none
		failing  int           // of 20 calls
		server   bool
		want     Phase
	}{
		{12 * sec, 0, 5, false, Closed},
		{12 * sec, 0, 5, true, Closed},
		{12 * sec, 20 * sec, 5, false, Closed},
		{12 * sec, sec / 2, 5, true, Closed}, // a handler that pays no heed to its context
		{8 * sec, 0, 7, false, Closed},
		{9500 * time.Millisecond, 0, 7, false, Closed},
		{12 * sec, 0, 12, false, Open},
		{8 * sec, 0, 12, true, Open},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: Policy{MinCalls: 10, OpenFor: time.Hour}})
			var wg sync.WaitGroup
			for n := range 300 { // one every 200 ms
				var err error
				if n*7%20 < x.failing { // evenly spread
					err = errDown
				}
				wg.Go(func() {
					ctx := context.Background()
					if x.deadline > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, x.deadline)
						defer cancel()
					}
					if x.server {
						r.serve(ctx, err, x.takes)
						return
					}
					_ = r.unaryClient(ctx, method, nil, nil, nil,
						func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
							time.Sleep(x.takes)
							return err
						})
				})
				time.Sleep(200 * time.Millisecond)
			}
			wg.Wait()
			if p := r.phase(); p != x.want {
				t.Errorf("row %d: with %d of 20 calls failing after %v: %v, want %v", i, x.failing, x.takes, p, x.want)
			}
			r.idle()
		})
	}
}

// TestLongCallsCountOnce: however long a unary call takes, it counts once, from its end on, for as long as the window is.
func TestLongCallsCountOnce(t *testing.T) {
	for _, takes := range []time.Duration{0, 999 * time.Millisecond, sec, 5 * sec, 9999 * time.Millisecond, 10 * sec, time.Hour} {
		for _, slow := range []time.Duration{0, 7 * sec, 2 * time.Hour} {
			t.Run(fmt.Sprint(takes, slow), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, Config{Policy: Policy{SlowCall: slow}})
					time.Sleep(time.Hour) // whatever was noted of the time is old
					var wg sync.WaitGroup
					for range 5 {
						wg.Go(func() { r.call(nil, takes) })
					}
					wg.Wait()
					for _, s := range []struct {
						after time.Duration
						want  uint32
					}{{0, 5}, {8 * sec, 5}, {3 * sec, 0}} {
						time.Sleep(s.after)
						if got := r.one(); got.Successes != s.want || got.Failures != 0 {
							t.Errorf("after another %v: %v with %d successes, want %d", s.after, got, got.Successes, s.want)
						}
					}
					r.idle()
				})
			})
		}
	}
}

// TestShortDeadlines: what a call had left is what it had at its beginning, also for one that can be slow.
func TestShortDeadlines(t *testing.T) {
	for _, p := range []Policy{{}, {SlowCall: time.Hour}, {Timeout: time.Hour}} {
		for left, want := range map[time.Duration]uint32{9 * time.Millisecond: 0, 10 * time.Millisecond: 1} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: p})
				time.Sleep(time.Hour)
				ctx, cancel := context.WithTimeout(t.Context(), left)
				defer cancel()
				_ = r.unaryClient(ctx, method, nil, nil, nil,
					func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
						<-ctx.Done()
						time.Sleep(sec) // and it takes a while until that is known
						return ctx.Err()
					})
				if s := r.one(); s.Failures != want {
					t.Errorf("%+v: a call that had %v: %d failures, want %d", p, left, s.Failures, want)
				}
			})
		}
	}
}

// TestSlowShareIsOfAllCalls: the calls that were not slow, which are counted without a lock, are counted.
func TestSlowShareIsOfAllCalls(t *testing.T) {
	for brisk, want := range map[int]Phase{50: Open, 51: Closed} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: Policy{SlowCall: sec, MinCalls: 4}})
			var wg sync.WaitGroup
			for range 50 { // the last of these ends at 5 s
				wg.Go(func() { r.call(nil, 5*sec) })
			}
			for range brisk {
				r.call(nil, 0)
				time.Sleep(50 * time.Millisecond)
			}
			wg.Wait()
			if p := r.phase(); p != want {
				t.Errorf("with %d brisk calls and 50 slow ones: %v, want %v", brisk, p, want)
			}
		})
	}
}

// TestSlowCallsUnderConcurrency: no call gets lost between those that count with and without the lock.
func TestSlowCallsUnderConcurrency(t *testing.T) {
	r := newRig(t, Config{Policy: Policy{SlowCall: time.Hour, Window: 24 * time.Hour, ConsecutiveFailures: -1, FailureRatio: -1}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				var err error
				if i%10 == 0 {
					err = errDown // counts with the lock
				}
				r.call(err, 0)
			}
		})
	}
	wg.Wait()
	for b := range r.index.Load().all() {
		b.mu.Lock()
		b.slow.join(r.clock.Now(), &b.brisk)
		if n := b.slow.sum; n.calls != 4000 || n.slow != 0 {
			t.Errorf("%+v, want 4000 calls, none of them slow", n)
		}
		b.mu.Unlock()
	}
	r.idle()
}

// backwards is a clock that can be set back.
type backwards struct {
	clock.Clock
	by atomic.Int64
}

func (c *backwards) Now() int64 { return c.Clock.Now() + int64(time.Hour) - c.by.Load() }

// TestLongCallsAfterTheClockWasSetBack: from the next end on it is known again which calls are long.
func TestLongCallsAfterTheClockWasSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &backwards{Clock: clock.New()}
		b, err := newBreakers(Config{}, c, clock.Rand)
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t, Breakers: b}
		r.call(nil, 0)
		c.by.Store(int64(time.Minute))
		r.call(nil, 0)
		r.call(nil, 12*sec)
		if s := r.one(); s.Successes != 1 {
			t.Errorf("%d successes, want the one that has just ended", s.Successes)
		}
	})
}
