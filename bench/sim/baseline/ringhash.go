package baseline

import (
	"hash/fnv"
	"math"
	"slices"
	"sort"
	"strconv"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Bounds of gRFC A42's ring.
const (
	ringLeast = 1024
	ringMost  = 4096
)

// RingHash is gRPC's ring_hash (gRFC A42) with equal weights and no load in mind: each server has as many places on a
// ring as make it 1024 long at least, and a call goes to the first place at or after the hash of its key. gRPC's hash is
// XXH64; here it is FNV-1a, mixed, which is as uniform. A call without a key goes anywhere. A popular key is its one
// server's misfortune, and the places are few, so servers differ by a factor even if keys do not.
func RingHash() lb.Maker {
	return simple("ring_hash", func(env lb.Env) lb.Balancer { return &ringHash{rand: env.Rand} })
}

type place struct {
	hash   uint64
	server int
}

type ringHash struct {
	rand dice
	ring []place
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s)) // it never fails
	return engine.Mix(h.Sum64())
}

func (b *ringHash) Pick(c *lb.Call) (int, error) {
	if len(b.ring) == 0 {
		return 0, errNobody
	}
	h := b.rand()
	if c.HasKey {
		h = hashOf(c.Key)
	}
	i := sort.Search(len(b.ring), func(i int) bool { return b.ring[i].hash >= h })
	return b.ring[i%len(b.ring)].server, nil
}

func (b *ringHash) Done(*lb.Call, int, lb.Result) {}

func (b *ringHash) Update(servers []lb.Server) {
	b.ring = nil
	if len(servers) == 0 {
		return
	}
	// gRFC A42: the scale makes the smallest weight, here 1/n, a whole number of places.
	each := int(min(math.Ceil(ringLeast/float64(len(servers))), max(1, ringMost/float64(len(servers)))))
	for _, s := range servers {
		for i := range each {
			b.ring = append(b.ring, place{hashOf(s.Instance.Addr + "_" + strconv.Itoa(i)), s.Index})
		}
	}
	slices.SortFunc(b.ring, func(x, y place) int {
		switch {
		case x.hash < y.hash:
			return -1
		case x.hash > y.hash:
			return 1
		}
		return x.server - y.server
	})
}
