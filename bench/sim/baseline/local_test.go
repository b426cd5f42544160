package baseline

import (
	"errors"
	"math"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

var (
	unavailable = status.Error(codes.Unavailable, "test")
	internal    = status.Error(codes.Internal, "test")
	missing     = status.Error(codes.NotFound, "test")
)

func TestRandomTakesWhatIsDrawn(t *testing.T) {
	w := newWorld(t)
	play(t, w, w.make(Random(), 10, 11, 12), []step{
		{draws: []uint64{of(2, 3)}, pick: "a", want: 12},
		{draws: []uint64{of(0, 3)}, pick: "b", want: 10},
		{set: []int{12, 13}, draws: []uint64{of(1, 2)}, pick: "c", want: 13},
		{done: "a"},
	})
}

func TestRoundRobinGoesInTurn(t *testing.T) {
	w := newWorld(t)
	w.draws = []uint64{of(1, 3)} // where it begins
	play(t, w, w.make(RoundRobin(), 10, 11, 12), []step{
		{pick: "a", want: 11},
		{pick: "b", want: 12},
		{pick: "c", want: 10},
		{pick: "d", want: 11},
		{draws: []uint64{of(0, 4)}, set: []int{9, 10, 11, 12}, pick: "e", want: 9}, // anew, as in gRPC
		{pick: "f", want: 10},
	})
}

func TestLeastLoadedSearchesAll(t *testing.T) {
	w := newWorld(t)
	w.draws = []uint64{of(1, 3)}
	play(t, w, w.make(LeastLoaded(), 0, 1, 2), []step{
		{pick: "a", want: 1}, // turns, while nobody has any
		{pick: "b", want: 2},
		{pick: "c", want: 0},
		{pick: "d", want: 1},
		{done: "b"},
		{pick: "e", want: 2}, // the only one with none
		{done: "c", err: unavailable},
		{pick: "f", want: 0}, // a failure counts out like a success
		{draws: []uint64{of(0, 4)}, set: []int{0, 1, 2, 3}, pick: "g", want: 3}, // the others keep their counts
		{draws: []uint64{of(0, 2)}, set: []int{1, 3}, pick: "h", want: 3},       // 1 has two
		{done: "e"},                           // of a server that has left
		{done: "a"}, {done: "d"}, {done: "g"}, // 3 has one left
		{pick: "i", want: 1},
	})
}

func TestLeastRequestComparesTwoDraws(t *testing.T) {
	w := newWorld(t)
	draws := func(i, j int) []uint64 { return []uint64{of(i, 3), of(j, 3)} }
	play(t, w, w.make(LeastRequest(), 0, 1, 2), []step{
		{draws: draws(1, 1), pick: "a", want: 1}, // with replacement: gRFC A48
		{draws: draws(1, 2), pick: "b", want: 2},
		{draws: draws(2, 1), pick: "c", want: 2}, // equal: the first
		{draws: draws(2, 1), pick: "d", want: 1}, // 2 against 1
		{draws: draws(1, 0), pick: "e", want: 0},
		{done: "b", err: unavailable},
		{done: "c"},
		{draws: draws(0, 2), pick: "f", want: 2},
		{set: []int{0, 1, 5}},
		{done: "f"},                              // of a server that has left
		{draws: draws(1, 0), pick: "g", want: 0}, // counts outlive an update
		{draws: draws(0, 2), pick: "h", want: 5},
	})
}

// TestFinagleMetric: values computed by hand; times in seconds, latencies in milliseconds.
func TestFinagleMetric(t *testing.T) {
	type row struct {
		at     float64
		sample float64 // ms; negative for none
		start  int     // calls that begin
		load   float64 // ms; negative for not looked at
	}
	for name, rows := range map[string][]row{
		"unused, then one call under way": {
			{at: 0, sample: -1, load: 0},
			{at: 0, sample: -1, start: 1, load: (finaglePenalty + 1) / 1e6},
			{at: 1, sample: -1, start: 1, load: (finaglePenalty + 2) / 1e6},
			{at: 1, sample: 100, load: 300}, // two under way, and the one to come
		},
		"a peak counts at once, and fades with 10 s": {
			{at: 1, sample: 100, load: 100},
			{at: 2, sample: 200, load: 200},
			{at: 12, sample: -1, load: 200 / math.E},
		},
		"a low sample is averaged in by the time since the last look": {
			{at: 0, sample: 100, load: -1},
			{at: 10, sample: 10, load: 10*(1-1/math.E) + 100/math.E},
		},
		"a look takes that time away, and the sample changes nothing": {
			{at: 0, sample: 100, load: -1},
			{at: 10, sample: -1, load: 100 / math.E},
			{at: 10, sample: 10, load: 100 / math.E},
		},
		"a second's hiccup of a 5 ms server lasts 53 s": {
			{at: 0, sample: 1000, load: -1},
			{at: 52.9, sample: -1, load: 1000 * math.Exp(-5.29)}, // 5.04
			{at: 53, sample: -1, load: 1000 * math.Exp(-5.3)},    // 4.99
		},
		"the clock goes back": {
			{at: 10, sample: 100, load: 100},
			{at: 5, sample: 50, load: 100},
			{at: 20, sample: -1, load: 100 / math.E},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := new(finagleNode)
			for i, r := range rows {
				now := int64(r.at*1e9) + 1
				n.pending += r.start
				if r.sample >= 0 {
					n.observe(now, r.sample*1e6)
				}
				if r.load < 0 {
					continue
				}
				if got := n.load(now) / 1e6; math.Abs(got-r.load) > 1e-6*math.Max(1, r.load) {
					t.Errorf("row %d: load is %.6f ms, want %.6f", i, got, r.load)
				}
			}
		})
	}
}

func TestFinagleComparesTwo(t *testing.T) {
	w := newWorld(t)
	play(t, w, w.make(FinaglePeakEWMA(), 0, 1, 2), []step{
		{draws: two(1, 2, 3), pick: "a", want: 1}, // equal: the first
		{draws: two(1, 2, 3), pick: "b", want: 2}, // one call there, no answer: the penalty
		{draws: two(1, 2, 3), pick: "c", want: 1}, // both with the penalty, equal
		{at: 40, done: "b"},
		{at: 40, draws: two(1, 2, 3), pick: "d", want: 2},
		{at: 50, done: "a"}, {at: 50, done: "c", err: unavailable},
		{at: 50, draws: two(2, 1, 3), pick: "e", want: 1}, // 40 ms twice against 50 ms once
		{at: 51, done: "e", err: unavailable},             // a fast failure is a fast answer
		{at: 52, done: "d"},
		{at: 52, draws: two(1, 0, 3), pick: "f", want: 0}, // never used
		{at: 52, set: []int{0}, pick: "g", want: 0},       // alone: nothing to draw
	})
}

// TestLinkerdMetric: values computed by hand; times in seconds, latencies in milliseconds.
func TestLinkerdMetric(t *testing.T) {
	now := int64(0)
	b := &linkerd{now: func() int64 { return now }}
	b.Update(shown(0))
	n := b.nodes[0]
	for i, r := range []struct {
		at      float64
		latency float64
		err     error
		done    bool
		want    float64 // the expectation after it
	}{
		{at: 0, want: 30}, // its default RTT
		{at: 10, want: 30 / math.E},
		{at: 10, done: true, latency: 20, want: 20}, // above the expectation: a peak
		{at: 20, done: true, latency: 5, want: 5*(1-1/math.E) + 20/math.E},
		{at: 20, want: 5*(1-1/math.E) + 20/math.E},
		{at: 20, done: true, latency: 1, err: missing, want: 5*(1-1/math.E) + 20/math.E}, // no time has passed
		{at: 20, done: true, latency: 1, err: internal, want: 5000},                      // a failure, however fast
		{at: 30, want: 5000 / math.E},
		{at: 30, done: true, latency: 8000, want: 8000},
		{at: 30, done: true, latency: 1, err: unavailable, want: 8000}, // never less than expected
	} {
		now = int64(r.at * 1e9)
		if r.done {
			n.pending++
			b.Done(&lb.Call{Note: n}, 0, lb.Result{Latency: int64(r.latency * 1e6), Err: r.err})
		}
		if got := n.load(now) / 1e6; math.Abs(got-r.want) > 1e-6*r.want {
			t.Errorf("row %d: load is %.6f ms, want %.6f", i, got, r.want)
		}
	}
	for c, fails := range map[codes.Code]bool{
		codes.OK: false, codes.Canceled: false, codes.Unknown: true, codes.InvalidArgument: false,
		codes.DeadlineExceeded: true, codes.NotFound: false, codes.AlreadyExists: false, codes.PermissionDenied: false,
		codes.ResourceExhausted: true, codes.FailedPrecondition: false, codes.Aborted: false, codes.OutOfRange: false,
		codes.Unimplemented: false, codes.Internal: true, codes.Unavailable: true, codes.DataLoss: true,
		codes.Unauthenticated: false,
	} {
		if linkerdFails(status.Error(c, "")) != fails {
			t.Errorf("%v: failure is %v, want %v", c, !fails, fails)
		}
	}
}

func TestLinkerdComparesTwo(t *testing.T) {
	w := newWorld(t)
	play(t, w, w.make(LinkerdPeakEWMA(), 0, 1, 2), []step{
		{draws: two(2, 1, 3), pick: "a", want: 2},
		{draws: two(2, 1, 3), pick: "b", want: 1}, // 60 against 30 ms
		{at: 2, done: "b", err: unavailable},
		{at: 2, draws: two(1, 2, 3), pick: "c", want: 2}, // 5 s against 60 ms
		{at: 2, set: []int{1, 2}, draws: two(0, 1, 2), pick: "d", want: 2},
	})
}

func TestKratosMetric(t *testing.T) {
	const ms = millisecond
	n := newKratosNode(0)
	if n.load(1) != 100_000 {
		t.Errorf("load of a fresh server is %d, want 100000", n.load(1))
	}
	if got := n.value(1); got != 1000*10_000/100_000 {
		t.Errorf("weight of a fresh server is %v, want 100", got)
	}
	a, b, c := new(lb.Call), new(lb.Call), new(lb.Call)
	n.begin(1, a)
	n.begin(1, b)
	if n.load(1) != 300_000 {
		t.Errorf("load of an unseen server with two calls is %d, want 300000", n.load(1))
	}
	if got := n.value(5*ms + 1); got != 100 {
		t.Errorf("after 5 ms the weight is %v, want the old one, 100", got)
	}
	if got := n.value(5*ms + 2); got != 1000*10_000/300_000.0 {
		t.Errorf("then the weight is %v, want 33.3", got)
	}
	a.Note.(*kratosCall).end(95*ms+1, false)
	// One under way for 95 ms, which is not more than the average: sqrt(95 ms + 5 ms) * 2.
	if got := n.load(95*ms + 1); got != 20_000 {
		t.Errorf("load is %d, want 20000", got)
	}
	// 600 ms later a failure after 695 ms: a mean lifetime has passed.
	b.Note.(*kratosCall).end(695*ms+1, true)
	keep := 1 / math.E
	wantLag := int64(float64(95*ms)*keep + float64(695*ms)*(1-keep))
	if n.lag != wantLag || n.success != uint64(1000*keep) {
		t.Errorf("latency %d and success %d, want %d and %d", n.lag, n.success, wantLag, uint64(1000*keep))
	}
	// Three under way that are late, the most by far: their age counts.
	now := 10_000 * ms
	for range 3 {
		n.begin(now, c)
	}
	if got := n.overdue(now + 400*ms); got != 0 {
		t.Errorf("%d overdue, want 0: they are younger than the average", got)
	}
	if got := n.overdue(now + 600*ms); got != 600*ms {
		t.Errorf("%d overdue, want 600 ms", got)
	}
	for err, fails := range map[error]bool{
		nil: false, unavailable: true, status.Error(codes.DeadlineExceeded, ""): true, internal: false,
		status.Error(codes.ResourceExhausted, ""): false, errors.New("other"): false,
	} {
		if kratosFails(err) != fails {
			t.Errorf("%v: failure is %v, want %v", err, !fails, fails)
		}
	}
}

func TestKratosKnowsTheAgeOf200Calls(t *testing.T) {
	n := newKratosNode(0)
	n.lag = millisecond
	calls := make([]lb.Call, kratosSlots+1)
	for i := range calls {
		n.begin(int64(i+1), &calls[i])
	}
	if k := calls[kratosSlots].Note.(*kratosCall); k.slot != -1 {
		t.Errorf("call 201 has slot %d, want none", k.slot)
	}
	calls[kratosSlots].Note.(*kratosCall).end(1000, false)
	for i := range n.begun {
		if n.begun[i] == 0 {
			t.Fatalf("the end of a call without a slot freed slot %d", i)
		}
	}
}

func TestKratosComparesTwo(t *testing.T) {
	w := newWorld(t)
	b := w.make(Kratos(), 0, 1, 2)
	play(t, w, b, []step{
		{draws: two(0, 1, 3), pick: "a", want: 1}, // equal, but 1 was never chosen: forced
		{draws: two(0, 1, 3), pick: "b", want: 0}, // 0 was not chosen yet
		{draws: two(2, 0, 3), pick: "c", want: 2},
		{at: 100, done: "a"}, {at: 100, done: "b"}, {at: 300, done: "c"},
		{at: 400, draws: two(2, 0, 3), pick: "d", want: 0},
		{at: 450, done: "d"},
		{at: 3000, draws: two(2, 0, 3), pick: "e", want: 0}, // 2 was chosen 3 s ago, not longer
		{at: 3001, draws: two(2, 0, 3), pick: "f", want: 2}, // now it was
		{at: 3001, draws: two(2, 0, 3), pick: "g", want: 0},
		{at: 3001, set: []int{0, 1, 2}, draws: two(2, 0, 3), pick: "h", want: 0}, // all forgotten, also who was chosen
		{at: 3001, draws: two(1, 0, 3), pick: "i", want: 1},
		{at: 3002, done: "g"},
	})
	if n := b.(*kratos).nodes[0]; n.inFlight != 2 || n.lag != 0 {
		t.Errorf("0 has %d in flight and latency %d, want 1+1 and 0: an old call ends on the old node", n.inFlight, n.lag)
	}
}

func TestGoZeroMetric(t *testing.T) {
	now := int64(1)
	b := &goZero{now: func() int64 { return now }}
	b.Update(shown(0))
	n := b.nodes[0]
	done := func(at, latency int64, err error) {
		now = at
		n.inFlight++
		b.Done(&lb.Call{Note: n}, 0, lb.Result{Latency: latency, Err: err})
	}
	if n.load() != 1 {
		t.Errorf("load of a fresh server is %d, want 1", n.load())
	}
	n.inFlight = 3
	if n.load() != 4 {
		t.Errorf("load of a server that has three calls and answered none is %d, want 4", n.load())
	}
	n.inFlight = 0
	done(1, 10*millisecond, nil)
	if n.load() != 3162 {
		t.Errorf("load at 10 ms is %d, want 3162", n.load())
	}
	done(10*second+1, 40*millisecond, unavailable) // a mean lifetime later
	keep := 1 / math.E
	lag, success := uint64(1e7*keep+4e7*(1-keep)), uint64(1000*keep)
	if n.lag != lag || n.success != success || n.healthy() {
		t.Errorf("latency %d, success %d, healthy %v, want %d, %d, false", n.lag, n.success, n.healthy(), lag, success)
	}
	done(10*second+1, millisecond, missing) // no failure, and no time has passed
	if n.success != success {
		t.Errorf("success %d, want %d", n.success, success)
	}
}

func TestGoZeroComparesTwo(t *testing.T) {
	w := newWorld(t)
	b := w.make(GoZero(), 0, 1, 2)
	sick := func() { b.(*goZero).nodes[2].success = goZeroHealthy }
	play(t, w, b, []step{
		{draws: two(0, 1, 3), pick: "a", want: 1}, // equal, but 1 was never chosen: forced
		{draws: two(0, 1, 3), pick: "b", want: 0},
		{at: 100, done: "a"}, {at: 200, done: "b"},
		{at: 200, draws: two(0, 2, 3), pick: "c", want: 2}, // load 1 wins against any latency
		{at: 200, draws: two(0, 2, 3), pick: "d", want: 2}, // and again, as long as it does not answer
		{at: 300, done: "c"}, {at: 300, done: "d"},
		{at: 1000, draws: two(0, 1, 3), pick: "e", want: 1}, // 0 was chosen 1 s ago, not longer
		{at: 1001, draws: two(0, 1, 3), pick: "f", want: 0}, // forced, though it is the slower one
		{at: 1001, done: "e"}, {at: 1001, done: "f"},
	})
	sick()
	play(t, w, b, []step{
		// The first two draws hold a sick one; of the third it does not matter.
		{at: 1002, draws: append(append(two(2, 0, 3), two(1, 2, 3)...), two(2, 1, 3)...), pick: "g", want: 1},
		{at: 1002, draws: append(two(2, 0, 3), two(0, 1, 3)...), pick: "h", want: 0},
		{at: 1002, set: []int{0, 1}, pick: "i", want: 1}, // of two, no draw; all forgotten
		{at: 1002, set: []int{1}, pick: "j", want: 1},
	})
}
