package clock

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestReal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock = New()
		began := c.Now()
		if began <= 0 {
			t.Errorf("Now is %d at the beginning, want a positive number", began)
		}
		fired := int64(0)
		c.AfterFunc(time.Second, func() { fired = c.Now() })
		stopped := c.AfterFunc(2*time.Second, func() { t.Error("a timer ran after it was stopped") })
		if !stopped.Stop() || stopped.Stop() {
			t.Error("Stop is not true once and then false")
		}
		soon := time.Now().Add(3 * time.Second)
		if d := c.Until(soon); d != 3*time.Second {
			t.Errorf("%v until a moment in 3s", d)
		}
		time.Sleep(4 * time.Second) // virtual
		synctest.Wait()
		if fired-began != int64(time.Second) {
			t.Errorf("a timer of 1s ran after %v", time.Duration(fired-began))
		}
		if d := time.Duration(c.Now() - began); d != 4*time.Second {
			t.Errorf("Now advanced by %v in 4s", d)
		}
		if d := c.Until(soon); d != -time.Second {
			t.Errorf("%v until a moment 1s ago", d)
		}
	})
}

func TestNowNeverGoesBackwards(t *testing.T) {
	c := New()
	last := c.Now()
	for range 10000 {
		now := c.Now()
		if now < last {
			t.Fatalf("Now went from %d to %d", last, now)
		}
		last = now
	}
}

// TestRand: every bit is set in about half of the draws. A fair one misses these bounds once in 10^13 runs.
func TestRand(t *testing.T) {
	const draws = 10000
	var ones [64]int
	for range draws {
		r := Rand()
		for b := range ones {
			ones[b] += int(r >> b & 1)
		}
	}
	for b, n := range ones {
		if n < draws/2-400 || n > draws/2+400 {
			t.Errorf("bit %d is set %d times in %d draws", b, n, draws)
		}
	}
}
