package ratelimit

import (
	"fmt"
	"time"
)

// Core is the limit of [Adaptive] without gRPC and without a clock: for who has the time and the events of calls of his
// own, such as a simulator. It decides by the same code as the interceptors. Make it with [NewCore]; a gRPC server wants
// [New] instead. It is safe for concurrent use.
type Core struct{ gate *gate }

// Place is what a call holds while it is admitted by a [Core].
type Place struct{ timing *timing }

// End is how a call that was admitted by a [Core] ended.
type End uint8

// The ways to end.
const (
	EndServed   End = iota // how long it took is what the work takes
	EndTimedOut            // its deadline came first: the work takes at least as long
	EndVain                // it failed, or its caller went away: how long that took says nothing
)

// NewCore returns a Core; Enabled need not be set. random returns 64 random bits. Errors are those of [New].
func NewCore(a Adaptive, random func() uint64) (*Core, error) {
	r, err := a.resolve()
	if err != nil {
		return nil, fmt.Errorf("ratelimit: adaptive.%w", err)
	}
	return &Core{newGate(r, random)}, nil
}

// Arrive asks at the time now, in nanoseconds of any clock, for a call to method that has to be done within remaining;
// a call without a deadline has a very long time. If it is admitted, Leave must be called with its place, once.
func (c *Core) Arrive(now int64, method string, remaining time.Duration) (p Place, admitted bool) {
	v, t, _ := c.gate.arrive(now, method, remaining)
	return Place{t}, v == enter
}

// Leave ends a call that was admitted at the time began.
func (c *Core) Leave(now, began int64, p Place, e End) {
	c.gate.leave(now, began, p.timing, [...]ending{EndServed: served, EndTimedOut: timedOut, EndVain: silent}[e])
}

// State is the limit's state.
func (c *Core) State() ConcurrencyState { return c.gate.state() }
