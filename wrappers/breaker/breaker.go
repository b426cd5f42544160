package breaker

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// errExcluded tells gobreaker that a call counts neither way.
var errExcluded = errors.New("counts neither way")

// report is what gobreaker is told instead of a call's own error, and finds out what came of it. A success that
// cannot change the breaker's state is told as nil instead, which costs no allocation.
type report struct {
	verdict verdict
	moved   *StateChange // the change that the report made, nil if none
}

// Error is there because gobreaker takes an error; nobody reads it.
func (*report) Error() string { return "a call's verdict" }

// tell reports v by done, outside of every lock, and returns the change of state that it made; nil if none.
func (v verdict) tell(done func(error)) *StateChange {
	if v == excluded {
		done(errExcluded)
		return nil
	}
	r := &report{verdict: v}
	done(r)
	return r.moved
}

// breaker is one circuit breaker: gobreaker's, and around it what gobreaker lacks.
//
// Locks: gobreaker calls back under its own mutex, and those callbacks take mu. So gobreaker is never called under
// mu. The queue of events has a mutex of its own, taken last of all.
type breaker struct {
	owner *Breakers
	key   key
	name  string

	places   bulkhead
	beyond   atomic.Int64 // calls in flight that have no place: turned away, had DryRun not let them through
	rejected atomic.Uint64
	used     atomic.Bool // since the table's last look
	gone     atomic.Bool // no longer in the table
	tenure   tenure      // guarded by owner.mu

	rule atomic.Pointer[rule]
	// gate and last change together, under mu, and are read without it.
	gate    atomic.Pointer[gate]
	last    atomic.Pointer[change]
	lastErr atomic.Pointer[error] // the last failure that counted
	seen    atomic.Int64          // a moment that is over, not much more than an eighth of a period old in busy times

	mu     sync.Mutex
	probes probes
	slow   slowWindow // has no ring as long as no call can be slow
	brisk  brisk      // is ahead of slow, and written without mu
}

// gate is a gobreaker. It takes its settings once, so that new ones mean a new gate; a breaker heeds what its
// current one calls back.
type gate struct {
	spec
	cb *gobreaker.TwoStepCircuitBreaker[struct{}]
	// What follows is guarded by gobreaker's mutex.
	certain uint32  // the latest run of failures beyond doubt
	forced  bool    // the next failure trips it
	by      *report // the one that is being counted; nil for a success that is told as nil
}

// change is the state that a breaker is in since its last change. It is immutable but for told.
type change struct {
	phase Phase
	// epoch counts gobreaker's changes: the end of a call that began in another one says nothing any more.
	epoch uint64
	at    time.Time
	until time.Time // for Open: when probes are let through; for Recovering: when all calls are
	ramp  ramp      // for Recovering
	err   error     // the last failure before the breaker opened
	told  bool      // for HalfOpen: who watches the first probe is being told of it; guarded by the breaker's mu
}

func newBreaker(owner *Breakers, k key, r *rule, now int64) *breaker {
	b := &breaker{owner: owner, key: k, name: k.text(r), tenure: tenure{seen: now}}
	b.rule.Store(r)
	b.gate.Store(b.newGate(r.spec))
	b.last.Store(&change{at: time.Now()})
	b.seen.Store(now)
	b.slow = r.slowWindow()
	return b
}

// slowWindow is an empty one, without a ring if no call can be slow.
func (r *rule) slowWindow() slowWindow {
	if r.slowCall == 0 {
		return slowWindow{}
	}
	return newSlowWindow(int64(r.window), int64(r.period))
}

// forgetSlowLocked begins the window of slow calls anew, as r has it. mu is held.
func (b *breaker) forgetSlowLocked(r *rule) {
	b.slow = r.slowWindow()
	b.brisk.reset()
}

// newGate makes a closed gobreaker with the settings s.
func (b *breaker) newGate(s spec) *gate {
	g := &gate{spec: s}
	g.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:  s.probes,
		Interval:     s.window,
		BucketPeriod: s.period,
		Timeout:      s.openFor,
		IsExcluded:   func(err error) bool { return err == errExcluded },
		IsSuccessful: g.isSuccessful,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return g.forced || b.readyToTrip(g, c) },
		// Under gobreaker's mutex: what is told to the user waits in the queue until that is free.
		OnStateChange: func(_ string, _, to gobreaker.State) { b.moved(g, to) },
	})
	return g
}

// isSuccessful runs under gobreaker's mutex, and once for each result that counts, so it counts the certain ones. What
// follows under the same mutex, a change of state perhaps, is this report's doing.
func (g *gate) isSuccessful(err error) bool {
	g.by, _ = err.(*report)
	if g.by == nil || g.by.verdict == success {
		g.certain = 0
		return true
	}
	if g.by.verdict == failure {
		g.certain++
	}
	return false
}

// readyToTrip runs under gobreaker's mutex after each failure of a closed breaker.
func (b *breaker) readyToTrip(g *gate, c gobreaker.Counts) bool {
	r := b.rule.Load()
	if r.trips(tally{c.TotalSuccesses, c.TotalFailures, c.ConsecutiveFailures, min(g.certain, c.ConsecutiveFailures)}) {
		return true
	}
	if r.slowCall == 0 {
		return false
	}
	now := b.owner.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slow.ring == nil {
		return false
	}
	b.slow.join(now, &b.brisk)
	return b.slow.trips(now, &r.limits)
}

// moved runs under gobreaker's mutex when g has changed its state.
func (b *breaker) moved(g *gate, to gobreaker.State) {
	now, wall := b.owner.clock.Now(), time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gate.Load() != g {
		return
	}
	r, old := b.rule.Load(), b.last.Load()
	c := &change{epoch: old.epoch + 1, at: wall, err: old.err}
	switch to {
	case gobreaker.StateOpen:
		c.phase, c.until = Open, wall.Add(g.openFor)
		if err := b.lastErr.Load(); err != nil {
			c.err = *err
		}
	case gobreaker.StateHalfOpen:
		c.phase = HalfOpen
	case gobreaker.StateClosed:
		c.err = nil
		if r.ramp > 0 {
			c.phase, c.until = Recovering, wall.Add(time.Duration(r.ramp))
			c.ramp = ramp{now, r.ramp, r.rampFrom}
		}
	}
	b.forgetSlowLocked(r)
	moved := b.setLocked(c)
	if to != gobreaker.StateHalfOpen && g.by != nil { // that is no report's doing: see admitted
		g.by.moved = moved
	}
}

// setLocked makes c the state and queues the event, which it returns. mu is held.
func (b *breaker) setLocked(c *change) *StateChange {
	moved := b.changeLocked(b.last.Load().phase, c)
	b.last.Store(c)
	b.owner.events.add(*moved)
	return moved
}

// changeLocked describes the change to c. mu is held.
func (b *breaker) changeLocked(from Phase, c *change) *StateChange {
	return &StateChange{Breaker: b.name, From: from, To: c.phase, At: c.at, Until: c.until, Err: c.err,
		DryRun: b.rule.Load().dry}
}

// recovered ends the ramp of c: the breaker is closed, in the same epoch, since gobreaker has been all the while. It
// returns the change, nil if somebody else was faster.
func (b *breaker) recovered(c *change) *StateChange {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.Load() != c {
		return nil
	}
	return b.setLocked(&change{phase: Closed, epoch: c.epoch, at: time.Now()})
}

// adopt makes r the policy, unless b has a newer one.
func (b *breaker) adopt(r *rule) {
	b.mu.Lock()
	old := b.rule.Load()
	if old.version >= r.version {
		b.mu.Unlock()
		return
	}
	b.rule.Store(r)
	if (old.slowCall == 0) != (r.slowCall == 0) || old.window != r.window || old.period != r.period {
		b.forgetSlowLocked(r)
	}
	b.mu.Unlock()
	b.respec()
}

// respec replaces the gate if the policy wants other settings than it has. A closed breaker begins a new window;
// an open one begins its time anew, with the new length; a half-open one waits until its probes are through.
func (b *breaker) respec() {
	for {
		want, g, c := b.rule.Load().spec, b.gate.Load(), b.last.Load()
		if g.spec == want || c.phase == HalfOpen {
			return
		}
		next := b.newGate(want)
		if c.phase == Open { // its callbacks are not heeded yet
			next.forced = true
			if done, err := next.cb.Allow(); err == nil {
				done(&report{verdict: failure})
			}
			next.forced = false
		}
		b.mu.Lock()
		if b.gate.Load() == g && b.last.Load() == c {
			b.gate.Store(next)
			if c.phase == Open {
				later := *c
				later.until = time.Now().Add(want.openFor)
				b.last.Store(&later)
			}
		}
		b.mu.Unlock()
	}
}
