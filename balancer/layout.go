package balancer

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// layout is who has which keys among the members of one set, with their weights as they were when it was made. It is
// immutable but for the meter.
type layout struct {
	ranked  []*Endpoint // in an order on which all processes agree
	index   []uint32    // of the ranked among the members
	weights []uint32    // of the members
	weight  float64     // of all together
	table   *maglev     // of ranks; nil for a single member
	meter   meter
}

func newLayout(members []*Endpoint, size int) *layout {
	type ranking struct {
		claimant
		id    string
		index uint32
	}
	order := make([]ranking, len(members))
	l := &layout{
		ranked: make([]*Endpoint, len(members)), index: make([]uint32, len(members)), weights: make([]uint32, len(members)),
	}
	for i, m := range members {
		l.weights[i] = m.Weight()
		l.weight += float64(l.weights[i])
		id := cmp.Or(m.id.ID, m.id.Addr)
		order[i] = ranking{claimantOf(id, l.weights[i]), id, uint32(i)}
	}
	slices.SortFunc(order, func(a, b ranking) int {
		// By the hash, because numbers are compared faster than texts; the rest is for IDs that are not unique.
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.id, b.id),
			cmp.Compare(members[a.index].id.Addr, members[b.index].id.Addr))
	})
	claimants := make([]claimant, len(order))
	for rank, o := range order {
		l.ranked[rank], l.index[rank], claimants[rank] = members[o.index], o.index, o.claimant
	}
	if len(members) > 1 {
		l.table = newMaglev(size, claimants)
	}
	l.meter.begin(l.ranked)
	return l
}

// covers reports whether the layout, which was made for some members, is that of others as well: they are the same
// and weigh the same.
func (l *layout) covers(members, others []*Endpoint) bool {
	if !slices.Equal(members, others) {
		return false
	}
	for i, m := range others {
		if m.Weight() != l.weights[i] {
			return false
		}
	}
	return true
}

// lessBusy is the one of two ranks with fewer calls under way for its weight, the first if there is no difference.
func (l *layout) lessBusy(a, b uint32) uint32 {
	x, y := l.ranked[a], l.ranked[b]
	if float64(y.InFlight())*float64(x.Weight()) < float64(x.InFlight())*float64(y.Weight()) {
		return b
	}
	return a
}

// meter estimates how many calls are under way at all members together, without reading them all for each call: it
// remembers what it saw last at each, and looks at a few in turn whenever it is asked. Up to sweep members that is
// exact. With n members the number is never older than n/sweep questions, in which it can have grown by one each.
type meter struct {
	total atomic.Int64
	busy  atomic.Bool // somebody is looking; who comes second takes what is known
	// Whoever has set busy may use these.
	seen []uint32
	next int
}

const sweep = 8

func (m *meter) begin(ranked []*Endpoint) {
	m.seen = make([]uint32, len(ranked))
	total := int64(0)
	for i, e := range ranked {
		n := e.InFlight()
		m.seen[i] = uint32(n)
		total += n
	}
	m.total.Store(total)
}

// read looks at a few members, and at the one that the question is about, which changes more than most.
func (m *meter) read(ranked []*Endpoint, about uint32) int64 {
	if !m.busy.CompareAndSwap(false, true) {
		return m.total.Load()
	}
	diff := m.look(ranked, int(about))
	for range min(sweep, len(ranked)) {
		diff += m.look(ranked, m.next)
		if m.next++; m.next == len(ranked) {
			m.next = 0
		}
	}
	total := m.total.Add(diff)
	m.busy.Store(false)
	return total
}

func (m *meter) look(ranked []*Endpoint, i int) int64 {
	n := uint32(ranked[i].InFlight())
	diff := int64(n) - int64(m.seen[i])
	m.seen[i] = n
	return diff
}
