// Package estimate answers what a server is asked by balancers: how long does a request take that arrives now?
//
// A request that arrives while n others are in flight takes about as long as those did that arrived when about n were in
// flight, lately. So an [Estimator] keeps the last few latencies for each level of load, and answers with the median of
// fresh ones at the level of now (Prequal, NSDI 2024, section 4). A mean of everything that ended lately would lag behind
// the load by as long as a request takes, and would say of a server that has just become idle that it is slow.
//
// It knows no gRPC and reads no clock, so that package server and the simulator run the same code. Recording and asking cost
// O(1): a level has a ring of sixteen, and five levels are looked at. Levels are exact below 32 requests in flight and a
// quarter of a power of two above.
//
// A server that has answered nothing for long, because nobody called or because it is stuck, says what it last knew. Before
// its first answer it says 0, which means that it does not know. Failures must not be recorded: they tend to be fast.
package estimate

import "math/bits"

const (
	exactRIF = 32 // each has a bucket of its own; above, a power of two has four
	buckets  = exactRIF + 4*12
	kept     = 16 // latest samples of a bucket
	near     = 2  // buckets either side that count as "about this RIF"
	enough   = 12 // samples make a median, unless Estimator.Samples says otherwise
)

// ages are how old a sample may be. Older ones are asked only if there are not enough younger ones. What was seen at this
// load a minute ago is still a better answer than one scaled from another load: a slow server that gets few calls would
// seem fast by that, and draw all of them.
var ages = [...]int64{50e6, 250e6, 1e9, 100e9}

// Estimator answers: what did recent requests take that arrived when about as many were in flight? Its zero value is ready.
// It is not safe for concurrent use, and takes 23 KB. Times and durations are nanoseconds of any clock that starts anywhere
// above 0.
type Estimator struct {
	// Samples is how many make a median, if there are as many; more than 16 are not kept of a level. 0 means 12, which is
	// good to some 20 %. Fewer follow what happens faster, and say more by chance.
	Samples int

	rings [buckets]ring
}

type ring struct {
	newest  int64  // time
	n       uint64 // ever recorded
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

// Record takes a request into account that arrived when rif others were in flight and ended well at now.
func (e *Estimator) Record(rif int, latency, now int64) {
	r := &e.rings[bucket(rif)]
	r.samples[r.n%kept] = sample{latency, now}
	r.n++
	r.newest = now
}

// Median is how long a request takes that arrives at now, when rif are in flight. It is 0 only if nothing was ever
// recorded. A server that has not answered for long says what it last knew: that it is fast would be the worst thing to
// say.
func (e *Estimator) Median(rif int, now int64) int64 {
	own, enough := bucket(rif), enough
	if e.Samples > 0 {
		enough = e.Samples
	}
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
func (e *Estimator) gather(b int, since int64, got []int64, n int) int {
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
