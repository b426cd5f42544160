package scenario

import (
	"strconv"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// Catalogue returns the scenarios that the project is judged by, at full size.
func Catalogue() []Scenario {
	return []Scenario{ramp(), rules()}
}

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
			step.Settle = 25 * time.Second // weights of the first reports
		}
		s.Steps = append(s.Steps, step)
	}
	return s
}

func rules() Scenario {
	return Scenario{
		Name: "S2", Title: "replica-selection rules (Prequal, Fig. 7)",
		Question: "Which rule has the best tail when servers differ?",
		Servers:  testbed(&rulesAntagonist, server.Throttle{}), Clients: 100, Work: testbedWork,
		Steps: []Step{
			{Name: "70 %", Load: 0.70, Settle: 25 * time.Second, Measure: 20 * time.Second},
			{Name: "90 %", Load: 0.90, Settle: 15 * time.Second, Measure: 20 * time.Second},
		},
	}
}
