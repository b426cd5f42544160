package balancer

import (
	"math/bits"
	"slices"
)

// maglev is a lookup table of Maglev hashing (Eisenbud et al., "Maglev", NSDI 2016, section 3.4): each slot has the
// rank of the instance that it belongs to. Every instance has a permutation of the slots of its own, and they take
// their next free slot in turn, as often as their weights say, until none is left. So the shares are even to a slot,
// and when an instance comes or goes little else changes hands. It is a function of the instances and of nothing else.
// It is immutable.
type maglev struct {
	size  uint64   // a prime, so that any step visits all slots
	small []uint16 // the ranks, if 16 bits are enough, else nil
	large []uint32
}

// claimant is one instance in the order of ranks.
type claimant struct {
	offset, skip uint64 // hashes, whatever the size of the table
	weight       uint32
}

// claimantOf is the instance with an ID, or whatever it is known by.
func claimantOf(id string, weight uint32) claimant {
	return claimant{offset: xxh64(id, 0), skip: xxh64(id, 1), weight: weight}
}

// newMaglev makes the table of two claimants or more with at least size slots. With more than half as many claimants
// as slots it takes a greater one, so that nobody is left without.
func newMaglev(size int, claimants []claimant) *maglev {
	size = primeFrom(size)
	for size < 2*len(claimants) {
		size = primeFrom(4 * size)
	}
	t := &maglev{size: uint64(size)}
	if len(claimants) <= 1<<16 {
		t.small = make([]uint16, size)
		fill(t.small, claimants)
	} else {
		t.large = make([]uint32, size)
		fill(t.large, claimants)
	}
	return t
}

// at is the rank at a slot.
func (t *maglev) at(slot uint64) uint32 {
	if t.small != nil {
		return uint32(t.small[slot])
	}
	return t.large[slot]
}

// scale maps a hash to a number below n, in the order of hashes: floor(h n / 2^64).
func scale(h, n uint64) uint64 {
	hi, _ := bits.Mul64(h, n)
	return hi
}

// fill gives the slots of table to the claimants. Towards the end most slots that a claimant would like are taken:
// on average it asks for ln(len(table)) of them. That they are taken is looked up in a bitmap, which for the usual size
// fits into the processor's first cache.
func fill[R uint16 | uint32](table []R, claimants []claimant) {
	size := uint64(len(table))
	type walk struct{ slot, step uint32 }
	walks := make([]walk, len(claimants))
	for i, c := range claimants {
		walks[i] = walk{uint32(scale(c.offset, size)), uint32(scale(c.skip, size-1)) + 1}
	}
	turns := turnsOf(claimants, len(table))
	taken := make([]uint64, (size+63)/64)
	rank := 0
	for t := range table {
		if turns != nil {
			rank = int(turns[t])
		} else if rank == len(claimants) {
			rank = 0
		}
		w := &walks[rank]
		slot := w.slot
		for taken[slot/64]>>(slot%64)&1 != 0 {
			if slot += w.step; slot >= uint32(size) {
				slot -= uint32(size)
			}
		}
		taken[slot/64] |= 1 << (slot % 64)
		table[slot] = R(rank)
		w.slot = slot
		rank++
	}
}

// turnsOf says whose turn each of the first n is, or nil if the claimants simply take turns. The heaviest take a slot
// in each round, and one with a weight p times as great in every 1/pth; but all do in the first, so that nobody is left
// without a slot. Within a round the order is that of ranks. So the turns of one do not depend on who else is there,
// unless that one is heavier than all others were. It takes time in proportion to n, whatever the weights are.
func turnsOf(claimants []claimant, n int) []uint32 {
	var total, heaviest uint64
	even := true
	for _, c := range claimants {
		total += uint64(c.weight)
		heaviest = max(heaviest, uint64(c.weight))
		even = even && c.weight == claimants[0].weight
	}
	if even {
		return nil
	}
	// A claimant of weight w has had floor(rounds w / heaviest) turns or one more; these are enough for n in all.
	rounds := uint64(n+len(claimants))*heaviest/total + 1
	round := func(k uint64, weight uint32) uint64 { // in which the kth turn is
		if k == 1 {
			return 1
		}
		return (k*heaviest + uint64(weight) - 1) / uint64(weight)
	}
	// Sort by counting, since there are about as many rounds as turns at most: starts[r] is where round r begins.
	starts := make([]uint32, rounds+2)
	for _, c := range claimants {
		for k := uint64(1); round(k, c.weight) <= rounds; k++ {
			starts[round(k, c.weight)+1]++
		}
	}
	for r := 1; r < len(starts); r++ {
		starts[r] += starts[r-1]
	}
	turns := make([]uint32, starts[len(starts)-1])
	for rank, c := range claimants {
		for k := uint64(1); round(k, c.weight) <= rounds; k++ {
			r := round(k, c.weight)
			turns[starts[r]] = uint32(rank)
			starts[r]++
		}
	}
	return slices.Clip(turns[:n])
}

// primeFrom is the least prime that is at least n, which is 2 or more.
func primeFrom(n int) int {
	for !prime(n) {
		n++
	}
	return n
}

func prime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
