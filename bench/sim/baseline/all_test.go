package baseline

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

func TestAllHasAFixedOrder(t *testing.T) {
	want := []string{"random", "round_robin", "least_loaded", "least_request", "finagle_peak_ewma", "linkerd_peak_ewma",
		"kratos_p2c", "gozero_p2c", "wrr", "wrr_smoothed", "yarp_po2c", "linear", "c3", "prequal", "omniscient"}
	var got []string
	for _, m := range All() {
		got = append(got, m.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("All is %q, want %q", got, want)
	}
}

func TestParametersAreChecked(t *testing.T) {
	w := newWorld(t).seed(1)
	for _, m := range []lb.Maker{
		Prequal(PrequalConfig{Quantile: -0.1}), Prequal(PrequalConfig{Quantile: 1.1}),
		Linear(LinearConfig{Lambda: -1}), Linear(LinearConfig{Lambda: 2}),
		C3(C3Config{Alpha: -1}), C3(C3Config{Alpha: 2}),
	} {
		if _, err := m.New(w.env(0)); err == nil {
			t.Errorf("%s takes parameters that make no sense", m.Name)
		}
	}
}

// town is a small simulation: every server takes its own base time for a call, times the calls that it has with the new
// one, and one server fails half of its calls at once.
type town struct {
	*world
	b    lb.Balancer
	rif  map[int]int
	base func(server int) int64
	sick int // -1 for nobody
	sent []int
	rng  *rand.Rand
}

func newTown(t *testing.T, m lb.Maker, servers []int, seed uint64) *town {
	o := &town{world: newWorld(t).seed(seed), rif: make(map[int]int), sick: -1, rng: rand.New(rand.NewPCG(seed, 2)),
		base: func(int) int64 { return 10 * millisecond }}
	env := o.env(servers...)
	env.Probe = func(server int, timeout int64, answer func(lb.Load, bool)) {
		l := lb.Load{RIF: o.rif[server], Latency: o.base(server) * int64(o.rif[server]+1)}
		o.after(millisecond, func() { answer(l, true) })
	}
	env.Peek = func(server int) lb.Truth {
		return lb.Truth{Up: true, RIF: o.rif[server], Finish: o.base(server) * int64(o.rif[server]+1)}
	}
	b, err := m.New(env)
	if err != nil {
		t.Fatal(err)
	}
	o.b = b
	return o
}

func (o *town) call() {
	c := &lb.Call{Deadline: o.now + 5*second}
	s, err := o.b.Pick(c)
	if err != nil {
		o.t.Fatal(err)
	}
	o.sent = append(o.sent, s)
	o.rif[s]++
	r := lb.Result{Latency: o.base(s) * int64(o.rif[s]), Load: &lb.Load{RIF: o.rif[s], QPS: 100,
		Utilization: float64(o.base(s)) / float64(50*millisecond)}}
	if s == o.sick && o.rng.IntN(2) == 0 {
		r.Latency, r.Err = millisecond, status.Error(codes.Unavailable, "test")
	}
	o.after(r.Latency, func() {
		o.rif[s]--
		o.b.Done(c, s, r)
	})
}

// spend has calls arrive for d, at the rate of so many a second.
func (o *town) spend(d int64, rate float64) {
	for end := o.now + d; o.now < end; {
		o.until(o.now + 1 + int64(o.rng.ExpFloat64()/rate*float64(second)))
		o.call()
	}
}

// TestAllUnderChurn sends calls through every baseline while servers come and go: they go to servers that are there,
// one seed gives one run, and another one another.
func TestAllUnderChurn(t *testing.T) {
	for _, m := range All() {
		t.Run(m.Name, func(t *testing.T) {
			run := func(seed uint64) []int {
				servers := first(6)
				o := newTown(t, m, servers, seed)
				o.sick = 3
				for i := range 20 {
					before := len(o.sent)
					o.spend(500*millisecond, 200)
					for _, s := range o.sent[before:] {
						if !slices.Contains(servers, s) {
							t.Fatalf("a call went to %d, want one of %v", s, servers)
						}
					}
					servers = append(slices.Clone(servers[1:]), 6+i)
					if i == 15 {
						servers = servers[:1]
					}
					o.b.Update(shown(servers...))
				}
				o.b.Update(nil)
				if s, err := o.b.Pick(new(lb.Call)); status.Code(err) != codes.Unavailable {
					t.Fatalf("without servers a call went to %d with error %v, want UNAVAILABLE", s, err)
				}
				o.until(o.now + 10*second) // the calls under way end
				return o.sent
			}
			one, again, other := run(1), run(1), run(2)
			if !slices.Equal(one, again) {
				t.Error("two runs with one seed differ")
			}
			if slices.Equal(one, other) {
				t.Error("two seeds give the same run")
			}
		})
	}
}

// TestEvenFleetGetsEvenShares: where all servers are alike nobody is preferred.
func TestEvenFleetGetsEvenShares(t *testing.T) {
	for _, m := range All() {
		t.Run(m.Name, func(t *testing.T) {
			const n = 10
			o := newTown(t, m, first(n), 1)
			o.spend(40*second, 100)
			counts, want := make([]int, n), make([]float64, n)
			for _, s := range o.sent {
				counts[s]++
			}
			for i := range want {
				want[i] = float64(len(o.sent)) / n
			}
			// Load-aware choices repel each other, those by stale figures attract each other: five times what
			// random choices would have (9 degrees of freedom, once in 25,000 runs) is still within 10 % a server.
			if x := chiSquare(counts, want); x > 5*36 {
				t.Errorf("%v of %d calls, chi-square %.0f", counts, len(o.sent), x)
			}
		})
	}
}

// TestGoZeroPrefersTheSlowWhereCallsAreFew holds the flaw in place that the forced choice has: at a tenth of a call for
// each server and second the slow tenth of a fleet gets a good deal more than a tenth of the calls, where the plain
// comparison of two gives it 1 %.
func TestGoZeroPrefersTheSlowWhereCallsAreFew(t *testing.T) {
	share := func(m lb.Maker) float64 {
		const n = 500
		o := newTown(t, m, first(n), 1)
		o.base = func(s int) int64 {
			if s < n/10 {
				return 100 * millisecond
			}
			return 10 * millisecond
		}
		o.spend(100*second, n/10)
		slow, half := 0, o.sent[len(o.sent)/2:]
		for _, s := range half {
			if s < n/10 {
				slow++
			}
		}
		return float64(slow) / float64(len(half))
	}
	// 2500 calls: a random choice would give a standard deviation of 0.6 %.
	if got := share(GoZero()); math.Abs(got-0.16) > 0.03 {
		t.Errorf("go-zero sends %.1f %% to the slow tenth, want 16 %%", 100*got)
	}
	if got := share(LinkerdPeakEWMA()); got > 0.05 {
		t.Errorf("linkerd sends %.1f %% to the slow tenth, want at most 5 %%", 100*got)
	}
}

// TestForgetfulOnes: what is learned is gone after any update of the set for kratos and go-zero, and for nobody else.
func TestForgetfulOnes(t *testing.T) {
	for _, c := range []struct {
		m       lb.Maker
		forgets bool
	}{
		{Kratos(), true}, {GoZero(), true}, {FinaglePeakEWMA(), false}, {LinkerdPeakEWMA(), false},
	} {
		t.Run(c.m.Name, func(t *testing.T) {
			share := func(churn bool) float64 {
				o := newTown(t, c.m, first(10), 1)
				o.base = func(s int) int64 {
					if s == 0 {
						return 200 * millisecond
					}
					return 10 * millisecond
				}
				o.spend(10*second, 100)
				o.sent = nil
				for range 100 {
					if churn {
						o.b.Update(shown(first(10)...))
					}
					o.spend(100*millisecond, 100)
				}
				slow := 0
				for _, s := range o.sent {
					if s == 0 {
						slow++
					}
				}
				return float64(slow) / float64(len(o.sent))
			}
			quiet, churned := share(false), share(true)
			if c.forgets != (churned > 2*quiet+0.02) {
				t.Errorf("the slow server gets %.1f %% and %.1f %% under churn; want it to forget: %v",
					100*quiet, 100*churned, c.forgets)
			}
		})
	}
}

func TestFiguresHaveTheirParameters(t *testing.T) {
	w := newWorld(t).seed(1)
	var got []string
	for _, m := range slices.Concat(Figure8(), Figure9(), Figure10()) {
		got = append(got, m.Name)
		switch b := w.make(m, 0, 1, 2).(type) {
		case *prequal:
			cfg := b.pool.cfg
			if want := fmt.Sprintf("prequal r=%.2g", cfg.Probes); cfg.Remove == 0.25 && m.Name != want {
				t.Errorf("%q probes %v for each call", m.Name, cfg.Probes)
			}
			if want := fmt.Sprint("prequal q=", b.quantile); cfg.Remove == 1 && m.Name != want {
				t.Errorf("%q has the quantile %v", m.Name, b.quantile)
			}
		case *linear:
			if m.Name != fmt.Sprint("linear l=", b.cfg.Lambda) {
				t.Errorf("%q has λ %v", m.Name, b.cfg.Lambda)
			}
		}
	}
	for _, name := range []string{"prequal r=4", "prequal r=1.4", "prequal r=0.5", "prequal q=0", "prequal q=1", "linear l=1"} {
		if !slices.Contains(got, name) {
			t.Errorf("%q is missing in %q", name, got)
		}
	}
}
