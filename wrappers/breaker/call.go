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
	b      *breaker // nil: the call has nothing to do with breakers
	rule   *rule
	method string
	stream bool

	done  func(error) // nil: not counted, since it was let through by DryRun
	epoch uint64
	probe uint64 // its number if it is a probe, else 0
	start int64  // if it can be slow
	left  time.Duration
}

// admitQuickly is admit where the breaker is closed, as it nearly always is. It reports false if that is not so; then
// admit has to be asked. It runs no code of the user's.
func (c *call) admitQuickly() bool {
	if c.b.last.Load().phase != Closed {
		return false
	}
	done, err := c.b.gate.Load().cb.Allow()
	if err != nil {
		return false
	}
	c.admitted(done)
	return true
}

// admit asks for the call c, which has a place already. It returns why not, or nil; then c.finish, c.abort or,
// once, both c.passed and one of them are due.
func (b *breaker) admit(c *call) *Error {
	if last := b.last.Load(); last.phase != Closed {
		if e := b.admitCarefully(c.rule, last); e != nil {
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
	c.probe = b.probes.add(deadline, done)
}

// admitCarefully is what precedes gobreaker's own question while the breaker is not closed.
func (b *breaker) admitCarefully(r *rule, last *change) *Error {
	switch last.phase {
	case Recovering:
		now := b.owner.clock.Now()
		switch {
		case last.ramp.over(now):
			b.recovered(last)
			b.owner.events.flush()
		case !last.ramp.admits(now, b.owner.random()):
			return b.refusal(last, nil)
		}
	case HalfOpen:
		b.expireProbes(b.owner.clock.Now())
	}
	return nil
}

// expireProbes reports the probes whose time is over.
func (b *breaker) expireProbes(now int64) {
	b.mu.Lock()
	late, v := b.probes.expire(now, int64(b.gate.Load().openFor))
	b.mu.Unlock()
	if len(late) == 0 {
		return
	}
	err := fmt.Errorf("a probe has not ended within %v", time.Duration(b.rule.Load().probeTimeout))
	b.lastErr.Store(&err)
	for _, p := range late {
		p.done(v.report())
	}
	b.settled()
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
	c.done(nil)
	c.b.settled()
}

func (b *breaker) endProbe(id uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probes.end(id)
}

// finish reports how the call ended and gives its place back. It returns what err means, OK if nobody counts.
func (c *call) finish(err error) outcome.Class {
	if err == nil && c.start == 0 && c.probe == 0 && c.done != nil { // the success path
		c.done(nil)
		c.b.places.leave()
		c.b.owner.events.flush()
		return outcome.OK
	}
	return c.finishSlowly(err)
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
	if c.start != 0 && v != excluded {
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
	return c.rule.classify(c.method, err, c.left)
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
	defer b.places.leave()
	if c.done == nil || c.probe != 0 && !b.endProbe(c.probe) {
		return // not counted, or its time was over and it was reported then
	}
	failed := v == failure || v == doubtful
	if failed && b.last.Load().epoch == c.epoch {
		cause := err // a copy, so that err itself need not live on the heap in every call
		b.lastErr.Store(&cause)
	}
	if failed && !c.stream && c.probe == 0 {
		c.failNow(v)
	} else {
		c.done(v.report())
	}
	b.settled()
}

// failNow counts a unary call's failure at the moment of its end. gobreaker counts a result where the call began,
// and drops it if that is out of the window: with a window of 10 s and deadlines of 15 s, a service that hangs
// would never trip it. (That is right for a stream: one that breaks after an hour was in good service that long.)
// So the call is taken out where it began, and counted again here.
func (c *call) failNow(v verdict) {
	b := c.b
	c.done(errExcluded)
	if b.last.Load().epoch != c.epoch {
		return
	}
	done, err := b.gate.Load().cb.Allow()
	if err != nil {
		return
	}
	if b.last.Load().epoch != c.epoch { // it changed meanwhile, and this is no probe
		v = excluded
	}
	done(v.report())
}

// begin notes what the call's end will be judged by. ctx is the one that the call is made with.
func (c *call) begin(ctx context.Context) {
	if c.rule.slowCall > 0 && !c.stream {
		c.start = c.b.owner.clock.Now()
	}
	c.left = outcome.NoDeadline
	if d, ok := ctx.Deadline(); ok {
		c.left = c.b.owner.clock.Until(d)
	}
}
