package retry

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

const ms = int64(time.Millisecond)

// plainLimits are those of the zero policy.
func plainLimits(t *testing.T) limits {
	t.Helper()
	r, err := new(Policy).resolve()
	if err != nil {
		t.Fatal(err)
	}
	return r.limits
}

func TestRetryable(t *testing.T) {
	deadline := failure{code: codes.DeadlineExceeded, timedOut: true}
	for _, tt := range []struct {
		name       string
		f          failure
		any, idemp bool // whether it is retried for any method, and for an idempotent one
	}{
		{"the server says UNAVAILABLE", failure{code: codes.Unavailable}, false, true},
		{"nothing was sent", failure{code: codes.Unavailable, unsent: true}, true, true},
		{"nothing was sent, and it is no use", failure{code: codes.Unauthenticated, unsent: true}, false, false},
		{"another code", failure{code: codes.NotFound}, false, false},
		{"pushback of 0 or more, any code", failure{code: codes.ResourceExhausted, push: comeBack}, true, true},
		{"negative pushback", failure{code: codes.Unavailable, push: stayAway}, false, false},
		{"negative pushback, nothing sent", failure{code: codes.Unavailable, unsent: true, push: stayAway}, false, false},
		{"an open breaker", failure{code: codes.Unavailable, forbidden: true}, false, false},
		{"an open breaker, nothing sent", failure{code: codes.Unavailable, forbidden: true, unsent: true}, false, false},
		{"the caller is gone", failure{code: codes.Unavailable, over: true}, false, false},
		{"pushback, but the caller is gone", failure{code: codes.Unavailable, over: true, push: comeBack}, false, false},
		{"the attempt's time is over", deadline, false, true},
		{"the server's deadline", failure{code: codes.DeadlineExceeded}, false, false},
		{"the attempt's time is over in the queue", failure{code: codes.DeadlineExceeded, timedOut: true, unsent: true}, true, true},
		{"RetryInfo alone is no leave", failure{code: codes.Aborted, after: time.Second}, false, false},
	} {
		l := plainLimits(t)
		if any, idemp := l.retryable(tt.f, false), l.retryable(tt.f, true); any != tt.any || idemp != tt.idemp {
			t.Errorf("%s: retryable for any method %v, idempotent %v, want %v and %v", tt.name, any, idemp, tt.any, tt.idemp)
		}
	}
}

func TestNext(t *testing.T) {
	type step struct {
		at   int64 // ms
		f    failure
		want decision
	}
	down := failure{code: codes.Unavailable, unsent: true}
	back := func(d time.Duration) failure {
		return failure{code: codes.ResourceExhausted, push: comeBack, after: d}
	}
	again := func(d time.Duration) decision { return decision{retry: true, wait: d} }
	half := uint64(math.MaxUint64/2 + 1) // draws the middle of every backoff
	for _, tt := range []struct {
		name     string
		max      int
		deadline int64 // ms
		typical  int64 // ms
		steps    []step
	}{
		{"the bound doubles", 20, 0, 0, []step{
			{0, down, again(12500 * time.Microsecond)}, {1, down, again(25 * time.Millisecond)},
			{2, down, again(50 * time.Millisecond)}, {3, down, again(100 * time.Millisecond)},
			{4, down, again(200 * time.Millisecond)}, {5, down, again(400 * time.Millisecond)},
			{6, down, again(500 * time.Millisecond)}, {7, down, again(500 * time.Millisecond)},
		}},
		{"attempts are counted", 3, 0, 0, []step{
			{0, down, again(12500 * time.Microsecond)}, {0, down, again(25 * time.Millisecond)},
			{0, down, decision{why: Exhausted}},
		}},
		{"one attempt", 1, 0, 0, []step{{0, down, decision{why: Exhausted}}}},
		{"pushback is exact, and backoff starts over", 20, 0, 0, []step{
			{0, down, again(12500 * time.Microsecond)}, {0, down, again(25 * time.Millisecond)},
			{0, back(70 * time.Millisecond), again(70 * time.Millisecond)}, {0, back(0), again(0)},
			{0, down, again(12500 * time.Microsecond)},
		}},
		{"a pushback that is too long", 20, 0, 0, []step{
			{0, back(time.Minute), again(time.Minute)}, {0, back(time.Minute + 1), decision{why: PushedBack}},
		}},
		{"RetryInfo comes on top", 20, 0, 0, []step{
			{0, failure{code: codes.Unavailable, unsent: true, after: time.Second}, again(1012500 * time.Microsecond)},
		}},
		{"no wait beyond the deadline", 20, 100, 0, []step{
			{87, down, again(12500 * time.Microsecond)}, {88, back(12 * time.Millisecond), decision{why: NoTime}},
			{88, back(11 * time.Millisecond), again(11 * time.Millisecond)},
		}},
		{"no attempt that cannot finish", 20, 100, 50, []step{
			{0, back(49 * time.Millisecond), again(49 * time.Millisecond)},
			{0, back(50 * time.Millisecond), decision{why: NoTime}},
		}},
		{"the deadline is past", 20, 100, 0, []step{{200, back(0), decision{why: NoTime}}}},
		{"the clock goes backwards", 20, 100, 0, []step{
			{99, down, decision{why: NoTime}}, {10, back(0), again(0)}, {-500, back(0), again(0)},
		}},
		{"why not", 20, 0, 0, []step{
			{0, failure{code: codes.NotFound}, decision{why: NotRetryable}},
			{0, failure{code: codes.Unavailable, over: true}, decision{why: CallerGone}},
			{0, failure{code: codes.Unavailable, forbidden: true}, decision{why: Forbidden}},
			{0, failure{code: codes.Unavailable, push: stayAway}, decision{why: PushedBack}},
		}},
	} {
		l := plainLimits(t)
		l.maxAttempts = tt.max
		var p progress
		for i, s := range tt.steps {
			p.attempts++
			got := p.next(&l, s.f, false, moment{now: s.at * ms, deadline: tt.deadline * ms, typical: tt.typical * ms, draw: half})
			if got != s.want {
				t.Errorf("%s: step %d: %+v, want %+v", tt.name, i, got, s.want)
			}
		}
	}
}

// TestEndsChain: a wait that is too long is a reason like the others, unlike a service that wants no retry.
func TestEndsChain(t *testing.T) {
	stop := failure{code: codes.Unavailable, push: stayAway}
	long := failure{code: codes.Unavailable, push: comeBack, after: time.Hour}
	local := failure{code: codes.ResourceExhausted, local: true, after: time.Hour}
	for _, tt := range []struct {
		name        string
		failures    []failure
		helps, want bool
	}{
		{"told not to", []failure{stop}, false, true},
		{"told not to, while retries help", []failure{stop}, true, true},
		{"told not to, and by another attempt to wait for long", []failure{stop, long}, true, true},
		{"told to wait for long", []failure{long}, false, true},
		{"told to wait for long, while retries help", []failure{long}, true, false},
		{"turned away for long before anything was sent", []failure{local}, false, false},
		{"turned away for long after an attempt got through", []failure{{code: codes.Unavailable}, local}, false, true},
	} {
		l := plainLimits(t)
		var p progress
		for _, f := range tt.failures {
			p.failed(f)
		}
		if got := p.endsChain(&l, PushedBack, tt.helps); got != tt.want {
			t.Errorf("%s: ends the chain: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestExperience: it takes some dozen retries to learn, and five minutes without one to forget.
func TestExperience(t *testing.T) {
	type step struct {
		at        time.Duration
		retries   int // that many, with this end
		succeeded bool
		want      bool
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"none was seen", []step{{0, 0, true, false}}},
		{"a few say nothing", []step{{time.Hour, 20, true, false}, {time.Hour, 5, true, true}}},
		{"an outage ends it", []step{{time.Hour, 100, true, true}, {time.Hour + time.Second, 20, false, true}, {time.Hour + time.Minute, 5, false, false}}},
		{"kept for five minutes", []step{{time.Hour, 100, true, true}, {time.Hour + 5*time.Minute - 1, 0, true, true}}},
		{"forgotten after five minutes", []step{{time.Hour, 100, true, true}, {time.Hour + 5*time.Minute, 0, true, false}}},
		{"a retry after that starts anew", []step{{time.Hour, 100, true, true}, {2 * time.Hour, 1, true, false}, {2 * time.Hour, 30, true, true}}},
		{"the clock goes backwards", []step{{time.Hour, 100, true, true}, {time.Minute, 1, true, true}, {6 * time.Minute, 0, true, false}}},
	} {
		var e experience
		for i, s := range tt.steps {
			for range s.retries {
				e.add(int64(s.at), s.succeeded)
			}
			if got := e.helps(int64(s.at)); got != s.want {
				t.Errorf("%s: step %d: retries help: %v, want %v", tt.name, i, got, s.want)
			}
		}
	}
}

// TestBackoffIsUniform judges the jitter by chi-square: 20 bins, 19 degrees of freedom, 43.8 is the 0.1 % point.
func TestBackoffIsUniform(t *testing.T) {
	l := plainLimits(t)
	rng := rand.New(rand.NewPCG(1, 2))
	const n, bins = 20000, 20
	for k := range 8 {
		bound := min(25*time.Millisecond<<k, time.Second)
		var seen [bins]int
		for range n {
			d := l.backoff(k, rng.Uint64())
			if d < 0 || d >= bound {
				t.Fatalf("backoff %d = %v, want below %v", k, d, bound)
			}
			seen[int64(d)*bins/int64(bound)]++
		}
		chi := 0.0
		for _, s := range seen {
			diff := float64(s) - n/bins
			chi += diff * diff / (n / bins)
		}
		if chi > 43.8 {
			t.Errorf("backoff %d: chi-square = %.1f, want 43.8 at most: %v", k, chi, seen)
		}
	}
	for _, k := range []int{61, 62, 63, 64, 1000} {
		if d := l.backoff(k, math.MaxUint64); d < 999*time.Millisecond || d >= time.Second {
			t.Errorf("backoff %d = %v with the largest draw, want just below 1s", k, d)
		}
	}
}
