// Package load measures how busy and how fast an endpoint is.
//
// The metrics are pure: they know no gRPC, read no clock and draw no randomness; whoever feeds them says what time
// it is. So the same code runs behind a production picker and in a simulator's virtual time. They are also small
// and lock-free, because there is one of each for every endpoint and they are touched twice a call: a metric is one
// machine word, read with one atomic load and written with a compare-and-swap that gives up nothing under
// contention but a retry.
//
// A metric belongs to an endpoint, not to a picker. It outlives updates of the registry, reconnects and changes of
// configuration; a picker only reads it. It does not decide anything either: which of two endpoints is better is
// the business of a strategy in package balancer.
//
// A [Sample] is what a client learns from the end of one call, and a [Report] what the server says about itself, which
// comes with some calls and not with others.
//
// [PeakEWMA] is the latency estimate behind the strategy peak_ewma. Times are nanoseconds of any monotonic clock
// that starts anywhere; durations are nanoseconds too.
package load

import (
	"math"
	"sync/atomic"
	"time"
)

// Sample is the end of one call.
type Sample struct {
	// Now is when it ended, in nanoseconds.
	Now int64
	// Latency is how long it took, in nanoseconds; negative if its duration is not a latency, as of a stream.
	Latency int64
	// Failed: the end counts against the endpoint, or the endpoint asked for less. A failure is recorded as a
	// slow answer, however fast it came, so that failing fast attracts no traffic.
	Failed bool
	// Cancelled: the caller gave up. It had waited for Latency, so the endpoint is at least that slow.
	Cancelled bool
	// Reported: the server's answer came with a Report of its load.
	Reported bool
	// Report is what it said, if Reported.
	Report Report
}

const (
	// DefaultDecay is the mean lifetime of a latency sample (Finagle and Linkerd: 10 s).
	DefaultDecay = 10 * time.Second
	// DefaultPenalty is the latency that a failure counts as (Linkerd's load biaser: 5 s).
	DefaultPenalty = 5 * time.Second
)

// tick is the resolution in which a PeakEWMA remembers when it was updated: 2^20 ns, about a millisecond. With it
// the time fits into half a word, next to the value, and wraps after 52 days.
const tick = 20

// PeakEWMA is an exponentially decaying mean of latencies that jumps to a peak at once and forgets it slowly
// (Finagle's PeakEwma; the read-only projection and the failure penalty are Linkerd's).
//
// The zero value has seen nothing and is ready. It is safe for concurrent use, and must not be copied after the
// first Record.
type PeakEWMA struct {
	// word is the estimate as a float32 in the high half and the tick of the last update in the low half; 0
	// means nothing was recorded. float32 keeps 7 digits, far more than a latency has.
	word atomic.Uint64
}

// Record takes a sample into account. decay is the mean lifetime of a sample and penalty the latency that a failure
// counts as, in nanoseconds; both must be positive. A failure is never recorded as faster than what is known.
func (e *PeakEWMA) Record(s Sample, decay, penalty float64) {
	for {
		old := e.word.Load()
		left, was := 1.0, value(old) // the zero word is the value 0
		if d := elapsed(old, s.Now); d > 0 && old != 0 {
			left = fade(d / decay) // once: it is the dearest step
		}
		known := was * left
		var next float64
		switch {
		case s.Failed:
			next = max(penalty, known, float64(s.Latency))
		case s.Latency < 0, s.Cancelled && float64(s.Latency) <= known:
			return
		case float64(s.Latency) >= known:
			next = float64(s.Latency) // a peak counts at once
		default:
			next = float64(s.Latency)*(1-left) + known
		}
		if e.word.CompareAndSwap(old, pack(next, s.Now)) {
			return
		}
	}
}

// Estimate is the latency to expect at now, in nanoseconds: the recorded one, decayed toward 0 with mean lifetime
// decay so that an endpoint which has not been used for long is tried again. It is 0 before the first Record.
func (e *PeakEWMA) Estimate(now int64, decay float64) float64 {
	return project(e.word.Load(), now, decay)
}

// Seen reports whether anything was recorded.
func (e *PeakEWMA) Seen() bool { return e.word.Load() != 0 }

func pack(v float64, now int64) uint64 {
	bits := math.Float32bits(float32(max(v, 1))) // never the zero word
	return uint64(bits)<<32 | uint64(uint32(now>>tick))
}

func value(word uint64) float64 { return float64(math.Float32frombits(uint32(word >> 32))) }

// elapsed is the time since word was written, in nanoseconds; 0 if the clock went backwards.
func elapsed(word uint64, now int64) float64 {
	d := int32(uint32(now>>tick) - uint32(word))
	return float64(max(d, 0)) * (1 << tick)
}

func project(word uint64, now int64, decay float64) float64 {
	if word == 0 {
		return 0
	}
	d := elapsed(word, now)
	if d == 0 {
		return value(word)
	}
	return value(word) * fade(d/decay)
}

// fade is e^-x for x >= 0, to 5 parts in a million, which is far closer than a latency is known, and in a quarter of the
// time of math.Exp: a pick by peak_ewma among many endpoints needs it three times, a quarter of all that it costs
// (BenchmarkPick in bench). It is 2^-k times 2^-f, f being the fraction, by a polynomial that is exact at both of its
// ends, so that nothing jumps between two k.
func fade(x float64) float64 {
	x *= math.Log2E
	if !(x < 1022) { // below the smallest number that is not subnormal; infinities too
		return 0
	}
	k := int64(x)
	f := x - float64(k)
	p := 1 + f*(-0.6930730793259106+f*(0.23949324735418898+f*(-0.05325968779643203+f*0.0068395197681535855)))
	return p * math.Float64frombits(uint64(1023-k)<<52)
}
