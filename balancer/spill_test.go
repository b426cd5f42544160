package balancer

import (
	"math/rand/v2"
	"testing"
	"unsafe"
)

// TestSpillBounds: whatever is counted, the part that leaves is one, and between its bounds.
func TestSpillBounds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	some := func() uint64 {
		return []uint64{0, 0, 1, rnd.Uint64N(10), rnd.Uint64N(1e6), 1 << 62}[rnd.IntN(6)]
	}
	random := func() reading {
		return reading{begun: some(), over: some(), calls: some(), nanos: some(), open: int64(some())}
	}
	for range 2000 {
		var s spill
		for range 20 {
			period := []float64{-1, 0, 1, spillPeriod, spillPeriod, 3600e9}[rnd.IntN(6)]
			least, missing := rnd.Float64()/2, rnd.Float64()
			if rnd.IntN(10) == 0 {
				s.lost()
			}
			near, far := random(), random()
			s.step(period, near, far, []float64{0.01, 0.25, 10}[rnd.IntN(3)])
			s.bound(least, missing)
			if !(s.fraction >= least && s.fraction <= mostSpill && s.cut >= 0 && s.cut <= 1) {
				t.Fatalf("%v leave and the limit is cut by %v after %+v, %+v in %v ns, want %v to %v and 0 to 1",
					s.fraction, s.cut, near, far, period, least, mostSpill)
			}
		}
	}
}

// TestSpillLimit is the arithmetic of one step: 100 calls a second that take 20 ms here and elsewhere.
func TestSpillLimit(t *testing.T) {
	const ms = 1e6
	steady := func() *spill {
		s := new(spill)
		for range 200 {
			s.step(spillPeriod, reading{begun: 10, over: 10, calls: 10, nanos: 10 * 20 * ms, open: 2},
				reading{begun: 1, over: 1, calls: 1, nanos: 20 * ms}, 0.25)
			s.bound(0.01, 0)
		}
		return s
	}
	for _, tt := range []struct {
		what        string
		near        reading
		missing     float64
		least, most float64
	}{
		{"nothing changes", reading{begun: 10, over: 10, calls: 10, nanos: 10 * 20 * ms, open: 2}, 0, 0.01, 0.01},
		{"as many more as chance explains", reading{begun: 12, over: 10, calls: 10, nanos: 10 * 20 * ms, open: 4}, 0, 0.01, 0.01},
		{"nothing ends any more", reading{begun: 10, open: 12}, 0, 0.3, 0.6},
		{"many more are under way than may be", reading{begun: 30, over: 10, calls: 10, nanos: 10 * 20 * ms, open: 22}, 0, 0.7, 0.95},
		{"nobody calls any more", reading{}, 0, 0.01, 0.01},
		{"half of the zone is missing", reading{begun: 10, over: 10, calls: 10, nanos: 10 * 20 * ms, open: 2}, 0.5, 0.3, 0.3},
	} {
		s := steady()
		s.step(spillPeriod, tt.near, reading{}, 0.25)
		s.bound(0.01, tt.missing)
		if s.fraction < tt.least-1e-9 || s.fraction > tt.most+1e-9 {
			t.Errorf("%s: %.3f leave, want %v to %v", tt.what, s.fraction, tt.least, tt.most)
		}
	}
}

// TestGaugesApart: instances that are few are counted in lines of their own.
func TestGaugesApart(t *testing.T) {
	if size := unsafe.Sizeof(gauge{}); size != 64 {
		t.Errorf("a gauge has %d bytes, want a cache line of 64", size)
	}
	var g gauges
	seen := make(map[*gauge]bool)
	for i := range len(g) {
		seen[g.of(&Endpoint{number: uint32(1000 + i)})] = true
	}
	if len(seen) != len(g) {
		t.Errorf("%d instances are counted in %d places, want one for each", len(g), len(seen))
	}
}

// BenchmarkZoneRead is what is paid ten times a second for every filter in use, whatever the number of instances.
func BenchmarkZoneRead(b *testing.B) {
	bs := new(borders)
	for b.Loop() {
		bs.near.of(&Endpoint{number: 7}).begun.Add(1)
		bs.read()
	}
}
