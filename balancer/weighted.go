package balancer

import (
	"math/bits"
	"time"
)

func init() { RegisterStrategy("weighted", parseWeighted) }

// Weighted shares calls out in proportion to the instances' weights, smoothly: an instance of weight 5 among five
// of weight 1 gets every second call, not five in a row. Weights are those of the registry and change live.
//
// With Load "orca" they are what the instances themselves report with their answers (ORCA; gRFC A51 and A58): the calls
// a second that an instance handles for each unit of its utilization, so that all are equally busy in the end. A
// server reports with grpc's package orca. Weights come into force every Update; an instance is not believed before it has
// reported for Blackout, nor after Expiration without a report. It then has the weight that the registry gives it,
// in the measure of the others' reports, and so have all if fewer than two are known. Reports make none of them count
// for less than a hundredth or more than ten times of that. What reports say is seconds old, so this evens out
// differences that last, and not bursts.
//
// It costs the same whatever the weights are and however many instances there are, and starves nobody, because it
// does not skip through a schedule: call number k goes to the instance whose share of the unit interval contains
// the fractional part of k times the golden ratio. By the three-distance theorem an instance with share p is hit at
// intervals of nearly 1/p, and its count never strays by more than a few calls from its share.
type Weighted struct {
	// Load says where weights come from: "orca" for load reports, empty for the registry. The other fields are for
	// "orca" only.
	Load string
	// Blackout is how long an instance has to report before that counts, after it connects and after an Expiration; 0
	// means 10 s. A server that has just started reports a utilization that is not yet true.
	Blackout time.Duration
	// Expiration is how long a report counts; 0 means 3 min.
	Expiration time.Duration
	// Update is the time between two changes of the weights, 100 ms or more; 0 means 1 s.
	Update time.Duration
	// ErrorPenalty is how much utilization it counts as if all calls fail, up to 1000; 0 means 1. Calls that fail at
	// once cost a server little, and this keeps them from attracting more.
	ErrorPenalty float64
}

// Name returns "weighted".
func (Weighted) Name() string { return "weighted" }

// golden is 2^64 divided by the golden ratio: multiples of it, modulo 2^64, are the fractional parts.
const golden = 0x9E3779B97F4A7C15

// Build implements [Strategy]: it lays the shares out on the interval [0, 2^64) and indexes them with a guide table
// (Chen and Asau, 1974), so that a lookup takes two steps on average.
func (Weighted) Build(env Env) Chooser {
	weights := make([]uint64, len(env.Members))
	for i, m := range env.Members {
		weights[i] = uint64(m.Weight())
	}
	var calls *turns
	switch prev := env.Previous.(type) {
	case *weightedChooser:
		calls = prev.calls
	case *reportedChooser:
		calls = prev.calls
	default:
		calls = new(turns)
		calls.last.Store(env.Rand())
	}
	return layOut(calls, weights)
}

// layOut makes the chooser of members with these weights, each from 1 to 2^32.
func layOut(calls *turns, weights []uint64) *weightedChooser {
	n := len(weights)
	c := &weightedChooser{calls: calls, ends: make([]uint64, n)}
	var total, sum uint64
	for _, w := range weights {
		total += w
	}
	for i, w := range weights {
		sum += w
		c.ends[i] = share(sum, total)
	}
	logn := bits.Len(uint(n - 1)) // the guide has the next power of two of n entries
	c.shift = uint(64 - logn)
	c.guide = make([]guidepost, 1<<logn)
	i := uint32(0)
	for g := range c.guide {
		start := uint64(g) << c.shift
		for start > c.ends[i] {
			i++
		}
		c.guide[g] = guidepost{i, 1<<32 - 1}
		if c.ends[i]>>c.shift == uint64(g) {
			c.guide[g].until = within(c.ends[i], uint(logn))
		}
	}
	return c
}

// share is the last point of the interval that belongs to the first sum of total: floor(2^64 sum/total) - 1.
func share(sum, total uint64) uint64 {
	if sum == total {
		return 1<<64 - 1
	}
	q, _ := bits.Div64(sum, 0, total)
	return q - 1
}

type weightedChooser struct {
	calls *turns
	ends  []uint64    // the last point of each member's interval, ascending
	guide []guidepost // by the high bits of a point
	shift uint
}

// guidepost is what is known about the points with the same high bits. Most are below until, so that a pick among many
// members needs one cache line here, and ends only for the rest.
type guidepost struct {
	first uint32 // the first member whose interval can contain them
	until uint32 // within of the last point of its interval, the highest number if that is not among these points
}

// within is the next 32 bits of a point after the high ones by which the guide is indexed.
func within(point uint64, high uint) uint32 { return uint32(point << high >> 32) }

func (c *weightedChooser) Choose(Call) int {
	point := c.calls.take() * golden
	g := c.guide[point>>c.shift]
	if within(point, 64-c.shift) < g.until {
		return int(g.first)
	}
	i := g.first
	for point > c.ends[i] {
		i++
	}
	return int(i)
}
