package balancer

func init() { RegisterStrategy("round_robin", parseSettings[RoundRobin]) }

// RoundRobin takes the instances in turn, so that every run of n calls reaches each of n instances once. It is the
// default, has no settings, and begins anywhere, so that many clients do not begin at the same instance. Each
// candidate set has a turn of its own: calls with a filter do not disturb the turn of calls without. While several cores
// choose at the same moment, each takes turns in runs of 16, since a single counter would not scale; the counts of two
// instances then differ by some calls instead of one.
type RoundRobin struct{}

// Name returns "round_robin".
func (RoundRobin) Name() string { return "round_robin" }

func (RoundRobin) validate() error { return nil }

// Build implements [Strategy]; the turn goes on where the previous chooser of the set left it.
func (RoundRobin) Build(env Env) Chooser {
	c := &roundRobinChooser{n: uint64(len(env.Members))}
	if prev, ok := env.Previous.(*roundRobinChooser); ok {
		c.turn = prev.turn
		return c
	}
	c.turn = new(turns)
	c.turn.last.Store(env.Rand() >> 32) // far from 2^64, where a wrap would skip some
	return c
}

type roundRobinChooser struct {
	turn *turns
	n    uint64
}

func (c *roundRobinChooser) Choose(Call) int { return int(c.turn.take() % c.n) }
