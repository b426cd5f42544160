package outlier

import "slices"

// slowSpan is the least time over which latencies are averaged; it is at most twice as long.
const slowSpan = 8 * interval

const (
	// leastTimed is how many calls a mean must be of. With latencies that vary as much as their mean, one of 20 is off by
	// a factor of 1.5 or more in one of 50 cases, and by one of 3 in one of 10^7.
	leastTimed = 20
	// leastShare is what the slowest endpoint keeps, so that it is seen when it is fast again.
	leastShare = 0.1
	// forgive is the part of what was taken away that an endpoint gets back at a step if it has too few calls to be
	// judged: without it one that has few could never prove that it is fast again.
	forgive = 0.02
)

// timing is how many calls had been timed at some moment, and how long they took together.
type timing struct{ calls, total uint64 }

// mean is the mean latency since then, and whether there were calls enough to tell.
func (h *Host) mean() (float64, bool) {
	then := h.slow[1]
	if h.Timed < then.calls+leastTimed || h.Latency < then.total {
		return 0, false
	}
	return float64(h.Latency-then.total) / float64(h.Timed-then.calls), true
}

// weigh sets the share of each endpoint by how slow it is beside the others: all of it up to Slow times their median,
// and from there on in inverse proportion, so that it loses weight as fast as it loses speed.
func (d *Detector) weigh(hosts []*Host) {
	d.means = d.means[:0]
	for _, h := range hosts {
		if m, ok := h.mean(); ok && !h.Out {
			d.means = append(d.means, m)
		}
	}
	slices.Sort(d.means)
	for _, h := range hosts {
		m, ok := h.mean()
		switch {
		case h.Out:
			h.less = 0 // who comes back is judged anew
		case !ok || len(d.means) < 2:
			h.less -= h.less * forgive
			if h.less < 0.01 {
				h.less = 0
			}
		default:
			share := 1.0
			if limit := d.c.Slow * medianWithout(d.means, m); m > limit {
				share = limit / m
			}
			h.less = 1 - max(share, leastShare)
		}
	}
}

// medianWithout is the median of sorted without one value v that it contains; of two in the middle the larger, so that
// of three endpoints one that is fast alone makes nobody slow.
func medianWithout(sorted []float64, v float64) float64 {
	rest := len(sorted) - 1
	at := rest / 2
	if i, _ := slices.BinarySearch(sorted, v); i <= at {
		at++
	}
	return sorted[at]
}
