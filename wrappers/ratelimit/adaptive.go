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
	// pressure is the share of arrivals that have to be refused before the limit counts as binding. Below it the
	// limit is not lowered: a burst that is cut is no overload.
	pressure = 0.05
	// growth is by how much a limit that binds may grow at most when calls are faster than they may be. The average
	// of it and of the limit is taken, so it is half of that a window.
	growth = 1.25
	// more is added to each limit that is aimed at: without it a small one could be exactly the number of workers, and
	// only the fraction of a place would be in its queue.
	more = 0.5
	// outlier is how many times as long as its method's median a call counts at most.
	outlier = 8
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
// Over windows of 100 ms and 50 calls or more it compares the mean latency that calls have now with what it may be, and
// moves the limit to where both are the same. What it may be is base, the latency of calls of which none waits for
// another, and a wait: tolerance-1 times what a slow call takes by itself. So a slow call takes tolerance times as long
// as it has to. Calls that are all alike need a short queue to keep the workers busy, and get one; where some take
// several times as long as others, a longer one is needed, and is small beside what the slow ones take anyway.
//
// What base is cannot be seen from outside while the server is overloaded, and the smallest latency ever seen stops
// being true when the service changes. So when the limit binds, base is measured from time to time: see [probe].
// ADR-0013 has the alternatives.
type gate struct {
	mu sync.Mutex // guards everything below; nothing is called under it
	adaptive
	jitter func() uint64

	latest   int64 // the latest now seen
	limit    float64
	inFlight int
	base     profile // valid if known
	known    bool
	pressed  bool // so was the last window

	window counts
	probe  probe
	// timings are the expected durations by method, other the one of methods beyond maxTimings.
	timings map[string]*timing
	other   timing
	waiting float64 // ns, what a call took in the last window
}

// counts are of one window.
type counts struct {
	from     int64   // ends before it do not count: the limit was another when those calls began
	sum      float64 // ns
	squares  float64
	ends     int
	arrivals int
	refused  int
	peak     int // the most that were in flight
}

// timing is the median duration of a method's calls, as a number that moves by at most 5 % towards each of them.
type timing struct {
	median float64 // ns, 0 means unknown
	seen   int64   // when a call ended or was let in to find out
}

func newGate(a adaptive, jitter func() uint64) *gate {
	g := &gate{adaptive: a, jitter: jitter, limit: float64(a.initial), timings: make(map[string]*timing)}
	g.probe.after, g.probe.refused = g.limit, g.jitterLocked()
	return g
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
		g.window.peak = g.inFlight
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
	g.window.peak = max(g.window.peak, g.inFlight)
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
	took = min(took, outlier*t.median)
	g.window.sum += took
	g.window.squares += took * took
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
	g.probe.began = min(g.probe.began, now)
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
	at := g.probe.at
	return g.probe.on && w.ends >= clearCalls && w.profile().mean+at.errorOf(w.ends) < clear*at.mean
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
	seen, took := w.profile(), now-w.from
	// By Little's law half of the limit or more was in use for no longer than this. The rest of the window is no overload,
	// be it an hour without calls: a window lasts until it has seen enough of them. Half, because a small limit is not
	// full all the time in an overload either.
	busy := int64(max(1, min(float64(took), 2*w.sum/g.limit)))
	refused := float64(w.refused) / float64(max(w.arrivals, 1))
	g.waiting = seen.mean
	g.window = counts{from: now}
	if g.probe.on {
		g.probedLocked(now, seen)
		return
	}
	g.probe.countLocked(refused, took, busy)
	switch {
	case refused <= pressure && !g.probe.refusedFor(g.interval):
		g.pressed = false
		g.followLocked(w)
		if w.peak >= int(g.limit) && seen.mean <= (g.base.mean+g.aimLocked())/2 { // it binds, and is far from the aim
			g.setLocked(g.limit + max(1, math.Sqrt(g.limit)/2))
		}
		g.probe.after = g.limit
	case refused > pressure && !g.pressed:
		g.pressed = true // what came before the pressure is in this window too: it says nothing about either
	case g.dueLocked():
		g.beginProbeLocked(now, seen, float64(w.ends)/float64(busy))
	default:
		slope := min(growth, max(0.5, g.aimLocked()/seen.mean))
		g.setLocked(0.5*g.limit + 0.5*(slope*g.limit+more))
	}
}

// aimLocked is the mean latency that the limit is moved to.
func (g *gate) aimLocked() float64 { return g.base.mean + (g.tolerance-1)*g.base.slow() }

// followLocked learns from a window in which hardly any call was refused what calls take by themselves. They may be
// queueing nevertheless, so a longer time is believed only if the limit was far from being reached, and a shorter
// one then too, or if it is no chance: whoever took each of many small samples that is smaller would end with the
// smallest.
func (g *gate) followLocked(w counts) {
	seen := w.profile()
	switch {
	case !g.known:
		g.base, g.known = seen, true
	case w.peak <= int(g.limit)/2:
		g.base = g.base.moved(seen, 0.05)
	case seen.mean+2*seen.errorOf(w.ends) < g.base.mean:
		g.base = g.base.moved(seen, 0.1)
	}
}

func (g *gate) setLocked(limit float64) {
	g.limit = min(max(limit, float64(g.min)), float64(g.max))
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
	return time.Duration(g.waiting)
}

// ConcurrencyState is the state of an adaptive concurrency limit.
type ConcurrencyState struct {
	Limit    int           // how many calls may be in progress
	InFlight int           // how many are
	Latency  time.Duration // the mean of what calls took in the last window, 0 if there was none
	Base     time.Duration // the mean without waiting for each other, 0 if it is not known
	Probing  bool          // Base is being measured, with a lower Limit
}

func (g *gate) state() ConcurrencyState {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := ConcurrencyState{Limit: int(g.limit), InFlight: g.inFlight, Latency: g.latencyLocked(), Probing: g.probe.on}
	if g.known {
		c.Base = time.Duration(g.base.mean)
	}
	return c
}
