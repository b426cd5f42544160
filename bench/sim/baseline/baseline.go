// Package baseline answers: how do the balancers that others run and publish behave on the same servers, under the
// same calls? Each is a [lb.Maker] in a file of its own, written from its specification.
//
// They are here to be compared with, not to be used: a baseline does what its specification says, including what is
// known to be wrong with it. kratos and go-zero forget everything when the set of servers changes, Finagle remembers
// one slow answer for a minute, gRPC's weighted round robin does without weights for its first ten seconds. Such a
// flaw is named in the file, and a test holds it in place, so that nobody repairs it by accident and makes the
// comparison flattering or unfair.
//
// A baseline is the way to choose and nothing more. What surrounds it in its own home (connection management, health
// checks, ejection, retries) is left out, so that a difference in the results is a difference of the rules. None of
// them avoids the servers that earlier attempts of the same call were sent to, because none of them does at home.
//
// Where a specification leaves something open, the file says what was chosen and why. The larger choices:
//
//   - Ties between servers without any load go by turns in [LeastLoaded], and to the one drawn first elsewhere.
//   - The policies that keep a pool of probes ([Prequal], [Linear], [C3]) hold one probe for each server, the latest:
//     the reuse formula of the paper counts probes of servers that are in the pool already as gaining nothing.
//   - A time that stands for "never" is far in the past: at the start of a simulation the clock is at 1, where that of
//     a machine is decades old.
//
// Everything is deterministic: a balancer draws from its client's stream only, iterates over slices only, and asks
// nobody but its [lb.Env] for the time. Nothing is safe for concurrent use, as a simulation has one goroutine.
package baseline

import (
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// All returns every baseline with its published parameters, in the order in which tables show them: those that know
// nothing, those that know what the client itself sent, those that know what servers say, and last the lower bound
// that knows everything.
func All() []lb.Maker {
	return []lb.Maker{
		Random(),
		RoundRobin(),
		LeastLoaded(),
		LeastRequest(),
		FinaglePeakEWMA(),
		LinkerdPeakEWMA(),
		Kratos(),
		GoZero(),
		WRR(),
		SmoothedWRR(),
		YARP(),
		Linear(LinearConfig{}),
		C3(C3Config{}),
		Prequal(PrequalConfig{}),
		Omniscient(),
	}
}

// errNobody is the answer of a client that knows no server.
var errNobody = status.Error(codes.Unavailable, "baseline: the registry shows no server")

// never is a time long before any simulation.
const never = int64(math.MinInt64 / 2)

const (
	millisecond = int64(time.Millisecond)
	second      = int64(time.Second)
)

// dice draws from a client's stream.
type dice func() uint64

// below returns a random number below n.
func (d dice) below(n int) int { return int((d() >> 32) * uint64(n) >> 32) }

// unit returns a random number in [0, 1).
func (d dice) unit() float64 { return float64(d()>>11) / (1 << 53) }

// pair returns two different numbers below n, which must be 2 or more.
func (d dice) pair(n int) (a, b int) {
	a, b = d.below(n), d.below(n-1)
	if b >= a {
		b++
	}
	return a, b
}

// fleet is what a client keeps about each server, in the order of the registry.
type fleet[N any] struct {
	nodes []*N
	at    map[int]*N // by the server's index; never iterated over
}

// update takes over the servers that the registry shows: known ones keep their node, the others get a fresh one.
func (f *fleet[N]) update(servers []lb.Server, fresh func(server int) *N) {
	at, nodes := make(map[int]*N, len(servers)), make([]*N, 0, len(servers))
	for _, s := range servers {
		n := f.at[s.Index]
		if n == nil {
			n = fresh(s.Index)
		}
		at[s.Index] = n
		nodes = append(nodes, n)
	}
	f.nodes, f.at = nodes, at
}

// indices are the servers' numbers.
func indices(servers []lb.Server) []int {
	is := make([]int, len(servers))
	for i, s := range servers {
		is[i] = s.Index
	}
	return is
}

// simple makes a Maker of a constructor that cannot fail.
func simple(name string, make func(lb.Env) lb.Balancer) lb.Maker {
	return lb.Maker{Name: name, New: func(env lb.Env) (lb.Balancer, error) {
		b := make(env)
		b.Update(env.Servers)
		return b, nil
	}}
}

// every calls f once in each period, the first time at a random moment of the first one, so that the clients of a
// simulation do not all do it at once.
func every(env lb.Env, period int64, f func()) {
	var again func()
	again = func() {
		f()
		env.After(period, again)
	}
	env.After(int64(dice(env.Rand).unit()*float64(period)), again)
}
