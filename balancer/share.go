package balancer

// An endpoint's share says how many of the calls that the strategy would give it it really gets. It is how everything
// that is to lighten an endpoint's load without taking it out does so, for every strategy alike: the plumbing accepts
// the member that the strategy names with the probability of its share, and else asks the strategy again. With n
// members of which one has the share s, round robin gives it s calls for one of each other; so a share acts as a
// factor of a weight, and works with strategies that know no weights (ADR-0020).
//
// Sets in which nobody's share is reduced do not look at shares at all.

// shareKind is who has a say in an endpoint's share. They do not know each other: the share is the product of what
// they say.
type shareKind uint8

const (
	warming shareKind = iota // slow start
	lagging                  // latency (Outliers.Slow)
	ailing                   // the blacklist, for who is kept in
	shareKinds
)

const (
	// fullShare is a share of 1. It leaves room for a product with 32 random bits.
	fullShare = 1 << 30
	// leastShare bounds a product of shares from below, so that nobody is forgotten altogether.
	leastShare = fullShare / 1000
)

// setShare makes share, from 0 to 1, the part of its calls that e is to get as far as kind is concerned; 1 means that
// kind has no reservations. After the last of several the caller calls retop, and publishes if p.dirty is not empty.
// mu is held.
func (p *policy) setShare(e *Endpoint, kind shareKind, share float64) {
	e.reserved[kind] = float32(1 - min(max(share, 0), 1))
	product := 1.0
	for _, r := range e.reserved {
		product *= 1 - float64(r)
	}
	next := uint32(0)
	if product < 1 {
		next = max(uint32(product*fullShare), leastShare)
	}
	was := e.share.Swap(next)
	if (was == 0) == (next == 0) || e.gone() {
		return
	}
	// The sets with e look at shares from now on, or need not any more.
	p.reduced++
	if next == 0 {
		p.reduced -= 2
	}
	p.markDirty(e.child)
}

// forgetShare is for an endpoint whose life is over; mu is held.
func (p *policy) forgetShare(e *Endpoint) {
	if e.share.Swap(0) != 0 {
		p.reduced--
	}
}

// retop tells the candidate sets that shares have changed; mu is held.
func (p *policy) retop() {
	for _, r := range p.allRoutes() {
		if r.set != nil && r.set.limited {
			r.set.retop()
		}
	}
}

// part is e's share as a number of which fullShare is the whole.
func (e *Endpoint) part() uint32 {
	if s := e.share.Load(); s != 0 {
		return s
	}
	return fullShare
}

// limit finds out whether shares matter in the set.
func (s *candidates) limit(rand func() uint64) {
	for _, e := range s.members {
		if e.share.Load() != 0 {
			s.limited, s.rand = true, rand
			s.retop()
			return
		}
	}
}

// retop finds the largest share in the set, which counts as a whole one: where everybody is new nobody is spared.
func (s *candidates) retop() {
	if s.zones != nil {
		s.zones.near.retop()
		s.zones.far.retop()
	}
	top := uint32(0)
	for _, e := range s.members {
		if top = max(top, e.part()); top == fullShare {
			break
		}
	}
	s.top.Store(top)
}

// admits decides about a call that the strategy would give to e.
func (s *candidates) admits(e *Endpoint) bool {
	share, top := e.part(), s.top.Load()
	return share >= top || uint32(s.rand()>>32*uint64(top)>>32) < share
}
