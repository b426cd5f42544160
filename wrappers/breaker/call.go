package breaker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/outcome"
)

// call is one call between its two steps. It lives on the stack of a unary interceptor.
type call struct {
	ctx    context.Context // for its deadline, and for who watches it
	caller context.Context // what ctx was before Timeout; nil: the same
	b      *breaker        // nil: the call has nothing to do with breakers
	rule   *rule
	method string
	stream bool

	done func(error) // nil: not counted, since it was let through by DryRun
	// beyond: DryRun let it through, so it takes no place, which a call that passes on its own merits would miss.
	beyond bool
	epoch  uint64
	probe  uint64 // its number if it is a probe, else 0
	start  int64  // when it began if it can be slow, else a moment before that; unknown for a stream
	left   time.Duration

	// What there is to tell of its beginning, see announce.
	changes []*StateChange
	refused *Error
}

// admitQuickly is admit where the breaker is closed, as it nearly always is. It reports false if that is not so; then
// admit has to be asked. It runs no code of the user's.
func (c *call) admitQuickly() bool {
	b := c.b
	last := b.last.Load()
	if last.phase != Closed {
		return false
	}
	done, err := b.gate.Load().cb.Allow()
	if err != nil {
		return false
	}
	if b.last.Load() != last {
		c.admitted(done)
		return true
	}
	c.done, c.epoch = done, last.epoch
	return true
}

// admit asks for the call, which has a place already. It returns why not, or nil; then c.finish, c.abort or, once, both
// c.passed and one of them are due.
func (c *call) admit() *Error {
	b := c.b
	if last := b.last.Load(); last.phase != Closed {
		if e := c.admitCarefully(last); e != nil {
			return e
		}
	}
	done, err := b.gate.Load().cb.Allow()
	if err != nil {
		last := b.last.Load()
		b.owner.events.flush()
		return b.refusal(last, err)
	}
	c.admitted(done)
	b.owner.events.flush()
	return nil
}

// admitted notes that gobreaker has let the call through.
//
// If it was half-open, the call is a probe, and finds HalfOpen here: nothing but its own end can close the breaker. A
// call that is mistaken for a probe, because things have changed since, ends in another of gobreaker's generations,
// where its end is ignored either way.
func (c *call) admitted(done func(error)) {
	b := c.b
	last := b.last.Load()
	c.done, c.epoch = done, last.epoch
	if last.phase != HalfOpen {
		return
	}
	deadline := b.owner.clock.Now() + c.rule.probeTimeout
	b.mu.Lock()
	defer b.mu.Unlock()
	c.probe = b.probes.add(deadline, c.rule.probeTimeout, done)
	if !last.told { // that the breaker is half-open is time's doing; the first probe tells it
		last.told = true
		c.changes = append(c.changes, b.changeLocked(Open, last))
	}
}

// admitCarefully is what precedes gobreaker's own question while the breaker is not closed.
func (c *call) admitCarefully(last *change) *Error {
	b := c.b
	switch last.phase {
	case Recovering:
		now := b.owner.clock.Now()
		switch {
		case last.ramp.over(now):
			c.changed(b.recovered(last))
			b.owner.events.flush()
		case !last.ramp.admits(now, b.owner.random()):
			return b.refusal(last, nil)
		}
	case HalfOpen:
		c.changed(b.expireProbes(b.owner.clock.Now()))
	}
	return nil
}

// expireProbes reports the probes whose time is over, and returns the change of state that this made, nil if none.
func (b *breaker) expireProbes(now int64) (moved *StateChange) {
	b.mu.Lock()
	late, v := b.probes.expire(now, int64(b.gate.Load().openFor))
	b.mu.Unlock()
	if len(late) == 0 {
		return nil
	}
	err := fmt.Errorf("a probe has not ended within %v", time.Duration(late[0].limit))
	b.lastErr.Store(&err)
	for _, p := range late {
		if m := v.tell(p.done); m != nil {
			moved = m
		}
	}
	b.settled()
	return moved
}

// settled does what gobreaker's mutex has delayed: new settings, and telling the user.
func (b *breaker) settled() {
	if b.rule.Load().spec != b.gate.Load().spec {
		b.respec()
	}
	b.owner.events.flush()
}

// passed ends a probing stream's probation well, though not the stream: the service has sent a message.
func (c *call) passed() {
	if c.probe == 0 || !c.b.endProbe(c.probe) {
		return
	}
	c.tellChange(success.tell(c.done))
	c.b.settled()
}

func (b *breaker) endProbe(id uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probes.end(id)
}

// begin notes what the call's end will be judged by. ctx is the one that the call is made with. It runs foreign code, so
// whatever happens in it has to be reported.
func (c *call) begin(ctx context.Context) {
	if c.changes != nil || c.refused != nil {
		c.announce()
	}
	c.ctx = ctx
	d, timed := ctx.Deadline()
	if c.rule.slowCall > 0 && !c.stream {
		c.start = c.b.owner.clock.Now()
		return
	}
	c.start = c.b.seen.Load() // good enough for brief; a look at the clock costs as much as all the rest of this package
	c.left = outcome.NoDeadline
	if timed {
		c.left = c.b.owner.clock.Until(d)
	}
}

// finish reports how the call ended and gives its place back. It returns what err means, OK if nobody counts.
func (c *call) finish(err error) outcome.Class {
	if err == nil && c.probe == 0 && c.done != nil && (c.stream || c.brief()) { // the success path
		c.done(nil)
		c.b.places.leave()
		c.b.owner.events.flush()
		return outcome.OK
	}
	return c.finishSlowly(err)
}

// brief reports whether a unary call, which succeeded, was so short that it may count in the period in which it began,
// and counts it as one that was not slow. It notes the time for those that begin next.
func (c *call) brief() bool {
	b, r := c.b, c.rule
	if int64(c.left) < r.brief && r.slowCall == 0 && c.ctx.Err() == nil {
		return true // it cannot have lasted longer than it might
	}
	now := b.owner.clock.Now()
	if uint64(now-b.seen.Load()) > uint64(r.period)/8 { // also if the clock was set back
		b.seen.Store(now)
	}
	if now-c.start >= r.brief {
		return false
	}
	return r.slowCall == 0 || b.last.Load().epoch == c.epoch && b.brisk.add(now)
}

func (c *call) finishSlowly(err error) outcome.Class {
	v, cause := excluded, err
	defer func() { c.end(v, cause) }() // even if the classifier panics
	if c.done == nil {
		return outcome.OK
	}
	class := outcome.OK
	if err != nil {
		class = c.classify(err)
	}
	v = judge(class, outcome.Code(err), err != nil && outcome.Doubtful(err), c.probe != 0)
	if c.rule.slowCall > 0 && !c.stream && v != excluded {
		if took, trips := c.b.recordSlow(c); trips && v == success {
			v, cause = failure, fmt.Errorf("the call took %v, which is slow", took)
		}
	}
	return class
}

// classify says what err, which is not nil, means for the service.
func (c *call) classify(err error) outcome.Class {
	var e *Error
	if !c.b.key.which.server() && errors.As(err, &e) {
		return outcome.Ignore // another breaker, further in, did not let it through
	}
	return c.rule.classify(c.method, err, c.remaining())
}

// remaining is how long the call had, when it began, until its caller's deadline. The policy's Timeout is none: it says
// what is expected of the service, not how patient a caller is.
func (c *call) remaining() time.Duration {
	left := c.untilEnd()
	if c.caller == nil {
		return left
	}
	own, timed := c.caller.Deadline()
	if d, _ := c.ctx.Deadline(); timed {
		return left + own.Sub(d)
	}
	return outcome.NoDeadline
}

// untilEnd is how long the call had, when it began, until its deadline.
func (c *call) untilEnd() time.Duration {
	if c.rule.slowCall == 0 || c.stream {
		return c.left
	}
	d, timed := c.ctx.Deadline()
	if !timed {
		return outcome.NoDeadline
	}
	clk := c.b.owner.clock
	return clk.Until(d) + time.Duration(clk.Now()-c.start)
}

// recordSlow counts the call's duration, and reports whether it makes the breaker trip or its probe fail.
func (b *breaker) recordSlow(c *call) (took time.Duration, trips bool) {
	now := b.owner.clock.Now()
	took = time.Duration(now - c.start)
	slow := int64(took) >= c.rule.slowCall
	if c.probe != 0 {
		return took, slow
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.Load().epoch != c.epoch || b.slow.ring == nil {
		return took, false
	}
	b.slow.join(now, &b.brisk)
	b.slow.record(now, slow)
	return took, slow && b.slow.trips(now, &c.rule.limits)
}

// abort reports a call that ended without an answer, by a panic or runtime.Goexit.
func (c *call) abort() {
	if c.b.key.which.server() { // it is the handler that panicked
		c.end(failure, errors.New("the handler panicked"))
		return
	}
	c.end(excluded, nil) // it is the caller; that says nothing about the service
}

// end makes the one report that the call owes, and gives its place back.
func (c *call) end(v verdict, err error) {
	b := c.b
	defer c.leave()
	if c.done == nil || c.probe != 0 && !b.endProbe(c.probe) {
		return // not counted, or its time was over and it was reported then
	}
	if failed := v == failure || v == doubtful; failed && b.last.Load().epoch == c.epoch {
		cause := err // a copy, so that err itself need not live on the heap in every call
		b.lastErr.Store(&cause)
	}
	if v != excluded && !c.stream && c.probe == 0 {
		c.tellChange(c.countNow(v))
	} else {
		c.tellChange(v.tell(c.done))
	}
	b.settled()
}

// leave gives the call's place back, if it has one.
func (c *call) leave() {
	if c.beyond {
		c.b.beyond.Add(-1)
	} else {
		c.b.places.leave()
	}
}

// countNow counts a unary call at the moment of its end. gobreaker counts a result where the call began, and drops it
// if that is out of the window: with a window of 10 s and deadlines of 15 s, a service that hangs would never trip it.
// A call that lasts a good part of the window would count for less than a brief one, a success as well as a failure.
// (That is right for a stream: one that breaks after an hour was in good service that long.) So the call is taken
// out where it began, and counted again here. It returns the change of state that this made, nil if none.
func (c *call) countNow(v verdict) *StateChange {
	b := c.b
	c.done(errExcluded)
	if b.last.Load().epoch != c.epoch {
		return nil
	}
	done, err := b.gate.Load().cb.Allow()
	if err != nil {
		return nil
	}
	if b.last.Load().epoch != c.epoch { // it changed meanwhile, and this is no probe
		v = excluded
	}
	return v.tell(done)
}
