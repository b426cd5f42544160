package engine

import "math/rand/v2"

// Mix turns a number into one that looks unrelated to it and to those of its neighbours (the finalizer of splitmix64).
func Mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Unit makes a number in [0,1) of 64 random bits.
func Unit(x uint64) float64 { return float64(x>>11) / (1 << 53) }

// NewStream returns the randomness of one purpose ("arrivals", "work") and one client, server or other thing with a
// number. Streams of different seeds, purposes or numbers have nothing to do with each other.
func NewStream(seed uint64, purpose string, id int) *rand.Rand {
	x := Mix(seed)
	for i := range len(purpose) {
		x = Mix(x ^ uint64(purpose[i]))
	}
	x = Mix(x ^ uint64(id)<<8)
	return rand.New(rand.NewPCG(x, Mix(x)))
}
