package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// Random chooses uniformly.
func Random() lb.Maker {
	return simple("random", func(env lb.Env) lb.Balancer { return &random{rand: env.Rand} })
}

type random struct {
	rand    dice
	servers []int
}

func (b *random) Pick(*lb.Call) (int, error) {
	if len(b.servers) == 0 {
		return 0, errNobody
	}
	return b.servers[b.rand.below(len(b.servers))], nil
}

func (b *random) Done(*lb.Call, int, lb.Result) {}

func (b *random) Update(servers []lb.Server) { b.servers = indices(servers) }
