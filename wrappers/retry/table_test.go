package retry

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The tests of this file are the rows of the table in issue 3 that retries have to do with. Each logs what is seen
// without the feature, and fails if that would pass as well.

// oneDown is a handler: server 0 is down.
func oneDown(i int, _ kind, s grpc.ServerStream) error {
	if i == 0 {
		return errDown
	}
	return echo(i, s)
}

// tally is the outcome of many calls.
type tally struct {
	calls, failed int
	most          int64 // attempts of one call
	attempts      int64
}

// many makes calls one after another.
func many(f *fleet, n int, method string) (r tally) {
	for range n {
		before := f.total()
		if _, err := f.hello(context.Background(), method, grpc.WaitForReady(true)); err != nil {
			r.failed++
		}
		made := f.total() - before
		r.calls, r.attempts, r.most = r.calls+1, r.attempts+made, max(r.most, made)
	}
	return r
}

// parallel is many by 8 callers at once; the most attempts of a call are not known then.
func parallel(f *fleet, n int, method string) (r tally) {
	before := f.total()
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				if _, err := f.hello(context.Background(), method, grpc.WaitForReady(true)); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return tally{calls: n / 8 * 8, failed: int(failed.Load()), attempts: f.total() - before}
}

// Row: 1 of 3 endpoints answers UNAVAILABLE, methods declared idempotent, blacklist on: 100 % of 10,000 calls succeed
// with at most 1 retry each.
func TestOneOfThreeDown(t *testing.T) {
	run := func(c *Config, calls func(*fleet, int, string) tally) (out tally) {
		synctest.Test(t, func(t *testing.T) {
			var r *Retrier
			if c != nil {
				r = newTest(t, *c) // in the bubble, whose clock is another
			}
			f := newFleet(t, 3, ours, r, oneDown).warm()
			defer f.close()
			out = calls(f, 10_000, unaryKind.declared())
		})
		return out
	}
	var most atomic.Int64
	watched := &Config{OnRetry: func(e Event) { most.Store(max(most.Load(), int64(e.Attempts))) }}
	with := run(watched, many)
	without := run(nil, many)
	crowd := run(watched, parallel)
	t.Logf("with: %+v; 8 callers: %+v; without: %+v", with, crowd, without)
	if with.failed != 0 || with.most > 2 || crowd.failed != 0 {
		t.Errorf("%d and %d calls failed, one had %d attempts, want none failed and 2 attempts at most",
			with.failed, crowd.failed, with.most)
	}
	if most.Load() != 1 {
		t.Errorf("the retry of a call was number %d, want 1 only", most.Load())
	}
	if without.failed == 0 {
		t.Error("no call failed without retries, so this shows nothing")
	}
}

// Row: the same on plain round_robin, budget 60 %: 100 % succeed within 3 attempts.
func TestOneOfThreeDownRoundRobin(t *testing.T) {
	run := func(p Policy) (out tally) {
		synctest.Test(t, func(t *testing.T) {
			p.Budget = budget(t, 60, 1)
			f := newFleet(t, 3, roundRobin, newTest(t, Config{Policy: p}), oneDown).warm()
			defer f.close()
			out = many(f, 10_000, unaryKind.declared())
		})
		return out
	}
	with, without := run(Policy{}), run(Policy{MaxAttempts: 1})
	t.Logf("with: %+v; without: %+v", with, without)
	if with.failed > 0 || with.most > 3 {
		t.Errorf("%d calls failed, one had %d attempts, want none and 3 at most", with.failed, with.most)
	}
	if without.failed == 0 {
		t.Error("no call failed without retries, so this shows nothing")
	}
}

// Row: all endpoints answer UNAVAILABLE for 10 s at 1,000 calls/s: attempts per call at most 1.2 plus the floor;
// recovery within 1 s of theirs.
func TestStorm(t *testing.T) {
	const rate, outage, floor = 1000, 10 * time.Second, 10 * 10
	type result struct {
		calls, attempts int64
		recovered       time.Duration // after the servers did
	}
	run := func(p Policy, policy string) (out result) {
		synctest.Test(t, func(t *testing.T) {
			var down atomic.Bool
			f := newFleet(t, 3, policy, newTest(t, Config{Policy: p}), func(i int, _ kind, s grpc.ServerStream) error {
				if down.Load() {
					return errDown
				}
				return echo(i, s)
			})
			defer f.warm().close()
			var wg sync.WaitGroup
			defer wg.Wait()
			var lastFailure atomic.Int64
			began := time.Now()
			second := func(n int) {
				for range n * rate {
					wg.Go(func() {
						if _, err := f.hello(context.Background(), unaryKind.declared()); err != nil {
							lastFailure.Store(int64(time.Since(began)))
						}
					})
					time.Sleep(time.Second / rate)
				}
			}
			second(10) // a good time that fills the budget
			down.Store(true)
			before := f.total()
			second(int(outage / time.Second))
			out.calls, out.attempts = int64(outage/time.Second*rate), f.total()-before
			down.Store(false)
			up := time.Since(began)
			second(3)
			wg.Wait()
			out.recovered = time.Duration(lastFailure.Load()) - up
		})
		return out
	}
	for _, policy := range policies {
		with := run(Policy{}, policy)
		t.Logf("%s: %d calls, %d attempts, the last failure %v after the servers were back",
			policy, with.calls, with.attempts, with.recovered)
		if most := with.calls*12/10 + floor; with.attempts > most {
			t.Errorf("%s: %d attempts, want %d at most", policy, with.attempts, most)
		}
		if with.attempts < with.calls*11/10 {
			t.Errorf("%s: %d attempts, want some retries", policy, with.attempts)
		}
		if with.recovered > time.Second {
			t.Errorf("%s: recovered %v after the servers, want 1s at most", policy, with.recovered)
		}
	}
	without := run(Policy{Budget: budgetWithout(t)}, roundRobin)
	t.Logf("without a budget %d attempts", without.attempts)
	if without.attempts <= without.calls*12/10+floor {
		t.Errorf("%d attempts without a budget, so this shows nothing", without.attempts)
	}
}

// budgetWithout is as good as none.
func budgetWithout(t *testing.T) *Budget { return budget(t, 1000, 0) }

// Row: a non-idempotent method fails after the server got it: 1 attempt.
func TestNotIdempotent(t *testing.T) {
	for _, policy := range policies {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2, policy, newTest(t, Config{}), func(_ int, _ kind, s grpc.ServerStream) error {
				if err := receive(s); err != nil {
					return err
				}
				return errDown
			})
			defer f.warm().close()
			for _, k := range kinds {
				for _, tt := range []struct {
					method string
					want   int64
				}{{k.plain(), 1}, {k.declared(), map[bool]int64{true: 3, false: 1}[!k.desc().ClientStreams]}} {
					before := f.total()
					_, err := f.exchange(context.Background(), k, tt.method, grpc.WaitForReady(true))
					if status.Code(err) != codes.Unavailable {
						t.Errorf("%s %s: %v, want UNAVAILABLE", policy, tt.method, err)
					}
					if got := f.total() - before; got != tt.want {
						t.Errorf("%s %s: %d attempts, want %d", policy, tt.method, got, tt.want)
					}
					var tried *Error
					if errors.As(err, &tried) != (tt.want > 1) {
						t.Errorf("%s %s: the error is a %T, want an account if and only if it was tried again", policy, tt.method, err)
					}
				}
			}
		})
	}
}

// With 2 endpoints of which one is dead, and a budget that allows it, the second attempt always succeeds.
func TestOneOfTwoDown(t *testing.T) {
	run := func(policy string) (out tally) {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2, policy, newTest(t, Config{Policy: Policy{MaxAttempts: 2, Budget: budget(t, 100, 1)}}), oneDown).warm()
			defer f.close()
			out = parallel(f, 4000, unaryKind.declared())
		})
		return out
	}
	with, without := run(noBlacklist), run("round_robin")
	t.Logf("with our balancer: %+v; with round_robin: %+v", with, without)
	if with.failed != 0 || with.attempts > 2*int64(with.calls) || with.attempts == int64(with.calls) {
		t.Errorf("%d of %d calls failed with %d attempts, want none, with 2 each at most", with.failed, with.calls, with.attempts)
	}
	if without.failed == 0 {
		t.Error("no call failed without the set of tried endpoints, so this shows nothing")
	}
}

// Row: policies are replaced while 8 callers run: no race, no failed call, the new policy holds.
func TestUpdateUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{Policy: Policy{Budget: budget(t, 100, 0)}})
		var seen sync.Map
		f := newFleet(t, 3, noBlacklist, r, func(i int, k kind, s grpc.ServerStream) error {
			if i == 0 {
				return errDown
			}
			if err := takes(s.Context(), time.Millisecond); err != nil {
				return err
			}
			deadline, ok := s.Context().Deadline()
			seen.Store(ok && time.Until(deadline) < 3*time.Second, true)
			return echo(i, s)
		})
		defer f.warm().close()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		var calls atomic.Int64
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := f.hello(context.Background(), unaryKind.declared(), grpc.WaitForReady(true)); err != nil {
						t.Errorf("call %d: %v", calls.Load(), err)
					}
					calls.Add(1)
				}
			})
		}
		for i := range 200 {
			c := Config{Policy: Policy{MaxAttempts: 2 + i%3, Budget: budget(t, 100, 0)}}
			if i%2 == 1 {
				c.Hedge = Hedge{Delay: 5 * time.Millisecond}
			}
			if err := r.Update(c); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if _, ok := seen.Load(true); ok {
			t.Error("a call had a deadline before a policy gave it one")
		}
		if err := r.Update(Config{Policy: Policy{Timeout: 2 * time.Second, Budget: budget(t, 100, 0)}}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		seen.Clear()
		time.Sleep(time.Second)
		if _, ok := seen.Load(false); ok {
			t.Error("a call had no deadline a second after a policy gave all calls one")
		}
		close(stop)
		wg.Wait()
		if err := r.Update(Config{Policy: Policy{MaxAttempts: -1}}); err == nil {
			t.Error("an invalid policy was accepted")
		}
		t.Logf("%d calls", calls.Load())
	})
}
