package breaker

import (
	"sync"
	"sync/atomic"
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
