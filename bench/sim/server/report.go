package server

import "math/bits"

const (
	exactRIF = 32 // each has a bucket of its own; above, a power of two has four
	buckets  = exactRIF + 4*12
	kept     = 16 // latest samples of a bucket
	near     = 2  // buckets either side that count as "about this RIF"
	enough   = 12 // samples make a median
)

// ages are how old a sample may be. Older ones are asked only if there are not enough younger ones. What was seen at this
// load a minute ago is still a better answer than one scaled from another load: a slow server that gets few calls would
// seem fast by that, and draw all of them.
var ages = [...]int64{50e6, 250e6, 1e9, 100e9}

// estimator answers: what did recent requests take that arrived when about as many were in flight? Recording costs
// O(1).
type estimator struct {
	rings [buckets]ring
}

type ring struct {
	newest  int64 // time
	n       int32 // ever recorded
	samples [kept]sample
}

type sample struct{ latency, at int64 }

func bucket(rif int) int {
	if rif < exactRIF {
		return max(rif, 0)
	}
	log := bits.Len(uint(rif)) - 1 // 5 or more
	return min(exactRIF+4*(log-5)+rif>>(log-2)&3, buckets-1)
}

// middle is a RIF that belongs to bucket b.
func middle(b int) int {
	if b < exactRIF {
		return b
	}
	log := (b-exactRIF)/4 + 5
	return 1<<log + (b-exactRIF)%4<<(log-2) + 1<<(log-3)
}

func (e *estimator) record(rif int, latency, now int64) {
	r := &e.rings[bucket(rif)]
	r.samples[r.n%kept] = sample{latency, now}
	r.n++
	r.newest = now
}

// median is 0 only if nothing was ever recorded. A server that has not answered for long, because it is idle or because
// it is stuck, says what it last knew: that it is fast would be the worst thing to say.
func (e *estimator) median(rif int, now int64) int64 {
	own := bucket(rif)
	var got [kept * (2*near + 1)]int64
	for i, age := range ages {
		n := 0
		for d := 0; d <= near && n < enough; d++ {
			n = e.gather(own-d, now-age, got[:], n)
			if d > 0 {
				n = e.gather(own+d, now-age, got[:], n)
			}
		}
		if n >= enough || n > 0 && i == len(ages)-1 {
			return middleOf(got[:n])
		}
	}
	for _, since := range [...]int64{now - ages[len(ages)-1], 0} {
		for d := range buckets {
			for _, b := range [...]int{own - d, own + d} {
				// Only a distant load is known: as many share what there is.
				if n := e.gather(b, since, got[:], 0); n > 0 {
					return int64(float64(middleOf(got[:n])) * float64(rif+1) / float64(middle(b)+1))
				}
			}
		}
	}
	return 0
}

// gather adds the samples of bucket b that are not older than since to the n that are in got.
func (e *estimator) gather(b int, since int64, got []int64, n int) int {
	if b < 0 || b >= buckets {
		return n
	}
	r := &e.rings[b]
	if r.n == 0 || r.newest < since {
		return n
	}
	for i := range min(r.n, kept) {
		if s := &r.samples[i]; s.at >= since {
			got[n] = s.latency
			n++
		}
	}
	return n
}

// middleOf is the median, the lower one of two; it sorts x, which is short.
func middleOf(x []int64) int64 {
	for i := 1; i < len(x); i++ {
		for j := i; j > 0 && x[j] < x[j-1]; j-- {
			x[j], x[j-1] = x[j-1], x[j]
		}
	}
	return x[(len(x)-1)/2]
}

const panes = 10

// window is the difference of running totals between now and about one window ago.
type window struct {
	step int64
	next int64
	i    int
	ring [panes]totals
}

type totals struct {
	at           int64
	used         float64
	done, failed uint64
}

func (w *window) init(length, now int64) {
	w.step = max(length/panes, 1)
	w.next = now + w.step
	for i := range w.ring {
		w.ring[i].at = now
	}
}

func (w *window) roll(now int64, used float64, done, failed uint64) {
	for n := 0; now >= w.next; n++ {
		if n == panes { // all panes are from now: nothing happened for a whole window
			w.next = now + w.step
			return
		}
		w.ring[w.i] = totals{now, used, done, failed}
		w.i = (w.i + 1) % panes
		w.next += w.step
	}
}

// rates are the busy cores, requests per second and failures per second.
func (w *window) rates(now int64, used float64, done, failed uint64) (cores, qps, eps float64) {
	old := w.ring[w.i]
	dt := float64(now - old.at)
	if dt <= 0 {
		return 0, 0, 0
	}
	return (used - old.used) / dt, float64(done-old.done) * 1e9 / dt, float64(failed-old.failed) * 1e9 / dt
}
