package metrics

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestQuantile compares with a sorted list: right within a thousandth, at every size of value.
func TestQuantile(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, scale := range []float64{1, 1e3, 1e6, 5e9} {
		var h, left, right Histogram
		var all []int64
		for i := range 20000 {
			v := int64(r.ExpFloat64() * scale)
			h.Record(v)
			if i%2 == 0 {
				left.Record(v)
			} else {
				right.Record(v)
			}
			all = append(all, v)
		}
		slices.Sort(all)
		left.Add(&right)
		for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
			want := all[max(0, int(math.Ceil(q*20000))-1)]
			for name, got := range map[string]int64{"one": h.Quantile(q), "sum of two": left.Quantile(q)} {
				if d := math.Abs(float64(got - want)); d > float64(want)/1000 && d > 0.5 {
					t.Errorf("scale %g, %s: quantile %v is %d, want %d", scale, name, q, got, want)
				}
			}
		}
		if h.Max() != all[len(all)-1] || h.Count() != 20000 || math.Abs(h.Mean()/scale-1) > 0.7 {
			t.Errorf("scale %g: max %d, count %d, mean %v", scale, h.Max(), h.Count(), h.Mean())
		}
	}
}

func TestHistogramEdges(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 || h.Max() != 0 || h.Above(0) != 0 {
		t.Error("an empty histogram has a value")
	}
	h.Record(-5)
	h.Record(math.MaxInt64)
	if h.Quantile(0.5) != 0 || h.Quantile(1) < math.MaxInt64/1000*999 || h.Above(0) != 0.5 {
		t.Errorf("median %d, greatest %d, above 0 %v", h.Quantile(0.5), h.Quantile(1), h.Above(0))
	}
}

// TestPlaces: every value's bucket is as near as promised, and buckets do not overlap.
func TestPlaces(t *testing.T) {
	last := -1
	for v := int64(0); v < 1<<16; v++ {
		i := place(v)
		if i != last && i != last+1 {
			t.Fatalf("%d is in bucket %d, the value before in %d", v, i, last)
		}
		last = i
		if d := math.Abs(float64(value(i) - v)); d > float64(v)/1000 {
			t.Fatalf("%d counts as %d", v, value(i))
		}
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		x         []float64
		jain, cov float64
	}{
		{[]float64{3, 3, 3}, 1, 0},
		{[]float64{1, 0, 0, 0}, 0.25, math.Sqrt(3)},
		{[]float64{0, 0}, 1, 0},
		{[]float64{1, 3}, 0.8, 0.5},
	} {
		if j, v := Jain(c.x), CoV(c.x); math.Abs(j-c.jain) > 1e-12 || math.Abs(v-c.cov) > 1e-12 {
			t.Errorf("%v: Jain %v, CoV %v, want %v, %v", c.x, j, v, c.jain, c.cov)
		}
	}
}

func TestStudent(t *testing.T) {
	for freedom, want := range map[int]float64{1: 12.706, 4: 2.776, 9: 2.262, 10: 2.228, 19: 2.093, 100: 1.984} {
		if got := student(freedom); math.Abs(got-want) > 0.001 {
			t.Errorf("student(%d) = %.4f, want %.3f", freedom, got, want)
		}
	}
}

// TestInterval: of 2000 samples of a distribution with a known mean, the interval covers it in 95 % of the cases at
// least, less four standard errors; with a tail as long as that of latencies somewhat less, as for every method.
func TestInterval(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, c := range []struct {
		name  string
		n     int
		draw  func() float64
		mean  float64
		least float64
	}{
		{"normal, 5 seeds", 5, r.NormFloat64, 0, 0.93},
		{"normal, 20 seeds", 20, r.NormFloat64, 0, 0.93},
		{"exponential, 20 seeds", 20, r.ExpFloat64, 1, 0.90},
	} {
		covered := 0
		const samples = 400
		for range samples {
			x := make([]float64, c.n)
			for i := range x {
				x[i] = c.draw()
			}
			if low, high := Interval(x); low <= c.mean && c.mean <= high {
				covered++
			}
		}
		if got := float64(covered) / samples; got < c.least {
			t.Errorf("%s: covered in %.3f of the cases, want %.2f", c.name, got, c.least)
		}
	}
	if low, high := Interval([]float64{1, 1}); !math.IsInf(low, -1) || !math.IsInf(high, 1) {
		t.Error("an interval of two values")
	}
}
