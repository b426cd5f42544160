package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// RoundRobin takes the servers in turn, in the order of the registry. As in gRPC each client begins anywhere, and
// anew whenever the set changes.
func RoundRobin() lb.Maker {
	return simple("round_robin", func(env lb.Env) lb.Balancer { return &roundRobin{rand: env.Rand} })
}

type roundRobin struct {
	rand    dice
	servers []int
	next    int
}

func (b *roundRobin) Pick(*lb.Call) (int, error) {
	if len(b.servers) == 0 {
		return 0, errNobody
	}
	s := b.servers[b.next]
	b.next = (b.next + 1) % len(b.servers)
	return s, nil
}

func (b *roundRobin) Done(*lb.Call, int, lb.Result) {}

func (b *roundRobin) Update(servers []lb.Server) {
	b.servers, b.next = indices(servers), b.rand.below(len(servers))
}
