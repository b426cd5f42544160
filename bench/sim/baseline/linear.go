package baseline

import (
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// LinearConfig are the parameters of [Linear]. Zero values mean those of the paper's figure 7.
type LinearConfig struct {
	PoolConfig
	// Lambda is the weight of RIF, from 0 to 1; 0 means 0.5.
	Lambda float64
	// Alpha turns RIF into time: the latency with one request in flight; 0 means 75 ms, the testbed's.
	Alpha time.Duration
	// Name is what tables call it; empty means "linear".
	Name string
}

// Linear is Prequal's probing with a linear rule instead of the hot-cold one: it chooses the probe with the least
// (1-λ) latency + λ α RIF (Prequal, section 5.2, "Linear", and appendix A).
func Linear(cfg LinearConfig) lb.Maker {
	fill(&cfg.Name, "linear")
	fill(&cfg.Lambda, 0.5)
	fill(&cfg.Alpha, 75*time.Millisecond)
	return lb.Maker{Name: cfg.Name, Samples: samples, New: func(env lb.Env) (lb.Balancer, error) {
		if cfg.Lambda < 0 || cfg.Lambda > 1 {
			return nil, fmt.Errorf("%s: Lambda = %v, want 0 to 1", cfg.Name, cfg.Lambda)
		}
		b := &linear{cfg: cfg}
		b.pool = newPool(cfg.PoolConfig, env, b)
		b.Update(env.Servers)
		return b, nil
	}}
}

type linear struct {
	cfg  LinearConfig
	pool *pool
}

func (b *linear) score(p *probe) float64 {
	return (1-b.cfg.Lambda)*float64(p.latency) + b.cfg.Lambda*float64(b.cfg.Alpha)*float64(p.rif)
}

// answered implements ranking.
func (b *linear) answered(int, lb.Load) {}

// better implements ranking.
func (b *linear) better(x, y *probe) bool { return b.score(x) < b.score(y) }

// Pick implements [lb.Balancer].
func (b *linear) Pick(*lb.Call) (int, error) { return b.pool.choose() }

// Done implements [lb.Balancer].
func (b *linear) Done(*lb.Call, int, lb.Result) {}

// Update implements [lb.Balancer].
func (b *linear) Update(servers []lb.Server) { b.pool.update(servers) }
