package scenario

import (
	"strconv"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// Catalogue returns the scenarios that the project is judged by, at full size. Their names are those of the research
// that they come from. S10, subsets, has no calls and so is no scenario: see package subsets.
func Catalogue() []Scenario {
	return []Scenario{ramp(), rules(), probing(), quantiles(), dead(), gray(), overload(), churn(), zones(), storm(),
		canary(), hotKeys(), quiet(), streams()}
}

// testbed is that of the Prequal paper.
func testbed(antagonist *server.Antagonist, throttle server.Throttle) []Group {
	return []Group{{Name: "servers", Count: 100, Antagonist: antagonist,
		Server: server.Config{Cores: allocation, Throttle: throttle}}}
}

func ramp() Scenario {
	s := Scenario{
		Name: "S1", Title: "load ramp (Prequal, Fig. 6)",
		Question: "How far beyond its allocation can the fleet go before calls fail?",
		Servers:  testbed(&rampAntagonist, rampThrottle), Clients: 100, Work: testbedWork,
	}
	for i, load := range []float64{0.75, 0.83, 0.93, 1.03, 1.14, 1.27, 1.41, 1.57, 1.74} {
		step := Step{Name: strconv.FormatFloat(load, 'f', 2, 64), Load: load, Settle: 10 * time.Second,
			Measure: 15 * time.Second}
		if i == 0 {
			step.Settle = 25 * time.Second // the blackout of gRFC A58 and some reports
		}
		s.Steps = append(s.Steps, step)
	}
	return s
}

func rules() Scenario {
	return Scenario{
		Name: "S2", Title: "replica-selection rules (Prequal, Fig. 7)",
		Question: "Which rule has the best tail when servers differ?",
		Servers:  split(&rulesAntagonist), Clients: 100, Work: testbedWork,
		Steps: []Step{
			{Name: "70 %", Load: 0.70, Settle: 25 * time.Second, Measure: 20 * time.Second},
			{Name: "90 %", Load: 0.90, Settle: 60 * time.Second, Measure: 20 * time.Second},
		},
	}
}

func probing() Scenario {
	return Scenario{
		Name: "S3", Title: "rate of probing (Prequal, Fig. 8)",
		Question: "How many probes does a call need?",
		Servers:  testbed(&probingAntagonist, rampThrottle), Clients: 100, Work: testbedWork,
		Steps: []Step{{Name: "1.5", Load: 1.5, Settle: 25 * time.Second, Measure: 20 * time.Second}},
	}
}

func quantiles() Scenario {
	return Scenario{
		Name: "S4", Title: "quantile of RIF, half of the servers slow (Prequal, Fig. 9)",
		Question: "How much of the choice should be load, and how much latency?",
		Servers:  split(&rulesAntagonist), Clients: 100, Work: SlicedNormal(40*time.Millisecond, slice),
		Steps: []Step{{Name: "75 %", Load: 0.75, Settle: 25 * time.Second, Measure: 20 * time.Second}},
	}
}

// plain is a fleet without antagonists: four cores each, calls of 20 ms, a second to answer.
func plain(name, title, question string, steps []Step) Scenario {
	return Scenario{
		Name: name, Title: title, Question: question,
		Servers: []Group{{Name: "servers", Count: 100, Server: server.Config{Cores: 4}}},
		Clients: 100, Work: Exponential(20 * time.Millisecond), Deadline: time.Second, Steps: steps,
	}
}

func dead() Scenario {
	s := plain("S5", "servers crash and hang", "What do calls suffer when a part of the fleet dies, and for how long?", nil)
	for i, c := range []struct {
		name string
		do   func(float64) Action
	}{{"crash", Crash}, {"hang", Hang}} {
		for j, part := range []float64{0.01, 0.10, 0.25, 0.40} {
			step := Step{Name: strconv.Itoa(int(100*part+0.5)) + " % " + c.name, Load: 0.4, Settle: 15 * time.Second,
				Measure: 15 * time.Second, Events: []Event{
					{At: -15 * time.Second, Do: Restart(1)},
					{At: 0, Do: c.do(part)},
				}}
			if i+j > 0 {
				step.Settle = 45 * time.Second // whoever put them away has forgiven
				step.Events[0].At = -45 * time.Second
			}
			s.Steps = append(s.Steps, step)
		}
	}
	return s
}

func gray() Scenario {
	const rest = 20 * time.Second
	well := func(part float64) Action {
		return func(f *Fleet) {
			Speed(part, 1)(f)
			Faults(part, server.Faults{})(f)
		}
	}
	sick := func(name string, do Action) Step {
		return Step{Name: name, Load: 0.6, Settle: rest + 5*time.Second, Measure: 15 * time.Second,
			Events: []Event{{At: -rest - 5*time.Second, Do: well(1)}, {At: -5 * time.Second, Do: do}}}
	}
	return plain("S6", "gray failures", "What does one server in a hundred that is half-broken do to the tail?", []Step{
		sick("well", func(*Fleet) {}),
		sick("ten times as slow", Speed(0.01, 0.1)),
		sick("half of its calls fail in 1 ms", Faults(0.01, server.Faults{Fail: 0.5, FailAfter: time.Millisecond})),
		sick("pauses of 200 ms on all", Pauses(1, 5*time.Second, 200*time.Millisecond)),
	})
}

func churn() Scenario {
	return plain("S8", "churn", "What does it cost when servers come and go?", []Step{
		{Name: "steady", Load: 0.6, Settle: 15 * time.Second, Measure: 15 * time.Second},
		{Name: "one replaced a second", Load: 0.6, Settle: 5 * time.Second, Measure: 30 * time.Second,
			Events: []Event{{At: -5 * time.Second, Do: Replace(time.Second, 2*time.Second, 0.25, 5*time.Second, 35)}}},
		{Name: "doubled with cold ones", Load: 0.6, Settle: 15 * time.Second, Measure: 15 * time.Second,
			Events: []Event{{At: 0, Do: Grow("servers", 1, 0.1, 10*time.Second)}}},
	})
}

func quiet() Scenario {
	return Scenario{
		Name: "S14", Title: "little traffic, many servers",
		Question: "A call every ten seconds a client, over a thousand servers of which a tenth is slow: is it as good as random?",
		Servers: []Group{
			{Name: "normal", Count: 900, Server: server.Config{Cores: 4}},
			{Name: "slow", Count: 100, Server: server.Config{Cores: 4, Speed: 0.1}},
		},
		Clients: 100, Work: Exponential(20 * time.Millisecond),
		Steps: []Step{
			{Name: "10 calls a second", Rate: 10, Settle: 60 * time.Second, Measure: 600 * time.Second},
			{Name: "1000 calls a second", Rate: 1000, Settle: 30 * time.Second, Measure: 60 * time.Second},
		},
	}
}
