package scenario

import (
	"math"
	"math/rand/v2"
	"sort"
	"strconv"
)

// keys draws the keys of calls: of n, the ith with a probability proportional to 1/i^exponent. math/rand's Zipf wants an
// exponent above 1. It is nil for a scenario without keys.
func (s *Scenario) keys(exponent float64) func(*rand.Rand) string {
	if s.Keys == 0 {
		return nil
	}
	names, below := make([]string, s.Keys), make([]float64, s.Keys)
	sum := 0.0
	for i := range names {
		names[i] = "key-" + strconv.Itoa(i)
		sum += math.Pow(float64(i+1), -exponent)
		below[i] = sum
	}
	return func(r *rand.Rand) string {
		return names[min(sort.SearchFloat64s(below, r.Float64()*sum), len(names)-1)]
	}
}
