package outlier

import (
	"math"
	"testing"
)

// binomialTail is the chance of a or more successes in n tries, summed up. I_x(a, b) is that for n = a+b-1.
func binomialTail(x float64, a, n int) float64 {
	sum := 0.0
	for k := a; k <= n; k++ {
		choose := 0.0
		for i := range k {
			choose += math.Log(float64(n-i)) - math.Log(float64(i+1))
		}
		sum += math.Exp(choose + float64(k)*math.Log(x) + float64(n-k)*math.Log1p(-x))
	}
	return sum
}

// simpson integrates the density of Beta(a, b), for a and b of 1 or more, from 0 to x.
func simpson(x, a, b float64) float64 {
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	density := func(t float64) float64 {
		if t <= 0 || t >= 1 {
			return 0
		}
		return math.Exp(lab - la - lb + (a-1)*math.Log(t) + (b-1)*math.Log1p(-t))
	}
	const n = 20000
	sum := density(0) + density(x)
	for i := 1; i < n; i++ {
		sum += density(x*float64(i)/n) * float64(2+2*(i%2))
	}
	return sum * x / n / 3
}

func TestBetaAgainstTwins(t *testing.T) {
	for _, x := range []float64{0.001, 0.01, 0.05, 0.2, 0.5, 0.7, 0.95, 0.999} {
		for _, a := range []int{1, 2, 5, 20, 100} {
			for _, b := range []int{1, 3, 10, 80, 400} {
				got, want := betaCDF(x, float64(a), float64(b)), binomialTail(x, a, a+b-1)
				if math.Abs(got-want) > 1e-9+1e-8*want {
					t.Errorf("I_%v(%d, %d) = %v, want %v", x, a, b, got, want)
				}
			}
		}
		for _, ab := range [][2]float64{{5.001, 1.5}, {3.2, 7.9}, {12.5, 88.25}} {
			got, want := betaCDF(x, ab[0], ab[1]), simpson(x, ab[0], ab[1])
			if math.Abs(got-want) > 1e-7 {
				t.Errorf("I_%v(%v, %v) = %v, want %v", x, ab[0], ab[1], got, want)
			}
		}
	}
}

// TestBetaIsADistribution: from 0 to 1, never falling, also where the fraction converges slowly.
func TestBetaIsADistribution(t *testing.T) {
	for _, ab := range [][2]float64{{1e-3, 2}, {2, 1e-3}, {0.5, 0.5}, {3, 1e6}, {5e4, 1e6}, {1e6, 1e6}, {1e6, 3}} {
		last := 0.0
		for i := range 1001 {
			x := float64(i) / 1000
			p := betaCDF(x, ab[0], ab[1])
			if math.IsNaN(p) || p < 0 || p > 1 || p < last-1e-9 {
				t.Fatalf("I_%v%v = %v after %v", x, ab, p, last)
			}
			last = p
		}
		if last != 1 {
			t.Errorf("I_1%v = %v, want 1", ab, last)
		}
		mean := ab[0] / (ab[0] + ab[1])
		if ab[0] > 1e4 && ab[1] > 1e4 {
			if p := betaCDF(mean, ab[0], ab[1]); math.Abs(p-0.5) > 0.01 {
				t.Errorf("I_mean%v = %v, want a half", ab, p)
			}
		}
	}
}
