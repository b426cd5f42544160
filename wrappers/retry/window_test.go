package retry

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for _, d := range []int64{-5, 0, 1, 1023, 1024, 1025, 2047, 2048, 12345, 1e6, 1e9, 60e9, 1<<40 - 1} {
		b := bucket(d)
		if up := upper(b); up <= d || d >= 1024 && float64(up) > float64(d)*1.0626 {
			t.Errorf("%d ns is in bucket %d, which ends at %d, want at most 6.25 %% more", d, b, up)
		}
	}
	if b := bucket(1 << 62); b != windowBucket-1 {
		t.Errorf("the longest latency is in bucket %d, want the last", b)
	}
	for b := 1; b < windowBucket; b++ {
		if bucket(upper(b-1)) != b || bucket(upper(b-1)-1) != b-1 {
			t.Fatalf("buckets %d and %d do not meet at %d", b-1, b, upper(b-1))
		}
	}
}

// TestQuantile compares the window with a sorted list of what it should have.
func TestQuantile(t *testing.T) {
	type entry struct{ at, d int64 }
	rng := rand.New(rand.NewPCG(1, 2))
	var w window
	var all []entry
	now := int64(0)
	checked := 0
	for range 30000 {
		now += rng.Int64N(10 * ms)
		if rng.IntN(5000) == 0 {
			now += rng.Int64N(40) * sec
		}
		d := int64(rng.ExpFloat64() * float64(20*ms))
		w.add(now, d)
		all = append(all, entry{now, d})
		if rng.IntN(50) != 0 {
			continue
		}
		w.computed = now - refresh // or it may be old by as much
		q := []float64{0.5, 0.9, 0.95, 0.99}[rng.IntN(4)]
		var exact []int64
		first := (now/windowSlot - windowSlots + 1) * windowSlot
		for _, e := range all {
			if e.at >= first {
				exact = append(exact, e.d)
			}
		}
		slices.Sort(exact)
		want := exact[min(int(q*float64(len(exact))), len(exact)-1)]
		if got := int64(w.quantile(now, q, 1)); got != upper(bucket(want)) {
			t.Fatalf("quantile %v of %d = %v, want %v rounded up", q, len(exact), time.Duration(got), time.Duration(want))
		}
		checked++
	}
	if checked < 100 {
		t.Fatalf("%d checks, want more", checked)
	}
}

func TestQuantileScenarios(t *testing.T) {
	type step struct {
		at   int64 // ms
		add  int64 // ms; 0 adds nothing
		n    int
		want time.Duration // of the 0.5 quantile with at least 10
	}
	up := func(d int64) time.Duration { return time.Duration(upper(bucket(d * ms))) }
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"too few", []step{{0, 10, 9, 0}, {1, 10, 1, up(10)}}},
		{"is kept for a while", []step{{0, 10, 20, up(10)}, {1, 50, 19, up(10)}, {2, 50, 1, up(50)}, {300, 50, 5, up(50)}}},
		{"is computed anew", []step{{0, 10, 20, up(10)}, {1, 50, 19, up(10)}, {251, 50, 2, up(50)}}},
		{"is forgotten", []step{{0, 10, 20, up(10)}, {29999, 0, 0, up(10)}, {30000, 0, 0, 0}, {30001, 50, 10, up(50)}}},
		{"the clock goes backwards", []step{{25000, 10, 20, up(10)}, {1000, 50, 30, up(50)}, {25100, 0, 0, up(50)}}},
	} {
		var w window
		for i, s := range tt.steps {
			for range s.n {
				w.add(s.at*ms, s.add*ms)
			}
			if got := w.quantile(s.at*ms, 0.5, 10); got != s.want {
				t.Errorf("%s: step %d at %d ms: %v, want %v", tt.name, i, s.at, got, s.want)
			}
		}
	}
}
