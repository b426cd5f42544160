package baseline

import (
	"fmt"
	"math"
	"slices"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// PrequalConfig are Prequal's parameters. Zero values mean those of the paper's testbed.
type PrequalConfig struct {
	PoolConfig
	// Quantile of the distribution of RIF from which on a server is hot (Q_RIF), from 0 to 1; 0 means 0.84, which
	// is 2^-0.25. Use RIFOnly for a quantile of 0.
	Quantile float64
	// RIFOnly has every server hot.
	RIFOnly bool
	// Name is what tables call it; empty means "prequal".
	Name string
}

// rifWindow is how many answers the distribution of RIF is estimated from. The paper gives no number; with three
// probes for each of 60 calls a second it is the last three quarters of a second.
const rifWindow = 128

// Prequal is the asynchronous mode of "Load is not what you should balance" (Wydrowski, Kleinberg, Rumble, Archer,
// NSDI 2024), section 4, as published: each call sends probes to random servers, whose answers join a pool; probes
// leave it by age, by use, when it is full, and the oldest and worst by turns with each call; a call goes where the
// hot-cold lexicographic rule says. Sinkholes are not avoided, as the paper leaves its means for that out.
//
// The text calls a server hot if its RIF exceeds the quantile, and the experiments speak of ties for the greatest RIF
// being hot; they agree if hot means at or above it, and nobody is hot at the quantile 1.
func Prequal(cfg PrequalConfig) lb.Maker {
	fill(&cfg.Name, "prequal")
	if !cfg.RIFOnly {
		fill(&cfg.Quantile, math.Pow(2, -0.25))
	}
	return lb.Maker{Name: cfg.Name, Samples: samples, New: func(env lb.Env) (lb.Balancer, error) {
		if cfg.Quantile < 0 || cfg.Quantile > 1 {
			return nil, fmt.Errorf("%s: Quantile = %v, want 0 to 1", cfg.Name, cfg.Quantile)
		}
		b := &prequal{quantile: cfg.Quantile}
		b.pool = newPool(cfg.PoolConfig, env, b)
		b.Update(env.Servers)
		return b, nil
	}}
}

type prequal struct {
	quantile float64
	pool     *pool
	recent   [rifWindow]int // the RIF of the latest answers, in turn
	answers  int            // how many there ever were
	sorted   []int          // recent, in order
}

// answered implements ranking.
func (b *prequal) answered(_ int, l lb.Load) {
	slot := b.answers % rifWindow
	if b.answers >= rifWindow {
		at, _ := slices.BinarySearch(b.sorted, b.recent[slot])
		b.sorted = slices.Delete(b.sorted, at, at+1)
	}
	b.answers++
	b.recent[slot] = l.RIF
	at, _ := slices.BinarySearch(b.sorted, l.RIF)
	b.sorted = slices.Insert(b.sorted, at, l.RIF)
}

// threshold is the RIF from which on a server is hot.
func (b *prequal) threshold() int {
	switch {
	case b.quantile <= 0:
		return 0
	case b.quantile >= 1 || len(b.sorted) == 0:
		return math.MaxInt
	}
	rank := int(math.Ceil(b.quantile * float64(len(b.sorted))))
	return b.sorted[rank-1]
}

// better implements ranking: the hot-cold lexicographic rule. A cold probe is better than a hot one, a cold one with
// less latency than another, a hot one with less RIF than another.
func (b *prequal) better(x, y *probe) bool {
	limit := b.threshold()
	hotX, hotY := x.rif >= limit, y.rif >= limit
	switch {
	case hotX != hotY:
		return hotY
	case hotX:
		return x.rif < y.rif
	}
	return x.latency < y.latency
}

// Pick implements [lb.Balancer].
func (b *prequal) Pick(*lb.Call) (int, error) { return b.pool.choose() }

// Done implements [lb.Balancer].
func (b *prequal) Done(*lb.Call, int, lb.Result) {}

// Update implements [lb.Balancer].
func (b *prequal) Update(servers []lb.Server) { b.pool.update(servers) }
