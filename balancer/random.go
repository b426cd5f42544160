package balancer

func init() { RegisterStrategy("random", parseSettings[Random]) }

// Random chooses uniformly at random. It has no settings, no state and the lowest cost, and spreads calls evenly
// only in the long run.
type Random struct{}

// Name returns "random".
func (Random) Name() string { return "random" }

func (Random) validate() error { return nil }

// Build implements [Strategy].
func (Random) Build(env Env) Chooser { return &randomChooser{n: len(env.Members), rand: env.Rand} }

type randomChooser struct {
	n    int
	rand func() uint64
}

func (c *randomChooser) Choose(Call) int { return below(c.rand(), c.n) }
