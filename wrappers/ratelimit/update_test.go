package ratelimit

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestUpdateWhileRunning replaces policies while 8 callers run: no call may fail but by a refusal, none at all
// under the last policy, and what the policy says holds.
func TestUpdateWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{})
		r, stop := newRig(t, rigOptions{client: l, server: mustNew(t, Config{})})
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		var calls, refused atomic.Int64
		for i := range 8 {
			callers.Go(func() {
				for ctx.Err() == nil {
					err := r.call(t.Context(), kinds[i%4], 2)
					calls.Add(1)
					if isRefused(err) {
						refused.Add(1)
					} else if err != nil {
						t.Errorf("%v", err)
					}
					time.Sleep(3 * ms)
				}
			})
		}
		policies := []Policy{{}, {Rate: 100}, {Rate: 100, Key: "peer"}, {Rate: 100, PerMethod: true, MessageCost: 2},
			{Rate: 50, Wait: true, MaxWait: 5 * ms}, {Adaptive: Adaptive{Enabled: true}}, {Rate: 1e6, Burst: 1e6}}
		for i := range 70 {
			p := policies[i%len(policies)]
			if err := l.Update(Config{Policy: p, Methods: map[string]Policy{client: p}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(7 * ms)
		}
		before := refused.Load()
		if before == 0 {
			t.Error("no call was refused: the policies did not hold")
		}
		time.Sleep(time.Second)
		if refused.Load() != before {
			t.Errorf("%d calls were refused under the last policy, want none", refused.Load()-before)
		}
		cancel()
		callers.Wait()
		if calls.Load() < 8*300 {
			t.Errorf("%d calls, want thousands", calls.Load())
		}
	})
}

func TestUpdateKeepsLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		allow := func(l *Limiter, n int) error {
			return l.UnaryClientInterceptor()(t.Context(), unary, nil, nil, nil, noCall, WithCost(n))
		}
		for _, c := range []struct {
			name       string
			from, to   Policy
			tokensLeft float64
		}{
			{"another rate", Policy{Rate: 1, Burst: 10}, Policy{Rate: 50, Burst: 10}, 3},
			{"a larger burst", Policy{Rate: 1, Burst: 10}, Policy{Rate: 1, Burst: 100}, 3},
			{"a smaller burst", Policy{Rate: 1, Burst: 10}, Policy{Rate: 1, Burst: 2}, 2},
			{"the way of waiting", Policy{Rate: 1, Burst: 10}, Policy{Rate: 1, Burst: 10, Wait: true}, 3},
			{"many buckets become one", Policy{Rate: 1, Burst: 10, PerMethod: true}, Policy{Rate: 1, Burst: 10}, 10},
			{"from no limit", Policy{}, Policy{Rate: 1, Burst: 10}, 10},
		} {
			l := mustNew(t, Config{Policy: c.from})
			if err := allow(l, 7); err != nil {
				t.Fatal(err)
			}
			if err := l.Update(Config{Policy: Policy{Rate: -1}}); err == nil {
				t.Error("an invalid config was taken")
			}
			if err := l.Update(Config{Policy: c.to}); err != nil {
				t.Fatal(err)
			}
			s := l.State().Scopes[0]
			admitted := uint64(1)
			if c.from == (Policy{}) {
				admitted = 0 // what nothing limits is not counted
			}
			if s.Tokens != c.tokensLeft || s.Admitted != admitted {
				t.Errorf("%s: %v tokens and %d admitted, want %v and %d", c.name, s.Tokens, s.Admitted, c.tokensLeft, admitted)
			}
		}
		// Buckets of callers, and adaptive limits.
		p := Policy{Rate: 1, Burst: 10, PerMethod: true, Adaptive: Adaptive{Enabled: true, Initial: 7}}
		l := mustNew(t, Config{Policy: p})
		if err := allow(l, 7); err != nil {
			t.Fatal(err)
		}
		p.Burst, p.Adaptive.Initial = 20, 9
		if err := l.Update(Config{Policy: p}); err != nil {
			t.Fatal(err)
		}
		if s := l.State().Scopes[0]; s.Callers != 1 || s.Concurrency.Limit != 7 {
			t.Errorf("%d buckets, limit %d, want both kept: 1, 7", s.Callers, s.Concurrency.Limit)
		}
		if err := allow(l, 4); !isRefused(err) {
			t.Errorf("4 of 3 tokens: %v", err)
		}
	})
}

func TestDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, wait := range []bool{false, true} {
			var events atomic.Int64
			c := Config{Policy: Policy{Rate: 1, Burst: 1, Wait: wait, MaxWait: 2 * time.Second,
				Adaptive: Adaptive{Enabled: true, Initial: 1, Max: 1}}, DryRun: true,
				OnLimit: func(e Event) {
					events.Add(1)
					if !e.DryRun {
						t.Error("event without DryRun")
					}
				}}
			l := mustNew(t, c)
			r, stop := newRig(t, rigOptions{server: l})
			began := time.Now()
			for _, kind := range kinds {
				if err := r.call(t.Context(), kind, 1); err != nil {
					t.Errorf("wait %v, %s: %v, want everything let through", wait, kind, err)
				}
			}
			want := uint64(3)
			if wait {
				want = 1 // two would have waited for one and two seconds
			}
			s := l.State()
			if !s.DryRun || s.Scopes[0].Admitted != 4 || s.Scopes[0].Refused.Rate != want || events.Load() != int64(want) || time.Since(began) != 0 {
				t.Errorf("wait %v: %+v, %d events after %v, want 4 admitted, %d refused at once", wait, s, events.Load(), time.Since(began), want)
			}
			stop()
		}
	})
}
