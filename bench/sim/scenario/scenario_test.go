package scenario

import (
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/network"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// choices takes the one with the least in flight of d servers that are drawn at random, and knows the truth; 1 is
// random.
func choices(d int) lb.Maker {
	return lb.Maker{Name: "choices", New: func(env lb.Env) (lb.Balancer, error) {
		return &chooser{env, env.Servers, d}, nil
	}}
}

type chooser struct {
	env     lb.Env
	servers []lb.Server
	d       int
}

func (c *chooser) Pick(*lb.Call) (int, error) {
	best := -1
	for range c.d {
		s := c.servers[c.env.Rand()%uint64(len(c.servers))].Index
		if best < 0 || c.env.Peek(s).RIF < c.env.Peek(best).RIF {
			best = s
		}
	}
	return best, nil
}

func (c *chooser) Done(*lb.Call, int, lb.Result) {}
func (c *chooser) Update(servers []lb.Server)    { c.servers = servers }

// TestMeanField: of many servers with a queue each, the part that has k or more requests is
// lambda^((d^k-1)/(d-1)) (Mitzenmacher), with the least of d choices; for random lambda^k. lambda is what the run really
// had, the part of the servers that are busy, which is near what was asked for.
func TestMeanField(t *testing.T) {
	measure, tolerance := 300*time.Second, 0.015
	if raceEnabled || testing.Short() {
		measure, tolerance = 20*time.Second, 0.04
	}
	const asked = 0.8
	for d := 1; d <= 3; d++ {
		s := Scenario{
			Name: "mean field", Servers: []Group{{Name: "all", Count: 300, Server: server.Config{Workers: 1}}},
			Clients: 1, Work: Exponential(time.Second), Deadline: time.Hour,
			Network: network.Config{Local: time.Microsecond, Jitter: -1},
			Steps:   []Step{{Name: "only", Load: asked, Settle: 60 * time.Second, Measure: measure}},
		}
		r, err := Run(s, choices(d), 1)
		if err != nil {
			t.Fatal(err)
		}
		lambda := r.Steps[0].RIF.Above(0)
		if math.Abs(lambda-asked) > tolerance {
			t.Errorf("d = %d: %.4f of the servers are busy, want %v within %v", d, lambda, asked, tolerance)
		}
		for k := 2; k <= 4; k++ {
			power := float64(k)
			if d > 1 {
				power = (math.Pow(float64(d), float64(k)) - 1) / float64(d-1)
			}
			got, want := r.Steps[0].RIF.Above(int64(k-1)), math.Pow(lambda, power)
			t.Logf("d = %d: %.4f of the servers have %d or more, want %.4f", d, got, k, want)
			if math.Abs(got-want) > tolerance {
				t.Errorf("d = %d: %.4f of the servers have %d or more, want %.4f within %v", d, got, k, want, tolerance)
			}
		}
	}
}

// small is a fleet to which much happens.
func small() Scenario {
	return Scenario{
		Name: "small", Title: "small", Question: "?", Clients: 5, Attempts: 2, Deadline: 300 * time.Millisecond,
		Zones: []string{"a", "b"}, Work: ClampedNormal(10 * time.Millisecond),
		Servers: []Group{
			{Name: "x", Count: 6, Zone: "a", Server: server.Config{Cores: 2}, Antagonist: &rulesAntagonist},
			{Name: "y", Count: 4, Zone: "b", Server: server.Config{Workers: 2, Speed: 0.5}},
		},
		Steps: []Step{
			{Name: "one", Load: 0.5, Settle: time.Second, Measure: 3 * time.Second, Events: []Event{
				{At: time.Second, Do: Crash(0.2)}, {At: 2 * time.Second, Do: Restart(0.2)}}},
			{Name: "two", Load: 0.7, Settle: time.Second, Measure: 3 * time.Second, Events: []Event{
				{At: 0, Do: Replace(time.Second, 100*time.Millisecond, 0.5, time.Second, 2)},
				{At: 1, Do: Hang(0.1)}, {At: 2, Do: Pauses(0.3, time.Second, 50*time.Millisecond)},
				{At: 3, Do: Faults(0.3, server.Faults{Fail: 0.5, FailAfter: time.Millisecond})},
				{At: 4, Do: Grow("y", 1, 0.1, time.Second)}}},
		},
	}
}

// golden is the hash of small under two choices with seed 1. A change of it is a change of what all figures are made
// of: make the tables anew with it. Other processors may round differently.
const golden = uint64(0xe941bd95cc023bc4)

func TestSameSeedSameRun(t *testing.T) {
	run := func(seed uint64) *Result {
		r, err := Run(small(), choices(2), seed)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, again, other := run(1), run(1), run(2)
	if one.Hash != again.Hash || one.Events != again.Events {
		t.Errorf("one seed gave %d events with hash %#x, and %d with %#x", one.Events, one.Hash, again.Events, again.Hash)
	}
	if one.Hash == other.Hash {
		t.Error("two seeds gave one hash")
	}
	if runtime.GOARCH == "amd64" && one.Hash != golden {
		t.Errorf("hash %#x, want %#x", one.Hash, golden)
	}
}

// TestPoliciesMeetOneWorld: arrivals and what the machines can do are the same under every policy.
func TestPoliciesMeetOneWorld(t *testing.T) {
	type world struct {
		calls      []uint32
		capacities []float64
	}
	meet := func(m lb.Maker, seed uint64) world {
		var w world
		s := small()
		for i := range s.Steps {
			s.Steps[i].Events = append(s.Steps[i].Events, Event{At: s.Steps[i].Measure - 1, Do: func(f *Fleet) {
				for _, member := range f.Members() {
					w.capacities = append(w.capacities, member.Available())
				}
			}})
		}
		r, err := Run(s, m, seed)
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range r.Steps {
			for _, b := range st.Series {
				w.calls = append(w.calls, b.Calls)
			}
		}
		return w
	}
	a, b, c := meet(choices(1), 1), meet(choices(3), 1), meet(choices(1), 2)
	if !slices.Equal(a.calls, b.calls) || !slices.Equal(a.capacities, b.capacities) {
		t.Error("two policies met different worlds under one seed")
	}
	if slices.Equal(a.calls, c.calls) || slices.Equal(a.capacities, c.capacities) {
		t.Error("two seeds made one world")
	}
}

// TestAccounts: every call is counted once, and one that fails at its deadline.
func TestAccounts(t *testing.T) {
	r, err := Run(small(), choices(2), 3)
	if err != nil {
		t.Fatal(err)
	}
	all := uint64(0)
	for _, st := range r.Steps {
		codes, bins, failed := uint64(0), uint64(0), uint64(0)
		for _, n := range st.Codes {
			codes += n
		}
		for _, b := range st.Series {
			bins += uint64(b.Calls)
			failed += uint64(b.Failed)
		}
		if codes != st.Calls() || bins != st.Calls() || failed != codes-st.Codes[0] {
			t.Errorf("%s: %d calls, %d codes, %d in bins, %d failed there, %d failed by code", st.Name, st.Calls(), codes,
				bins, failed, codes-st.Codes[0])
		}
		if failed > 0 && st.Latency.Max() != int64(300*time.Millisecond) {
			t.Errorf("%s: %d failed and the slowest took %d, want 300 ms", st.Name, failed, st.Latency.Max())
		}
		all += failed
		if sum := st.Shares[0] + st.Shares[1]; math.Abs(sum-1) > 1e-9 {
			t.Errorf("%s: shares add up to %v", st.Name, sum)
		}
	}
	if all == 0 {
		t.Error("nothing failed in a fleet with a hung server and a sink-hole")
	}
}

func TestValidate(t *testing.T) {
	bad := Scenario{Servers: []Group{{Count: -1}}, Steps: []Step{{Settle: -1, Events: []Event{{}}}},
		Network: network.Config{Local: -1}}
	_, err := Run(bad, choices(1), 1)
	if err == nil {
		t.Fatal("a scenario without sense runs")
	}
	for _, want := range []string{"no name", "servers[0].count = -1", "-1 servers", "clients = 0", "work", "load = 0",
		"settle = -1ns", "events[0]", "local = -1ns"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
}

// TestMisuse: what makes no sense is an error that names it, before the simulation or when it is done, and never a panic, a
// run without an end, or silence.
func TestMisuse(t *testing.T) {
	do := func(a Action) func(*Scenario) {
		return func(s *Scenario) { s.Steps[0].Events = []Event{{Do: a}} }
	}
	for want, change := range map[string]func(*Scenario){
		"servers[0].server.cores = -1":      func(s *Scenario) { s.Servers[0].Server.Cores = -1 },
		"servers[0].server.cores = NaN":     func(s *Scenario) { s.Servers[0].Server.Cores = math.NaN() },
		"servers[0].server.speed = -1":      func(s *Scenario) { s.Servers[0].Server.Speed = -1 },
		`servers[1].name = "all"`:           func(s *Scenario) { s.Servers = append(s.Servers, s.Servers[0]) },
		"deadline = -1s":                    func(s *Scenario) { s.Deadline = -time.Second },
		"attempts = -1":                     func(s *Scenario) { s.Attempts = -1 },
		"discovery = -1ns":                  func(s *Scenario) { s.Discovery = -1 },
		"steps[0]: load = +Inf":             func(s *Scenario) { s.Steps[0].Load = math.Inf(1) },
		"steps[0]: load = -1, rate = 5":     func(s *Scenario) { s.Steps[0].Load, s.Steps[0].Rate = -1, 5 },
		`surge["z"]: nobody calls from`:     func(s *Scenario) { s.Steps[0].Surge = map[string]float64{"z": 3} },
		"events[0]: at = 1m0s, want less":   func(s *Scenario) { s.Steps[0].Events = []Event{{At: time.Minute, Do: Crash(1)}} },
		"Crash: part = 25":                  do(Crash(25)),
		"Hang: part = 0":                    do(Hang(0)),
		"Restart: part = NaN":               do(Restart(math.NaN())),
		"Speed: times = 0":                  do(Speed(1, 0)),
		`SpeedIn: zone "eu" has no servers`: do(SpeedIn("eu", 1, 0.1)),
		"SpeedIn: part = 2":                 do(SpeedIn("", 2, 0.1)),
		`group "al" is not there`:           do(In("al", (*Fleet).Crash)),
		`"bad": group "" is not there`:      do(Grow("", 1, 0.1, 0)),
		"Warm: cold = 0":                    do(Grow("all", 1, 0, 0)),
		"Warm: warm = -1s":                  do(Grow("all", 1, 0.1, -time.Second)),
		"Faults: fail = 50":                 do(Faults(1, server.Faults{Fail: 50})),
		"Faults: slowBy = 0":                do(Faults(1, server.Faults{Slow: 0.5})),
		"Pauses: period = 0s":               do(Pauses(1, 0, time.Millisecond)),
		"Replace: period = -1s":             do(Replace(-time.Second, 0, 1, 0, 1)),
		"mine = 3, want 4":                  do(func(f *Fleet) { f.Sim.After(1, func() { f.Fail("mine = 3, want 4") }) }),
	} {
		s := Scenario{Name: "bad", Servers: []Group{{Name: "all", Count: 4}}, Clients: 2, Work: Fixed(time.Millisecond),
			Steps: []Step{{Name: "one", Load: 0.2, Measure: time.Second}}}
		change(&s)
		if _, err := Run(s, choices(1), 1); err == nil || !strings.Contains(err.Error(), `scenario "bad": `) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// tiny is the scenario with a twentieth of its size, compressed in time, events and all.
func tiny(s Scenario) Scenario {
	const faster = 20
	s = s.Scaled(0.05)
	for i := range s.Steps {
		st := &s.Steps[i]
		st.Settle, st.Measure = min(st.Settle/faster, time.Second), st.Measure/faster
		st.Events = slices.Clone(st.Events)
		for j := range st.Events {
			st.Events[j].At = max(st.Events[j].At/faster, -st.Settle)
		}
	}
	return s
}

// goldens are the hashes of the logs of all events of each scenario at a tiny size, under two choices with seed 1. As
// with golden, a change of one is a change of what that scenario's tables are made of.
var goldens = map[string]uint64{
	"S1":  0x66ef27c452b6f546,
	"S2":  0x46c4184ac3867d87,
	"S3":  0xaa06b3d134c4f600,
	"S4":  0x358429c870986b5a,
	"S5":  0x8670aa4038e47ccc,
	"S6":  0x4fa0edc4cf15400,
	"S7":  0x1aa4dfa06bd32353,
	"S8":  0x680f8dff8236bb7,
	"S9":  0x54a23e3dc11aa138,
	"S11": 0x5e1a80fd109d9aee,
	"S12": 0xa21384541ceac93d,
	"S13": 0x74bad559764b20f8,
	"S14": 0xdd3d44c6fd9726ef,
	"S15": 0xd1a16764fa82df5,
}

// TestCatalogue: every scenario makes sense, runs, and is a function of its seed and of nothing else.
func TestCatalogue(t *testing.T) {
	for _, s := range Catalogue() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			run := func(seed uint64) *Result {
				r, err := Run(tiny(s), choices(2), seed)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			one, again := run(1), run(1)
			for _, st := range one.Steps {
				if st.Calls() == 0 {
					t.Errorf("%s: no calls", st.Name)
				}
			}
			if one.Hash != again.Hash || one.Events != again.Events {
				t.Errorf("one seed gave the hashes %#x and %#x", one.Hash, again.Hash)
			}
			if want := goldens[s.Name]; runtime.GOARCH == "amd64" && one.Hash != want {
				t.Errorf("hash %#x, want %#x", one.Hash, want)
			}
		})
	}
}

func TestAll(t *testing.T) {
	var jobs []Job
	for seed := range uint64(4) {
		jobs = append(jobs, Job{small(), choices(1), seed})
	}
	told := 0
	results, err := All(jobs, 2, func(finished int, _ *Result) {
		if told++; finished != told {
			t.Errorf("told of %d after %d", finished, told)
		}
	})
	if err != nil || told != 4 {
		t.Fatalf("told %d times, error %v", told, err)
	}
	for i, r := range results {
		if r.Seed != uint64(i) {
			t.Errorf("result %d is of seed %d", i, r.Seed)
		}
	}
	jobs[2].Scenario.Clients = 0
	if _, err := All(jobs, 2, nil); err == nil || !strings.Contains(err.Error(), "seed 2") {
		t.Errorf("error %v, want one of seed 2", err)
	}
}

func TestWork(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for name, w := range map[string]Work{"exponential": Exponential(time.Millisecond), "fixed": Fixed(time.Millisecond),
		"clamped normal": ClampedNormal(time.Millisecond), "a slice and more": SlicedNormal(time.Millisecond, time.Millisecond/2),
		"a small slice": SlicedNormal(time.Millisecond, time.Microsecond)} {
		sum := 0.0
		for range 200000 {
			sum += w.Draw(r)
		}
		if got := sum / 200000 / float64(w.Mean); math.Abs(got-1) > 0.01 {
			t.Errorf("%s: the mean is %.4f of what it says", name, got)
		}
	}
}
