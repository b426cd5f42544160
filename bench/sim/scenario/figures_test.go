package scenario

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/client"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

func TestKeys(t *testing.T) {
	s := Scenario{Keys: 50}
	r := rand.New(rand.NewPCG(1, 1))
	for _, exponent := range []float64{0, 0.9, 1.3} {
		const n = 100_000
		draw := s.keys(exponent)
		got := make(map[string]int)
		for range n {
			got[draw(r)]++
		}
		sum := 0.0
		for i := range 50 {
			sum += math.Pow(float64(i+1), -exponent)
		}
		x := 0.0
		for i := range 50 {
			want := n * math.Pow(float64(i+1), -exponent) / sum
			d := float64(got["key-"+strconv.Itoa(i)]) - want
			x += d * d / want
		}
		if x > 85.4 { // 0.001 at 49 degrees of freedom
			t.Errorf("exponent %v: chi-square %.0f", exponent, x)
		}
	}
	if (&Scenario{}).keys(1) != nil {
		t.Error("a scenario without keys draws some")
	}
}

// bins are seconds in which so many calls came and failed.
func bins(seconds ...[2]uint32) *StepResult {
	r := &StepResult{Capacity: 100, Lasted: time.Duration(len(seconds)) * time.Second}
	for _, s := range seconds {
		for range 10 {
			r.Series = append(r.Series, Bin{Calls: s[0] / 10, Failed: s[1] / 10})
		}
		for range s[0] {
			r.Latency.Record(1)
		}
		for range s[0] - s[1] {
			r.Accepted.Record(1)
		}
	}
	return r
}

// TestSettled: what counts is the part of what could have been answered, be it all or the capacity.
func TestSettled(t *testing.T) {
	for name, c := range map[string]struct {
		r       *StepResult
		settled time.Duration
		goodput float64
	}{
		"always well":            {bins([2]uint32{50, 0}, [2]uint32{50, 0}), 0, 1},
		"well after two seconds": {bins([2]uint32{50, 10}, [2]uint32{50, 10}, [2]uint32{50, 0}), 2 * time.Second, 130. / 150},
		"twice what can be done": {bins([2]uint32{200, 100}, [2]uint32{200, 100}), 0, 1},
		"and too few":            {bins([2]uint32{200, 100}, [2]uint32{200, 120}), 2 * time.Second, 0.9},
		"never":                  {bins([2]uint32{50, 50}, [2]uint32{50, 50}), 2 * time.Second, 0},
		"nothing came":           {bins([2]uint32{0, 0}), 0, 1},
	} {
		if got := c.r.Settled(); got != c.settled {
			t.Errorf("%s: settled after %v, want %v", name, got, c.settled)
		}
		if got := c.r.Goodput(); math.Abs(got-c.goodput) > 1e-9 {
			t.Errorf("%s: goodput %v, want %v", name, got, c.goodput)
		}
	}
}

// TestZonesAndKeys: under random choice as much leaves its zone as there are servers elsewhere; a surge is one of the
// zone's clients; keys have no server of their own.
func TestZonesAndKeys(t *testing.T) {
	s := Scenario{
		Name: "zones", Clients: 10, Zones: []string{"a", "b", "a", "b", "c"}, Work: Fixed(time.Millisecond), Keys: 5,
		Servers: []Group{{Name: "a", Count: 1, Zone: "a"}, {Name: "b", Count: 2, Zone: "b"}, {Name: "c", Count: 1, Zone: "c"}},
		Steps: []Step{
			{Name: "even", Load: 0.4, Measure: 6 * time.Second},
			{Name: "surge", Load: 0.4, Surge: map[string]float64{"a": 3, "b": 0}, Measure: 6 * time.Second},
		},
	}
	r, err := Run(s, choices(1), 1)
	if err != nil {
		t.Fatal(err)
	}
	even, surge := r.Steps[0], r.Steps[1]
	if want := 0.4*0.75 + 0.4*0.5 + 0.2*0.75; math.Abs(even.Cross-want) > 0.02 {
		t.Errorf("%.3f leave their zone, want %.3f", even.Cross, want)
	}
	if math.Abs(even.Busiest-0.4) > 0.03 || even.MaxMean < 1 || even.MaxMean > 1.1 {
		t.Errorf("the busiest zone is used to %.3f, max/mean %.3f; want 0.4 and 1", even.Busiest, even.MaxMean)
	}
	if even.Affinity < 0.25 || even.Affinity > 0.3 {
		t.Errorf("%.3f of the calls went to their key's server, of four at random", even.Affinity)
	}
	if want := 1.4 * float64(even.Calls()); math.Abs(float64(surge.Calls())-want) > 5*math.Sqrt(want) {
		t.Errorf("%d calls in the surge, want %.0f", surge.Calls(), want)
	}
	if want := 4 / s.Work.Mean.Seconds(); math.Abs(even.Capacity/want-1) > 1e-9 || even.Lasted != 6*time.Second {
		t.Errorf("capacity %v over %v, want %v", even.Capacity, even.Lasted, want)
	}
}

// TestSpeedIn slows the part of a zone that it says, evenly, and nothing else.
func TestSpeedIn(t *testing.T) {
	var before, after []float64
	see := func(to *[]float64) Action {
		return func(f *Fleet) {
			for _, m := range f.Members() {
				*to = append(*to, m.Available())
			}
		}
	}
	s := Scenario{Name: "s", Clients: 1, Work: Fixed(time.Millisecond),
		Servers: []Group{{Name: "a", Count: 3, Zone: "a"}, {Name: "b", Count: 6, Zone: "b"}},
		Steps: []Step{{Name: "one", Load: 0.1, Measure: time.Second, Events: []Event{
			{At: 1, Do: SpeedIn("b", 1./3, 0.1)}, {At: 2, Do: see(&before)},
			{At: 3, Do: SpeedIn("b", 1, 1)}, {At: 4, Do: see(&after)}}}}}
	if _, err := Run(s, choices(1), 1); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, []float64{1, 1, 1, 1, 1, 0.1, 1, 1, 0.1}) {
		t.Errorf("a third of zone b at a tenth: %v", before)
	}
	if slices.ContainsFunc(after, func(v float64) bool { return v != 1 }) {
		t.Errorf("well again: %v", after)
	}
}

// TestChain: each layer gets each call once, and a call takes the work of all.
func TestChain(t *testing.T) {
	s := Scenario{Name: "chain", Clients: 2, Work: Fixed(time.Millisecond), Chain: true,
		Steps: []Step{{Name: "one", Rate: 100, Settle: time.Second, Measure: 10 * time.Second}}}
	for _, name := range []string{"x", "y", "z"} {
		s.Servers = append(s.Servers, Group{Name: name, Count: 2, Server: server.Config{Cores: 8}})
	}
	r, err := Run(s, choices(1), 1)
	if err != nil {
		t.Fatal(err)
	}
	st := r.Steps[0]
	for i, n := range st.Sent {
		if math.Abs(float64(n)-float64(st.Calls())) > 3 {
			t.Errorf("layer %d was called %d times for %d calls", i, n, st.Calls())
		}
	}
	if p := st.Latency.Quantile(0.5); p < int64(3500*time.Microsecond) || p > int64(4200*time.Microsecond) {
		t.Errorf("calls take %v, want 3 ms and six ways of 120 µs", time.Duration(p))
	}
	if st.Errors() != 0 {
		t.Errorf("%v of the calls fail", st.Errors())
	}
}

func TestValidateMore(t *testing.T) {
	bad := Scenario{Name: "s", Keys: -1, Chain: true, Clients: 1, Work: Fixed(1), Servers: []Group{{Count: 1}, {}},
		Streams: client.Streams{Part: 2},
		Steps:   []Step{{Load: 1, Measure: 1, Zipf: -1, Surge: map[string]float64{"a": -1}}}}
	err := bad.Validate()
	if err == nil {
		t.Fatal("a scenario without sense is valid")
	}
	for _, want := range []string{"keys = -1", "group without servers", "streams = {Part:2", "zipf = -1", `surge["a"] = -1`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
}

// brief runs one step of a scenario on half of its fleet, for seconds only.
func brief(t *testing.T, s Scenario, m lb.Maker) StepResult {
	t.Helper()
	s = s.Scaled(0.5)
	s.Steps = s.Steps[:1]
	s.Steps[0].Settle, s.Steps[0].Measure = time.Second, 2*time.Second
	r, err := Run(s, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	return r.Steps[0]
}

// TestFigure9: what is published of the ends of the quantiles comes out. By latency nearly alone the slow half still gets
// calls, since latencies tell servers apart only so well; by latency alone the tail is worse, and nothing fails: a server
// that is stuck does not look fast by the calls that need no work.
func TestFigure9(t *testing.T) {
	of := make(map[string]StepResult)
	for _, m := range baseline.Figure9() {
		switch m.Name {
		case "prequal q=0", "prequal q=0.99", "prequal q=1":
			of[m.Name] = brief(t, quantiles(), m)
		}
	}
	both, latency := of["prequal q=0.99"], of["prequal q=1"]
	if fast := both.Shares[0]; fast < 0.8 || fast > 0.97 {
		t.Errorf("by latency nearly alone %.3f of the calls go to the fast half, want most, but not all", fast)
	}
	if latency.Errors() != 0 {
		t.Errorf("by latency alone %v of the calls fail, want none", latency.Errors())
	}
	worst := latency.Latency.Quantile(0.99)
	for name, r := range of {
		if p99 := r.Latency.Quantile(0.99); name != "prequal q=1" && p99*5/4 > worst {
			t.Errorf("%s has a p99 of %d ms, by latency alone it is %d; want that to be the worst by far", name, p99/1e6, worst/1e6)
		}
	}
}
