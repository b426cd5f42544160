package balancer

import (
	"math/bits"
	"sync/atomic"
)

func init() { RegisterStrategy("weighted", parseSettings[Weighted]) }

// Weighted shares calls out in proportion to the instances' weights, smoothly: an instance of weight 5 among five
// of weight 1 gets every second call, not five in a row. Weights are those of the registry and change live. It has
// no settings.
//
// It costs the same whatever the weights are and however many instances there are, and starves nobody, because it
// does not skip through a schedule: call number k goes to the instance whose share of the unit interval contains
// the fractional part of k times the golden ratio. By the three-distance theorem an instance with share p is hit at
// intervals of nearly 1/p, and its count never strays by more than a few calls from its share.
type Weighted struct{}

// Name returns "weighted".
func (Weighted) Name() string { return "weighted" }

func (Weighted) validate() error { return nil }

// golden is 2^64 divided by the golden ratio: multiples of it, modulo 2^64, are the fractional parts.
const golden = 0x9E3779B97F4A7C15

// Build implements [Strategy]: it lays the shares out on the interval [0, 2^64) and indexes them with a guide table
// (Chen and Asau, 1974), so that a lookup takes two steps on average.
func (Weighted) Build(env Env) Chooser {
	n := len(env.Members)
	c := &weightedChooser{ends: make([]uint64, n)}
	var total uint64
	for _, m := range env.Members {
		total += uint64(m.Weight())
	}
	var sum uint64
	for i, m := range env.Members {
		sum += uint64(m.Weight())
		c.ends[i] = share(sum, total)
	}
	logn := bits.Len(uint(n - 1)) // the guide has the next power of two of n entries
	c.shift = uint(64 - logn)
	c.guide = make([]uint32, 1<<logn)
	i := uint32(0)
	for g := range c.guide {
		for start := uint64(g) << c.shift; start > c.ends[i]; {
			i++
		}
		c.guide[g] = i
	}
	if prev, ok := env.Previous.(*weightedChooser); ok {
		c.calls = prev.calls
		return c
	}
	c.calls = new(atomic.Uint64)
	c.calls.Store(env.Rand())
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
	calls *atomic.Uint64
	ends  []uint64 // the last point of each member's interval, ascending
	guide []uint32 // by the high bits of a point: the first member whose interval can contain it
	shift uint
}

func (c *weightedChooser) Choose(Call) int {
	point := c.calls.Add(1) * golden
	i := c.guide[point>>c.shift]
	for point > c.ends[i] {
		i++
	}
	return int(i)
}
