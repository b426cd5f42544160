package load

import (
	"math"
	"sync/atomic"
	"time"
)

// Gauge is what an endpoint is known to be busy with: the last [Report] of its server, how old that is, how many of
// this client's own calls it contained, how often calls there failed lately, and how long its answers to probes take.
//
// The zero value knows nothing and is ready. It is safe for concurrent use, without a lock: its four words are read and
// written one by one, so a reader may see a new figure of one beside an old one of another, as if the report had come in
// parts. It must not be copied after its first use.
type Gauge struct {
	rif     atomic.Uint64 // RIF and own calls in flight, 16 bits each, and the tick of the report; 0 before the first
	latency atomic.Uint64 // mean latency and the part of failures that the server reports, both as float32
	failed  atomic.Uint64 // part of this client's calls that failed, as float32, and the tick of the last
	answers atomic.Int64  // how long answers to probes take, a mean in nanoseconds; 0 before the first
}

const (
	// smoothing is the weight of a new report in the mean latency. A report is a median of a dozen or more calls, good
	// to some 20 %: of sixteen servers that are alike the least would be chosen for its luck.
	smoothing = 0.3
	// failing is the weight of one call in the part that failed: one in eight after a single failure, one in four after
	// two in a row, where strategies avoid a server from one in five on.
	failing = 1.0 / 8
	// slowness is the weight of one answer in how long answers take: one that waited for a pause to end does not give the
	// server much more time for the next.
	slowness = 1.0 / 8
	// forgets is the mean lifetime of failures, for an endpoint that gets no calls any more because of them.
	forgets = 5e9
)

const counted = 1<<16 - 1 // the most that fits

// Heard takes over what a server says of itself at now, when own of this client's calls are in flight there.
func (g *Gauge) Heard(now int64, r Report, own int64) {
	if r.RIF >= 0 {
		word := uint64(min(r.RIF, counted))<<48 | uint64(min(max(own, 0), counted))<<32 | uint64(uint32(now>>tick))
		g.rif.Store(max(word, 1)) // never the zero word
	}
	// A server that ends nothing any more reports no failures, and that counts: it may get nothing because of the failures
	// that it reported before.
	if r.RIF < 0 && r.Latency <= 0 && r.QPS <= 0 {
		return // it said nothing
	}
	for {
		old := g.latency.Load()
		mean, errors := value(old), float64(0)
		switch {
		case r.Latency > 0 && mean > 0:
			mean += smoothing * (float64(r.Latency) - mean)
		case r.Latency > 0:
			mean = float64(r.Latency)
		}
		if r.QPS > 0 {
			errors = min(r.EPS/r.QPS, 1)
		}
		if g.latency.CompareAndSwap(old, uint64(math.Float32bits(float32(mean)))<<32|uint64(math.Float32bits(float32(errors)))) {
			return
		}
	}
}

// Ended takes the end of one of this client's calls into account.
func (g *Gauge) Ended(now int64, failed bool) {
	for {
		old := g.failed.Load()
		if !failed && old>>32 == 0 {
			return // the common case writes nothing
		}
		part := project(old, now, forgets) * (1 - failing)
		if failed {
			part += failing
		}
		word := uint64(math.Float32bits(float32(part)))<<32 | uint64(uint32(now>>tick))
		if part < 1e-3 {
			word = 0
		}
		if g.failed.CompareAndSwap(old, word) {
			return
		}
	}
}

// RIF is how many requests the server has in flight, as far as this client can know: what it reported last, and what
// this client has begun since, less what it has ended since. own is how many of this client's are in flight now. age is
// how long ago it reported, in nanoseconds; negative if it never did.
func (g *Gauge) RIF(now, own int64) (rif, age int64) {
	word := g.rif.Load()
	if word == 0 {
		return 0, -1
	}
	return max(int64(word>>48)+own-int64(word>>32&counted), own, 0), int64(elapsed(word, now))
}

// Latency is what the server reports of it, a mean over its last reports in nanoseconds; 0 if it never did.
func (g *Gauge) Latency() float64 { return value(g.latency.Load()) }

// Failing is which part of the calls there have failed lately, from 0 to 1, by this client's own count or by the server's,
// whichever is more. Failing fast is no merit, so calls should go elsewhere where it is more than others'.
func (g *Gauge) Failing(now int64) float64 {
	part := float64(math.Float32frombits(uint32(g.latency.Load())))
	if word := g.failed.Load(); word != 0 {
		part = max(part, project(word, now, forgets))
	}
	return part
}

// Lost says that the server did not answer when it was asked at sent: what it said before may not hold any more. What it
// said since with the answers to calls does.
func (g *Gauge) Lost(sent int64) {
	word := g.rif.Load()
	if word != 0 && int32(uint32(sent>>tick)-uint32(word)) >= 0 {
		g.rif.CompareAndSwap(word, 0)
	}
}

// Answered takes into account how long the answer to a probe took, in nanoseconds.
func (g *Gauge) Answered(took int64) {
	took = max(took, 1)
	mean := g.answers.Load()
	if mean == 0 {
		mean = took
	}
	g.answers.Store(max(mean+int64(slowness*float64(took-mean)), 1)) // one of two at once is lost, which a mean can bear
}

// Patience is how long to wait for the answer to a probe: least, or twice what answers take if that is longer, but no
// longer than most.
func (g *Gauge) Patience(least, most time.Duration) time.Duration {
	return max(least, min(2*time.Duration(g.answers.Load()), most))
}
