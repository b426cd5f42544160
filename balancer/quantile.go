package balancer

import (
	"math"
	"slices"
)

// rifWindow is how many answers the distribution of requests in flight is estimated from. The paper gives no number.
// With three probes for each of 60 calls a second it is the last three quarters of a second.
const rifWindow = 128

// rifQuantile is the quantile of the latest answers. Its zero value is ready but for at.
type rifQuantile struct {
	at     float64 // which
	recent [rifWindow]int64
	sorted [rifWindow]int64
	n      int // answers ever
}

func (q *rifQuantile) add(rif int64) {
	have, slot := min(q.n, rifWindow), q.n%rifWindow
	q.n++
	from := have // where there is a gap to be filled
	if have == rifWindow {
		if q.recent[slot] == rif { // often, since they are small numbers
			return
		}
		from, _ = slices.BinarySearch(q.sorted[:], q.recent[slot])
	}
	at, _ := slices.BinarySearch(q.sorted[:have], rif)
	if at > from {
		at-- // what is before it moves down into the gap
		copy(q.sorted[from:at], q.sorted[from+1:at+1])
	} else {
		copy(q.sorted[at+1:from+1], q.sorted[at:from])
	}
	q.sorted[at], q.recent[slot] = rif, rif
}

// limit is the number of requests in flight from which on a server is hot. The paper's text has it exceed the quantile,
// and its experiments speak of ties for the greatest being hot; they agree if hot means at or above it, and nobody is hot
// at the quantile 1.
func (q *rifQuantile) limit() int64 {
	have := min(q.n, rifWindow)
	if have == 0 || q.at >= 1 {
		return math.MaxInt64
	}
	rank := int(math.Ceil(q.at * float64(have)))
	return q.sorted[max(rank, 1)-1]
}
