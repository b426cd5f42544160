package retry

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/clock"
)

// race is one attempt and its hedges. The first attempt runs on the caller's goroutine and writes straight into the
// caller's reply, header, trailer and peer; a hedge runs on the goroutine of the timer that sends it and has its own.
// So a call that is answered before the delay costs a timer and no goroutine. The race ends when everything that it
// started has ended, and only then is a winning hedge's answer delivered.
type race struct {
	c     *call
	first *attempt
	reply protoreflect.MessageType // of the caller's reply, which is the first attempt's to touch
	owed  sync.WaitGroup           // the timer, if it runs, and the hedges

	mu       sync.Mutex  // guards what follows, and the call's progress and account until everything has ended
	timer    clock.Timer // nil if none runs
	hedges   []*attempt
	running  int
	closed   bool          // nothing more is sent
	heldBack *failure      // an end that asked for nothing more while others were under way; nil if none did
	decided  bool          // by a success, or by a failure after which nobody would try again
	by       *attempt      // who decided or, if nobody did yet, who failed last
	failure  failure       // of by
	err      error         // of by
	settled  chan struct{} // closed when the call is decided or all attempts have failed
	panicked any           // of a hedge's goroutine
}

// hedge is what a hedge has of its own, because concurrent attempts must share none of it (trap 16).
type hedge struct {
	reply  proto.Message
	header metadata.MD
}

// race makes an attempt, and others while it does not answer, each delay after the one before.
func (c *call) race(delay time.Duration) (failure, error) {
	first := c.newAttempt()
	r := &race{c: c, first: &first.attempt, settled: make(chan struct{}), running: 1}
	r.reply = c.reply.(proto.Message).ProtoReflect().Type()
	ctx, cancel := context.WithCancel(c.ctx)
	first.more.cancel = cancel
	opts := c.prepare(first, ctx, callctx.Unary, c.opts)
	defer r.close() // also when this goroutine panics or exits
	r.mu.Lock()
	r.armLocked(delay)
	r.mu.Unlock()
	r.ended(r.first, c.try(r.first, c.reply, opts))
	r.stopTimer()
	<-r.settled
	r.close()
	return r.deliver()
}

// armLocked sets the timer for the next hedge.
func (r *race) armLocked(delay time.Duration) {
	r.owed.Add(1)
	r.timer = r.c.r.clock.AfterFunc(delay, func() {
		defer r.owed.Done()
		r.fire(delay)
	})
}

// stopTimer has no further hedge sent; one that is being sent goes on.
func (r *race) stopTimer() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil && r.timer.Stop() {
		r.owed.Done()
	}
	r.timer = nil
}

// fire is the timer's function: it sends another attempt, unless there is no need any more or the budget refuses.
func (r *race) fire(delay time.Duration) {
	c := r.c
	a, opts, event := r.launch(delay)
	if event == nil {
		return
	}
	err := errAborted
	defer func() {
		p := recover()
		if a != nil {
			r.ended(a, err)
		}
		if p != nil { // it belongs to the caller
			r.mu.Lock()
			defer r.mu.Unlock()
			r.panicked = p
		}
	}()
	c.tell(c.config().OnHedge, *event)
	if a != nil {
		err = c.try(a, a.hedge().reply, opts)
	}
}

// launch counts a hedge in and prepares it. There is none if the event is nil, and none to send if only a is.
func (r *race) launch(delay time.Duration) (a *attempt, opts []grpc.CallOption, e *Event) {
	c := r.c
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timer = nil
	if r.closed || r.decided || c.progress.attempts >= c.limits.maxAttempts {
		return nil, nil, nil
	}
	if !c.m.budget(c.rules).withdraw() {
		c.m.refused.Add(1)
		return nil, nil, nil
	}
	c.m.hedges.Add(1)
	event := c.event(callctx.Hedge, delay, "")
	if c.rules.dryRun {
		return nil, nil, &event
	}
	c.tried.Add(r.first.room.Call().Picked())
	for _, h := range r.hedges {
		c.tried.Add(h.room.Call().Picked())
	}
	h := c.newAttempt()
	a = &h.attempt
	h.more.hedge = &hedge{reply: r.reply.New().Interface()}
	ctx, cancel := context.WithCancel(c.ctx)
	h.more.cancel = cancel
	opts = c.prepare(h, ctx, callctx.Unary, append(withoutTargets(c.opts), grpc.Header(&h.more.hedge.header)))
	r.hedges = append(r.hedges, a)
	r.running++
	if len(r.hedges) < c.rules.hedges {
		r.armLocked(delay)
	}
	return a, opts, &event
}

// ended takes account of the end of a.
func (r *race) ended(a *attempt, err error) {
	c := r.c
	var f failure
	if err != nil {
		f = c.diagnose(a, err)
	}
	now := c.r.clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	if r.decided { // cancelled, or too late
		if err != nil && r.err != nil {
			c.noteBefore(a, err, f, now)
		}
		return
	}
	if err != nil {
		c.note(a, err, f, now)
	}
	if err != nil && r.running > 0 && f.holdsBack() {
		// It speaks against sending more, not against what is under way already.
		r.closed, r.heldBack = true, &f
		return
	}
	last := f
	if err != nil && r.heldBack != nil {
		f = *r.heldBack // nor is anything sent when the others have failed as well, or not before it is welcome
	}
	r.by, r.failure, r.err = a, f, err
	r.decided = err == nil || !c.limits.retryable(f, c.idempotent())
	over := r.decided || r.running == 0
	if err == nil {
		r.learnLocked(now)
	} else if over {
		c.roundFailed(r.first, last, now)
	}
	if over {
		r.closed = true // the timer may fire just now
		close(r.settled)
		r.cancelLocked() // a context's functions run on goroutines of their own
	}
}

// learnLocked records that a retry helped or how long the first attempt took, now that the call has succeeded. One that
// a hedge overtook has taken that long at least, and leaving it out would have the quantile sink with every hedge, and so
// hedge more.
func (r *race) learnLocked(now int64) {
	if r.first.number() != 1 {
		r.c.m.retried(now, true)
		return
	}
	for _, a := range r.c.attempts {
		if a.Err != nil && !a.Hedge {
			return // the first attempt failed
		}
	}
	r.c.m.record(now, now-r.first.extra.began)
}

// cancelLocked ends whatever still runs.
func (r *race) cancelLocked() {
	r.first.extra.cancel()
	for _, h := range r.hedges {
		h.extra.cancel()
	}
}

// close has nothing more sent and waits until everything has ended.
func (r *race) close() {
	r.stopTimer()
	r.mu.Lock()
	r.closed = true
	r.cancelLocked()
	r.mu.Unlock()
	r.owed.Wait()
}

// deliver gives the caller what the deciding attempt has, once, when nothing else can write there any more.
func (r *race) deliver() (failure, error) {
	if r.panicked != nil {
		panic(r.panicked)
	}
	a, c := r.by, r.c
	if a.hedge() == nil {
		return r.failure, r.err // it wrote to the caller's
	}
	if r.err == nil {
		c.m.hedgesWon.Add(1)
		callctx.Report(c.ctx, callctx.Event{Kind: callctx.HedgeWon, By: "retry", Attempt: a.number()})
		reply := c.reply.(proto.Message)
		proto.Reset(reply)
		proto.Merge(reply, a.hedge().reply)
	}
	clearTargets(c.opts)
	if a.unsent() {
		return r.failure, r.err
	}
	for _, o := range c.opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = a.hedge().header
		case grpc.TrailerCallOption:
			*o.TrailerAddr = a.trailer
		case grpc.PeerCallOption:
			*o.PeerAddr = *a.peer
		}
	}
	return r.failure, r.err
}

// withoutTargets returns opts without those that write into variables of the caller.
func withoutTargets(opts []grpc.CallOption) (rest []grpc.CallOption) {
	for _, o := range opts {
		switch o.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption:
		default:
			rest = append(rest, o)
		}
	}
	return rest
}
