package ratelimit

import (
	"math"
	"time"
)

// This file finds out what calls take by themselves. Like adaptive.go, whose gate it is a part of, it knows no gRPC and
// reads no clock.

const (
	// fell is what a latency has to fall to, when the limit is halved, to show that calls were queueing. Where they
	// queue it falls to half, where they do not it stays, and where half of the limit is a little less than the number
	// of workers it is in between.
	fell = 0.75
	// clearCalls are enough in a probe to see that a latency fell to clear.
	clearCalls = 16
	clear      = 0.6
	// chance is how many standard errors are taken for chance.
	chance = 2.5
	// heavy is the share of refused calls from which on probes come once an interval. They are rarer below: a probe
	// refuses about as many calls as there are in a tenth or two of a second, which has to be little beside what was
	// refused without it.
	heavy = 0.25
	// hasty is how soon after a probe another may follow when the limit has shrunk by itself.
	hasty = int64(2 * time.Second)
	// forget is the time in which, when nothing is refused, what was counted falls to 37 %.
	forget = int64(time.Second)
	// patience is the least time that a probe waits for its calls.
	patience = int64(10 * time.Second)
)

// profile is what calls take: the mean, and the standard deviation as far as it is not above the mean.
type profile struct{ mean, spread float64 } // ns

// slow is what slow calls take: of exponential times two in a hundred take longer.
func (p profile) slow() float64 { return p.mean + 3*p.spread }

// errorOf is the standard error of the mean of n calls.
func (p profile) errorOf(n int) float64 { return p.spread / math.Sqrt(float64(n)) }

// moved is p after a part of the way to q.
func (p profile) moved(q profile, part float64) profile {
	return profile{p.mean + part*(q.mean-p.mean), p.spread + part*(q.spread-p.spread)}
}

// profile is of the calls of a window. A few that take very long would have a spread that says nothing about the
// others, so it ends at the mean, where that of exponential times is.
func (c *counts) profile() profile {
	mean := c.sum / float64(c.ends)
	return profile{mean, min(mean, math.Sqrt(max(0, c.squares/float64(c.ends)-mean*mean)))}
}

// probe measures base: the limit is halved for one window, and again for as long as the latency falls with it. When it
// falls no further, nobody was waiting any more, and that latency is base.
//
// limit is what the limit was before, next what it was before the last halving.
type probe struct {
	on          bool
	began       int64
	limit, next float64
	at          profile // at next
	rate        float64 // ends per ns in use, at limit
	after       float64 // the limit after the last one, or when the limit did not bind
	refused     int64   // ns under heavy refusals since the last one
}

// countLocked counts a window of took ns in which this share of the calls was refused, and in which the server can have
// been overloaded for busy ns. When none are refused the overload is over, and what was counted is forgotten within
// some seconds.
func (p *probe) countLocked(share float64, took, busy int64) {
	if share == 0 {
		p.refused = int64(float64(p.refused) * math.Exp(-float64(took)/float64(forget)))
		return
	}
	p.refused += int64(min(1, share/heavy) * float64(busy))
}

// refusedFor reports whether there were heavy refusals for d, or as many in a longer time.
func (p *probe) refusedFor(d int64) bool { return p.refused >= d }

// dueLocked reports whether base has to be measured.
func (g *gate) dueLocked() bool {
	return !g.known || g.probe.refusedFor(g.interval) || g.probe.refusedFor(hasty) && g.limit < 0.7*g.probe.after
}

func (g *gate) beginProbeLocked(now int64, seen profile, rate float64) {
	g.probe.on, g.probe.began = true, now
	g.probe.limit, g.probe.rate = g.limit, rate
	g.halveLocked(now, seen)
}

// halveLocked begins a window at half the limit, once the calls that came in before are gone.
func (g *gate) halveLocked(now int64, seen profile) {
	g.probe.at, g.probe.next = seen, g.limit
	g.setLocked(g.limit / 2)
	g.window.from = now + int64(seen.mean)
}

// probedLocked is the end of a window at half the limit.
func (g *gate) probedLocked(now int64, seen profile) {
	fallen := seen.mean < fell*g.probe.at.mean
	odd := seen.mean > g.probe.at.mean/fell // something else has changed: look again
	// By Little's law so many were worked on before, if this is what a call takes. If fewer than half of them are let in
	// now nobody waits, and whatever fell did so by chance.
	idle := g.limit < 0.5*g.probe.rate*seen.mean
	if (fallen || odd) && !idle && int(g.limit) > g.min {
		g.halveLocked(now, seen)
		return
	}
	if seen.mean > g.probe.at.mean { // both are of calls that did not wait
		seen = seen.moved(g.probe.at, 0.5)
	}
	// Some 50 calls are few. If they are as they were for all that can be said, what was known counts more.
	wide := profile{spread: max(seen.spread, g.base.spread)}
	if g.known && math.Abs(seen.mean-g.base.mean) < chance*wide.errorOf(windowCalls) {
		seen = g.base.moved(seen, 0.3)
	}
	g.base, g.known = seen, true
	// Little's law: the work in progress is the rate times the latency.
	g.setLocked(min(max(g.probe.rate*g.aimLocked()+more, g.probe.next), g.probe.limit))
	g.endProbeLocked()
}

// giveUpLocked ends a probe that gets no calls.
func (g *gate) giveUpLocked(now int64) {
	if !g.probe.on || now-g.probe.began <= patience {
		return
	}
	if now-g.window.from > max(patience, 4*int64(g.latencyLocked())) {
		g.setLocked(g.probe.limit)
		g.window = counts{from: now}
		g.endProbeLocked()
	}
}

func (g *gate) endProbeLocked() {
	g.probe.on, g.probe.after, g.probe.refused = false, g.limit, g.jitterLocked()
}

// jitterLocked is up to 10 % of the interval, so that the servers of a fleet do not probe together for ever.
func (g *gate) jitterLocked() int64 {
	return int64(float64(g.interval) * 0.1 * float64(g.jitter()>>11) / (1 << 53))
}
