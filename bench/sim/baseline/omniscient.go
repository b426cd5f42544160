package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// Omniscient sees the true state of every server at the moment of the choice and takes the one where a request of
// average work does least to the tail of all: its own latency and by how much it delays each request that is there, both to
// the fourth power, so that a long latency counts for more than many short ones. A failure counts as the time until
// the deadline, as it does in results. No real client can do that, so its figures are what the others are measured
// against.
//
// It is the best that is known, not a proven bound: it knows the present, and neither which calls will come nor what
// the neighbours on the machines will do. Taking the server where a request ends first, which is the obvious thing, is
// no bound at all: such a client queues at the fast servers until they are as slow as the others, which costs everybody
// there, and has them throttled. At 90 % in S2 that is 1.5 times the p99 of this library's keel.
func Omniscient() lb.Maker {
	return simple("omniscient", func(env lb.Env) lb.Balancer { return &omniscient{env: env, rand: env.Rand} })
}

type omniscient struct {
	env     lb.Env
	rand    dice
	servers []int
}

// patience is what a failure costs a call without a deadline.
const patience = 10 * second

// cost is by how much a call to a server is expected to raise the sum of the fourth powers of all latencies.
func (b *omniscient) cost(c *lb.Call, t lb.Truth) float64 {
	left := patience
	if c.Deadline != 0 {
		left = c.Deadline - b.env.Now()
	}
	return (fourth(min(t.Finish, left))+t.Harm)*(1-t.Fail) + fourth(left)*t.Fail
}

func fourth(d int64) float64 {
	x := float64(d)
	return x * x * x * x
}

func (b *omniscient) Pick(c *lb.Call) (int, error) {
	n := len(b.servers)
	if n == 0 {
		return 0, errNobody
	}
	// From anywhere on, so that equals (an idle fleet) share.
	from := b.rand.below(n)
	best, least := b.servers[from], -1.0
	for i := range n {
		s := b.servers[(from+i)%n]
		t := b.env.Peek(s)
		if cost := b.cost(c, t); t.Up && (least < 0 || cost < least) {
			best, least = s, cost
		}
	}
	return best, nil
}

func (b *omniscient) Done(*lb.Call, int, lb.Result) {}

func (b *omniscient) Update(servers []lb.Server) { b.servers = indices(servers) }
