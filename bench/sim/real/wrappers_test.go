package real

import (
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/server"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// anywhere is random choice.
func anywhere() lb.Maker {
	return lb.Maker{Name: "anywhere", New: func(env lb.Env) (lb.Balancer, error) { return &dice{env.Rand, env.Servers}, nil }}
}

type dice struct {
	rand    func() uint64
	servers []lb.Server
}

func (d *dice) Pick(*lb.Call) (int, error) {
	return d.servers[d.rand()%uint64(len(d.servers))].Index, nil
}
func (d *dice) Done(*lb.Call, int, lb.Result) {}
func (d *dice) Update(servers []lb.Server)    { d.servers = servers }
func step(load float64) scenario.Step {
	return scenario.Step{Name: "one", Load: load, Settle: 5 * time.Second, Measure: 5 * time.Second}
}

// TestRetryInVirtualTime: where one call in twenty fails all succeed, for a twentieth more attempts; where all fail
// there are no more than the budget's 20 % and 10 a second.
func TestRetryInVirtualTime(t *testing.T) {
	for fail, most := range map[float64]float64{0.05: 1.07, 1: 1.32} {
		s := scenario.Scenario{Name: "retry", Clients: 1, Deadline: time.Second, Work: scenario.Exponential(10 * time.Millisecond),
			Servers: []scenario.Group{{Name: "all", Count: 4, Server: server.Config{Cores: 1}}}, Steps: []scenario.Step{step(0.25)}}
		s.Steps[0].Events = []scenario.Event{{At: -5 * time.Second,
			Do: scenario.Faults(1, server.Faults{Fail: fail, FailAfter: time.Millisecond})}}
		r, err := scenario.Run(s, WithRetry(anywhere(), "retry", retry.Policy{Idempotent: true}), 1)
		if err != nil {
			t.Fatal(err)
		}
		st := r.Steps[0]
		if got := float64(st.Attempts) / float64(st.Calls()); got < 1.03 || got > most {
			t.Errorf("%v fail: %.3f attempts a call, want at most %v", fail, got, most)
		}
		if errors := st.Errors(); fail < 1 && errors > 0.001 || fail == 1 && errors < 0.999 {
			t.Errorf("%v fail: %.4f of the calls do", fail, errors)
		}
	}
}

// TestHedgeInVirtualTime: one server of four that is slow is overtaken, for few more attempts.
func TestHedgeInVirtualTime(t *testing.T) {
	run := func(h retry.Hedge) scenario.StepResult {
		s := scenario.Scenario{Name: "hedge", Clients: 1, Deadline: time.Second, Work: scenario.Fixed(10 * time.Millisecond),
			Servers: []scenario.Group{{Name: "all", Count: 50, Server: server.Config{Cores: 2}}}, Steps: []scenario.Step{step(0.1)}}
		s.Steps[0].Events = []scenario.Event{{At: -5 * time.Second, Do: scenario.Speed(0.02, 0.05)}}
		r, err := scenario.Run(s, WithRetry(anywhere(), "hedge", retry.Policy{Idempotent: true, Hedge: h}), 1)
		if err != nil {
			t.Fatal(err)
		}
		return r.Steps[0]
	}
	without, with := run(retry.Hedge{}), run(retry.Hedge{Quantile: 0.95})
	if p := without.Latency.Quantile(0.99); p < int64(200*time.Millisecond) {
		t.Fatalf("p99 without hedges is %v: nothing to overtake", time.Duration(p))
	}
	if p := with.Latency.Quantile(0.99); p > int64(40*time.Millisecond) {
		t.Errorf("p99 with hedges is %v, want less than 40 ms", time.Duration(p))
	}
	if got := float64(with.Attempts) / float64(with.Calls()); got > 1.1 {
		t.Errorf("%.3f attempts a call", got)
	}
}

// TestLimitInVirtualTime: of three times what servers can do they do most, and no call waits long; of what they can
// just do, or nearly, they refuse little.
func TestLimitInVirtualTime(t *testing.T) {
	const seeds = 2
	for _, c := range []struct{ load, refused, p99 float64 }{{0.9, 0.01, 120}, {1, 0.04, 160}, {3, 0.683, 186}} {
		s := scenario.Scenario{Name: "limit", Clients: 4, Deadline: time.Second, Work: scenario.Exponential(20 * time.Millisecond),
			Servers: []scenario.Group{{Name: "all", Count: 2, Server: server.Config{Workers: 8}}},
			Steps:   []scenario.Step{step(0.5), step(c.load)}}
		refused, p99 := 0.0, 0.0
		for seed := range uint64(seeds) {
			r, err := scenario.Run(s, WithLimit(baseline.LeastRequest(), "limit", ratelimit.Adaptive{}), seed)
			if err != nil {
				t.Fatal(err)
			}
			refused += r.Steps[1].Errors() / seeds
			p99 += float64(r.Steps[1].Accepted.Quantile(0.99)) / 1e6 / seeds
		}
		if refused > c.refused {
			t.Errorf("load %v: %.4f refused, want %v or less", c.load, refused, c.refused)
		}
		if p99 > c.p99 {
			t.Errorf("load %v: p99 of those accepted is %.0f ms, want %v or less", c.load, p99, c.p99)
		}
	}
}

func TestWrappersReject(t *testing.T) {
	s := scenario.Scenario{Name: "s", Clients: 1, Work: scenario.Fixed(1), Servers: []scenario.Group{{Name: "all", Count: 1}},
		Steps: []scenario.Step{{Load: 0.1, Measure: 1}}}
	for _, m := range []lb.Maker{WithRetry(anywhere(), "r", retry.Policy{MaxAttempts: -1}),
		WithLimit(anywhere(), "l", ratelimit.Adaptive{Min: -1})} {
		if _, err := scenario.Run(s, m, 1); err == nil {
			t.Errorf("%s runs without sense", m.Name)
		}
	}
}
