// Package load measures how busy and how fast an endpoint is.
//
// The metrics are pure: they know no gRPC, read no clock and draw no randomness; whoever feeds them says what time
// it is. So the same code runs behind a production picker and in a simulator's virtual time. They are also small
// and lock-free, because there is one of each for every endpoint and they are touched twice a call: a metric is
// one machine word, read with one atomic load and written with a compare-and-swap that gives up nothing under
// contention but a retry.
//
// A metric belongs to an endpoint, not to a picker. It outlives updates of the registry, reconnects and changes of
// configuration; a picker only reads it. It does not decide anything either: which of two endpoints is better is
// the business of a strategy in package balancer.
//
// A [Sample] is what a client learns from the end of one call, and a [Report] what the server says about itself,
// which comes with some calls and not with others.
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

// PeakEWMA is the latency to expect of an endpoint: an exponentially decaying mean of latencies, in which a
// failure counts as an answer after a penalty, at once.
//
// It has Finagle's signals, calls in flight times a decaying latency, and the failure penalty of Linkerd's load
// biaser, but not their rule for slow answers. There the estimate jumps to each peak and then fades by one
// e-th in 10 s whatever is heard, so one answer of 1 s keeps an endpoint of 5 ms without calls for 53 s. Here one
// answer is not believed like many: see Record for what it counts and how soon it is doubted, and [Compare] for
// how an endpoint that is not called comes to be tried again. ADR-0027 has the figures.
//
// The zero value has seen nothing and is ready. It is safe for concurrent use, and must not be copied after the
// first Record.
type PeakEWMA struct {
	// word is the estimate as a float32 in the high half and the tick of the last update in the low half; 0
	// means nothing was recorded. float32 keeps 7 digits, far more than a latency has. Its sign, which a latency
	// has no use for, says that the estimate is in doubt.
	word atomic.Uint64
}

const (
	// mostShare is the most that one answer counts in the mean if it is slower than the mean: after a minute
	// without calls a slow one would be all that is known otherwise, and calls are rare where a fleet is large.
	mostShare = 0.2
	// secondShare is the least that the answer to a later call counts while the estimate is in doubt: of two
	// answers, half. A first one that was very fast would be believed for long otherwise.
	secondShare = 0.5
	// jump is how many times a single answer may raise the estimate and be believed; by more, the estimate is in
	// doubt.
	jump = 2
	// doubt is the part of its time that an estimate in doubt lasts. A failure of an endpoint of 5 ms keeps it
	// without calls for 14 s, and not for 69 s as without doubt; the second for that.
	doubt = 0.2
	// benefit is the least that an endpoint is taken for, of what the other one takes, for not being called for
	// long. With less it would get too many calls before the first of them has ended.
	benefit = 0.5
)

// Record takes a sample into account. decay is the mean lifetime of a sample and penalty the latency that a
// failure counts as, in nanoseconds; both must be positive.
//
// An answer counts by the time since the last one, as if that had been the latency all the while; one that is
// slower than the mean for a fifth at most. A failure counts as if all had been failures, and is never recorded as
// faster than what is known.
//
// The first answer, and one that makes the estimate more than twice what it was, leave it in doubt: it fades five
// times as fast, until an answer to a later call is about as slow, which confirms it, or until faster ones have
// brought it down. Until then an answer counts for half at least if its call began after the last answer that
// counted, and for nothing if it was under way by then. Failures always count.
func (e *PeakEWMA) Record(s Sample, decay, penalty float64) {
	latency := float64(s.Latency)
	if s.Failed {
		latency = max(penalty, latency)
	}
	for {
		old := e.word.Load()
		if !s.Failed && (s.Latency < 0 || s.Cancelled && latency <= value(old)) {
			return
		}
		if !s.Failed && old != 0 {
			if uint32(old) == uint32(s.Now>>tick) {
				return // no time has passed, so it counts nothing: the rest would write what is there
			}
			if doubtful(old) && underWay(old, s) {
				return // to move the time of the doubt would make it last: a busy endpoint always has calls under way
			}
		}
		next, unsure := latency, true
		if old != 0 {
			next, unsure = revise(old, s, latency, decay)
		}
		if e.word.CompareAndSwap(old, pack(next, unsure, s.Now)) {
			return
		}
	}
}

// revise is what word becomes with a sample that counts as latency, and whether that is in doubt.
func revise(word uint64, s Sample, latency, decay float64) (next float64, unsure bool) {
	was, unsure := value(word), doubtful(word)
	age := elapsed(word, s.Now)
	later := unsure && age > 0 && !underWay(word, s)
	share := 1 - fade(age/lifetime(word, decay))
	if later {
		share = max(share, secondShare)
	} else if latency > was {
		share = min(share, mostShare)
	}
	next = was + share*(latency-was)
	if s.Failed {
		next = max(latency, was)
	} else if latency <= was/2 {
		return next, unsure && next > 2*latency
	}
	return next, next > jump*was || unsure && !later
}

// underWay reports whether the call that ended with s had begun when word was written, by more than a tick. If
// that raised a doubt, the call is part of the same event, such as a connection's loss.
func underWay(word uint64, s Sample) bool {
	age := ticks(word, uint64(s.Now>>tick))
	return age > 0 && age+1<<tick <= float64(s.Latency)
}

// Estimate is the latency to expect, in nanoseconds, by what was recorded however long ago; 0 before the first
// Record.
func (e *PeakEWMA) Estimate() float64 { return value(e.word.Load()) }

// Seen reports whether anything was recorded.
func (e *PeakEWMA) Seen() bool { return e.word.Load() != 0 }

// Compare returns the latencies to expect of two endpoints, in nanoseconds, when one of them is to be chosen; 0
// for one of which nothing was recorded.
//
// What was heard of longer ago is less certain, so that endpoint has the benefit of the doubt: its estimate fades
// by the time between the last samples of the two that counted, with mean lifetime decay, though not below half of
// the other's. So one that was slow is tried again while others are called, sooner if it is in doubt and the other
// is not. Nothing fades for time in which neither was called: a fleet that was idle still knows which are slow,
// and does not run all to one.
func Compare(a, b *PeakEWMA, decay float64) (x, y float64) {
	wordA, wordB := a.word.Load(), b.word.Load()
	x, y = value(wordA), value(wordB)
	if wordA == 0 || wordB == 0 {
		return x, y
	}
	if doubtful(wordA) && doubtful(wordB) {
		decay /= doubt // one answer from each is all that is known where calls are rare, and it is worth keeping
	}
	switch d := ticks(wordA, wordB); {
	case d > 0 && x > y*benefit:
		x = max(x*fade(d/lifetime(wordA, decay)), y*benefit)
	case d < 0 && y > x*benefit:
		y = max(y*fade(-d/lifetime(wordB, decay)), x*benefit)
	}
	return x, y
}

// sign is the sign of a word's float32.
const sign = 1 << 63

func pack(v float64, unsure bool, now int64) uint64 {
	word := uint64(math.Float32bits(float32(max(v, 1))))<<32 | uint64(uint32(now>>tick)) // never the zero word
	if unsure {
		word |= sign
	}
	return word
}

func value(word uint64) float64 { return float64(math.Float32frombits(uint32(word &^ sign >> 32))) }

func doubtful(word uint64) bool { return word&sign != 0 }

// lifetime is the mean lifetime of an estimate if that of one beyond doubt is decay.
func lifetime(word uint64, decay float64) float64 {
	if doubtful(word) {
		return decay * doubt
	}
	return decay
}

// elapsed is the time since word was written, in nanoseconds; 0 if the clock went backwards.
func elapsed(word uint64, now int64) float64 { return max(ticks(word, uint64(now>>tick)), 0) }

// ticks is the time between two words, in nanoseconds; negative if the second is the older one.
func ticks(from, to uint64) float64 { return float64(int32(uint32(to)-uint32(from))) * (1 << tick) }

// project is the value of a word that fades, at now; 0 for the zero word.
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

// fade is e^-x for x >= 0, to 5 parts in a million, which is far closer than a latency is known, and in a quarter
// of the time of math.Exp: a pick by peak_ewma and its end need it once each (BenchmarkPick in bench). It is 2^-k
// times 2^-f, f being the fraction, by a polynomial that is exact at both of its ends, so that nothing jumps
// between two k.
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
