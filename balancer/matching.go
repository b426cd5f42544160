package balancer

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// matching shares servers out among clients: each client gets as many as it wants, or nearly, and no server has many
// more clients than another. It is a function of what it is made from and of nothing else, so every client that knows
// how many there are computes the same one and takes its own part, without asking anybody.
//
// It is a stable matching (Gale and Shapley, 1962, with capacities as for their colleges) in which both sides have
// preferences drawn from hashes: a client asks servers in its order, and a server keeps those that it prefers, up to
// its capacity, while whoever it lets go asks on. Who asks first makes no difference to the result, and a server that
// comes or goes concerns only its own clients and those whom they displace. It is consistent hashing with bounded
// loads (Mirrokni, Thorup and Zadimoghaddam, 2016), for many connections of each client at once.
type matching struct {
	servers []claimant
	ring    *ring
	sizes   []int               // by client: how many servers it gets
	caps    []int               // by server: how many clients it takes
	kept    [][]suitor          // by server
	asked   []uint32            // by client: how many servers it has asked
	has     []int               // by client: how many keep it
	pairs   map[uint64]struct{} // who is kept by whom
}

// suitor is a client that a server keeps.
type suitor struct {
	rank   uint64 // the higher, the more the server prefers it
	client int32
}

const (
	// headroom is by how much the capacity of all servers exceeds what the clients ask for, where there is room for it.
	// The more there is, the shorter are the chains of displacements, and the less even the shares.
	headroom = 0.2
	// maxBalance is how many times the mean a server may have.
	maxBalance = 1.25
	// fullest is how much of a small capacity may be in use in the mean: with less headroom a server more or less moves
	// a great part of all connections.
	fullest = 0.9
	// steepest bounds how fast the capacity follows the number of servers from one whole number to the next: a percent
	// more servers changes it by about so many percent.
	steepest = 6
)

// terms is how many servers a client gets in the mean, and how many clients a server takes. Neither has to be a whole
// number: by their hashes a part of the clients, or of the servers, has one more than the others. The terms change
// smoothly with the number of servers, so one more or less concerns few clients and few servers.
type terms struct {
	size, capacity float64
}

// termsFor finds the terms for clients that want size servers each, of so many servers.
//
// Say the mean is how many clients a server has. A capacity of a whole number c is even for means from c/maxBalance on,
// and leaves headroom up to fullest times c. From c = 6 on these ranges meet, near enough, and every size is good. Below
// there are gaps between them, and a mean that falls into one is brought down to the end of the range below, by giving
// clients fewer servers than they want, though not less than four fifths of them. Towards the end of the gap the mean
// returns to what is wanted, and the capacity grows to that of the next range; only there shares are less even than they
// should be. To jump over the gap would keep them even, and would have a fifth of all connections depend on one server.
func termsFor(clients, size, servers int) terms {
	wish := float64(size)
	mean := float64(clients) * wish / float64(servers)
	c := math.Floor(maxBalance * mean)
	given, most := mean, c
	switch {
	case c > 6: // the capacity grows from c - 1 at the beginning of the range
		from := c / maxBalance
		most = c - 1 + min(1, (mean-from)/(from*growth(c-1)-from))
	case c == 0 || int(c) >= clients: // nobody has more than one anyway, or than all
		most = min(c+1, float64(clients))
	case c < 6 && mean > fullest*c: // in a gap
		top, least := fullest*c, math.Ceil(wish/maxBalance)
		edge := max(top, min(top*wish/least, (c+1)/(maxBalance*growth(c))))
		way := min(max(mean-edge, 0)/(edge*growth(c)-edge), 1)
		given, most = top+way*(max(edge*growth(c), mean)-top), c+way
	}
	return terms{min(wish, wish*given/mean), max(1, min(given*(1+headroom), most))}
}

// growth is by what factor the mean grows while the capacity grows from c to c + 1.
func growth(c float64) float64 { return math.Pow((c+1)/c, 1.0/steepest) }

// match makes the matching of more servers than size.
func match(servers []claimant, clients, size int) *matching {
	m := &matching{
		servers: servers, ring: newRing(servers), sizes: make([]int, clients), caps: make([]int, len(servers)),
		kept: make([][]suitor, len(servers)), asked: make([]uint32, clients), has: make([]int, clients),
		pairs: make(map[uint64]struct{}, clients*size),
	}
	t := termsFor(clients, size, len(servers))
	for c := range m.sizes {
		m.sizes[c] = whole(t.size, mix(^uint64(c)))
	}
	for i, s := range servers {
		m.caps[i] = whole(t.capacity, mix(s.skip))
	}
	// Where nearly every client has nearly every server, the last one may look for a place for ever.
	patience := uint32(8*len(servers) + 1024)
	var displaced []int32
	for c := range int32(clients) {
		displaced = append(displaced, c)
		for len(displaced) > 0 {
			c := displaced[len(displaced)-1]
			switch {
			case m.has[c] == m.sizes[c]:
				displaced = displaced[:len(displaced)-1]
			case m.asked[c] == patience:
				m.squeeze(c)
			default:
				if loser := m.ask(c); loser >= 0 {
					displaced = append(displaced, loser)
				}
			}
		}
	}
	return m
}

// whole is one of the two whole numbers beside x, by a hash: of many hashes so many get the greater one that x is their
// mean.
func whole(x float64, hash uint64) int {
	low, part := math.Modf(x)
	if float64(hash>>11)/(1<<53) < part {
		low++
	}
	return int(low)
}

// ask has c ask the next server of its order. The answer is the client that lost its place by that, or -1.
func (m *matching) ask(c int32) int32 {
	s := m.ring.at(mix(mix(uint64(c)+golden) + uint64(m.asked[c])*golden))
	m.asked[c]++
	rank := mix(m.servers[s].offset ^ mix(uint64(c)))
	kept := m.kept[s]
	if len(kept) >= m.caps[s] && kept[0].rank >= rank { // full of others, or of others and c
		return -1
	}
	if _, again := m.pairs[pairOf(c, s)]; again {
		return -1
	}
	m.pairs[pairOf(c, s)] = struct{}{}
	m.has[c]++
	if len(kept) < m.caps[s] {
		m.kept[s] = rise(append(kept, suitor{rank, c}))
		return -1
	}
	loser := kept[0].client
	kept[0] = suitor{rank, c}
	sink(kept)
	delete(m.pairs, pairOf(loser, s))
	m.has[loser]--
	return loser
}

// pairOf is a key for client c at server s.
func pairOf(c int32, s uint32) uint64 { return uint64(c)<<32 | uint64(s) }

// squeeze gives c a place beyond the capacity of a server that does not have it: the one with the fewest clients.
func (m *matching) squeeze(c int32) {
	best := -1
	for s, kept := range m.kept {
		if best >= 0 && len(kept) >= len(m.kept[best]) {
			continue
		}
		if _, has := m.pairs[pairOf(c, uint32(s))]; !has {
			best = s
		}
	}
	m.kept[best] = rise(append(m.kept[best], suitor{math.MaxUint64, c}))
	m.caps[best] = max(m.caps[best], len(m.kept[best]))
	m.pairs[pairOf(c, uint32(best))] = struct{}{}
	m.has[c]++
}

// A server's suitors are a heap with the least preferred one first: with many clients and few servers a server keeps
// thousands.

// rise puts the last one of h where it belongs.
func rise(h []suitor) []suitor {
	for i := len(h) - 1; i > 0 && h[i].rank < h[(i-1)/2].rank; i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
	return h
}

// sink puts the first one of h where it belongs.
func sink(h []suitor) {
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h); child++ {
			if h[child].rank < h[least].rank {
				least = child
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// of lists the servers that keep client c, by rank.
func (m *matching) of(c int) []int {
	servers := make([]int, 0, m.sizes[c])
	for s := range m.kept {
		if _, ok := m.pairs[pairOf(int32(c), uint32(s))]; ok {
			servers = append(servers, s)
		}
	}
	return servers
}

// ring is a ring of consistent hashing (Karger et al., 1997): a point belongs to the server with the next mark on it.
// Adding a server takes away from the others only what it gets.
type ring struct {
	marks []mark
	guide []uint32 // by the high bits of a point: the first mark that can be its next
	shift uint
}

type mark struct {
	at     uint64
	server uint32
}

// replicas is how many marks a server has. The shares of a ring with so few differ by half, which the capacities of
// match even out.
const replicas = 16

func newRing(servers []claimant) *ring {
	r := &ring{marks: make([]mark, 0, len(servers)*replicas)}
	for i, s := range servers {
		for v := range uint64(replicas) {
			r.marks = append(r.marks, mark{mix(s.offset + v*golden), uint32(i)})
		}
	}
	slices.SortFunc(r.marks, func(a, b mark) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.server, b.server))
	})
	size := bits.Len(uint(len(r.marks)))
	r.shift = uint(64 - size)
	r.guide = make([]uint32, 1<<size)
	next := 0
	for g := range r.guide {
		for next < len(r.marks) && r.marks[next].at < uint64(g)<<r.shift {
			next++
		}
		r.guide[g] = uint32(next)
	}
	return r
}

// at is the server that point h belongs to.
func (r *ring) at(h uint64) uint32 {
	i := int(r.guide[h>>r.shift])
	for i < len(r.marks) && r.marks[i].at < h {
		i++
	}
	if i == len(r.marks) {
		i = 0
	}
	return r.marks[i].server
}

// mix is the finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
