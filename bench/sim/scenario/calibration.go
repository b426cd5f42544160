package scenario

import (
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// The testbed of the Prequal paper (Wydrowski et al., NSDI 2024, section 5), as far as it can be told from what the
// paper prints. Everything that was fitted is in this file; nothing else in the simulator was adjusted to a figure.
//
// Work: below its allocation the testbed has p50/p90/p99/p99.9 of 80/182/265/325 ms, which are those of max(0, N(80 ms,
// 80 ms)) without any queueing. So that is the work, and a query runs on a core of its own.
//
// Allocation: 5.6 thousand queries a second over 100 servers at 0.75 times the allocation are 4.85 busy cores (Little), so
// the allocation is 6.47 cores, a tenth of a machine of about 65.
const allocation = 6.47

// testbedWork is that of a query.
var testbedWork = ClampedNormal(80 * time.Millisecond)

// knots is a quantile function by straight lines between points: rank, value.
type knots []struct{ rank, value float64 }

func (k knots) at(rank float64) float64 {
	for i := 1; i < len(k); i++ {
		if rank <= k[i].rank {
			a, b := k[i-1], k[i]
			return a.value + (b.value-a.value)*(rank-a.rank)/(b.rank-a.rank)
		}
	}
	return k[len(k)-1].value
}

// rampCores is the distribution of what a server of Fig. 6 can use, in multiples of its allocation.
//
// It was fitted to one policy only, weighted round robin, and then frozen. Weights that are queries over utilization are
// equal here, where a query costs the same processor time everywhere, so a server is overloaded exactly when it can use
// less than the load of the step. How many are follows from how far the median and the 90th percentile of the step
// have moved, since the queries of the other servers still have the distribution of the work: 0.9 % at 1.03 (p99 335
// instead of 265 ms), 4 % at 1.27 (p90 203 instead of 182), 23 % at 1.57 and 38 % at 1.74 (p50 111 and 150 instead of 80).
var rampCores = knots{{0, 0.98}, {0.012, 1.12}, {0.022, 1.25}, {0.038, 1.39}, {0.12, 1.55}, {0.20, 1.74}, {0.46, 1.94},
	{0.65, 2.1}, {1, 2.6}}

// pace is how fast neighbours come and go; half of the differences between machines last.
var pace = []server.Part{{Tau: 60 * time.Second, Share: 0.15}, {Tau: 10 * time.Second, Share: 0.1},
	{Tau: time.Second, Share: 0.15}, {Tau: 200 * time.Millisecond, Share: 0.1}}

// rampAntagonist is what shares the machines of Fig. 6.
var rampAntagonist = server.Antagonist{
	Cores: rampCores.at,
	Parts: pace,
}

var rampThrottle = server.Throttle{After: 2 * time.Second, To: 0.85}

// rulesCores are those of Fig. 7.
var rulesCores = knots{{0, 0.62}, {0.01, 0.66}, {0.06, 0.7}, {0.12, 0.75}, {0.145, 0.9}, {0.16, 1.02}, {0.45, 1.3}, {0.7, 1.7}, {1, 2.5}}

var rulesThrottle = server.Throttle{After: 2 * time.Second, To: 1}

var rulesAntagonist = server.Antagonist{Cores: rulesCores.at, Parts: pace}

// split is a fleet of which half needs twice the work of the other half, and on average what it says.
func split(antagonist *server.Antagonist) []Group {
	cfg := server.Config{Cores: allocation, Throttle: rulesThrottle}
	fast, slow := cfg, cfg
	fast.Speed, slow.Speed = 3./2, 3./4
	return []Group{{Name: "fast", Count: 50, Server: fast, Antagonist: antagonist},
		{Name: "slow", Count: 50, Server: slow, Antagonist: antagonist}}
}
