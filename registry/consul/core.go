package consul

import "time"

// cursor is where one watch stands: the index of its next blocking query. The rules are HashiCorp's ("Blocking
// Queries": Implementation Details), and one more: an index belongs to the connection that it came over. A server
// that restarted empty between two queries is asked for what comes after an index that it will not reach for
// minutes, and nothing fails: the query just stays open while changes pass by. A new connection is the only sign of
// that, so the watch starts over then. The zero value is a watch that begins.
type cursor struct {
	index uint64 // 0 asks for the state as it is, at once
	fresh bool   // the last answer was to such a query; the next query follows at once
}

// answered takes the index of an answer. It reports whether the answer can be new: one with the index that was
// asked for says only that the time is over.
func (c *cursor) answered(got uint64) bool {
	asked := c.index
	c.fresh = asked == 0
	switch {
	case got < asked:
		// The servers were restored or restarted: start over.
		c.index = 0
	default:
		// 0 would make the next query not block at all.
		c.index = max(got, 1)
	}
	return asked == 0 || got != asked
}

// moved says that a query goes over another connection than the last answer came over; again says that it had gone
// over one already, which net/http lost and replaced. It reports whether the watch must start over instead. It need
// not when an answer to a query without an index has only just come: so a client that has a new connection for
// every request starts over every other time, not for ever.
func (c *cursor) moved(again bool) bool {
	if c.index == 0 || c.fresh && !again {
		return false
	}
	*c = cursor{}
	return true
}

const (
	paceBurst = 4
	paceEvery = 500 * time.Millisecond
)

// pace limits the queries of one watch: paceBurst at once, so that a change that follows another is seen at once,
// then one every paceEvery, so that a service in turmoil does not make its watchers hammer the servers. The zero
// value is full.
type pace struct{ free time.Duration } // when the bucket is full again

// reserve takes a query's place and returns how long the caller waits for it. now may go backwards.
func (p *pace) reserve(now time.Duration) time.Duration {
	if p.free > now+paceBurst*paceEvery { // the clock went backwards
		p.free = now
	}
	p.free = max(p.free, now) + paceEvery
	return max(p.free-now-paceBurst*paceEvery, 0)
}

// action is what a keeper wants done next.
type action uint8

const (
	actWait action = iota
	actPut         // write the record
	actBeat        // say that the instance is well (TTL checks only)
	actRead        // read the record back
)

// result is what became of an action.
type result uint8

const (
	resOK          result = iota
	resGone               // the agent answered, and it does not have the record as it should be
	resRefused            // the agent answered, and refused to write the record
	resUnreachable        // no answer, or one that says that Consul is in trouble
)

const (
	// Retries are spaced retryMin to retryMax, doubling, less up to half of it at random. retryMax keeps the
	// promise that a record is back within 10 s of Consul's return, a start of its leader included.
	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

// keeper decides what is done when to keep one record alive. It is a state machine: next asks it for an action, done
// tells it what became of that. Its times are those of a monotonic clock, and may yet go backwards. The zero value
// with every and random set is a record that has not been written yet. It is not safe for concurrent use.
type keeper struct {
	ttl    bool           // beats
	every  time.Duration  // between two rounds of a beat and a reading
	random func() float64 // 0 to 1

	written bool          // the record was accepted, and nothing says that it is not there any more
	todo    action        // what is due
	due     time.Duration // when it is
	again   time.Duration // a lost record is not put back before: whoever keeps changing it must not make us spin
	delay   time.Duration // the last retry's
}

// next returns the action to do now, or actWait and how long to wait.
func (k *keeper) next(now time.Duration) (action, time.Duration) {
	if !k.written {
		k.todo = actPut
	}
	// Nothing is ever scheduled further ahead than this; a due time that is comes from a clock that went backwards.
	k.due = min(k.due, now+max(k.every, retryMax))
	if k.due > now {
		return actWait, k.due - now
	}
	return k.todo, 0
}

// change says that the record is to be another: it is written at once.
func (k *keeper) change(now time.Duration) {
	k.written, k.due, k.delay = false, now, 0
}

// done says what became of the action that next returned.
func (k *keeper) done(now time.Duration, did action, res result) {
	switch {
	case res == resRefused, res == resUnreachable, res == resGone && did == actPut:
		k.delay = min(max(2*k.delay, retryMin), retryMax)
		k.due = now + k.delay - time.Duration(k.random()*float64(k.delay)/2)
		return
	case res == resGone:
		k.written, k.due = false, max(now, min(k.again, now+k.every))
	case did == actPut && k.ttl:
		// A record that was critical stays so when it is written again: the beat must not wait.
		k.written, k.again, k.due, k.todo = true, now+k.every, now, actBeat
	case did == actPut:
		k.written, k.again, k.due, k.todo = true, now+k.every, now+k.every, actRead
	case did == actBeat:
		k.due, k.todo = now, actRead
	case k.ttl:
		k.due, k.todo = now+k.every, actBeat
	default:
		k.due, k.todo = now+k.every, actRead
	}
	k.delay = 0
}
