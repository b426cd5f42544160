package balancer

import (
	"encoding/binary"
	"testing"
)

// TestXXH64 against what other implementations say. The last two chain the hashes of texts of all lengths up to 200.
func TestXXH64(t *testing.T) {
	for _, tt := range []struct {
		s    string
		seed uint64
		want uint64
	}{
		{"", 0, 0xef46db3751d8e999}, {"", 1, 0xd5afba1336a3be4b},
		{"a", 0, 0xd24ec4f1a98c6e5b}, {"a", 1, 0xdec2bc81c3cd46c6},
		{"abc", 0, 0x44bc2cf5ad770999}, {"abc", 1, 0xbea9ca8199328908},
		{"user-4711", 0, 0xd7204dc3f8d9bba8}, {"user-4711", 1, 0x1a94c95e1adc027a},
		{"as Maglev has it: a table of slots", 0, 0x9b950b1f08bd8c5c}, {"as Maglev has it: a table of slots", 1, 0x89a8b2e63d7b9296},
	} {
		if got := xxh64(tt.s, tt.seed); got != tt.want {
			t.Errorf("xxh64(%q, %d) = %#x, want %#x", tt.s, tt.seed, got, tt.want)
		}
	}
	var text [200]byte
	for i := range text {
		text[i] = byte(i*7 + 3)
	}
	for seed, want := range []uint64{0x40769653186a407e, 0xcf31bc20eec3dbb7} {
		h := uint64(0)
		for n := range len(text) + 1 {
			h = xxh64(string(append(binary.LittleEndian.AppendUint64(nil, h), text[:n]...)), uint64(seed))
		}
		if h != want {
			t.Errorf("with seed %d all lengths together are %#x, want %#x", seed, h, want)
		}
	}
}

func BenchmarkXXH64(b *testing.B) {
	const uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
	sum := uint64(0)
	for b.Loop() {
		sum += xxh64(uuid, 0)
	}
	_ = sum
}
