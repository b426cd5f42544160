package breaker

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// What gobreaker is told instead of the calls' own errors; nil is a success.
var (
	errFailed   = errors.New("failed")
	errDoubtful = errors.New("failed, doubtfully")
	errExcluded = errors.New("counts neither way")
)

// report is what gobreaker is told of v.
func (v verdict) report() error {
	switch v {
	case success:
		return nil
	case failure:
		return errFailed
	case doubtful:
		return errDoubtful
	}
	return errExcluded
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
	rejected atomic.Uint64
	used     atomic.Bool // since the table's last look
	gone     atomic.Bool // no longer in the table
	tenure   tenure      // guarded by owner.mu

	rule atomic.Pointer[rule]
	// gate and last change together, under mu, and are read without it.
	gate    atomic.Pointer[gate]
	last    atomic.Pointer[change]
	lastErr atomic.Pointer[error] // the last failure that counted

	mu     sync.Mutex
	probes probes
	slow   slowWindow // has no ring as long as no call can be slow
}

// gate is a gobreaker. It takes its settings once, so that new ones mean a new gate; a breaker heeds what its
// current one calls back.
type gate struct {
	spec
	cb      *gobreaker.TwoStepCircuitBreaker[struct{}]
	certain uint32 // the latest run of failures beyond doubt; guarded by gobreaker's mutex, as is forced
	forced  bool   // the next failure trips it
}

// change is the state that a breaker is in since its last change. It is immutable.
type change struct {
	phase Phase
	// epoch counts gobreaker's changes: the end of a call that began in another one says nothing any more.
	epoch uint64
	at    time.Time
	until time.Time // for Open: when probes are let through; for Recovering: when all calls are
	ramp  ramp      // for Recovering
	err   error     // the last failure before the breaker opened
}

func newBreaker(owner *Breakers, k key, r *rule, now int64) *breaker {
	b := &breaker{owner: owner, key: k, name: k.text(r), tenure: tenure{seen: now}}
	b.rule.Store(r)
	b.gate.Store(b.newGate(r.spec))
	b.last.Store(&change{at: time.Now()})
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

// isSuccessful runs under gobreaker's mutex, and once for each result that counts, so it counts the certain ones.
func (g *gate) isSuccessful(err error) bool {
	switch err {
	case nil:
		if g.certain != 0 {
			g.certain = 0
		}
	case errFailed:
		g.certain++
	}
	return err == nil
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
	return b.slow.ring != nil && b.slow.trips(now, &r.limits)
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
	b.slow = r.slowWindow()
	b.setLocked(c)
}

// setLocked makes c the state and queues the event. mu is held.
func (b *breaker) setLocked(c *change) {
	old := b.last.Load()
	b.last.Store(c)
	b.owner.events.add(StateChange{Breaker: b.name, From: old.phase, To: c.phase, At: c.at, Until: c.until, Err: c.err,
		DryRun: b.rule.Load().dry})
}

// recovered ends the ramp of c: the breaker is closed, in the same epoch, since gobreaker has been all the while.
func (b *breaker) recovered(c *change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.Load() == c {
		b.setLocked(&change{phase: Closed, epoch: c.epoch, at: time.Now()})
	}
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
		b.slow = r.slowWindow()
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
				done(errFailed)
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
