package balancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestWeightedAgainstLinearSearch checks the guide table and the shares.
func TestWeightedAgainstLinearSearch(t *testing.T) {
	rnd := rand.New(rand.NewPCG(41, 42))
	for round := range 300 {
		n := 1 + rnd.IntN([]int{1, 2, 5, 40, 1000}[round%5])
		weights := make([]uint32, n)
		var total float64
		for i := range weights {
			weights[i] = []uint32{0, 1, rnd.Uint32N(100), math.MaxUint32 - rnd.Uint32N(3), rnd.Uint32()}[rnd.IntN(5)]
			total += float64(max(weights[i], 1))
		}
		c := Weighted{}.Build(Env{Members: members(weights...), Rand: seeded(1)}).(*weightedChooser)
		sum, from := 0.0, 0.0
		for i, end := range c.ends {
			sum += float64(max(weights[i], 1))
			if to := sum / total * (1 << 64); math.Abs(float64(end)-to) > 1<<16 || to <= from || i > 0 && end <= c.ends[i-1] {
				t.Fatalf("round %d: share %d ends at %x, want about %g", round, i, end, to)
			} else {
				from = to
			}
		}
		if c.ends[n-1] != math.MaxUint64 {
			t.Fatalf("round %d: the shares end at %x", round, c.ends[n-1])
		}
		points := []uint64{0, 1, math.MaxUint64}
		for _, end := range c.ends {
			points = append(points, end, end+1, end-1)
		}
		for range 200 {
			points = append(points, rnd.Uint64())
		}
		inverse := inverse(golden)
		for _, p := range points {
			want := slices.IndexFunc(c.ends, func(end uint64) bool { return p <= end })
			c.calls.last.Store(p*inverse - 1) // so that the next point is p
			if got := c.Choose(Call{}); got != want {
				t.Fatalf("round %d: point %x belongs to %d, want %d", round, p, got, want)
			}
		}
	}
}

// inverse is the number that x times is 1 modulo 2^64, for an odd x, by Newton's method.
func inverse(x uint64) uint64 {
	y := x
	for range 6 {
		y *= 2 - x*y
	}
	return y
}

// TestWeightedIsSmooth: in any window of calls each member's count is within a few calls of its share. Windows of all
// lengths are looked at, wherever they begin.
func TestWeightedIsSmooth(t *testing.T) {
	ramp := make([]uint32, 50)
	for i := range ramp {
		ramp[i] = uint32(i + 1)
	}
	for _, tt := range []struct {
		name    string
		weights []uint32
	}{
		{"equal", same(7, 1)}, {"5 1 1 1 1 1", []uint32{5, 1, 1, 1, 1, 1}}, {"ramp", ramp}, {"two", []uint32{1, 2}},
		{"100 to 1", []uint32{100, 1}}, {"many", same(40, 3)}, {"extreme", []uint32{1, math.MaxUint32}},
		{"one", []uint32{9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			total := 0.0
			for _, w := range tt.weights {
				total += float64(w)
			}
			for seed := range uint64(3) {
				c := Weighted{}.Build(Env{Members: members(tt.weights...), Rand: seeded(seed)})
				// Of the running difference between count and share, a window sees how far it moves: so the
				// range of it bounds all windows at once.
				diff := make([]float64, len(tt.weights))
				low, high := make([]float64, len(diff)), make([]float64, len(diff))
				for range 20000 {
					chosen := c.Choose(Call{})
					for i, w := range tt.weights {
						diff[i] -= float64(w) / total
						if i == chosen {
							diff[i]++
						}
						low[i], high[i] = min(low[i], diff[i]), max(high[i], diff[i])
					}
				}
				for i := range diff {
					if got := high[i] - low[i]; got > 5 { // it grows with the logarithm of the calls
						t.Fatalf("seed %d: in some window member %d is %.2f calls from its share, want 5 at most", seed, i, got)
					}
				}
			}
		})
	}
}

// TestWeightedGaps: a member of half the weight gets every second call, not several in a row.
func TestWeightedGaps(t *testing.T) {
	c := Weighted{}.Build(Env{Members: members(5, 1, 1, 1, 1, 1), Rand: seeded(3)})
	last, gaps := make(map[int]int), make(map[int][]int)
	for k := range 10000 {
		i := c.Choose(Call{})
		if before, ok := last[i]; ok {
			gaps[i] = append(gaps[i], k-before)
		}
		last[i] = k
	}
	for i, want := range [][2]int{{1, 3}, {5, 21}, {5, 21}, {5, 21}, {5, 21}, {5, 21}} {
		if low, high := slices.Min(gaps[i]), slices.Max(gaps[i]); low < want[0] || high > want[1] {
			t.Errorf("member %d comes after %d to %d calls, want %d to %d", i, low, high, want[0], want[1])
		}
	}
}

// TestWeightedManyMembers has 10,000 of them with extreme weights: everybody has a share, and lookups end soon.
func TestWeightedManyMembers(t *testing.T) {
	const n = 10000
	weights := same(n, 1)
	for i := range 10 {
		weights[i*1000] = math.MaxUint32
	}
	c := Weighted{}.Build(Env{Members: members(weights...), Rand: seeded(4)}).(*weightedChooser)
	if len(c.guide) != 1<<14 {
		t.Errorf("the guide has %d entries, want %d", len(c.guide), 1<<14)
	}
	counts := make([]int, 10)
	for range 100000 {
		if i := c.Choose(Call{}); i%1000 == 0 {
			counts[i/1000]++
		}
	}
	checkUniform(t, "the heavy ones", counts)
	for i := range n {
		if i > 0 && c.ends[i] <= c.ends[i-1] {
			t.Fatalf("member %d has no share", i)
		}
	}
	// Equal weights: two steps on average, and never many.
	c = Weighted{}.Build(Env{Members: members(same(n, 5)...), Rand: seeded(4)}).(*weightedChooser)
	for g, post := range c.guide {
		last := n - 1
		if g+1 < len(c.guide) {
			last = int(c.guide[g+1].first)
		}
		if last-int(post.first) > 2 {
			t.Fatalf("entry %d of the guide leaves %d members to look at", g, last-int(post.first)+1)
		}
	}
}

// TestWeightsChangeLive: the counts follow a changed weight from the next picker on, and the sequence is not begun
// anew.
func TestWeightsChangeLive(t *testing.T) {
	ins := fleet(3)
	r := newRig(t, Config{Strategy: Weighted{}}, ins)
	for step, weights := range [][3]uint32{{1, 1, 1}, {1, 2, 3}, {10, 0, 1}, {1, 1, 4}} {
		total := 0.0
		sequence := r.p.byConfig.set.chooser.(*weightedChooser).calls
		for i, w := range weights {
			ins[i].Weight = w
			total += float64(max(w, 1))
		}
		r.update(Config{Strategy: Weighted{}}, ins)
		if r.p.byConfig.set.chooser.(*weightedChooser).calls != sequence {
			t.Errorf("step %d: the sequence was begun anew", step)
		}
		got := r.calls(1200, ask{})
		for i, w := range weights {
			if want := 1200 * float64(max(w, 1)) / total; math.Abs(float64(got[fmt.Sprintf("i%d", i)])-want) > 3 {
				t.Errorf("step %d: calls go to %v, want shares of %v", step, got, weights)
			}
		}
	}
}
