package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// Omniscient sees the true state of every server at the moment of the choice and takes the one where a request of
// average work would end first; a failure counts as the time until the deadline, as it does in results, so a server that
// fails half of its calls at once draws none. No real client can, so its figures are what the others are measured against. It is
// greedy: it knows the present, not which calls will come, so it is a very good bound and not a proven one.
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

// cost is what a call to a server is expected to take.
func (b *omniscient) cost(c *lb.Call, t lb.Truth) float64 {
	left := patience
	if c.Deadline != 0 {
		left = c.Deadline - b.env.Now()
	}
	return float64(t.Finish)*(1-t.Fail) + float64(left)*t.Fail
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
