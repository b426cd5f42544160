package ratelimit

import (
	"math"
	"sync"
	"time"
)

// This file decides how many calls a server works on at once. Like core.go it knows no gRPC and reads no clock: it
// is stepped by (now, event), the events being a call that arrives and a call that ends.

const (
	// window is the least time over which latencies are averaged, and windowCalls the least number of calls.
	window      = int64(100 * time.Millisecond)
	windowCalls = 50
	// clearCalls are enough in a probe to see that a latency fell to clear.
	clearCalls = 16
	clear      = 0.6
	// pressure is the share of arrivals that have to be refused before the limit counts as binding. Below it the
	// limit is not lowered and not probed: a burst that is cut is no overload.
	pressure = 0.05
	// fell is what a latency has to fall to, when the limit is halved, to show that calls were queueing. Where they
	// queue it falls to half, where they do not it stays.
	fell = 0.75
	// hasty is how soon after a probe another may follow when the limit has shrunk by itself.
	hasty = int64(2 * time.Second)
	// patience is the least time that a probe waits for its calls.
	patience = int64(10 * time.Second)
	// maxTimings is how many methods have an expected duration of their own; the others share one.
	maxTimings = 1000
	// stale is the least age of a method's last call at which its expected duration is no longer believed.
	stale = int64(time.Second)
	// setBack is by how much a clock goes backwards that was set back.
	setBack = int64(time.Second)
)

// ending is what a call's end tells a [gate].
type ending uint8

const (
	silent   ending = iota // nothing: it failed, was cancelled, panicked
	served                 // its duration is what the work takes
	timedOut               // the work takes at least as long
)

// verdict is what a [gate] says to a call.
type verdict uint8

const (
	enter   verdict = iota // it is in, and has to leave
	full                   // as many calls as the server can work on at once are in
	tooLate                // its deadline comes before it can be done
)

// gate is an adaptive concurrency limit of the gradient family. It is safe for concurrent use; make it with
// newGate.
//
// Over windows of 100 ms and 50 calls or more it compares the latency that calls have now with base, the one they
// have when none of them waits for another, and moves the limit to where the former is tolerance times the latter:
// enough in the queue to keep the server busy through the gaps between arrivals, and no more. Averages are
// geometric, so that one slow call in a hundred does not speak for all.
//
// What base is cannot be seen from outside while the server is overloaded, and the smallest latency ever seen stops
// being true when the service changes. So when the limit binds, base is measured from time to time (a probe): the
// limit is halved for one window, and again for as long as the latency falls with it. When it falls no further,
// nobody was waiting any more, and that latency is base. ADR-0013 has the alternatives.
type gate struct {
	mu sync.Mutex // guards everything below; nothing is called under it
	adaptive
	jitter func() uint64

	latest   int64 // the latest now seen
	limit    float64
	inFlight int
	base     float64 // log ns; valid if known
	known    bool
	pressed  bool // so was the last window

	window counts
	probe  probe
	// timings are the expected durations by method, other the one of methods beyond maxTimings.
	timings map[string]*timing
	other   timing
	waiting float64 // log ns, what a call took in the last window
}

// counts are of one window.
type counts struct {
	from     int64 // ends before it do not count: the limit was another when those calls began
	sum      float64
	ends     int
	arrivals int
	refused  int
	touched  bool // the limit was reached
}

// probe measures base. limit is what the limit was before, next what it was before the last halving.
type probe struct {
	on          bool
	began       int64
	limit, next float64
	latency     float64 // log ns, at next
	rate        float64 // ends per ns, at limit
	last        int64   // when the last one ended
	ever        bool
	after       float64 // the limit after the last one
}

// timing is the median duration of a method's calls, as a number that moves by at most 5 % towards each of them.
type timing struct {
	median float64 // ns, 0 means unknown
	seen   int64   // when a call ended or was let in to find out
}

func newGate(a adaptive, jitter func() uint64) *gate {
	return &gate{adaptive: a, jitter: jitter, limit: float64(a.initial), timings: make(map[string]*timing)}
}

// arrive asks for a call to method that has to be done within remaining. If it enters, leave must be called once
// with the timing that is returned. expected is what the call is expected to take.
func (g *gate) arrive(now int64, method string, remaining time.Duration) (v verdict, t *timing,
	expected time.Duration) {

	g.mu.Lock()
	defer g.mu.Unlock()
	t = g.timingLocked(method)
	expected = time.Duration(t.median)
	g.clockLocked(now)
	g.window.arrivals++
	g.giveUpLocked(now)
	if g.inFlight >= int(g.limit) {
		g.window.touched = true
		g.window.refused++
		return full, nil, expected
	}
	if !g.ignoreDeadlines && float64(remaining) < t.median && g.inFlight > 0 {
		// If nobody is let in nobody shows that it has become faster; so one is, from time to time.
		if now-t.seen < max(stale, int64(4*t.median)) {
			return tooLate, nil, expected
		}
		t.seen = now
	}
	g.inFlight++
	g.window.touched = g.window.touched || g.inFlight >= int(g.limit)
	return enter, t, expected
}

// glance reports whether there is a place, without taking it, and what calls took lately. It is for streams, whose
// duration means nothing.
func (g *gate) glance(now int64) (expected time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clockLocked(now)
	g.giveUpLocked(now)
	return g.latencyLocked(), g.inFlight < int(g.limit)
}

// leave ends a call that entered at began.
func (g *gate) leave(now, began int64, t *timing, e ending) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clockLocked(now)
	g.inFlight--
	took := float64(max(now-began, 1))
	if now < began || e == silent || e == timedOut && took < t.median {
		return // nothing is known, or only that it would have taken longer
	}
	t.observe(now, took)
	if now < g.window.from {
		return
	}
	g.window.sum += math.Log(took)
	g.window.ends++
	if g.ripeLocked(now) {
		g.closeLocked(now)
	}
}

// clockLocked notes what time it is. A little earlier than before means that calls read the clock in another order than
// they came here. More means that it was set back; then what is remembered as later than now would not come for long.
func (g *gate) clockLocked(now int64) {
	if now >= g.latest {
		g.latest = now
		return
	}
	if g.latest-now < setBack {
		return
	}
	g.latest = now
	g.window = counts{from: now}
	g.probe.began, g.probe.last = min(g.probe.began, now), min(g.probe.last, now)
	g.other.seen = min(g.other.seen, now)
	for _, t := range g.timings {
		t.seen = min(t.seen, now)
	}
}

// ripeLocked reports whether the window has seen enough. It is twice as long as calls took lately, or else the
// limit would be moved on before its last move can be seen.
func (g *gate) ripeLocked(now int64) bool {
	w := &g.window
	if w.ends >= windowCalls {
		return now-w.from >= max(window, 2*int64(g.latencyLocked()))
	}
	return g.probe.on && w.ends >= clearCalls && w.sum/float64(w.ends) < g.probe.latency+math.Log(clear)
}

func (t *timing) observe(now int64, took float64) {
	t.seen = max(t.seen, now)
	switch {
	case t.median == 0:
		t.median = took
	case took > t.median:
		t.median = min(took, 1.05*t.median)
	default:
		t.median = max(took, t.median/1.05)
	}
}

func (g *gate) timingLocked(method string) *timing {
	if t := g.timings[method]; t != nil {
		return t
	}
	if len(g.timings) >= maxTimings {
		return &g.other
	}
	t := new(timing)
	g.timings[method] = t
	return t
}

// closeLocked ends a window and draws the conclusion.
func (g *gate) closeLocked(now int64) {
	w := g.window
	latency := w.sum / float64(w.ends)
	rate := float64(w.ends) / float64(now-w.from)
	g.waiting = latency
	g.window = counts{from: now}
	pressed := float64(w.refused) > pressure*float64(w.arrivals)
	switch {
	case g.probe.on:
		g.probedLocked(now, latency)
	case !pressed:
		g.pressed = false
		g.followLocked(latency)
		if w.touched && latency <= g.base+g.tolerance/2 {
			g.setLocked(g.limit + room(g.limit))
		}
	case !g.pressed: // what came before the pressure is in this window too: it says nothing about either
		g.pressed = true
	case g.dueLocked(now):
		g.beginProbeLocked(now, latency, rate)
	case latency <= g.base+g.tolerance/2: // far from the aim
		g.setLocked(1.25*g.limit + room(g.limit))
	default:
		slope := min(1, max(0.5, math.Exp(g.base+g.tolerance-latency)))
		g.setLocked(0.5*g.limit + 0.5*(slope*g.limit+room(g.limit)))
	}
}

// room is how far above the ideal the limit aims. It makes the limit grow while nothing speaks against it, and
// keeps a small one from being exactly the number of workers.
func room(limit float64) float64 { return max(1, math.Sqrt(limit)/2) }

// followLocked takes a latency that calls had while hardly any was refused as what they take by themselves: at once
// if it is shorter than what was known, and slowly if it is longer, since they may be queueing nevertheless.
func (g *gate) followLocked(latency float64) {
	switch {
	case !g.known:
		g.base, g.known = latency, true
	case latency < g.base:
		g.base += 0.3 * (latency - g.base)
	default:
		g.base += 0.05 * (latency - g.base)
	}
}

func (g *gate) setLocked(limit float64) {
	g.limit = min(max(limit, float64(g.min)), float64(g.max))
}

// dueLocked reports whether base has to be measured.
func (g *gate) dueLocked(now int64) bool {
	age := now - g.probe.last
	return !g.known || !g.probe.ever || age >= g.interval || age >= hasty && g.limit < 0.7*g.probe.after
}

func (g *gate) beginProbeLocked(now int64, latency, rate float64) {
	g.probe.on, g.probe.began = true, now
	g.probe.limit, g.probe.rate = g.limit, rate
	g.halveLocked(now, latency)
}

// halveLocked begins a window at half the limit, once the calls that came in before are gone.
func (g *gate) halveLocked(now int64, latency float64) {
	g.probe.latency, g.probe.next = latency, g.limit
	g.setLocked(g.limit / 2)
	g.window.from = now + int64(math.Exp(latency))
}

// probedLocked is the end of a window at half the limit.
func (g *gate) probedLocked(now int64, latency float64) {
	fallen := latency < g.probe.latency+math.Log(fell)
	odd := latency > g.probe.latency-math.Log(fell) // something else has changed: look again
	if (fallen || odd) && int(g.limit) > g.min {
		g.halveLocked(now, latency)
		return
	}
	base := latency
	if latency > g.probe.latency { // both are of calls that did not wait
		base = (latency + g.probe.latency) / 2
	}
	g.base, g.known = base, true
	// Little's law: the work in progress is the rate times the latency.
	aim := g.probe.rate * math.Exp(base+g.tolerance)
	g.setLocked(min(max(aim+room(aim), g.probe.next), g.probe.limit))
	g.endProbeLocked(now)
}

// giveUpLocked ends a probe that gets no calls.
func (g *gate) giveUpLocked(now int64) {
	if !g.probe.on || now-g.probe.began <= patience {
		return
	}
	if now-g.window.from > max(patience, 4*int64(g.latencyLocked())) {
		g.setLocked(g.probe.limit)
		g.window = counts{from: now}
		g.endProbeLocked(now)
	}
}

func (g *gate) endProbeLocked(now int64) {
	g.probe.on, g.probe.ever = false, true
	g.probe.after = g.limit
	// Up to 10 % of jitter, so that the servers of a fleet do not probe together for ever.
	g.probe.last = now - int64(float64(g.interval)*0.1*float64(g.jitter()>>11)/(1<<53))
}

// change applies other bounds.
func (g *gate) change(a adaptive) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.adaptive = a
	g.setLocked(g.limit)
	g.probe.limit = min(max(g.probe.limit, float64(g.min)), float64(g.max))
}

// latencyLocked is what calls took lately.
func (g *gate) latencyLocked() time.Duration {
	if g.waiting == 0 {
		return 0
	}
	return time.Duration(math.Exp(g.waiting))
}

// ConcurrencyState is the state of an adaptive concurrency limit.
type ConcurrencyState struct {
	Limit    int           // how many calls may be in progress
	InFlight int           // how many are
	Latency  time.Duration // what calls took in the last window (geometric mean), 0 if there was none
	Base     time.Duration // what they take without waiting for each other, 0 if it is not known
	Probing  bool          // Base is being measured, with a lower Limit
}

func (g *gate) state() ConcurrencyState {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := ConcurrencyState{Limit: int(g.limit), InFlight: g.inFlight, Latency: g.latencyLocked(), Probing: g.probe.on}
	if g.known {
		c.Base = time.Duration(math.Exp(g.base))
	}
	return c
}
