package breaker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// events is the queue between breakers, which change their state under locks, and the user's callback, which gets
// the changes one at a time, in order and outside of every lock. Whoever comes by delivers; no goroutine is
// started.
type events struct {
	deliver func(StateChange)
	waiting atomic.Int64

	mu    sync.Mutex
	queue []StateChange
	busy  bool // somebody is delivering
}

// add queues e. It may be called under any lock.
func (q *events) add(e StateChange) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, e)
	q.waiting.Store(int64(len(q.queue)))
}

// flush delivers what waits, unless somebody else is at it (or it is called from the callback): they go on until
// nothing waits. It must be called without a lock.
func (q *events) flush() {
	if q.waiting.Load() != 0 {
		q.deliverAll()
	}
}

func (q *events) deliverAll() {
	for q.deliverOne() {
	}
}

func (q *events) deliverOne() bool {
	q.mu.Lock()
	if q.busy || len(q.queue) == 0 {
		q.mu.Unlock()
		return false
	}
	e := q.queue[0]
	q.queue[0] = StateChange{}
	q.queue = q.queue[1:]
	q.waiting.Store(int64(len(q.queue)))
	q.busy = true
	q.mu.Unlock()
	defer func() { // one that panics is not told again, and the queue goes on
		q.mu.Lock()
		q.busy = false
		q.mu.Unlock()
	}()
	q.deliver(e)
	return true
}

// changed notes a change of state that the call's beginning made, if it is one.
func (c *call) changed(s *StateChange) {
	if s != nil {
		c.changes = append(c.changes, s)
	}
}

// announce tells who watches the call, a trace say, what happened when it asked its breaker. It runs foreign code, so a
// call that was let through comes here only when whatever happens will be reported.
func (c *call) announce() {
	for _, s := range c.changes {
		c.tellChange(s)
	}
	if e := c.refused; e != nil {
		callctx.Report(c.ctx, callctx.Event{Kind: callctx.BreakerRefused, By: "breaker", Delay: delayUntil(e.Until), Err: e.Last,
			Detail: e.Breaker, DryRun: e.DryRun})
	}
	c.changes, c.refused = nil, nil
}

// tellChange tells who watches the call that it moved the breaker to another state. s may be nil, which is none.
func (c *call) tellChange(s *StateChange) {
	if s == nil {
		return
	}
	if r := callctx.From(c.ctx); r == nil || r.Observer == nil {
		return // nobody needs the text
	}
	callctx.Report(c.ctx, callctx.Event{Kind: callctx.BreakerChanged, By: "breaker", Delay: delayUntil(s.Until), Err: s.Err,
		Detail: s.Breaker + ": " + s.From.String() + " to " + s.To.String(), DryRun: s.DryRun})
}

// delayUntil is how long it is until t, 0 if t is zero or over.
func delayUntil(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return max(0, time.Until(t))
}
