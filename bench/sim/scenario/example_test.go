package scenario_test

import (
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/real"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// A scenario of one's own: ten servers of four cores, of which one is ten times as slow, under two policies with three seeds
// each. The policy of this library has any configuration that a channel could have.
func ExampleAll() {
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.DiscardHandler)) // or each ejection is logged
	s := scenario.Scenario{
		Name: "orders", Title: "one of ten is slow", Question: "What does it cost?",
		Servers:  []scenario.Group{{Name: "all", Count: 10, Server: server.Config{Cores: 4}}},
		Clients:  5,
		Work:     scenario.Exponential(10 * time.Millisecond),
		Deadline: time.Second,
		Steps: []scenario.Step{{Name: "slow", Load: 0.5, Settle: 2 * time.Second, Measure: 5 * time.Second,
			Events: []scenario.Event{{At: -time.Second, Do: scenario.Speed(0.1, 0.1)}}}},
	}
	policies := []lb.Maker{
		baseline.Random(),
		real.New("keel", balancer.Config{Strategy: balancer.Keel{}}),
	}
	var jobs []scenario.Job
	for seed := range uint64(3) {
		for _, p := range policies {
			jobs = append(jobs, scenario.Job{Scenario: s, Policy: p, Seed: seed + 1})
		}
	}
	results, err := scenario.All(jobs, 2, nil)
	if err != nil {
		log.Fatal(err)
	}
	p99 := make(map[string]int64)
	for _, r := range results {
		p99[r.Policy] = max(p99[r.Policy], r.Steps[0].Latency.Quantile(0.99))
	}
	fmt.Println("p99 below half of random's:", p99["keel"] < p99["random"]/2)
	// The table, with intervals: report.Markdown(os.Stdout, s, results, "random"), of package bench/sim/report.

	// Output:
	// p99 below half of random's: true
}
