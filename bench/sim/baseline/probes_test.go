package baseline

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

func TestYARPPollsTwiceASecond(t *testing.T) {
	w := newWorld(t)
	w.draws = []uint64{1 << 62} // the first poll is a quarter of a period from the start
	b := w.make(YARP(), 0, 1, 2)
	play(t, w, b, []step{
		{loads: map[int]lb.Load{0: {RIF: 5}, 1: {RIF: 4}, 2: {RIF: 4}}, draws: two(0, 1, 3), pick: "a", want: 0}, // not asked yet
		{at: 125, draws: two(0, 1, 3), pick: "b", want: 0},                                                       // asked, no answer
		{at: 126, draws: two(0, 1, 3), pick: "c", want: 1},
		{at: 126, draws: two(2, 1, 3), pick: "d", want: 2},                                       // equal: the first
		{at: 200, loads: map[int]lb.Load{1: {RIF: 50}}, draws: two(0, 1, 3), pick: "e", want: 1}, // stale
		{at: 625, draws: two(0, 1, 3), pick: "f", want: 1},
		{at: 626, draws: two(0, 1, 3), pick: "g", want: 0},
	})
	delete(w.loads, 0) // answers no more, and counts as before
	play(t, w, b, []step{
		{at: 1500, draws: two(1, 0, 3), pick: "h", want: 0},
		{at: 1500, set: []int{2, 7}, draws: two(0, 1, 2), pick: "i", want: 7}, // a new one counts as empty
		{at: 1500, set: []int{2}, pick: "j", want: 2},
	})
	want := []int64{125, 125, 125, 625, 625, 625, 1125, 1125, 1125}
	for i, at := range w.askedAt {
		if at != want[i]*millisecond+1 || w.asked[i] != i%3 {
			t.Errorf("probe %d went to %d at %d ns, want %d at %d ms", i, w.asked[i], at, i%3, want[i])
		}
	}
}

// TestReuse: equation 1, for the parameters of the paper's figures and for fleets where it breaks down.
func TestReuse(t *testing.T) {
	for _, c := range []struct {
		probes, remove float64
		n              int
		want           float64
	}{
		{3, 1, 100, 1.3158},
		{3, 1, 1_000_000, 1},
		{4, .25, 100, 1}, {2 * math.Sqrt2, .25, 100, 1}, {2, .25, 100, 1.3986}, {math.Sqrt2, .25, 100, 2.1323},
		{1, .25, 100, 3.3898}, {math.Sqrt2 / 2, .25, 100, 5.8144}, {.5, .25, 100, 11.7647},
		{3, 1, 25, 25}, // 2 / (27/25 - 1)
		{3, 1, 24, 1}, {3, 1, 16, 1}, {3, 1, 3, 1}, {3, 1, 1, 1},
		{1, 1, 100, 1},
	} {
		cfg := PoolConfig{Probes: c.probes, Remove: c.remove}.filled()
		if got := cfg.reuse(c.n); math.Abs(got-c.want) > 1e-4 {
			t.Errorf("r_probe %v, r_remove %v, n %d: reuse is %v, want %v", c.probes, c.remove, c.n, got, c.want)
		}
	}
}

func TestHotColdRule(t *testing.T) {
	type p = probe
	b := &prequal{quantile: 0.5}
	for _, rif := range []int{1, 2, 3, 4, 5, 6} {
		b.answered(0, lb.Load{RIF: rif})
	}
	if b.threshold() != 3 {
		t.Fatalf("hot from %d on, want 3", b.threshold())
	}
	for _, c := range []struct {
		name string
		x, y p
		want bool
	}{
		{"cold before hot, however slow", p{rif: 2, latency: 900}, p{rif: 3, latency: 1}, true},
		{"at the threshold is hot", p{rif: 3, latency: 1}, p{rif: 2, latency: 900}, false},
		{"two cold ones: latency", p{rif: 2, latency: 10}, p{rif: 0, latency: 11}, true},
		{"two hot ones: RIF", p{rif: 4, latency: 900}, p{rif: 5, latency: 1}, true},
		{"equal cold", p{rif: 1, latency: 10}, p{rif: 2, latency: 10}, false},
		{"equal hot", p{rif: 4, latency: 1}, p{rif: 4, latency: 2}, false},
	} {
		if got := b.better(&c.x, &c.y); got != c.want {
			t.Errorf("%s: better is %v, want %v", c.name, got, c.want)
		}
	}
}

func TestThreshold(t *testing.T) {
	for _, c := range []struct {
		quantile float64
		want     int
	}{
		{0, 0},     // all are hot: RIF alone decides
		{0.001, 1}, // the least
		{0.75, 75}, {0.84, 84}, {0.99, 99},
		{0.999, 100},     // those that tie for the most
		{1, math.MaxInt}, // nobody: latency alone decides
	} {
		b := &prequal{quantile: c.quantile}
		if c.quantile > 0 && b.threshold() != math.MaxInt {
			t.Errorf("without an answer hot is from %d on, want nobody", b.threshold())
		}
		for rif := 100; rif > 0; rif-- {
			b.answered(0, lb.Load{RIF: rif})
		}
		if b.threshold() != c.want {
			t.Errorf("quantile %v of 1 to 100: hot from %d on, want %d", c.quantile, b.threshold(), c.want)
		}
	}
	b := &prequal{quantile: 0.5}
	for i := range 10 * rifWindow {
		b.answered(0, lb.Load{RIF: i})
		if !slices.IsSorted(b.sorted) {
			t.Fatal("the distribution is out of order")
		}
	}
	if want := 9*rifWindow + rifWindow/2 - 1; b.threshold() != want || len(b.sorted) != rifWindow {
		t.Errorf("hot from %d on of %d answers, want %d of the last %d", b.threshold(), len(b.sorted), want, rifWindow)
	}
}

// pooled is a Prequal that sends no probes of its own, with the threshold at 10.
func pooled(t *testing.T, cfg PoolConfig, servers int) (*world, *prequal) {
	t.Helper()
	w := newWorld(t)
	cfg.Probes = 1e-9
	b := w.make(Prequal(PrequalConfig{PoolConfig: cfg}), first(servers)...).(*prequal)
	b.sorted = []int{10}
	b.pool.budget = 1
	return w, b
}

// put has a server answer.
func (b *prequal) put(server, rif int, latency int64) {
	sorted := b.sorted
	b.sorted = slices.Clone(sorted)
	b.pool.receive(server, lb.Load{RIF: rif, Latency: latency})
	b.sorted, b.answers = sorted, 0
}

// held lists the pool as server:rif:latency.
func (b *prequal) held() string {
	s := ""
	for _, p := range b.pool.probes {
		s += fmt.Sprintf(" %d:%d:%d", p.server, p.rif, p.latency)
	}
	return s
}

// TestPoolRemoval has each of the reasons for which a probe leaves the pool, alone.
func TestPoolRemoval(t *testing.T) {
	keep := PoolConfig{Remove: -1}
	t.Run("overflow takes the oldest", func(t *testing.T) {
		w, b := pooled(t, PoolConfig{Remove: -1, Size: 3}, 5)
		w.seed(1)
		for s := range 4 {
			b.put(s, 1, int64(s))
		}
		if got := b.held(); got != " 1:1:1 2:1:2 3:1:3" {
			t.Errorf("the pool has%s", got)
		}
	})
	t.Run("an answer replaces that of the same server", func(t *testing.T) {
		w, b := pooled(t, PoolConfig{Remove: -1, Size: 3}, 5)
		w.seed(1)
		for _, s := range []int{0, 1, 2, 1} {
			b.put(s, s, int64(b.pool.env.Now()))
			w.now++
		}
		if got := b.held(); got != " 0:0:1 2:2:3 1:1:4" {
			t.Errorf("the pool has%s", got)
		}
	})
	t.Run("age", func(t *testing.T) {
		w, b := pooled(t, keep, 5)
		w.seed(1)
		b.put(0, 1, 1)
		w.now += second / 2
		b.put(1, 1, 2)
		b.put(2, 1, 3)
		w.now += second / 2
		b.pool.expire()
		if got := b.held(); got != " 0:1:1 1:1:2 2:1:3" {
			t.Errorf("after a second the pool has%s, want all", got)
		}
		w.now++
		b.pool.expire()
		if got := b.held(); got != " 1:1:2 2:1:3" {
			t.Errorf("after more than a second the pool has%s", got)
		}
	})
	t.Run("use, and each use counts as a request in flight", func(t *testing.T) {
		w, b := pooled(t, keep, 5)
		w.seed(1)
		b.pool.budget = 2
		b.put(0, 8, 1)
		b.put(1, 9, 5)
		b.put(2, 9, 6)
		for i, want := range []struct {
			server int
			held   string
		}{
			{0, " 0:9:1 1:9:5 2:9:6"},
			{0, " 1:9:5 2:9:6"}, // used up
			{1, " 1:10:5 2:9:6"},
			{2, " 1:10:5 2:10:6"}, // 1 is hot now
			{2, " 1:10:5"},        // both are, with the same RIF: the later one, used up
		} {
			if got, err := b.Pick(new(lb.Call)); got != want.server || err != nil || b.held() != want.held {
				t.Errorf("call %d went to %d (%v) and left%s, want %d and%s", i, got, err, b.held(), want.server, want.held)
			}
		}
	})
	t.Run("the oldest and the worst by turns", func(t *testing.T) {
		w, b := pooled(t, keep, 9)
		w.seed(1)
		for s, load := range []lb.Load{{RIF: 1, Latency: 9}, {RIF: 20, Latency: 1}, {RIF: 1, Latency: 5}, {RIF: 30},
			{RIF: 2, Latency: 7}, {RIF: 3, Latency: 6}} {
			b.put(s, load.RIF, load.Latency)
		}
		for i, want := range []string{
			" 1:20:1 2:1:5 3:30:0 4:2:7 5:3:6", // the oldest
			" 1:20:1 2:1:5 4:2:7 5:3:6",        // the hot one with the most RIF
			" 2:1:5 4:2:7 5:3:6",               // the oldest
			" 2:1:5 5:3:6",                     // no hot one: the cold one with the most latency
			" 5:3:6", "", "",
		} {
			b.pool.remove()
			if got := b.held(); got != want {
				t.Errorf("removal %d leaves%s, want%s", i, got, want)
			}
		}
	})
	t.Run("a server that leaves", func(t *testing.T) {
		w, b := pooled(t, keep, 5)
		w.seed(1)
		b.put(0, 1, 1)
		b.put(1, 1, 2)
		b.Update(shown(1, 2))
		b.put(0, 1, 1) // its answer was under way
		if got := b.held(); got != " 1:1:2" {
			t.Errorf("the pool has%s", got)
		}
	})
}

func TestPoolRemovesBeforeItSelects(t *testing.T) {
	w, b := pooled(t, PoolConfig{Remove: 0.5}, 9)
	w.seed(1)
	b.pool.budget = 100
	b.put(0, 1, 1)
	b.put(1, 1, 5)
	b.put(2, 1, 3)
	for i, want := range []int{0, 2, 2} { // every second call removes: 0, the oldest, then 1, the worst
		if got, _ := b.Pick(new(lb.Call)); got != want {
			t.Errorf("call %d went to %d, want %d", i, got, want)
		}
	}
	// The fourth removes 1. One is left, which is too few to choose from.
	w.draws = []uint64{of(7, 9)}
	if got, _ := b.Pick(new(lb.Call)); got != 7 || b.held() != " 2:3:3" {
		t.Errorf("call 3 went to %d with%s, want a random one, 7, and 2:3:3", got, b.held())
	}
}

// TestProbesForEachCall: the number is right in the long run whatever the fraction, and no call asks a server twice.
func TestProbesForEachCall(t *testing.T) {
	for _, rate := range []float64{0.25, math.Sqrt2 / 2, 1, math.Sqrt2, 3, 4} {
		w := newWorld(t).seed(1)
		b := w.make(Prequal(PrequalConfig{PoolConfig: PoolConfig{Probes: rate}}), first(10)...)
		const calls = 4000
		for range calls {
			before := len(w.asked)
			if _, err := b.Pick(new(lb.Call)); err != nil {
				t.Fatal(err)
			}
			now := slices.Clone(w.asked[before:])
			slices.Sort(now)
			if len(slices.Compact(now)) != len(w.asked)-before {
				t.Fatalf("a call asked %v", now)
			}
			if k := len(now); k != int(rate) && k != int(math.Ceil(rate)) {
				t.Fatalf("a call asked %d servers, want %v rounded down or up", k, rate)
			}
		}
		if want := int(calls * rate); len(w.asked) < want-1 || len(w.asked) > want+1 {
			t.Errorf("%d probes for %d calls, want %d", len(w.asked), calls, want)
		}
		got, want := make([]int, 10), make([]float64, 10)
		for _, s := range w.asked {
			got[s]++
		}
		for i := range want {
			want[i] = calls * rate / 10
		}
		if x := chiSquare(got, want); x > 36 { // 9 degrees of freedom: once in 25,000 fair runs
			t.Errorf("rate %v: %v, chi-square %.1f, want at most 36", rate, got, x)
		}
	}
	w := newWorld(t).seed(1)
	b := w.make(Prequal(PrequalConfig{}), 0, 1)
	if _, err := b.Pick(new(lb.Call)); err != nil || len(w.asked) != 2 {
		t.Errorf("with two servers %d probes were sent, want both once", len(w.asked))
	}
}

func TestBudgetIsRightOnAverage(t *testing.T) {
	w := newWorld(t).seed(1)
	b := w.make(Prequal(PrequalConfig{}), first(100)...).(*prequal)
	got := []int{0, 0}
	for range 10_000 {
		u := b.pool.uses()
		if u != 1 && u != 2 {
			t.Fatalf("a probe may be used %d times, want 1 or 2", u)
		}
		got[u-1]++
	}
	if x := chiSquare(got, []float64{10_000 * (2 - 2/1.52), 10_000 * (2/1.52 - 1)}); x > 17 { // 1 in 25,000
		t.Errorf("%v, chi-square %.1f: want 1.316 on average", got, x)
	}
}

func TestLinearRule(t *testing.T) {
	ms := int64(time.Millisecond)
	b := &linear{cfg: LinearConfig{Lambda: 0.5, Alpha: 75 * time.Millisecond}}
	if got := b.score(&probe{rif: 3, latency: 100 * ms}); got != float64(100*ms+225*ms)/2 {
		t.Errorf("score is %v, want (100 + 3*75)/2 ms", got)
	}
	if !b.better(&probe{rif: 1, latency: 100 * ms}, &probe{rif: 2, latency: 26 * ms}) {
		t.Error("175 ms is not better than 176 ms")
	}
	if b.better(&probe{rif: 1, latency: 100 * ms}, &probe{rif: 1, latency: 100 * ms}) {
		t.Error("a probe is better than its equal")
	}
	w := newWorld(t)
	for server, l := range map[int]lb.Load{0: {RIF: 2, Latency: 10 * ms}, 1: {RIF: 0, Latency: 100 * ms}} {
		w.loads[server] = l
	}
	play(t, w, w.make(Linear(LinearConfig{PoolConfig: PoolConfig{Remove: -1}}), 0, 1), []step{
		{draws: []uint64{of(0, 2), 0, 0}, pick: "a", want: 0}, // an empty pool: random; then both are asked
		{at: 2, draws: []uint64{0, 0}, pick: "b", want: 1},    // 100 against 160
	})
}

func TestC3Score(t *testing.T) {
	ms := float64(millisecond)
	n := new(c3Node)
	if n.score(100) != 0 {
		t.Errorf("score of an unknown server is %v, want 0", n.score(100))
	}
	n.queue.add(0.9, 4)
	n.service.add(0.9, 80*ms)
	if got := n.score(100); got != 125*80*ms {
		t.Errorf("score is %v, want 5^3 * 80 ms", got)
	}
	n.queue.add(0.9, 14)
	n.service.add(0.9, 180*ms)
	n.response.add(0.9, 200*ms)
	n.inFlight = 1
	q := 1 + 100 + 0.9*14 + 0.1*4
	service := 0.9*180*ms + 0.1*80*ms
	if got, want := n.score(100), 200*ms-service+q*q*q*service; math.Abs(got-want) > 1e-6*want {
		t.Errorf("score is %v, want %v", got, want)
	}
}

func TestC3LearnsFromProbesAndCalls(t *testing.T) {
	ms := millisecond
	w := newWorld(t)
	for server, l := range map[int]lb.Load{0: {RIF: 2, Latency: 80 * ms}, 1: {RIF: 2, Latency: 90 * ms}, 2: {RIF: 9, Latency: 1}} {
		w.loads[server] = l
	}
	b := w.make(C3(C3Config{PoolConfig: PoolConfig{Remove: -1}}), 0, 1, 2)
	probing := []uint64{0, 0, 0}
	play(t, w, b, []step{
		{draws: append([]uint64{of(1, 3)}, probing...), pick: "a", want: 1},
		{at: 2, draws: probing, pick: "b", want: 2}, // a RIF of 9, but nanoseconds: 10^3 * 1 ns
		{at: 2, loads: map[int]lb.Load{2: {RIF: 9, Latency: 90 * ms}}},
		{at: 4, draws: probing, pick: "c", want: 2}, // its answer is on the way
		{at: 6, draws: probing, pick: "d", want: 0}, // 1 and 2 have a call of ours, which counts for 100 clients
		{at: 8, done: "a"}, {at: 8, done: "b"}, {at: 8, done: "c"},
		{at: 8, draws: probing, pick: "e", want: 1},
		{at: 9, done: "d", err: unavailable},
		{at: 9, set: []int{0, 2}},
		{at: 9, done: "e"}, // of a server that has left
	})
	n := b.(*c3).at[0]
	if n.inFlight != 0 || n.response.value != float64(3*ms) || n.queue.value != 2 || math.Abs(n.service.value-float64(80*ms)) > 1 {
		t.Errorf("server 0 is %+v, want 0 in flight, 3 ms, 2 and 80 ms", *n)
	}
}

func TestOmniscientTakesTheFirstToEnd(t *testing.T) {
	w := newWorld(t)
	w.truths = map[int]lb.Truth{0: {Up: true, Finish: 30}, 1: {Finish: 1}, 2: {Up: true, Finish: 20}, 3: {Up: true, Finish: 20}}
	b := w.make(Omniscient(), 0, 1, 2, 3)
	play(t, w, b, []step{
		{draws: []uint64{of(0, 4)}, pick: "a", want: 2},
		{draws: []uint64{of(3, 4)}, pick: "b", want: 3}, // equal: from where it looks
		{set: []int{0, 1}, draws: []uint64{of(1, 2)}, pick: "c", want: 0},
		{set: []int{1}, draws: []uint64{of(0, 1)}, pick: "d", want: 1}, // nobody is up: somebody
		{done: "d"},
	})
}
