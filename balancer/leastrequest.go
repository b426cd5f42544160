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
	if c.choices == 2 {
		best, other := pair(c.rand(), len(c.members))
		// Which of the two is a coin toss that no processor can predict: so an assignment and not a branch.
		if c.members[other].lessBusy(c.members[best]) {
			best = other
		}
		return best
	}
	d := newDraw(c.rand, len(c.members))
	best := d.next()
	for range c.choices - 1 {
		if i := d.next(); c.members[i].lessBusy(c.members[best]) {
			best = i
		}
	}
	return best
}

// lessBusy reports whether e has fewer calls in flight than o, relative to their weights and counting the one to
// place; cross-multiplied to stay in integers.
func (e *Endpoint) lessBusy(o *Endpoint) bool {
	return (e.InFlight()+1)*int64(o.weight.Load()) < (o.InFlight()+1)*int64(e.weight.Load())
}

// pair draws two distinct random indices below n, which is at least 2, from one random number: the common case of
// draw, at a third of its time. The bias is at most n/2^32, as that of below.
func pair(r uint64, n int) (int, int) {
	i := int((r >> 32) * uint64(n) >> 32)
	j := int((r & (1<<32 - 1)) * uint64(n-1) >> 32)
	return i, j + 1 + int(int64(j-i)>>63) // one more if j >= i, without a branch that is a coin toss
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
