package balancer

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/balancer/outlier"
)

// noRuns is a blacklist that runs of failures hardly ever trip, so that what is ejected is an outlier.
var noRuns = Blacklist{Failures: maxFailures}

// often makes calls at 100 a second for d, of which every third to bad fails with err.
func (r *rig) often(d time.Duration, bad string, err error) (failed int) {
	r.t.Helper()
	seen := 0
	for end := r.clock.Now() + int64(d); r.clock.Now() < end; r.advance(10 * time.Millisecond) {
		id, done, perr := r.begin(ask{})
		if perr != nil {
			r.t.Fatal(perr)
		}
		var answer error
		if id == bad {
			if seen++; seen%3 == 0 {
				answer = err
				failed++
			}
		}
		done(ended(answer))
	}
	return failed
}

// TestOutlierIsEjected: an instance that fails a third of its calls never fails three in a row. It is out after a few
// seconds, comes back by a probing call, and is out for longer the next time.
func TestOutlierIsEjected(t *testing.T) {
	for _, n := range []int{2, 3, 5, 20} {
		for _, code := range []codes.Code{codes.Unavailable, codes.Internal} {
			r := newRig(t, Config{}, fleet(n))
			r.often(10*time.Second, "", nil)
			// A third of i1's calls, which are one in n of 100 a second: some ten failures at n = 20 take six seconds.
			failed := r.often(15*time.Second, "i1", fails(code))
			if s := r.state("i1"); !s.Ejected || s.Ejections != 1 {
				t.Fatalf("%d instances, %v: i1 is %+v after 15s, want it ejected", n, code, s)
			}
			if failed > 25 {
				t.Errorf("%d instances, %v: %d calls failed before it was out, want 25 at most", n, code, failed)
			}
			if out := r.out(); len(out) != 1 {
				t.Errorf("%d instances, %v: out are %v, want i1", n, code, out)
			}
			r.serveOut("i1")
			r.often(30*time.Second, "i1", fails(code))
			if s := r.state("i1"); !s.Ejected || s.Ejections != 2 {
				t.Errorf("%d instances, %v: i1 is %+v half a minute after its return, want it out for the second time", n, code, s)
			}
		}
	}
}

// TestOutlierIsForgiven: what an instance did before it was out is not held against it when it is back.
func TestOutlierIsForgiven(t *testing.T) {
	r := newRig(t, Config{}, fleet(5))
	r.often(10*time.Second, "i1", fails(codes.Unavailable))
	r.advance(r.state("i1").Remaining)
	for range 60 { // little traffic, so that what was before is not diluted
		r.calls(5, ask{})
		r.advance(time.Second)
	}
	if s := r.state("i1"); s.Ejected || s.Probing || r.p.describe().Counters.Ejections != 1 {
		t.Errorf("i1 is %+v, and there were %d ejections, want it in service after one", s, r.p.describe().Counters.Ejections)
	}
}

// TestDrainingIsNoOutlier: where all are draining they get the calls, and nobody is ejected on the way out.
func TestDrainingIsNoOutlier(t *testing.T) {
	ins := fleet(4)
	for i := range ins {
		ins[i].Draining = true
	}
	r := newRig(t, Config{}, ins)
	if failed := r.often(20*time.Second, "i1", fails(codes.Unavailable)); failed < 100 || r.out() != nil {
		t.Errorf("%d calls failed, out are %v; want a third of a quarter of 2000, and nobody", failed, r.out())
	}
}

// TestOutlierIsTheReason: what the blacklist alone does, and what the event says.
func TestOutlierIsTheReason(t *testing.T) {
	var events []Event
	defer Observe(func(e Event) {
		if e.Kind == Ejected || e.Kind == WouldEject {
			events = append(events, e)
		}
	})()
	for _, c := range []Config{{Outliers: Outliers{Disabled: true}}, {Outliers: Outliers{DryRun: true}},
		{Blacklist: Blacklist{Disabled: true}}} {
		events = nil
		r := newRig(t, c, fleet(5))
		r.often(70*time.Second, "i1", fails(codes.Unavailable))
		if out := r.out(); out != nil || r.p.describe().Counters.Ejections != 0 {
			t.Fatalf("%+v: out are %v, want nobody", c, out)
		}
		if !c.Outliers.DryRun {
			if events != nil {
				t.Errorf("%+v: events %+v, want none", c, events)
			}
			continue
		}
		// It is bad for 70 s, and spared for 30 s at a time.
		if n := len(events); n < 2 || n > 3 || r.p.describe().Counters.WouldEject != uint64(n) {
			t.Fatalf("dry run: %d events, %d counted, want 2 or 3 of both: %+v", n, r.p.describe().Counters.WouldEject, events)
		}
		e := events[0]
		if e.Kind != WouldEject || e.ID != "i1" || e.For != 30*time.Second || !strings.Contains(e.Reason, "calls failed in the last") {
			t.Errorf("dry run: event %+v, want one that says who, how long and why", e)
		}
	}
	events = nil
	r := newRig(t, Config{}, fleet(5))
	r.often(20*time.Second, "i1", fails(codes.Unavailable))
	if len(events) != 1 || events[0].Kind != Ejected || !strings.Contains(events[0].Reason, "of the others' at most") {
		t.Errorf("events %+v, want one ejection with its evidence", events)
	}
}

// TestDryRunWithoutBlacklist: to see what it would do before anything is switched on.
func TestDryRunWithoutBlacklist(t *testing.T) {
	r := newRig(t, Config{Blacklist: Blacklist{Disabled: true}, Outliers: Outliers{DryRun: true}}, fleet(5))
	r.often(20*time.Second, "i1", fails(codes.Unavailable))
	if c := r.p.describe().Counters; c.WouldEject != 1 || c.Ejections != 0 {
		t.Errorf("counters %+v, want one that would be ejected and none that is", c)
	}
}

// TestNobodyIsAnOutlier: errors by chance, errors of everybody, and errors that say nothing about an instance.
func TestNobodyIsAnOutlier(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    float64
		err  error
	}{
		{"one in a hundred", 0.01, fails(codes.Unavailable)},
		{"a third of everybody's", 0.3, fails(codes.Unavailable)},
		{"nearly all", 0.9, fails(codes.Unavailable)},
		{"business errors", 0.5, fails(codes.NotFound)},
		{"callers that give up", 0.5, fails(codes.Canceled)},
	} {
		r := newRig(t, Config{Blacklist: noRuns}, fleet(10))
		rnd := rand.New(rand.NewPCG(5, 8))
		for range 10_000 { // 100 s
			id, done, err := r.begin(ask{})
			if err != nil {
				t.Fatal(err)
			}
			answer := tt.err
			if rnd.Float64() >= tt.p || id != "i3" && tt.name == "business errors" {
				answer = nil
			}
			done(ended(answer))
			r.advance(10 * time.Millisecond)
		}
		if c := r.p.describe().Counters; c.Ejections != 0 {
			t.Errorf("%s: %d ejections, out are %v, want none", tt.name, c.Ejections, r.out())
		}
	}
}

// TestCancelledCallsDoNotDilute: of an instance whose calls are hedged most are cancelled. They are no successes.
func TestCancelledCallsDoNotDilute(t *testing.T) {
	r := newRig(t, Config{Blacklist: noRuns}, fleet(4))
	n := 0
	for range 4000 { // 40 s
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		switch n++; {
		case id != "i1":
			done(ended(nil))
		case n%100 == 2: // 4 % of its calls, which is below the bar
			done(ended(fails(codes.Unavailable)))
		case n%40 == 6:
			done(gbalancer.DoneInfo{}) // a pick that was discarded
		default:
			done(ended(fails(codes.Canceled)))
		}
		r.advance(10 * time.Millisecond)
	}
	if s := r.state("i1"); s.Ejections == 0 {
		t.Errorf("i1, which answered no call, is %+v, want it to have been ejected", s)
	}
}

// TestWatchEnds: nobody looks before the first failure, nor a minute after the last one, and nothing is kept.
func TestWatchEnds(t *testing.T) {
	r := newRig(t, Config{}, fleet(4))
	r.calls(100, ask{})
	r.advance(time.Minute)
	if n := r.clock.pending(); n != 0 {
		t.Fatalf("%d timers run though nothing has failed", n)
	}
	r.answers["i1"] = fails(codes.Unavailable)
	r.calls(4, ask{})
	r.answers["i1"] = nil
	if n := r.clock.pending(); n != 1 {
		t.Fatalf("%d timers run after a failure, want the one of the watch", n)
	}
	r.advance(outlier.Span - 2*time.Second)
	if n := r.clock.pending(); n != 1 {
		t.Fatalf("%d timers run a minute after a failure, want the one of the watch", n)
	}
	r.advance(4 * time.Second)
	if n := r.clock.pending(); n != 0 {
		t.Fatalf("%d timers run after a quiet minute, want none", n)
	}
	for e := range r.ever {
		if e.host != nil {
			t.Errorf("%s is still remembered", e.id.ID)
		}
	}
	// And it begins again.
	r.often(20*time.Second, "i1", fails(codes.Unavailable))
	if !r.state("i1").Ejected {
		t.Error("an outlier after a quiet time is not ejected")
	}
}

// TestWatchFollowsTheFleet: instances that leave, are replaced, drain or lose their connection while somebody looks.
func TestWatchFollowsTheFleet(t *testing.T) {
	ins := fleet(6)
	r := newRig(t, Config{}, ins)
	r.often(3*time.Second, "i1", fails(codes.Unavailable))
	ins[1].ID, ins[2].Draining = "successor", true
	r.update(Config{}, ins[:5])
	r.drop(ins[3].Addr)
	r.often(70*time.Second, "successor", nil)
	if s := r.state("successor"); s.Ejected || s.Ejections != 0 {
		t.Errorf("the successor of an outlier is %+v, want it in service", s)
	}
	r.often(20*time.Second, "i4", fails(codes.Unavailable))
	if out := r.out(); !slices.Equal(out, []string{"i4"}) {
		t.Errorf("out are %v, want i4", out)
	}
}

// TestSlowGetsLess: with Slow, an instance that is ten times as slow as the others keeps three tenths of its calls, in
// round robin too; it is not ejected, and gets all when it is fast again, or when Slow is switched off.
func TestSlowGetsLess(t *testing.T) {
	c := Config{Outliers: Outliers{Slow: 3}}
	r := newRig(t, c, fleet(4))
	run := func(d time.Duration, slow time.Duration) map[string]int {
		got := make(map[string]int)
		for end := r.clock.Now() + int64(d); r.clock.Now() < end; {
			id, done, err := r.begin(ask{})
			if err != nil {
				t.Fatal(err)
			}
			got[id]++
			latency := 2 * time.Millisecond
			if id == "i2" {
				latency = slow
			}
			r.advance(latency)
			done(ended(nil))
		}
		return got
	}
	run(10*time.Second, 2*time.Millisecond)
	if s := r.state("i2"); s.Share != 1 {
		t.Fatalf("share %v before anything happened, want 1", s.Share)
	}
	run(15*time.Second, 20*time.Millisecond)
	got := run(20*time.Second, 20*time.Millisecond)
	if part := float64(got["i2"]) / float64(got["i0"]); math.Abs(part-0.3) > 0.05 {
		t.Errorf("it gets %.2f of the calls of another, want 0.3: %v", part, got)
	}
	if s := r.state("i2"); math.Abs(s.Share-0.3) > 0.01 || s.Ejected || s.Ejections != 0 {
		t.Errorf("it is %+v, want a share of 0.3 and no ejection", s)
	}
	run(20*time.Second, 2*time.Millisecond)
	if s := r.state("i2"); s.Share != 1 {
		t.Errorf("share %v when it is fast again, want 1", s.Share)
	}
	run(15*time.Second, 20*time.Millisecond)
	r.update(Config{}, fleet(4))
	if s := r.state("i2"); s.Share != 1 {
		t.Errorf("share %v when Slow is switched off, want 1", s.Share)
	}
	if got := r.calls(400, ask{}); got["i2"] != 100 {
		t.Errorf("calls go to %v, want all four in turn", got)
	}
	if r.clock.pending() != 0 {
		t.Error("a timer is left when Slow is switched off")
	}
	dry := c
	dry.Outliers.DryRun = true
	r.update(dry, fleet(4))
	run(20*time.Second, 20*time.Millisecond)
	if s := r.state("i2"); s.Share != 1 {
		t.Errorf("share %v in a dry run, want 1", s.Share)
	}
}

// TestStandardDecides: with A50 every error counts, a sweep of 10 s decides, and its time is the ejection's.
func TestStandardDecides(t *testing.T) {
	c := Config{Blacklist: noRuns, Outliers: Outliers{A50: &outlier.A50{
		BaseEjectionTime: 20 * time.Second, FailurePercentageEjection: &outlier.FailurePercentageEjection{Threshold: 30},
	}}}
	r := newRig(t, c, fleet(5))
	r.often(19*time.Second, "i1", fails(codes.NotFound)) // the first sweep begins the first interval
	if out := r.out(); out != nil {
		t.Fatalf("out are %v before the second sweep, want nobody", out)
	}
	r.often(1500*time.Millisecond, "i1", fails(codes.NotFound))
	s := r.state("i1")
	if !s.Ejected || s.Remaining > 20*time.Second || s.Remaining < 19*time.Second {
		t.Fatalf("i1 is %+v after a sweep, want it ejected for 20s", s)
	}
	r.often(21*time.Second, "", nil)
	if s := r.state("i1"); s.Ejected || s.Probing {
		t.Fatalf("i1 is %+v after its time, want it back by a probing call", s)
	}
	r.often(9*time.Second, "", nil) // A50 counts it as out until the sweep
	r.often(10*time.Second, "i1", fails(codes.NotFound))
	r.often(2*time.Second, "", nil)
	if s := r.state("i1"); !s.Ejected || s.Remaining < 20*time.Second {
		t.Errorf("i1 is %+v, want it ejected for longer than the first time", s)
	}
	dry := c
	dry.Outliers.DryRun = true
	r = newRig(t, dry, fleet(5))
	r.often(25*time.Second, "i1", fails(codes.NotFound))
	if n := r.p.describe().Counters; n.WouldEject != 1 || n.Ejections != 0 {
		t.Errorf("counters of a dry run %+v, want one that would be ejected", n)
	}
}

func TestOutliersJSON(t *testing.T) {
	for _, o := range []Outliers{
		{}, {Disabled: true}, {DryRun: true, Margin: 0.1, OddsRatio: 2, Confidence: 0.99, Slow: 4},
		{A50: &outlier.A50{SuccessRateEjection: &outlier.SuccessRateEjection{}}},
		{A50: &outlier.A50{Interval: time.Second, BaseEjectionTime: 2 * time.Second, MaxEjectionTime: time.Minute,
			MaxEjectionPercent:        20,
			SuccessRateEjection:       &outlier.SuccessRateEjection{StdevFactor: 1, EnforcementPercentage: 2, MinimumHosts: 3, RequestVolume: 4},
			FailurePercentageEjection: &outlier.FailurePercentageEjection{Threshold: 5, EnforcementPercentage: 6, MinimumHosts: 7, RequestVolume: 8}}},
	} {
		js, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var back Outliers
		if err := json.Unmarshal(js, &back); err != nil || !reflect.DeepEqual(back, o) {
			t.Errorf("%+v came back as %+v (%v) from %s", o, back, err, js)
		}
		if _, err := LoadBalancingConfig(Config{Outliers: o}); err != nil {
			t.Errorf("%s: %v", js, err)
		}
	}
}

func TestOutliersErrors(t *testing.T) {
	for js, want := range map[string]string{
		`{"margn":1}`:       `outliers: unknown field "margn", want one of disabled, dryRun, margin`,
		`{"margin":2}`:      `outliers.margin = 2, want 0.001 to 1`,
		`{"oddsRatio":0.2}`: `oddsRatio = 0.2, want 1 to 1000`,
		`{"confidence":1}`:  `confidence = 1, want 0.9 to less than 1`,
		`{"slow":1}`:        `slow = 1, want 1.5 to 1000`,
		`{"slow":"3"}`:      `outliers.slow = a JSON string, want a number`,
		`{"a50":{}}`:        `a50.successRateEjection and failurePercentageEjection are both missing`,
		`{"a50":{"x":1}}`:   `outliers.a50: unknown field "x", want one of interval`,
		`{"a50":{"interval":"0s","failurePercentageEjection":{}}}`:          `outliers.a50.interval = 0, want more than 0`,
		`{"a50":{"interval":"x","failurePercentageEjection":{}}}`:           `outliers.a50.interval = "x", want a text such as`,
		`{"a50":{"maxEjectionPercent":0,"failurePercentageEjection":{}}}`:   `outliers.a50.maxEjectionPercent = 0, want more than 0`,
		`{"a50":{"maxEjectionPercent":101,"failurePercentageEjection":{}}}`: `a50.maxEjectionPercent = 101, want 1 to 100`,
		`{"a50":{"failurePercentageEjection":{"enforcementPercentage":0}}}`: `outliers.a50.failurePercentageEjection.enforcementPercentage = 0, want more than 0`,
		`{"a50":{"successRateEjection":{"stdevFactor":-1}}}`:                `a50.successRateEjection.stdevFactor = -1, want 1 to`,
		`{"slow":3,"a50":{"successRateEjection":{}}}`:                       `outliers.a50 is set together with`,
		`{"a50":{"successRateEjection":{}}},"blacklist":{"disabled":true}`:  `outliers.a50 is set, but blacklist.disabled = true`,
	} {
		_, err := parseConfig(json.RawMessage(`{"outliers":` + js + `}`))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "evenkeel: ") {
			t.Errorf("%s: error %v, want %q", js, err, want)
		}
	}
}

// TestKeptByWeight: of ten instances of which seven are dead, five are out. The two that must stay in get a fifth of what
// those get that are well; where nobody is well all that are in get the same. One that fails less gets more.
func TestKeptByWeight(t *testing.T) {
	r := newRig(t, Config{Strategy: Random{}}, fleet(10))
	for _, id := range []string{"i0", "i1", "i2", "i3", "i4", "i5", "i6"} {
		r.sicken(id, fails(codes.Unavailable))
	}
	kept, well := func() (kept, well []string) {
		for _, e := range r.p.describe().Endpoints {
			if e.Kept {
				kept = append(kept, e.Instance.ID)
			} else if !e.Ejected {
				well = append(well, e.Instance.ID)
			}
		}
		return kept, well
	}()
	if len(kept) != 2 || len(well) != 3 {
		t.Fatalf("kept in are %v and well %v, want two and three", kept, well)
	}
	const n = 10_200
	got := r.calls(n, ask{})
	expected := func(share float64) []float64 { // of the kept ones, then the others
		all := 3 + 2*share
		return []float64{n * share / all, n * share / all, n / all, n / all, n / all}
	}
	counts := []int{got[kept[0]], got[kept[1]], got[well[0]], got[well[1]], got[well[2]]}
	checkExpected(t, "two of five fail all", counts, expected(0.2))
	for _, id := range well {
		r.sicken(id, fails(codes.Unavailable))
	}
	got = r.calls(n, ask{})
	counts = nil
	for _, c := range got {
		counts = append(counts, c)
	}
	if len(counts) != 5 {
		t.Fatalf("calls go to %v, want the five that are kept in", got)
	}
	checkUniform(t, "all fail", counts)
}

// TestWorth: how much of its share somebody gets who is kept in.
func TestWorth(t *testing.T) {
	j := judge{failures: 3}
	record := func(outcomes string) (h health) {
		for _, o := range outcomes {
			if o == 'x' {
				h = h.fail(false)
			} else {
				h = h.ok()
			}
		}
		return h
	}
	for outcomes, want := range map[string]float64{
		"": 0.2, "xxx": 0.2, "..........xxx": 0.2, "x..x..x..x..x..x..x.": 0.65, "xx.xx.xx.xx.xx.": 1 - 2./3, ".": 1, "xx.xx.xx.xx.xx.xx": 1 - 12./17,
		"x.x.x.x.x.": 0.5, "xx.xx.xx.xxxx": 0.2,
	} {
		if got := record(outcomes).worth(&j); math.Abs(got-want) > 1e-9 {
			t.Errorf("after %q: %v, want %v", outcomes, got, want)
		}
	}
}
