package ratelimit

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/outcome"
)

// TestGateHoldsGoals puts the gate into servers that differ in size and in how long calls take, at loads from
// light to ten times too much, after three seconds in which it may find its way.
func TestGateHoldsGoals(t *testing.T) {
	loads := []struct {
		load            float64
		goodput         float64 // at least, of capacity
		goodputOfTwo    float64 // the same for 2 workers, which idle more between arrivals
		refused, refTwo float64 // at most, of arrivals
	}{
		{0.5, 0.48, 0.48, 0.001, 0.005},
		{0.7, 0.66, 0.66, 0.01, 0.02},
		{0.9, 0.83, 0.82, 0.06, 0.075},
		{1.5, 0.95, 0.92, 0.38, 0.40},
		{3, 0.95, 0.95, 0.69, 0.69},
		{10, 0.95, 0.95, 0.91, 0.91},
	}
	for i, sv := range services {
		for _, c := range []int{2, 8, 32} {
			capacity := float64(c) * 100
			alone := newSim(c, sv.draw, nil, 1)
			alone.run(time.Duration(240/c)*time.Second, 0.1*capacity)
			p99 := alone.quantile(0.99)
			times := 2.2 // of p99 at most
			if c == 2 {
				times = 2.7
			}
			for _, l := range loads {
				if i > 0 && c > 2 && l.load == 10 {
					continue // it is alike for all services, and most of all calls
				}
				g := testGate(t, Adaptive{Enabled: true}, 3)
				s := newSim(c, sv.draw, g, 2)
				s.run(2*time.Second, 0.3*capacity)
				s.run(3*time.Second, l.load*capacity)
				s.reset()
				s.run(15*time.Second, l.load*capacity) // with a probe among them, which comes every 10 s
				goodput, most := l.goodput, l.refused
				if c == 2 {
					goodput, most = l.goodputOfTwo, l.refTwo
				}
				if got := s.goodput(s.now) / capacity; got < goodput {
					t.Errorf("%s, %d workers, load %v: goodput = %.3f of capacity, want %v", sv.name, c, l.load, got, goodput)
				}
				if got := float64(s.refused) / float64(s.arrived); got > most {
					t.Errorf("%s, %d workers, load %v: %.3f refused, want at most %v", sv.name, c, l.load, got, most)
				}
				if got := s.quantile(0.99); l.load > 1 && float64(got) > times*float64(p99) {
					t.Errorf("%s, %d workers, load %v: p99 = %v, want at most %v times %v", sv.name, c, l.load, got, times, p99)
				}
			}
		}
	}
}

// TestGateFollowsTheServer changes the server under a steady overload.
func TestGateFollowsTheServer(t *testing.T) {
	cases := []struct {
		name   string
		change func(s *sim)
		// capacity and latency of a call by itself, afterwards
		capacity float64
		alone    time.Duration
	}{
		{"half of the workers go", func(s *sim) { s.workers = 4 }, 400, 10 * time.Millisecond},
		{"twice as many workers", func(s *sim) { s.workers = 16 }, 1600, 10 * time.Millisecond},
		{"calls take five times as long", func(s *sim) {
			s.service = func(*rand.Rand) time.Duration { return 50 * time.Millisecond }
		}, 160, 50 * time.Millisecond},
		{"calls take a fifth", func(s *sim) {
			s.service = func(*rand.Rand) time.Duration { return 2 * time.Millisecond }
		}, 4000, 2 * time.Millisecond},
	}
	for _, c := range cases {
		s := newSim(8, services[0].draw, testGate(t, Adaptive{Enabled: true}, 3), 2)
		s.run(10*time.Second, 2400)
		c.change(s)
		s.run(12*time.Second, 3*c.capacity)
		s.reset()
		s.run(20*time.Second, 3*c.capacity)
		if got := s.goodput(s.now) / c.capacity; got < 0.93 {
			t.Errorf("%s: goodput = %.3f of capacity, want 0.93; limit %v, base %v", c.name, got, s.gate.limit, s.gate.state().Base)
		}
		if got := s.quantile(0.99); got > 3*c.alone {
			t.Errorf("%s: p99 = %v, want at most 3 times %v; limit %v", c.name, got, c.alone, s.gate.limit)
		}
	}
}

// TestGateTakesNoSlownessForQueueing: a server without queue, such as one that waits for a slow dependency, needs
// as many calls in progress as there are, and the gate must not stand in the way for long.
func TestGateTakesNoSlownessForQueueing(t *testing.T) {
	fast := func(*rand.Rand) time.Duration { return 10 * time.Millisecond }
	s := newSim(1e6, fast, testGate(t, Adaptive{Enabled: true}, 3), 2)
	s.run(5*time.Second, 1000)
	s.service = func(*rand.Rand) time.Duration { return 200 * time.Millisecond } // 200 in progress instead of 10
	s.run(30*time.Second, 1000)
	s.reset()
	s.run(20*time.Second, 1000)
	if got := float64(s.refused) / float64(s.arrived); got > 0.02 {
		t.Errorf("%.3f refused, want hardly any; limit %v, %+v", got, s.gate.limit, s.gate.state())
	}
}

// TestGateBelowCapacity: a server that is busy, not overloaded, is not lowered to find out what it knows, and its idea
// of what a call takes is neither the queueing of the busy hours nor the luckiest window.
func TestGateBelowCapacity(t *testing.T) {
	exponential := services[2].draw
	var refused, arrived int
	for seed := range uint64(4) {
		s := newSim(8, exponential, testGate(t, Adaptive{Enabled: true}, seed), seed)
		s.run(5*time.Second, 400)
		s.reset()
		for range 6000 {
			if s.run(10*time.Millisecond, 720); s.gate.probe.on {
				t.Fatalf("seed %d: a probe at nine tenths of the capacity, with %d of %d refused", seed, s.refused, s.arrived)
			}
		}
		refused, arrived = refused+s.refused, arrived+s.arrived
		if got := s.gate.state().Base; got < 8*time.Millisecond || got > 14*time.Millisecond {
			t.Errorf("seed %d: base = %v, want about 10ms", seed, got)
		}
	}
	if got := float64(refused) / float64(arrived); got > 0.015 {
		t.Errorf("%.4f refused at nine tenths of the capacity, want at most 0.015", got)
	}
}

// TestGateProfile: one call that hangs among many that do not is no reason to let everybody wait.
func TestGateProfile(t *testing.T) {
	g := testGate(t, Adaptive{Enabled: true}, 1)
	now := int64(1)
	for i := range 100 {
		_, tm, _ := g.arrive(now, "/s/m", outcome.NoDeadline)
		took := int64(10 * time.Millisecond)
		if i == 40 {
			took = int64(time.Minute)
		}
		g.leave(now+took, now, tm, served)
		now += int64(10 * time.Millisecond)
	}
	if got := g.state().Base; got < 10*time.Millisecond || got > 13*time.Millisecond {
		t.Errorf("base = %v after one call of a minute among a hundred of 10 ms", got)
	}
	if got := time.Duration(g.aimLocked()); got > 45*time.Millisecond {
		t.Errorf("calls may take %v, want 10 ms and a few times that", got)
	}
}

// TestGateStartsOverloaded: nobody ever saw what a call takes by itself.
func TestGateStartsOverloaded(t *testing.T) {
	for _, initial := range []int{4, 20, 200} {
		s := newSim(2, services[0].draw, testGate(t, Adaptive{Enabled: true, Initial: initial}, 3), 2)
		s.run(15*time.Second, 600)
		s.reset()
		s.run(20*time.Second, 600)
		if got := s.goodput(s.now) / 200; got < 0.9 {
			t.Errorf("initial %d: goodput = %.3f of capacity, want 0.9", initial, got)
		}
		if got := s.quantile(0.99); got > 35*time.Millisecond {
			t.Errorf("initial %d: p99 = %v, want about 30ms; %+v", initial, got, s.gate.state())
		}
	}
}

// TestGateRareCalls: windows of rare calls are long, and an hour without a call is no hour of overload. A burst that is
// cut a little is no reason to measure anything.
func TestGateRareCalls(t *testing.T) {
	const ms = time.Millisecond
	type bursts struct {
		n, calls int
		every    time.Duration
	}
	cases := []struct {
		name string
		do   []bursts // of calls that come at once and take 10 ms
	}{
		{"an idle hour", []bursts{{1003, 5, 100 * ms}, {1, 5, time.Hour}, {1, 21, time.Second}, {40, 5, time.Second}}},
		{"hourly bursts that are cut", []bursts{{10, 5, time.Second}, {50, 21, time.Hour}}},
		{"the clock goes backwards", []bursts{{13, 5, time.Second}, {1, 5, time.Hour}, {1, 21, -ms}, {40, 5, time.Second}}},
	}
	for _, c := range cases {
		g := testGate(t, Adaptive{Enabled: true}, 1)
		now, refused := int64(1), 0
		for _, b := range c.do {
			for range b.n {
				var in []*timing
				for range b.calls {
					if v, tm, _ := g.arrive(now, "/s/m", outcome.NoDeadline); v == enter {
						in = append(in, tm)
					}
				}
				refused += b.calls - len(in)
				for _, tm := range in {
					g.leave(now+int64(10*ms), now, tm, served)
				}
				if st := g.state(); st.Probing || st.Limit < 20 {
					t.Fatalf("%s: after %v, %d refused: %+v, want a limit of 20 or more and no probe", c.name,
						time.Duration(now), refused, st)
				}
				now += int64(b.every)
			}
		}
		if refused == 0 {
			t.Errorf("%s: nothing was refused, so nothing is shown", c.name)
		}
	}
}

// TestGateForgetsOverload: an overload almost long enough for a probe, a minute of rare calls, and another overload. The
// second is not taken for the end of the first.
func TestGateForgetsOverload(t *testing.T) {
	s := newSim(8, services[0].draw, testGate(t, Adaptive{Enabled: true}, 3), 2)
	s.run(2*time.Second, 240)
	for s.gate.probe.began == 0 || s.gate.probe.on { // the first probe finds the limit
		s.run(10*time.Millisecond, 2400)
	}
	for s.gate.probe.refused < int64(9*time.Second) {
		if s.run(10*time.Millisecond, 2400); s.gate.probe.on {
			t.Fatalf("a probe after %v of overload", time.Duration(s.gate.probe.refused))
		}
	}
	s.run(time.Minute, 2)
	for range 300 {
		if s.run(10*time.Millisecond, 2400); s.gate.probe.on {
			t.Fatalf("a probe within %v after a minute without overload", time.Duration(s.now))
		}
	}
}

type gateStep struct {
	at        time.Duration
	do        string // "arrive", "ok", "fail", "timeout": the oldest call in progress ends so
	remaining time.Duration
	want      verdict
}

func runGate(t *testing.T, g *gate, steps []gateStep) {
	t.Helper()
	type running struct {
		began int64
		t     *timing
	}
	var in []running
	for i, st := range steps {
		now := int64(st.at) + 1
		if st.do == "arrive" {
			remaining := outcome.NoDeadline
			if st.remaining > 0 {
				remaining = st.remaining
			}
			v, tm, _ := g.arrive(now, "/s/m", remaining)
			if v != st.want {
				t.Fatalf("step %d, %v: verdict = %d, want %d", i, st.at, v, st.want)
			}
			if v == enter {
				in = append(in, running{now, tm})
			}
			continue
		}
		e := map[string]ending{"ok": served, "fail": silent, "timeout": timedOut}[st.do]
		g.leave(now, in[0].began, in[0].t, e)
		in = in[1:]
	}
	if g.inFlight != len(in) {
		t.Errorf("in flight = %d, want %d", g.inFlight, len(in))
	}
}

func TestGateSteps(t *testing.T) {
	const ms = time.Millisecond
	runGate(t, testGate(t, Adaptive{Enabled: true, Initial: 2, Min: 2}, 1), []gateStep{
		{0, "arrive", 0, enter},
		{0, "arrive", 0, enter},
		{1 * ms, "arrive", 0, full},
		{100 * ms, "ok", 0, 0}, // a call takes 100 ms
		{100 * ms, "arrive", 0, enter},
		{110 * ms, "fail", 0, 0},
		{110 * ms, "arrive", 50 * ms, tooLate}, // what takes 100 ms is not begun with 50 left
		{110 * ms, "arrive", 101 * ms, enter},
		{120 * ms, "fail", 0, 0},
		{120 * ms, "fail", 0, 0},
		{130 * ms, "arrive", 50 * ms, enter}, // nothing is in progress: the server is at its best
		{130 * ms, "arrive", 50 * ms, tooLate},
		{10 * ms, "arrive", 50 * ms, tooLate}, // the clock goes backwards
		{1200 * ms, "arrive", 50 * ms, enter}, // nothing ended for a second: one is let in to find out
		{1201 * ms, "ok", 0, 0},
		{1201 * ms, "arrive", 50 * ms, tooLate},
		{1000 * ms, "ok", 0, 0}, // ends before it began
	})
}

// TestGateClockSetBack: calls that end before they began teach nothing, and after the clock was set back by an hour it is
// not an hour until something is learned again: neither how long calls take, nor what comes of a probe.
func TestGateClockSetBack(t *testing.T) {
	for _, probing := range []bool{false, true} {
		s := newSim(8, services[0].draw, testGate(t, Adaptive{Enabled: true}, 3), 2)
		s.timeout = time.Second
		s.run(10*time.Second, 2400)
		for s.gate.probe.on != probing {
			s.run(10*time.Millisecond, 2400)
		}
		s.set -= int64(time.Hour)
		low := s.gate.base.mean
		for range 1200 {
			s.run(10*time.Millisecond, 2400)
			low = min(low, s.gate.base.mean)
		}
		if low < 5e6 {
			t.Errorf("probing %v: base = %v, want about 10ms at all times", probing, time.Duration(low))
		}
		s.reset()
		s.run(10*time.Second, 2400)
		if got := s.goodput(s.now) / 800; got < 0.9 {
			t.Errorf("probing %v: goodput = %.3f of capacity, want 0.9; limit %v, %+v", probing, got, s.gate.limit, s.gate.state())
		}
	}
	g := testGate(t, Adaptive{Enabled: true}, 1)
	for range 100 {
		_, tm, _ := g.arrive(1000, "/s/m", outcome.NoDeadline)
		g.leave(999, 1000, tm, served)
	}
	if g.window.ends != 0 || g.timings["/s/m"].median != 0 {
		t.Errorf("%d ends, median %v, want nothing learned from calls that ended before they began", g.window.ends, g.timings["/s/m"].median)
	}
	// What was slow an hour from now is asked again a second from now.
	const ms = time.Millisecond
	runGate(t, testGate(t, Adaptive{Enabled: true, Initial: 9}, 1), []gateStep{
		{time.Hour, "arrive", 0, enter},
		{time.Hour, "arrive", 0, enter},
		{time.Hour + 100*ms, "ok", 0, 0},
		{time.Hour + 100*ms, "arrive", 50 * ms, tooLate},
		{0, "arrive", 50 * ms, tooLate},
		{1001 * ms, "arrive", 50 * ms, enter},
	})
}

// TestGateDeadlinesDoNotLockOut: calls got slower than their deadlines and then fast again; a gate that believes
// what it saw last would never see another.
func TestGateDeadlinesDoNotLockOut(t *testing.T) {
	s := newSim(8, func(*rand.Rand) time.Duration { return 300 * time.Millisecond }, testGate(t, Adaptive{Enabled: true}, 3), 2)
	s.timeout = 100 * time.Millisecond
	s.run(10*time.Second, 100)
	if got := float64(s.refused) / float64(s.arrived); got < 0.9 {
		t.Errorf("%.2f of calls that cannot finish were refused, want 0.9", got)
	}
	s.service = func(*rand.Rand) time.Duration { return 10 * time.Millisecond }
	s.run(10*time.Second, 100)
	s.reset()
	s.run(10*time.Second, 100)
	if s.refused > 0 || s.late > 0 {
		t.Errorf("after the recovery: %d refused, %d late, want none of %d", s.refused, s.late, s.arrived)
	}
}

// TestGateProbeWithoutCalls: the load is gone in the middle of a probe.
func TestGateProbeWithoutCalls(t *testing.T) {
	s := newSim(8, services[0].draw, testGate(t, Adaptive{Enabled: true}, 3), 2)
	for !s.gate.probe.on {
		s.run(10*time.Millisecond, 2400)
	}
	before := s.gate.probe.limit
	s.run(time.Second, 0.001)
	if !s.gate.probe.on {
		t.Fatal("the probe ended without calls")
	}
	s.now += int64(time.Minute)
	if v, _, _ := s.gate.arrive(s.now, "/s/m", outcome.NoDeadline); v != enter || s.gate.probe.on || s.gate.limit != before {
		t.Errorf("after a minute: verdict %d, probing %v, limit %v, want %v as before", v, s.gate.probe.on, s.gate.limit, before)
	}
}

// TestGateBounds: whatever happens, the limit stays where it may be, and methods are bounded.
func TestGateBounds(t *testing.T) {
	g := testGate(t, Adaptive{Enabled: true, Min: 3, Max: 30}, 1)
	rng := rand.New(rand.NewPCG(1, 2))
	type running struct {
		began int64
		t     *timing
	}
	var in []running
	now := int64(1)
	for i := range 200_000 {
		now += rng.Int64N(int64(3*time.Millisecond)) - int64(time.Millisecond) // backwards at times
		if rng.IntN(2) == 0 {
			if v, tm, _ := g.arrive(now, "/s/"+strconv.Itoa(i), time.Duration(rng.Int64N(1e9))); v == enter {
				in = append(in, running{now, tm})
			}
		} else if len(in) > 0 {
			at := rng.IntN(len(in))
			g.leave(now, in[at].began, in[at].t, ending(rng.IntN(3)))
			in[at] = in[len(in)-1]
			in = in[:len(in)-1]
		}
		if !(g.limit >= 3 && g.limit <= 30) || g.inFlight != len(in) {
			t.Fatalf("event %d: limit %v, want 3 to 30; in flight %d, want %d", i, g.limit, g.inFlight, len(in))
		}
	}
	if len(g.timings) > maxTimings {
		t.Errorf("%d methods are remembered, want at most %d", len(g.timings), maxTimings)
	}
	a, _ := Adaptive{Enabled: true, Max: 5}.resolve()
	g.change(a)
	if g.limit > 5 {
		t.Errorf("limit = %v after the maximum became 5", g.limit)
	}
}
