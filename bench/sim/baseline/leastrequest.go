package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// choiceCount is how many servers least request draws (gRFC A48, choice_count, default 2).
const choiceCount = 2

// LeastRequest draws two servers, possibly the same one twice, and takes the one with fewer calls in flight from this
// client, the first if they have the same (gRFC A48). It is what grpc-go's least_request_experimental does, and
// Prequal's "LL-Po2C".
func LeastRequest() lb.Maker {
	return simple("least_request", func(env lb.Env) lb.Balancer { return &leastRequest{rand: env.Rand} })
}

type leastRequest struct {
	rand dice
	fleet[counted]
}

func (b *leastRequest) Pick(c *lb.Call) (int, error) {
	n := len(b.nodes)
	if n == 0 {
		return 0, errNobody
	}
	best := b.nodes[b.rand.below(n)]
	for range choiceCount - 1 {
		// gRFC A48: with replacement; only fewer is better.
		if other := b.nodes[b.rand.below(n)]; other.inFlight < best.inFlight {
			best = other
		}
	}
	return best.begin(c)
}

func (b *leastRequest) Done(c *lb.Call, _ int, _ lb.Result) { c.Note.(*counted).inFlight-- }

func (b *leastRequest) Update(servers []lb.Server) { b.update(servers, newCounted) }
