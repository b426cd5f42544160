package scenario

import (
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// The testbed of the Prequal paper (Wydrowski et al., NSDI 2024, section 5), as far as it can be told from what the
// paper prints. Everything that was fitted is in this file, but for the number of samples that Prequal's servers report the
// median of (package baseline); nothing else in the simulator was adjusted to a figure.
//
// Work: below its allocation the testbed has p50/p90/p99/p99.9 of 80/182/265/325 ms, which are those of max(0, N(80 ms,
// 80 ms)) without any queueing. So that is the work, and a query runs on a core of its own.
//
// Allocation: 5.6 thousand queries a second over 100 servers at 0.75 times the allocation are 4.85 busy cores (Little), so
// the allocation is 6.47 cores, a tenth of a machine of about 65.
const allocation = 6.47

// slice is what a query takes at least, as long as Linux lets a thread run before it looks for another (three quarters of
// a millisecond, times four on a machine with eight processors and more). A sixth of the queries has no work at all, and
// would be answered at once by a server with a thousand others in flight; the median of its latencies would be theirs,
// and whoever goes by latency alone would send it all there is. In the paper (Fig. 9, quantile 1) that does not happen.
const slice = 3 * time.Millisecond

// testbedWork is that of a query.
var testbedWork = SlicedNormal(80*time.Millisecond, slice)

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
// Up to 1.74 it was fitted to weighted round robin only. Its weights are equal while nothing fails, since a query costs the
// same processor time everywhere, so a server is overloaded when it can use less than the load of the step. How many are
// follows from how far the median and the 90th percentile of the step have moved, since the queries of the other servers
// still have the distribution of the work: 0.9 % at 1.03 (p99 335 instead of 265 ms), 4 % at 1.27 (p90 203 instead of
// 182), 23 % at 1.57 and 38 % at 1.74 (p50 111 and 150 instead of 80). What a server can use changes, and one that was
// throttled stays so for a while, so fewer are below the load at any one moment: the knots were moved until percentiles
// and errors (in percent 0.1 to 0.3, 0.7, 1.9, 7, 12 to 14, and 26 to 28) came out together.
//
// Weighted round robin cannot tell how much more than 1.74 the others have. The 99.9th percentile of Prequal at 1.74, twice
// that at 0.75, says that it is little: the whole fleet has 5 % more than that step asks for. With 4 % the percentile is right
// for three seeds of four, and for the fourth a sixth of the calls fail, which they do not in the paper.
var rampCores = knots{{0, 0.98}, {0.004, 1.04}, {0.01, 1.14}, {0.021, 1.26}, {0.048, 1.4}, {0.112, 1.57}, {0.165, 1.74},
	{0.3, 1.85}, {1, 2}}

// pace is how fast neighbours come and go in Fig. 6 and 8; half of the differences between machines last.
var pace = []server.Part{{Tau: 60 * time.Second, Share: 0.15}, {Tau: 10 * time.Second, Share: 0.1},
	{Tau: time.Second, Share: 0.15}, {Tau: 200 * time.Millisecond, Share: 0.1}}

// rampAntagonist is what shares the machines of Fig. 6.
var rampAntagonist = server.Antagonist{
	Cores: rampCores.at,
	Parts: pace,
}

// rampThrottle: of the queries at servers that are overloaded about half fail at 1.27 and 70 % at 1.74, which is more than
// would if they got what their machines can give, or what they are guaranteed.
var rampThrottle = server.Throttle{After: 3 * time.Second, To: 0.5}

// probingCores are those of Fig. 8, at 1.5 times the allocation. With many probes its 99.9th percentile is that of the work
// alone (330 ms), so nearly every machine has what Prequal then asks of it; how much more was fitted to that percentile
// with half a probe a call (380 to 430 ms).
var probingCores = knots{{0, 2.4}, {0.1, 2.8}, {1, 3.7}}

var probingAntagonist = server.Antagonist{Cores: probingCores.at, Parts: pace}

// rulesCores are those of Fig. 7, fitted to weighted round robin at 70 % and least request at both loads. Least request sends
// half of the queries to the slow half, which has 0.93 of its allocation to do at 70 % and 1.2 at 90 %: its tail at 70 % says
// how many machines give less than 0.9, at 90 % how many give up to 1.2. That weighted round robin is well at 70 % and not at
// 90 % says that the first give between 0.69 and 0.77, and that who has less has it for long.
var rulesCores = knots{{0, 0.69}, {0.035, 0.73}, {0.09, 0.77}, {0.11, 0.9}, {0.125, 1.03}, {0.56, 1.245}, {0.72, 1.65},
	{1, 2.5}}

// rulesPace: four fifths of the differences between these machines last.
var rulesPace = []server.Part{{Tau: 60 * time.Second, Share: 0.08}, {Tau: 10 * time.Second, Share: 0.05},
	{Tau: time.Second, Share: 0.04}, {Tau: 200 * time.Millisecond, Share: 0.03}}

var rulesThrottle = server.Throttle{After: 5 * time.Second, To: 0.92}

var rulesAntagonist = server.Antagonist{Cores: rulesCores.at, Parts: rulesPace}

// split is a fleet of which half needs twice the work of the other half, and on average what it says.
func split(antagonist *server.Antagonist) []Group {
	cfg := server.Config{Cores: allocation, Throttle: rulesThrottle}
	fast, slow := cfg, cfg
	fast.Speed, slow.Speed = 3./2, 3./4
	return []Group{{Name: "fast", Count: 50, Server: fast, Antagonist: antagonist},
		{Name: "slow", Count: 50, Server: slow, Antagonist: antagonist}}
}
