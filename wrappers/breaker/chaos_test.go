package breaker

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
)

// TestChaos: on a client and on a server at once, calls of every kind with wishes of their own fail, hang and run out
// of time while the whole configuration changes, breakers are made and removed, and State looks on. No call stays
// counted, and afterwards every breaker lets calls through again.
func TestChaos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms, callers = time.Millisecond, 8
		r := newRig(t, Config{})
		var hurt atomic.Bool
		hurt.Store(true)
		s := newStack(t, echo(func() error {
			if hurt.Load() && time.Now().UnixMilli()%3 == 0 {
				time.Sleep(4 * ms)
				return errDown
			}
			time.Sleep(ms)
			return nil
		}), r.Breakers, r.Breakers)
		defer s.close()
		var stop atomic.Bool
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for j := 0; !stop.Load(); j++ {
					var opts []grpc.CallOption
					if j%5 == 0 {
						opts = append(opts, WithOverride(Override{DryRun: j%2 == 0, MaxConcurrent: j%3 - 1, Timeout: time.Duration(j%2) * ms}))
					}
					if j%7 == 0 {
						opts = append(opts, WithKey(strconv.Itoa(j%50)))
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(j%4+1)*ms)
					_ = s.call(ctx, kinds[(i+j)%len(kinds)], opts...)
					cancel()
					time.Sleep(ms)
				}
			})
		}
		for i := range 50 {
			p := Policy{Disabled: i%11 == 0, DryRun: i%3 == 0, Key: Key(i % 3), ConsecutiveFailures: 1 + i%3, MinCalls: 3,
				OpenFor: time.Duration(1+i%5) * ms, Ramp: 5 * ms, ProbeTimeout: 3 * ms, Probes: 1 + i%3, MaxConcurrent: i % 4,
				SlowCall: time.Duration(i%2) * 2 * ms, Timeout: time.Duration(i%3) * ms}
			r.update(Config{Policy: p, MaxBreakers: 3 + i%10, IdleAfter: time.Duration(1 + i%20)})
			for range 3 {
				time.Sleep(time.Duration(i%4) * ms)
				for _, b := range r.State().Breakers { // handlers end a while after their callers
					if b.InFlight < 0 || b.InFlight > 10*callers {
						t.Errorf("%v, want 0 to %d in flight", b, 10*callers)
					}
				}
			}
		}
		stop.Store(true)
		wg.Wait()
		time.Sleep(time.Hour)
		r.idle()
		r.mu.Lock() // handlers told last, and time that passes orders nothing
		rejected, told := len(r.rejected), len(r.told)
		r.mu.Unlock()
		if rejected == 0 || told == 0 {
			t.Errorf("%d calls were turned away in %d changes, so this shows nothing", rejected, told)
		}
		hurt.Store(false)
		r.update(Config{Policy: Policy{NoRamp: true}})
		for _, k := range kinds {
			if err := s.call(context.Background(), k); err != nil {
				t.Errorf("%v: %v, want success an hour later", k, err)
			}
		}
	})
}
