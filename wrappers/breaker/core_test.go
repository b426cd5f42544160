package breaker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/outcome"
)

func TestJudge(t *testing.T) {
	for _, x := range []struct {
		class        outcome.Class
		code         codes.Code
		doubt, probe bool
		want         verdict
	}{
		{outcome.OK, codes.OK, false, false, success},
		{outcome.OK, codes.NotFound, false, false, success}, // a classifier may say so
		{outcome.Failure, codes.Unavailable, false, false, failure},
		{outcome.Failure, codes.Unavailable, false, true, failure},
		{outcome.Failure, codes.Unknown, true, false, doubtful},
		{outcome.Soft, codes.ResourceExhausted, false, false, excluded},
		{outcome.Soft, codes.ResourceExhausted, false, true, excluded},
		{outcome.Ignore, codes.NotFound, false, false, excluded},
		{outcome.Ignore, codes.NotFound, false, true, success}, // the service answers: that is what a probe asks
		{outcome.Ignore, codes.Canceled, false, true, excluded},
		{outcome.Ignore, codes.DeadlineExceeded, false, true, excluded},
		{outcome.Ignore, codes.Unavailable, false, true, excluded},
	} {
		if got := judge(x.class, x.code, x.doubt, x.probe); got != x.want {
			t.Errorf("judge(%v, %v, doubt %v, probe %v) = %v, want %v", x.class, x.code, x.doubt, x.probe, got, x.want)
		}
	}
}

func TestLimitsTrip(t *testing.T) {
	zero := limits{run: 10, ratio: 0.5, minCalls: 20}
	for name, x := range map[string]struct {
		l    limits
		t    tally
		want bool
	}{
		"nothing":                              {zero, tally{}, false},
		"a run, one short":                     {zero, tally{100, 9, 9, 9}, false},
		"a run":                                {zero, tally{100, 10, 10, 10}, true},
		"a doubtful run in a good window":      {zero, tally{100, 10, 10, 9}, false},
		"a doubtful run in a bad window":       {limits{run: 3, ratio: 1, minCalls: 20}, tally{3, 3, 3, 0}, true},
		"a doubtful run just below half":       {limits{run: 3, ratio: 1, minCalls: 20}, tally{4, 3, 3, 0}, false},
		"half, too few":                        {zero, tally{10, 9, 1, 1}, false},
		"half":                                 {zero, tally{10, 10, 1, 1}, true},
		"below half":                           {zero, tally{51, 49, 1, 1}, false},
		"run switched off":                     {limits{ratio: 0.9, minCalls: 200}, tally{50, 100, 100, 100}, false},
		"ratio switched off":                   {limits{run: 10, minCalls: 20}, tally{50, 100, 1, 1}, false},
		"ratio of 1, all failed":               {limits{ratio: 1, minCalls: 2}, tally{0, 2, 2, 2}, true},
		"counts at their end do not overflow":  {zero, tally{0, 1<<31 + 1, 1, 1}, true},
		"everything switched off never, ever!": {limits{minCalls: 1}, tally{0, 1000, 1000, 1000}, false},
	} {
		if got := x.l.trips(x.t); got != x.want {
			t.Errorf("%s: trips = %v, want %v", name, got, x.want)
		}
	}
}

func TestRamp(t *testing.T) {
	r := ramp{began: 1000, length: 100, from: 0.1}
	for _, x := range []struct {
		now   int64
		share float64
	}{{1000, 0.1}, {1050, 0.55}, {1099, 0.991}, {1100, 1}, {5000, 1},
		{900, 0.1}, // the clock went backwards
		{-1 << 62, 0.1}} {
		if got := r.share(x.now); got < x.share-1e-9 || got > x.share+1e-9 {
			t.Errorf("share at %d = %v, want %v", x.now, got, x.share)
		}
		edge := uint64(x.share * (1 << 32)) // in units of 2^32
		if x.share < 1 && (!r.admits(x.now, (edge-1<<8)<<32) || r.admits(x.now, (edge+1<<8)<<32)) {
			t.Errorf("at %d draws below %v of the range, and only those, are to be admitted", x.now, x.share)
		}
		if x.share == 1 && !r.admits(x.now, 1<<64-1) {
			t.Errorf("at %d every draw is to be admitted", x.now)
		}
	}
	if !(ramp{}).over(1) || (ramp{}).share(1) != 1 {
		t.Error("the zero ramp is not over")
	}
}

func TestBulkheadUnderConcurrency(t *testing.T) {
	const limit = 3
	var (
		b      bulkhead
		inside atomic.Int64
		wg     sync.WaitGroup
		served atomic.Int64
	)
	for range 8 {
		wg.Go(func() {
			for range 5000 {
				if !b.enter(limit) {
					continue
				}
				if n := inside.Add(1); n > limit {
					t.Errorf("%d inside, want %d at most", n, limit)
				}
				served.Add(1)
				inside.Add(-1)
				b.leave()
			}
		})
	}
	wg.Wait()
	if n := b.n.Load(); n != 0 || served.Load() == 0 {
		t.Errorf("%d are left inside, want 0; %d were served, want some", n, served.Load())
	}
}

func TestSlowWindow(t *testing.T) {
	l := &limits{minCalls: 4, slowRatio: 0.5}
	w := newSlowWindow(100, 10)
	for i, x := range []struct {
		at    int64
		slow  bool
		calls uint32
		trips bool
	}{
		{1005, true, 1, false}, // slow, but too few
		{1015, true, 2, false},
		{1025, false, 3, false},
		{1035, false, 4, true}, // half of four
		{1036, false, 5, false},
		{1037, true, 6, true},
		{1020, false, 7, false}, // the clock went backwards: counted where the window stands
		{1101, true, 7, false},  // the first one is out of the window: 3 of 7
		{1300, false, 1, false}, // all of them are
	} {
		w.record(x.at, x.slow)
		if w.sum.calls != x.calls || w.trips(x.at, l) != x.trips {
			t.Errorf("step %d at %d: %+v, trips %v, want %d calls, trips %v", i, x.at, w.sum, !x.trips, x.calls, x.trips)
		}
	}
}

// TestSlowWindowAgainstList: the ring says what a list of all calls says.
func TestSlowWindowAgainstList(t *testing.T) {
	type record struct {
		bucket int64
		slow   bool
	}
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		period := rng.Int64N(20) + 1
		n := rng.Int64N(12) + 1
		w := newSlowWindow(n*period, period)
		var ahead brisk
		var list []record
		var now, latest int64 = 1, 0
		for range 500 {
			now = max(1, now+rng.Int64N(period*3)-period/2) // now and then backwards
			if rng.IntN(50) == 0 {
				now += n * period * rng.Int64N(3)
			}
			latest = max(latest, now/period)
			slow := rng.IntN(3) == 0
			if slow || !ahead.add(now) {
				w.join(now, &ahead)
				w.record(now, slow)
			}
			list = append(list, record{latest, slow})
			list = slices.DeleteFunc(list, func(r record) bool { return r.bucket <= latest-n })
			want := slowCounts{calls: uint32(len(list))}
			for _, r := range list {
				if r.slow {
					want.slow++
				}
			}
			got := w.sum
			got.calls += ahead.calls.Load()
			if got != want {
				t.Fatalf("seed %d at %d: %+v, want %+v", seed, now, got, want)
			}
		}
	}
}

func TestProbes(t *testing.T) {
	var p probes
	told := ""
	done := func(name string) func(error) { return func(error) { told += name } }
	a, b, c := p.add(100, 1, done("a")), p.add(110, 1, done("b")), p.add(200, 1, done("c"))
	if a == 0 || a == b || b == c {
		t.Fatalf("numbers %d, %d, %d, want different ones that are not 0", a, b, c)
	}
	for i, x := range []struct {
		at      int64
		openFor int64
		late    string
		v       verdict
	}{
		{99, 50, "", excluded},
		{90, 50, "", excluded},      // the clock went backwards
		{100, 50, "a", failure},     // just now
		{160, 50, "b", excluded},    // openFor has passed since 110 as well
		{199, 50, "", excluded},     //
		{1 << 62, 50, "", excluded}, // c has ended before
	} {
		if i == 5 && !p.end(c) {
			t.Error("end(c) = false, want true: its time is not over")
		}
		late, v := p.expire(x.at, x.openFor)
		told = ""
		for _, l := range late {
			l.done(nil)
		}
		if told != x.late || len(late) > 0 && v != x.v {
			t.Errorf("step %d at %d: expired %q as %v, want %q as %v", i, x.at, told, v, x.late, x.v)
		}
	}
	for _, id := range []uint64{0, a, b, c, 99} {
		if p.end(id) {
			t.Errorf("end(%d) = true, want false: it is out already", id)
		}
	}
	if len(p.out) != 0 {
		t.Errorf("%d probes are left, want none", len(p.out))
	}
}

func TestTenure(t *testing.T) {
	var n tenure
	for i, x := range []struct {
		at   int64
		used bool
		idle bool
	}{
		{0, true, false}, {9, false, false}, {10, false, true}, {11, true, false}, {20, false, false},
		{15, false, false}, // the clock went backwards
		{21, false, true}} {
		n.look(x.at, x.used)
		if got := n.idle(x.at, 10); got != x.idle {
			t.Errorf("step %d at %d: idle = %v, want %v", i, x.at, got, x.idle)
		}
	}
}

func TestVictim(t *testing.T) {
	at := func(seen int64, keep bool) occupant { return occupant{tenure{seen}, keep} }
	for i, x := range []struct {
		all  []occupant
		want int
	}{
		{nil, -1},
		{[]occupant{at(1, true)}, -1},
		{[]occupant{at(5, false), at(1, true), at(3, false)}, 2},
		{[]occupant{at(5, false), at(5, false)}, 0},
	} {
		if got := victim(x.all); got != x.want {
			t.Errorf("case %d: victim = %d, want %d", i, got, x.want)
		}
	}
}

func (v verdict) String() string {
	return fmt.Sprint([...]string{"success", "failure", "doubtful", "excluded"}[v])
}
