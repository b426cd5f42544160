package balancer

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// matching shares servers out among clients: each client gets size of them, and no server has many more clients than
// another. It is a function of what it is made from and of nothing else, so every client that knows how many there are
// computes the same one and takes its own part, without asking anybody.
//
// It is a stable matching (Gale and Shapley, 1962, with capacities as for their colleges) in which both sides have
// preferences drawn from hashes: a client asks servers in its order, and a server keeps those that it prefers, up to
// its capacity, while whoever it lets go asks on. Who asks first makes no difference to the result, and a server that
// comes or goes concerns only its own clients and those whom they displace. It is consistent hashing with bounded
// loads (Mirrokni, Thorup and Zadimoghaddam, 2016), for many connections of each client at once.
type matching struct {
	servers []claimant
	ring    *ring
	size    int
	caps    []int
	kept    [][]suitor // by server
	asked   []uint32   // by client: how many servers it has asked
	has     []int      // by client: how many keep it
}

// suitor is a client that a server keeps.
type suitor struct {
	rank   uint64 // the higher, the more the server prefers it
	client int32
}

const (
	// headroom is by how much the capacity of all servers exceeds what the clients ask for. The more there is, the
	// shorter are the chains of displacements, and the less even the shares.
	headroom = 0.2
	// leastHeadroom is how much there is at least, even if whole numbers then make the shares less even.
	leastHeadroom = 0.05
	// maxBalance is how many times the mean a server may have where whole numbers allow it.
	maxBalance = 1.25
)

// match makes the matching of more servers than size.
func match(servers []claimant, clients, size int) *matching {
	m := &matching{
		servers: servers, ring: newRing(servers), size: size,
		caps: capacities(servers, float64(clients)*float64(size)/float64(len(servers))),
		kept: make([][]suitor, len(servers)), asked: make([]uint32, clients), has: make([]int, clients),
	}
	// Where nearly every client has nearly every server, the last one may look for a place for ever.
	patience := uint32(64*len(servers) + 1024)
	var displaced []int32
	for c := range int32(clients) {
		displaced = append(displaced, c)
		for len(displaced) > 0 {
			c := displaced[len(displaced)-1]
			switch {
			case m.has[c] == size:
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

// capacities says how many clients each server takes: the mean and the headroom. That is seldom a whole number, so a
// part of the servers, by their hashes, takes one more than the others; then with one server more or less few
// capacities change.
func capacities(servers []claimant, mean float64) []int {
	most := math.Floor(maxBalance * mean)
	if most < mean*(1+leastHeadroom) {
		most = math.Ceil(mean * (1 + leastHeadroom))
	}
	want := max(1, min(mean*(1+headroom), most))
	low, part := math.Modf(want)
	caps := make([]int, len(servers))
	for i, s := range servers {
		caps[i] = int(low)
		if float64(mix(s.skip)>>11)/(1<<53) < part {
			caps[i]++
		}
	}
	return caps
}

// ask has c ask the next server of its order. The answer is the client that lost its place by that, or -1.
func (m *matching) ask(c int32) int32 {
	s := m.ring.at(mix(mix(uint64(c)+golden) + uint64(m.asked[c])*golden))
	m.asked[c]++
	kept := m.kept[s]
	rank := mix(m.servers[s].offset ^ mix(uint64(c)))
	least := 0
	for i, k := range kept {
		if k.client == c {
			return -1
		}
		if k.rank < kept[least].rank {
			least = i
		}
	}
	if len(kept) < m.caps[s] {
		m.kept[s] = append(kept, suitor{rank, c})
		m.has[c]++
		return -1
	}
	if kept[least].rank >= rank {
		return -1
	}
	loser := kept[least].client
	kept[least] = suitor{rank, c}
	m.has[c]++
	m.has[loser]--
	return loser
}

// squeeze gives c a place beyond the capacity of a server that does not have it: the one with the fewest clients.
func (m *matching) squeeze(c int32) {
	best := -1
	for s, kept := range m.kept {
		if best >= 0 && len(kept) >= len(m.kept[best]) {
			continue
		}
		if !slices.ContainsFunc(kept, func(k suitor) bool { return k.client == c }) {
			best = s
		}
	}
	m.kept[best] = append(m.kept[best], suitor{math.MaxUint64, c})
	m.caps[best] = max(m.caps[best], len(m.kept[best]))
	m.has[c]++
}

// of lists the servers that keep client c, by rank.
func (m *matching) of(c int) []int {
	servers := make([]int, 0, m.size)
	for s, kept := range m.kept {
		if slices.ContainsFunc(kept, func(k suitor) bool { return int(k.client) == c }) {
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
