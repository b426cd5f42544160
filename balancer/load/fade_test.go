package load

import (
	"math"
	"testing"
)

// TestFade compares with math.Exp over all that a decay can be, and makes sure that more time never leaves more.
func TestFade(t *testing.T) {
	if got := fade(0); got != 1 {
		t.Errorf("fade(0) = %v, want 1", got)
	}
	last := 1.0
	for k := range 400_000 {
		x := float64(k+1) / 1000 * (1 + float64(k)/1e6) // up to 560, at no round places
		got, want := fade(x), math.Exp(-x)
		if math.Abs(got-want) > 5e-6*want {
			t.Fatalf("fade(%v) = %v, want %v within 5e-6", x, got, want)
		}
		if got > last {
			t.Fatalf("fade(%v) = %v, want at most the %v of a shorter time", x, got, last)
		}
		last = got
	}
	for _, x := range []float64{708, 709, 1e6, 1e300, math.Inf(1)} {
		if got := fade(x); got < 0 || got > 1e-300 {
			t.Errorf("fade(%v) = %v, want next to nothing", x, got)
		}
	}
}
