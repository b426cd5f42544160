package balancer

import "fmt"

func init() { RegisterStrategy("least_request", parseSettings[LeastRequest]) }

// LeastRequest draws a few distinct instances at random and chooses the one with the fewest calls in flight
// relative to its weight ("power of two choices", gRFC A48, but without replacement, so that two choices are
// always two). It adapts to slow instances once calls queue up there. With many clients and few calls each, most
// draws are ties, and it is then as good as random.
type LeastRequest struct {
	// Choices is how many instances are drawn, from 2 to 10; 0 means 2. More choices follow the load more
	// closely and make clients of the same service herd.
	Choices int `json:"choices,omitempty"`
}

const maxChoices = 10 // gRFC A48 clamps there; an error is clearer than a clamp

// Name returns "least_request".
func (LeastRequest) Name() string { return "least_request" }

func (s LeastRequest) validate() error { return validateChoices(s.Choices) }

func validateChoices(n int) error {
	if n != 0 && (n < 2 || n > maxChoices) {
		return fmt.Errorf("choices = %d, want 2 to %d", n, maxChoices)
	}
	return nil
}

// Build implements [Strategy].
func (s LeastRequest) Build(env Env) Chooser {
	return &leastRequestChooser{members: env.Members, rand: env.Rand, choices: choicesOf(s.Choices, len(env.Members))}
}

func choicesOf(configured, members int) int {
	if configured == 0 {
		configured = 2
	}
	return min(configured, members)
}

type leastRequestChooser struct {
	members []*Endpoint
	rand    func() uint64
	choices int
}

func (c *leastRequestChooser) Choose(Call) int {
	d := newDraw(c.rand, len(c.members))
	best := d.next()
	inFlight, weight := c.members[best].InFlight(), int64(c.members[best].Weight())
	for range c.choices - 1 {
		i := d.next()
		m := c.members[i]
		f, w := m.InFlight(), int64(m.Weight())
		// Calls per capacity, counting the one to place; cross-multiplied to stay in integers.
		if (f+1)*weight < (inFlight+1)*w {
			best, inFlight, weight = i, f, w
		}
	}
	return best
}

// draw draws distinct random indices. It lives on the stack.
type draw struct {
	rand func() uint64
	n    int
	got  int
	seen [maxChoices]int32 // sorted
}

func newDraw(rand func() uint64, n int) draw { return draw{rand: rand, n: n} }

// next draws the next index; at most min(n, maxChoices) times. It draws from the indices that are left, and counts
// past those that are not.
func (d *draw) next() int {
	i := int32(below(d.rand(), d.n-d.got))
	at := 0
	for at < d.got && d.seen[at] <= i {
		i++
		at++
	}
	copy(d.seen[at+1:d.got+1], d.seen[at:d.got])
	d.seen[at] = i
	d.got++
	return int(i)
}
