// Package metrics counts what a simulation does: latencies with three digits, how equally load is spread, and which of
// two policies is better beyond doubt.
//
// A [Histogram] is log-linear: every power of two of a value has 1024 buckets of equal width, so a quantile is off by
// less than a thousandth, whatever the range. [Jain] is 1 for a load that is spread equally and 1/n for one that is all
// in one place. [Interval] turns differences between paired runs, one pair for each seed, into a confidence interval:
// that a policy beats another is said only where the interval excludes 0.
//
// Everything here is plain values for one goroutine.
package metrics

import (
	"math"
	"math/bits"
)

const digits = 10 // bits of a value that are kept

// Histogram counts values of 0 or more. Its zero value is empty and ready.
type Histogram struct {
	counts []uint32
	n      uint64
	sum    float64
	max    int64
}

// Record counts a value; a negative one counts as 0.
func (h *Histogram) Record(v int64) {
	v = max(v, 0)
	i := place(v)
	if i >= len(h.counts) {
		h.counts = append(h.counts, make([]uint32, i+1-len(h.counts))...)
	}
	h.counts[i]++
	h.n++
	h.sum += float64(v)
	h.max = max(h.max, v)
}

// Add counts all that another has counted.
func (h *Histogram) Add(o *Histogram) {
	if len(o.counts) > len(h.counts) {
		h.counts = append(h.counts, make([]uint32, len(o.counts)-len(h.counts))...)
	}
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Count is how many values were recorded.
func (h *Histogram) Count() uint64 { return h.n }

// Max is the largest value, exactly; 0 if there is none.
func (h *Histogram) Max() int64 { return h.max }

// Mean is exact; NaN if there is none.
func (h *Histogram) Mean() float64 { return h.sum / float64(h.n) }

// Quantile is the least value that at least the part q of all values do not exceed, within a thousandth; 0 if there is
// none.
func (h *Histogram) Quantile(q float64) int64 {
	rank := uint64(math.Ceil(q * float64(h.n)))
	rank = min(max(rank, 1), h.n)
	seen := uint64(0)
	for i, c := range h.counts {
		if seen += uint64(c); seen >= rank && c > 0 {
			return min(value(i), h.max)
		}
	}
	return 0
}

// Above is the part of the values that exceed v, within a bucket's width.
func (h *Histogram) Above(v int64) float64 {
	if h.n == 0 {
		return 0
	}
	above := uint64(0)
	for i := place(v) + 1; i < len(h.counts); i++ {
		above += uint64(h.counts[i])
	}
	return float64(above) / float64(h.n)
}

// place is the bucket of a value: itself below 2^(digits+1), then 2^digits for each power of two.
func place(v int64) int {
	shift := bits.Len64(uint64(v)) - digits - 1
	if shift <= 0 {
		return int(v)
	}
	return shift<<digits + int(v>>shift)
}

// value is the middle of a bucket.
func value(i int) int64 {
	shift := i>>digits - 1
	if shift <= 0 {
		return int64(i)
	}
	return (int64(i)-int64(shift)<<digits)<<shift + 1<<shift/2
}
