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
// That is where the knots began. What a server can use changes, and one that was throttled stays so for a while, so
// fewer must be below the load at any one moment than those numbers say, and the knots were moved until the errors of
// the steps came out as well (in percent 0.1 to 0.3, 1.9, 12 to 14, and 26 to 28): 0.4 % of the servers are below 1.03,
// 2.4 % below 1.27, 13 % below 1.57 and 20 % below 1.74.
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

// rampThrottle: of the queries at a server that is overloaded about half fail at 1.27 and 70 % at 1.74, which is more than
// would if it got what its machine can give.
var rampThrottle = server.Throttle{After: 3 * time.Second, To: 0.9}

// probingCores are those of Fig. 8, at 1.5 times the allocation. With two probes and more its 99.9th percentile is that of
// the work alone (330 ms), while one server in a hundred has 16 queries in flight, 2.5 times the allocation: so nearly every
// machine has that much to give. Where half a probe is too few there are 24 in flight, and the percentile has moved.
var probingCores = knots{{0, 2.1}, {0.1, 2.4}, {1, 3.2}}

var probingAntagonist = server.Antagonist{Cores: probingCores.at, Parts: pace}

// rulesCores are those of Fig. 7, fitted to weighted round robin and least request at both loads. Weighted round robin is
// well at 70 % and not at 90 %, so about 16 % of the machines give between 0.7 and 0.9 of the allocation; least request,
// which sends half of the queries to the slow half and so has that overloaded at 90 %, says how many give up to 1.3.
var rulesCores = knots{{0, 0.68}, {0.06, 0.72}, {0.13, 0.76}, {0.155, 0.88}, {0.17, 1.05}, {0.45, 1.33}, {0.7, 1.7},
	{1, 2.5}}

var rulesThrottle = server.Throttle{After: 5 * time.Second, To: 0.92}

var rulesAntagonist = server.Antagonist{Cores: rulesCores.at, Parts: pace}

// split is a fleet of which half needs twice the work of the other half, and on average what it says.
func split(antagonist *server.Antagonist) []Group {
	cfg := server.Config{Cores: allocation, Throttle: rulesThrottle}
	fast, slow := cfg, cfg
	fast.Speed, slow.Speed = 3./2, 3./4
	return []Group{{Name: "fast", Count: 50, Server: fast, Antagonist: antagonist},
		{Name: "slow", Count: 50, Server: slow, Antagonist: antagonist}}
}
