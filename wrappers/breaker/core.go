package breaker

import (
	"sync/atomic"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/outcome"
)

// This file is the arithmetic of the package: values stepped by (now, event), without a clock, a generator of
// random numbers, gRPC or gobreaker. Times are nanoseconds of a clock that is somebody else's; one that goes
// backwards makes things last longer and breaks nothing. Except for bulkhead, nothing here is safe for concurrent
// use: whoever owns a value says under which lock.

// verdict is what a call's end means to its breaker.
type verdict uint8

const (
	success  verdict = iota
	failure          // counts against it
	doubtful         // counts too, but a healthy handler may have said it: a run of these needs a second witness
	excluded         // counts neither way
)

// judge turns what an error says about the service into a verdict. probe tells that the breaker is half-open.
//
// The service's own answers, such as NOT_FOUND, count neither way in ordinary service. To a half-open breaker they
// are the proof it waits for: a service whose usual answer is NOT_FOUND would never come back otherwise.
// RESOURCE_EXHAUSTED is no such proof, so an overloaded service goes on getting one probe at a time.
func judge(class outcome.Class, code codes.Code, doubt, probe bool) verdict {
	switch {
	case class == outcome.OK:
		return success
	case class == outcome.Failure && doubt:
		return doubtful
	case class == outcome.Failure:
		return failure
	case class == outcome.Ignore && probe && answered(code):
		return success
	}
	return excluded
}

// answered reports whether a handler said so, rather than the caller's own clock or connection.
func answered(code codes.Code) bool {
	switch code {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.DataLoss:
		return false
	}
	return true
}

// limits say when a breaker trips. A zero run or ratio switches that criterion off.
type limits struct {
	run       uint32  // failures in a row
	ratio     float64 // share of failures among the calls that count, of which there must be minCalls
	minCalls  uint32
	slowRatio float64 // share of slow calls among as many
}

// tally is what the rolling window of a closed breaker holds.
type tally struct {
	successes, failures uint32
	run                 uint32 // failures in a row
	certain             uint32 // those of them that are beyond doubt
}

// trips reports whether failures open the breaker. A run that needs doubtful failures to be long enough counts
// only if also half of the window failed: they may be the business errors of a handler that is well.
func (l *limits) trips(t tally) bool {
	if l.run > 0 && t.run >= l.run && (t.certain >= l.run || t.failures >= t.successes) {
		return true
	}
	n := t.successes + t.failures
	return l.ratio > 0 && n >= l.minCalls && float64(t.failures) >= l.ratio*float64(n)
}

// ramp lets a growing share of the calls through: from at its beginning, all at its end. The zero ramp is over.
type ramp struct {
	began, length int64
	from          float64
}

// share is the part of the calls that is let through at now, from 0 to 1.
func (r ramp) share(now int64) float64 {
	if r.over(now) {
		return 1
	}
	passed := float64(max(now-r.began, 0)) / float64(r.length)
	return r.from + (1-r.from)*passed
}

func (r ramp) over(now int64) bool { return now-r.began >= r.length }

// admits reports whether a call at now is let through. draw is 64 random bits. A counter instead of chance would
// let through, of two methods that are called in turn, always the same one.
func (r ramp) admits(now int64, draw uint64) bool {
	return float64(draw>>11)/(1<<53) < r.share(now)
}

// bulkhead counts the calls in flight and bounds them. It is safe for concurrent use.
type bulkhead struct{ n atomic.Int64 }

// enter takes a place; it reports false if limit places are taken. A limit of 0 is none. It never counts a call
// that it turns away, not even for a moment, since that would turn away another that fits.
func (b *bulkhead) enter(limit int64) bool {
	if limit == 0 {
		b.n.Add(1)
		return true
	}
	for {
		n := b.n.Load()
		if n >= limit {
			return false
		}
		if b.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave gives a place back.
func (b *bulkhead) leave() { b.n.Add(-1) }

// slowWindow counts calls, and the slow ones among them, over the last few periods. Make it with newSlowWindow.
type slowWindow struct {
	period int64
	at     int64 // the number of the current period
	ring   []slowCounts
	sum    slowCounts
}

type slowCounts struct{ calls, slow uint32 }

func newSlowWindow(window, period int64) slowWindow {
	return slowWindow{period: period, ring: make([]slowCounts, (window+period-1)/period)}
}

// advance forgets what is older than the window.
func (w *slowWindow) advance(now int64) {
	at := now / w.period
	if at <= w.at {
		return
	}
	n := int64(len(w.ring))
	for i := max(w.at+1, at-n+1); i <= at; i++ {
		old := &w.ring[i%n]
		w.sum.calls -= old.calls
		w.sum.slow -= old.slow
		*old = slowCounts{}
	}
	w.at = at
}

// record counts a call that ended at now.
func (w *slowWindow) record(now int64, slow bool) {
	w.advance(now)
	c := &w.ring[w.at%int64(len(w.ring))]
	c.calls++
	w.sum.calls++
	if slow {
		c.slow++
		w.sum.slow++
	}
}

// trips reports whether slow calls open the breaker.
func (w *slowWindow) trips(now int64, l *limits) bool {
	w.advance(now)
	return w.sum.calls >= l.minCalls && w.sum.slow > 0 && float64(w.sum.slow) >= l.slowRatio*float64(w.sum.calls)
}

// join counts what b has, in the period that it was counted in, and moves on to now. Whoever guards the window calls it
// before record and trips.
func (w *slowWindow) join(now int64, b *brisk) {
	n := b.calls.Swap(0)
	w.ring[w.at%int64(len(w.ring))].calls += n
	w.sum.calls += n
	w.advance(now)
	b.until.Store((w.at + 1) * w.period)
}

// brisk counts calls that were not slow, nearly all as a rule, without the lock that guards the window. A call that
// is counted while another joins may be counted a period later. Its zero value counts nothing until it was joined. It is
// safe for concurrent use.
type brisk struct {
	until atomic.Int64 // when the window's current period is over
	calls atomic.Uint32
}

// add counts a call that ended at now. It reports false, and does not, if the window has to move on first.
func (b *brisk) add(now int64) bool {
	if now >= b.until.Load() {
		return false
	}
	b.calls.Add(1)
	return true
}

// reset forgets everything, as the window of which it is ahead has.
func (b *brisk) reset() {
	b.until.Store(0)
	b.calls.Store(0)
}

// probes are the calls that a half-open breaker has let through and waits for. Each leaves by exactly one of end
// and expire. The zero value is empty.
type probes struct {
	last uint64
	out  []probe
}

type probe struct {
	id       uint64
	deadline int64
	limit    int64       // how long it was given, for people
	done     func(error) // reports it, to be called without a lock
}

// add notes a probe and returns its number, which is never 0.
func (p *probes) add(deadline, limit int64, done func(error)) (id uint64) {
	p.last++
	p.out = append(p.out, probe{p.last, deadline, limit, done})
	return p.last
}

// end takes a probe out because it ended; it reports false if its time was over and its end no longer matters.
func (p *probes) end(id uint64) bool {
	for i := range p.out {
		if p.out[i].id == id {
			p.out[i] = p.out[len(p.out)-1]
			p.out[len(p.out)-1] = probe{}
			p.out = p.out[:len(p.out)-1]
			return true
		}
	}
	return false
}

// expire takes out those whose time is over, and how each is to be reported: a failure, which keeps the breaker
// open for openFor. Nobody looks when nobody calls, so openFor may have passed since as well. Then the probe is
// excluded, and the next call probes at once, as it would if somebody had looked in time.
func (p *probes) expire(now, openFor int64) (late []probe, v verdict) {
	v = excluded
	kept := p.out[:0]
	for _, x := range p.out {
		switch {
		case now < x.deadline:
			kept = append(kept, x)
			continue
		case now-x.deadline < openFor:
			v = failure
		}
		late = append(late, x)
	}
	clear(p.out[len(kept):])
	p.out = kept
	return late, v
}

// tenure says how long a breaker has been of no use. Its owner looks at it now and then.
type tenure struct{ seen int64 }

// look notes at now whether the breaker was used since the last look.
func (t *tenure) look(now int64, used bool) {
	if used {
		t.seen = now
	}
}

// idle reports whether nothing used it for the time after.
func (t tenure) idle(now, after int64) bool { return now-t.seen >= after }

// occupant is a breaker as the table sees it that has to make room for another.
type occupant struct {
	tenure
	keep bool // in use, or it has something to remember
}

// victim is the index of the one that was of no use for longest, -1 if all are to be kept.
func victim(all []occupant) int {
	found := -1
	for i, o := range all {
		if !o.keep && (found < 0 || o.seen < all[found].seen) {
			found = i
		}
	}
	return found
}
