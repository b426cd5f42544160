package baseline

import (
	"fmt"
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Figure8 is Prequal at the seven rates of probing of the paper's figure 8, from 4 to ½ probes for each call, with the
// rate of removal of that figure, ¼. Their names are "prequal r=4" and so on.
func Figure8() []lb.Maker {
	var all []lb.Maker
	for _, r := range []float64{4, 2 * math.Sqrt2, 2, math.Sqrt2, 1, math.Sqrt2 / 2, 0.5} {
		all = append(all, Prequal(PrequalConfig{
			Name: fmt.Sprintf("prequal r=%.2g", r), PoolConfig: PoolConfig{Probes: r, Remove: 0.25},
		}))
	}
	return all
}

// Figure9 is Prequal at the quantiles of the paper's figure 9, from RIF alone to latency alone. Their names are
// "prequal q=0" and so on; 0.75, which is that of figure 7, is among them.
func Figure9() []lb.Maker {
	var all []lb.Maker
	for _, q := range []float64{0, 0.35, 0.39, 0.43, 0.48, 0.53, 0.59, 0.66, 0.73, 0.75, 0.81, 0.90, 0.99, 0.999, 1} {
		all = append(all, Prequal(PrequalConfig{Name: fmt.Sprint("prequal q=", q), Quantile: q, RIFOnly: q == 0}))
	}
	return all
}

// Figure10 is the linear rule at some weights of RIF of the paper's figure 10; 1 is RIF alone. Their names are
// "linear l=0.5" and so on.
func Figure10() []lb.Maker {
	var all []lb.Maker
	for _, l := range []float64{0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1} {
		all = append(all, Linear(LinearConfig{Name: fmt.Sprint("linear l=", l), Lambda: l}))
	}
	return all
}
