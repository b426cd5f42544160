package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

const (
	// pollPeriod is how often YARP asks (Prequal, section 5.2).
	pollPeriod = 500 * millisecond
	// pollTimeout is well below the period, so that polls do not overlap.
	pollTimeout = 100 * millisecond
)

// YARP draws two different servers and takes the one that said it has fewer requests in flight when it was last asked,
// which is every 500 ms, the first if they said the same (Prequal, section 5.2, "YARP-Po2C"). Between two polls all
// clients see the same servers empty and fill them. A server that was not asked yet counts as empty, and one that does
// not answer as what it said last.
func YARP() lb.Maker {
	return simple("yarp_po2c", func(env lb.Env) lb.Balancer {
		b := &yarp{env: env, rand: env.Rand}
		every(env, pollPeriod, b.poll)
		return b
	})
}

type polled struct{ server, rif int }

type yarp struct {
	env  lb.Env
	rand dice
	fleet[polled]
}

func (b *yarp) poll() {
	for _, n := range b.nodes {
		b.env.Probe(n.server, pollTimeout, func(l lb.Load, ok bool) {
			if ok {
				n.rif = l.RIF
			}
		})
	}
}

func (b *yarp) Pick(*lb.Call) (int, error) {
	switch len(b.nodes) {
	case 0:
		return 0, errNobody
	case 1:
		return b.nodes[0].server, nil
	}
	i, j := b.rand.pair(len(b.nodes))
	first, second := b.nodes[i], b.nodes[j]
	if second.rif < first.rif {
		return second.server, nil
	}
	return first.server, nil
}

func (b *yarp) Done(*lb.Call, int, lb.Result) {}

func (b *yarp) Update(servers []lb.Server) {
	b.update(servers, func(server int) *polled { return &polled{server: server} })
}
