package baseline

import (
	"fmt"
	"math"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// zonedServers are 25, 50 and 25 in the zones a, b and c.
func zonedServers() []lb.Server {
	list := shown(first(100)...)
	for i := range list {
		in := *list[i].Instance
		in.Zone = string("abbc"[i%4])
		list[i].Instance = &in
	}
	return list
}

// TestZones: what leaves its zone, by chi-square where it is drawn. The published example of zone-aware routing
// (algorithms of Envoy, 40/40/20 callers and 25/50/25 servers): 62.5 % of zone a stay, and its rest goes to b and c as
// 10 to 5.
func TestZones(t *testing.T) {
	callers := []string{"a", "b", "a", "b", "c"}
	for _, c := range []struct {
		maker lb.Maker
		home  string
		want  map[string]float64
	}{
		{SameZone(), "a", map[string]float64{"a": 1}},
		{SameZone(), "nowhere", map[string]float64{"a": 0.25, "b": 0.5, "c": 0.25}},
		{EnvoyZone(callers...), "a", map[string]float64{"a": 0.625, "b": 0.25, "c": 0.125}},
		{EnvoyZone(callers...), "b", map[string]float64{"b": 1}},
		{EnvoyZone(callers...), "c", map[string]float64{"c": 1}},
	} {
		const n = 20000
		w := newWorld(t).seed(1)
		env := w.env()
		env.Zone, env.Servers = c.home, zonedServers()
		b, err := c.maker.New(env)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]int)
		for range n {
			call := new(lb.Call)
			s, err := b.Pick(call)
			if err != nil {
				t.Fatal(err)
			}
			b.Done(call, s, lb.Result{})
			got[env.Servers[s].Instance.Zone]++
		}
		var counts []int
		var expected []float64
		for _, z := range []string{"a", "b", "c"} {
			if c.want[z] == 0 && got[z] != 0 {
				t.Errorf("%s in %s: %d calls went to %s, want none", c.maker.Name, c.home, got[z], z)
			}
			if c.want[z] > 0 {
				counts, expected = append(counts, got[z]), append(expected, c.want[z]*n)
			}
		}
		if x := chiSquare(counts, expected); x > 13.8 { // 0.001 at 2 degrees of freedom
			t.Errorf("%s in %s: %v, want %v of them", c.maker.Name, c.home, got, c.want)
		}
	}
}

// TestZonesFollowTheSet: a zone that has lost its servers sends its calls away, and calls on servers that have gone
// still end.
func TestZonesFollowTheSet(t *testing.T) {
	w := newWorld(t).seed(1)
	env := w.env()
	env.Zone, env.Servers = "a", zonedServers()
	b, err := SameZone().New(env)
	if err != nil {
		t.Fatal(err)
	}
	call := new(lb.Call)
	s, _ := b.Pick(call)
	b.Update(env.Servers[1:2]) // of zone b
	b.Done(call, s, lb.Result{})
	if s, err := b.Pick(new(lb.Call)); err != nil || s != 1 {
		t.Errorf("a call goes to %d, %v; want the only one that is left", s, err)
	}
	b.Update(nil)
	if _, err := b.Pick(new(lb.Call)); err == nil {
		t.Error("a call goes somewhere without servers")
	}
}

// TestRingHash: one key, one server, for every client; and few keys move when a server comes.
func TestRingHash(t *testing.T) {
	one := newWorld(t).seed(1).make(RingHash(), first(100)...)
	two := newWorld(t).seed(2).make(RingHash(), first(100)...)
	more := newWorld(t).seed(3).make(RingHash(), first(101)...)
	pick := func(b lb.Balancer, key string, has bool) int {
		s, err := b.Pick(&lb.Call{Key: key, HasKey: has})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const n = 20000
	moved := 0
	for i := range n {
		key := fmt.Sprint("user-", i)
		s := pick(one, key, true)
		if other := pick(two, key, true); other != s {
			t.Fatalf("two clients send %s to %d and %d", key, s, other)
		}
		if pick(more, key, true) != s {
			moved++
		}
	}
	if part := float64(moved) / n; part < 0.003 || part > 0.03 {
		t.Errorf("%.2f %% of the keys moved to one server more, want about 1", 100*part)
	}
	seen := make(map[int]bool)
	for range 500 {
		seen[pick(one, "", false)] = true
	}
	if len(seen) < 90 {
		t.Errorf("calls without a key went to %d of 100 servers", len(seen))
	}
}

// TestRingIsUneven: the busiest of 100 servers has about 1.95 times the mean, on average over fleets.
func TestRingIsUneven(t *testing.T) {
	sum := 0.0
	const fleets = 8
	for f := range fleets {
		ids := first(100)
		for i := range ids {
			ids[i] += 100 * f
		}
		ring := newWorld(t).seed(1).make(RingHash(), ids...).(*ringHash).ring
		if len(ring) < ringLeast || len(ring) > ringMost {
			t.Errorf("the ring has %d places", len(ring))
		}
		arcs, most := make(map[int]float64), 0.0
		for i, p := range ring {
			arcs[p.server] += float64(p.hash-ring[(i+len(ring)-1)%len(ring)].hash) / (1 << 63) / 2
			most = max(most, arcs[p.server])
		}
		sum += most * 100
	}
	if mean := sum / fleets; mean < 1.7 || mean > 2.2 {
		t.Errorf("the busiest of 100 servers has %.2f times the mean, want about 1.95", mean)
	}
}

// TestRetriesAmplify: the attempts for each call while every attempt fails, by the published rules.
func TestRetriesAmplify(t *testing.T) {
	const calls, gap = 20000, 5 * millisecond // 200 a second, 100 s
	for _, c := range []struct {
		maker     lb.Maker
		low, high float64
	}{
		{Retries(Random())[0], 1, 1},
		{Retries(Random())[1], 3, 3},
		{Retries(Random())[2], 1, 1.01},         // a few until the tokens are gone
		{Retries(Random())[3], 1.2499, 1.25009}, // 20 % and 10 a second; the balance at first is the 10 s of that
	} {
		w := newWorld(t).seed(1)
		rule, err := c.maker.Retry(func() int64 { return w.now }, w.draw)
		if err != nil {
			t.Fatal(err)
		}
		attempts := 0
		for i := range int64(calls) {
			w.now = 1 + i*gap
			a := rule.Begin(0, false)
			for again := true; again; {
				a.Began()
				attempts++
				_, again = a.Failed(lb.Failure{Code: codes.Unavailable})
			}
		}
		if got := float64(attempts) / calls; got < c.low || got > c.high {
			t.Errorf("%s: %.4f attempts a call, want %v to %v", c.maker.Name, got, c.low, c.high)
		}
	}
}

func TestRetriesWaitAndGiveUp(t *testing.T) {
	w := newWorld(t).seed(1)
	rule, err := Retries(Random())[1].Retry(func() int64 { return w.now }, w.draw)
	if err != nil {
		t.Fatal(err)
	}
	for number, most := range []int64{100 * millisecond, 200 * millisecond} {
		sum := int64(0)
		for range 2000 {
			a := rule.Begin(0, false)
			for range number {
				a.Began()
			}
			a.Began()
			wait, again := a.Failed(lb.Failure{Code: codes.Unavailable})
			if !again || wait < 0 || wait >= most {
				t.Fatalf("after %d attempts: wait %d, again %v; want less than %d", number+1, wait, again, most)
			}
			sum += wait
		}
		if mean := float64(sum) / 2000; math.Abs(mean/float64(most)-0.5) > 0.03 {
			t.Errorf("after %d attempts the wait is %.0f on average, want half of %d", number+1, mean, most)
		}
	}
	a := rule.Begin(0, false)
	if slow := a.Began(); slow != 0 || a.Hedge() {
		t.Error("a rule without hedging hedges")
	}
	if _, again := a.Failed(lb.Failure{Code: codes.NotFound, Unsent: true}); again {
		t.Error("NOT_FOUND is tried again")
	}
	if _, again := a.Failed(lb.Failure{Code: codes.Unavailable, Stop: true}); again || a.Stops() {
		t.Error("what the server does not want repeated is, or is not for those further up to decide")
	}
}

// TestRetryThrottleReopens: successes pay tokens back (gRFC A6).
func TestRetryThrottleReopens(t *testing.T) {
	w := newWorld(t).seed(1)
	rule, err := Retries(Random())[2].Retry(func() int64 { return w.now }, w.draw)
	if err != nil {
		t.Fatal(err)
	}
	fail := func() bool {
		a := rule.Begin(0, false)
		a.Began()
		_, again := a.Failed(lb.Failure{Code: codes.Unavailable})
		return again
	}
	for range 10 {
		fail()
	}
	if fail() {
		t.Error("a retry without tokens")
	}
	for range 62 { // of 0 to 6.2
		rule.Begin(0, false).Succeeded(0, 1)
	}
	if !fail() {
		t.Error("no retry with more than half of the tokens")
	}
}

// TestLimits steps each limit through calls of a server with four workers and a queue, twice as many as it can do: AIMD
// and Gradient2 do not refuse what is no overload, and each limit comes to rest within its bounds.
func TestLimits(t *testing.T) {
	const service, workers = 10 * millisecond, 4
	run := func(m lb.Maker, gap int64) (refused float64, took int64) {
		a, err := m.Admission(nil)
		if err != nil {
			t.Fatal(err)
		}
		type call struct{ began, ends int64 }
		var open []call
		var free [workers]int64
		n := int64(20000)
		for i := range n {
			now := 1 + i*gap
			for len(open) > 0 && open[0].ends <= now {
				a.Leave(open[0].ends, open[0].began, nil, lb.Served)
				took = open[0].ends - open[0].began
				open = open[1:]
			}
			if _, ok := a.Arrive(now, math.MaxInt64); !ok {
				refused++
				continue
			}
			w := 0
			for j := range free {
				if free[j] < free[w] {
					w = j
				}
			}
			free[w] = max(free[w], now) + service
			open = append(open, call{now, free[w]})
		}
		return refused / float64(n), took
	}
	limits := Limits(Random())
	if limits[0].Admission != nil {
		t.Error("no limit is a limit")
	}
	for _, m := range limits[1:] {
		if refused, _ := run(m, service/workers*2); refused > 0.001 {
			t.Errorf("%s refuses %.2f %% at half the capacity", m.Name, 100*refused)
		}
		if refused, took := run(m, service/workers/2); refused < 0.45 || refused > 0.6 || took > 60*service {
			t.Errorf("%s refuses %.2f %% of twice the capacity, and calls take %d, want about half, and a bound", m.Name,
				100*refused, took)
		}
	}
}

// TestLimitCountsOnce: whatever ends, its place is free again.
func TestLimitCountsOnce(t *testing.T) {
	a, err := Limits(Random())[1].Admission(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []lb.Ending{lb.Served, lb.TimedOut, lb.Vain} {
		for range 100 {
			if _, ok := a.Arrive(1, 1); !ok {
				t.Fatalf("no place after calls that ended by %d", e)
			}
			a.Leave(2, 1, nil, e)
		}
	}
}

// TestOmniscientKnowsFailures: a server that fails half of its calls at once draws none, and one that fails very few
// and is fast enough does.
func TestOmniscientKnowsFailures(t *testing.T) {
	w := newWorld(t).seed(1)
	w.truths = map[int]lb.Truth{
		0: {Up: true, Finish: millisecond, Fail: 0.5}, 1: {Up: true, Finish: 100 * millisecond},
	}
	b := w.make(Omniscient(), 0, 1)
	call := &lb.Call{Deadline: second}
	if s, _ := b.Pick(call); s != 1 {
		t.Error("a call goes where half of them fail")
	}
	w.truths[0] = lb.Truth{Up: true, Finish: millisecond, Fail: 0.00001}
	if s, _ := b.Pick(call); s != 0 {
		t.Error("a call goes where it takes 100 ms, not where it takes 1 and one in 100,000 fails within a second")
	}
}

// TestOmniscientHarmsNobody: where a call ends first is not where it goes if others pay more for that.
func TestOmniscientHarmsNobody(t *testing.T) {
	w := newWorld(t).seed(1)
	b := w.make(Omniscient(), 0, 1)
	for _, c := range []struct {
		harm float64
		want int
	}{{0, 0}, {fourth(19 * millisecond), 0}, {fourth(20 * millisecond), 1}} {
		w.truths = map[int]lb.Truth{0: {Up: true, Finish: 10 * millisecond, Harm: c.harm}, 1: {Up: true, Finish: 20 * millisecond}}
		if s, _ := b.Pick(&lb.Call{Deadline: second}); s != c.want {
			t.Errorf("harm %v: server %d, want %d", c.harm, s, c.want)
		}
	}
}
