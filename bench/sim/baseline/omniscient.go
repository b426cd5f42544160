package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// Omniscient sees the true state of every server at the moment of the choice and takes the one where a request of
// average work would end first. No real client can, so its figures are what the others are measured against. It is
// greedy: it knows the present, not which calls will come, so it is a very good bound and not a proven one.
func Omniscient() lb.Maker {
	return simple("omniscient", func(env lb.Env) lb.Balancer { return &omniscient{env: env, rand: env.Rand} })
}

type omniscient struct {
	env     lb.Env
	rand    dice
	servers []int
}

func (b *omniscient) Pick(*lb.Call) (int, error) {
	n := len(b.servers)
	if n == 0 {
		return 0, errNobody
	}
	// From anywhere on, so that equals (an idle fleet) share.
	from := b.rand.below(n)
	best, least := b.servers[from], int64(-1)
	for i := range n {
		s := b.servers[(from+i)%n]
		if t := b.env.Peek(s); t.Up && (least < 0 || t.Finish < least) {
			best, least = s, t.Finish
		}
	}
	return best, nil
}

func (b *omniscient) Done(*lb.Call, int, lb.Result) {}

func (b *omniscient) Update(servers []lb.Server) { b.servers = indices(servers) }
