package callctx

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Observer hears what happens to one call: package trace, or one of its kind, puts it into the call's [Record], and
// whoever makes attempts or takes decisions reports to it, see [StartAttempt], [EndAttempt] and [Report]. When
// nobody listens, that costs a context lookup and nothing else. Both methods are called from any goroutine, attempts
// that run side by side included, and may be called after the call has ended (the losers of a hedge end late). They
// return quickly, never block and never call back into whoever reports.
type Observer interface {
	// Attempt says that attempt a is about to start with ctx, whose Record has the attempt's Call. It returns the
	// context to make the attempt with. What happens to the attempt is reported to the Observer in that one, which
	// may be another.
	Attempt(ctx context.Context, a Attempt) context.Context
	// Event says that e happened.
	Event(e Event)
}

// Attempt describes an attempt of a call before it starts.
type Attempt struct {
	Number int  // 1 is the first
	Hedge  bool // it starts while an earlier one still runs
}

// Event is something that happened to a call or to one of its attempts. Fields without a meaning for the Kind are
// zero. It is passed by value, so that reporting allocates nothing.
type Event struct {
	Kind EventKind
	// By names who decided: "retry", "breaker", "ratelimit", "balancer".
	By string
	// Attempt is the number of the attempt that it is about, 0 if it is about the call.
	Attempt int
	// Delay is how long is waited (Retry, Hedge, Waited), or asked to wait (Limited, BreakerRefused).
	Delay time.Duration
	// Endpoint is the one that it is about, nil if it is about none.
	Endpoint *Endpoint
	// Peer is the address that an attempt reached (AttemptEnded), for who knows it from grpc.Peer; nil if nobody does.
	Peer net.Addr
	// Err is the error that caused it or that it caused.
	Err error
	// Detail is a short constant or existing text: the reason of a refusal, the key of a breaker or bucket. Do not
	// build one for the event, since nobody may listen.
	Detail string
	// DryRun says that it was decided and not done.
	DryRun bool
}

// EventKind says what happened. Names of kinds stand in traces, so they do not change.
type EventKind uint8

const (
	// AttemptEnded: the attempt of this Observer ended with Err (nil: well). Use [EndAttempt].
	AttemptEnded EventKind = iota + 1
	// Retry: another attempt, number Attempt, follows after Delay, because of Err.
	Retry
	// RetryRefused: no attempt follows although one failed with Err; Detail says why not (budget, pushback,
	// deadline, ...).
	RetryRefused
	// Hedge: attempt number Attempt starts, because no answer came for Delay.
	Hedge
	// HedgeWon: a hedge, attempt number Attempt, answered first.
	HedgeWon
	// BreakerRefused: a breaker, named by Detail, let the call not through; Delay is when it may again.
	BreakerRefused
	// BreakerChanged: this call moved a breaker to another state, or is the first to probe it; Detail names the breaker
	// and both states, Err is why it opened, Delay how long the new state lasts at least.
	BreakerChanged
	// Fallback: a fallback answered instead; Err is what it covered.
	Fallback
	// Limited: a limiter, its bucket named by Detail, refused the call; Delay is when it may again.
	Limited
	// Waited: a limiter held the call back for Delay.
	Waited
	// Ejected: the failure Err of this call blacklisted Endpoint.
	Ejected
	// Probed: this call tries Endpoint, which is blacklisted and due to return.
	Probed
	// Kept: this call was sent to Endpoint although it is blacklisted, since too few others are left.
	Kept
	// Returned: the success of this call took Endpoint off the blacklist.
	Returned
)

var kinds = [...]string{
	AttemptEnded: "attempt_ended", Retry: "retry", RetryRefused: "retry_refused", Hedge: "hedge", HedgeWon: "hedge_won",
	BreakerRefused: "breaker_refused", BreakerChanged: "breaker_changed", Fallback: "fallback", Limited: "limited",
	Waited: "waited", Ejected: "ejected", Probed: "probed", Kept: "kept", Returned: "returned",
}

// String returns the kind's name in lower case, as traces show it.
func (k EventKind) String() string {
	if int(k) < len(kinds) && kinds[k] != "" {
		return kinds[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// StartAttempt tells the call's Observer, if it has one, that an attempt starts, and returns the context to make it
// with; ctx itself if nobody listens. Whoever makes several attempts of one call gives each a Call of its own first:
//
//	actx, call := callctx.Begin(ctx, callctx.Unary, tried)
//	actx = callctx.StartAttempt(actx, callctx.Attempt{Number: n})
//	err := invoker(actx, ...)
//	callctx.EndAttempt(actx, err)
//
// Two things follow for it. It reports the end of every attempt that it started exactly once, that of a stream when
// grpc.OnFinish says so and not when NewStream returns. And options that are about the call and not about an attempt
// it keeps to itself: a grpc.OnFinish from above runs once, when the last attempt has ended.
func StartAttempt(ctx context.Context, a Attempt) context.Context {
	if r := From(ctx); r != nil && r.Observer != nil {
		return r.Observer.Attempt(ctx, a)
	}
	return ctx
}

// EndAttempt tells the Observer that the attempt made with ctx, which StartAttempt returned, ended with err. Who can
// say which address it reached uses [Report] with an AttemptEnded that does.
func EndAttempt(ctx context.Context, err error) {
	Report(ctx, Event{Kind: AttemptEnded, Err: err})
}

// Report tells the Observer in ctx, if there is one, of e. Use the attempt's context for what is about the attempt,
// and the call's for what is about the call. Never under a lock.
func Report(ctx context.Context, e Event) {
	if r := From(ctx); r != nil && r.Observer != nil {
		r.Observer.Event(e)
	}
}
