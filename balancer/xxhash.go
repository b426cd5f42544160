package balancer

import "math/bits"

const (
	xxh1 uint64 = 0x9E3779B185EBCA87
	xxh2 uint64 = 0xC2B2AE3D27D4EB4F
	xxh3 uint64 = 0x165667B19E3779F9
	xxh4 uint64 = 0x85EBCA77C2B2AE63
	xxh5 uint64 = 0x27D4EB2F165667C5
)

// xxh64 is XXH64 of s, as the xxHash specification has it: 64 bits that every process and every language agrees on,
// at some 10 ns for the length of a UUID. It is written out here because a dependency for it would be everybody's.
// It resists accidents, not attacks: who may choose keys can choose many that go to one instance.
func xxh64(s string, seed uint64) uint64 {
	n := uint64(len(s))
	var h uint64
	if len(s) >= 32 {
		a, b, c, d := seed+xxh1+xxh2, seed+xxh2, seed, seed-xxh1
		for len(s) >= 32 {
			a = xxhRound(a, le64(s))
			b = xxhRound(b, le64(s[8:]))
			c = xxhRound(c, le64(s[16:]))
			d = xxhRound(d, le64(s[24:]))
			s = s[32:]
		}
		h = bits.RotateLeft64(a, 1) + bits.RotateLeft64(b, 7) + bits.RotateLeft64(c, 12) + bits.RotateLeft64(d, 18)
		for _, v := range [...]uint64{a, b, c, d} {
			h = (h^xxhRound(0, v))*xxh1 + xxh4
		}
	} else {
		h = seed + xxh5
	}
	h += n
	for ; len(s) >= 8; s = s[8:] {
		h = bits.RotateLeft64(h^xxhRound(0, le64(s)), 27)*xxh1 + xxh4
	}
	if len(s) >= 4 {
		h = bits.RotateLeft64(h^uint64(le32(s))*xxh1, 23)*xxh2 + xxh3
		s = s[4:]
	}
	for i := range len(s) {
		h = bits.RotateLeft64(h^uint64(s[i])*xxh5, 11) * xxh1
	}
	h = (h ^ h>>33) * xxh2
	h = (h ^ h>>29) * xxh3
	return h ^ h>>32
}

func xxhRound(acc, v uint64) uint64 { return bits.RotateLeft64(acc+v*xxh2, 31) * xxh1 }

// le64 reads 8 bytes as the compiler can do with one load; binary.LittleEndian wants bytes, not a string.
func le64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

func le32(s string) uint32 {
	_ = s[3]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}
