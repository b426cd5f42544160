package retry

import (
	"math/bits"
	"time"
)

const (
	windowSlots  = 3
	windowSlot   = int64(10 * time.Second)
	subBits      = 4 // 16 buckets between a power of two and the next: at most 6.25 % apart
	lowestBits   = 10
	highestBits  = 40
	windowBucket = (highestBits-lowestBits)<<subBits + 1
	// refresh is how long a computed quantile is good for.
	refresh = int64(250 * time.Millisecond)
)

// window estimates quantiles of the latencies of the last 20 to 30 seconds: a histogram with buckets of constant
// relative width from 1 µs to 18 min, in three slots of ten seconds of which the oldest is dropped. Adding costs a few
// nanoseconds, and a quantile is computed four times a second at most. A window is stepped by time, and not safe for
// concurrent use; its zero value is empty and ready.
type window struct {
	counts [windowSlots][windowBucket]uint32
	totals [windowSlots]int
	slot   int64

	// The quantile computed last.
	q        float64
	value    time.Duration
	samples  int
	computed int64
}

// bucket is where a latency of d nanoseconds is counted.
func bucket(d int64) int {
	u := uint64(max(d, 1<<lowestBits))
	exp := bits.Len64(u) - 1
	if exp >= highestBits {
		return windowBucket - 1
	}
	return (exp-lowestBits)<<subBits + int(u>>(exp-subBits))&(1<<subBits-1)
}

// upper is what every latency in bucket b is less than.
func upper(b int) int64 {
	exp, sub := b>>subBits+lowestBits, int64(b&(1<<subBits-1))
	return (1<<subBits + sub + 1) << (exp - subBits)
}

// advance forgets what is too old.
func (w *window) advance(now int64) {
	slot := now / windowSlot
	if slot <= w.slot { // in the slot, or the clock went backwards
		return
	}
	for s := max(w.slot+1, slot-windowSlots+1); s <= slot; s++ {
		clear(w.counts[s%windowSlots][:])
		w.totals[s%windowSlots] = 0
	}
	w.slot = slot
}

// add counts a latency of d nanoseconds.
func (w *window) add(now, d int64) {
	w.advance(now)
	s := w.slot % windowSlots
	w.counts[s][bucket(d)]++
	w.totals[s]++
}

// count is how many latencies the window has.
func (w *window) count(now int64) int {
	w.advance(now)
	n := 0
	for _, t := range w.totals {
		n += t
	}
	return n
}

// quantile returns a latency that at least the share q of the window's are less than, rounded up by 6.25 % at most;
// 0 if the window has fewer than least. Rounding is upwards because it is used as a delay: a delay that is exactly a
// usual latency would end together with every call.
func (w *window) quantile(now int64, q float64, least int) time.Duration {
	n := w.count(now)
	if n < least {
		w.samples = 0 // what was computed before is too old when there are enough again
		return 0
	}
	if q == w.q && now < w.computed+refresh && n < 2*w.samples && w.samples <= 2*n {
		return w.value
	}
	need := int(q*float64(n)) + 1 // so many of n are enough
	need = min(need, n)
	b := 0
	for seen := 0; b < windowBucket; b++ {
		for s := range w.counts {
			seen += int(w.counts[s][b])
		}
		if seen >= need {
			break
		}
	}
	w.q, w.value, w.samples, w.computed = q, time.Duration(upper(b)), n, now
	return w.value
}
