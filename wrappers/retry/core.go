package retry

import (
	"math/bits"
	"time"

	"google.golang.org/grpc/codes"
)

// This file decides, and does nothing else: it knows no clock, no randomness and no connection. A simulator steps it
// as the interceptors do, with the time and what happened.

// Reason says why a failed call was not tried again.
type Reason string

const (
	// NotRetryable: the failure is not one that the policy repeats, or a handler may have run and the method is not
	// declared idempotent.
	NotRetryable Reason = "not retryable"
	// Exhausted: there were MaxAttempts attempts.
	Exhausted Reason = "attempts exhausted"
	// OverBudget: the budget refused.
	OverBudget Reason = "over budget"
	// NoTime: the deadline leaves no time for another attempt to finish.
	NoTime Reason = "no time left"
	// PushedBack: the server said that it wants no retry, or none for so long that waiting makes no sense.
	PushedBack Reason = "server pushback"
	// CallerGone: the caller cancelled, or its deadline passed.
	CallerGone Reason = "caller gone"
	// Forbidden: the error itself says that it is not to be retried, as that of an open breaker does.
	Forbidden Reason = "error forbids it"
)

// pushback is what the server said about retries.
type pushback uint8

const (
	noPushback pushback = iota
	comeBack            // after failure.after
	stayAway
)

// failure is what is known about a failed attempt.
type failure struct {
	code codes.Code
	// unsent: it is certain that nothing was sent, so no handler ran.
	unsent bool
	// local: by all appearances a limiter on the client refused, before anything was sent. It is not certain: where an
	// interceptor keeps the call options to itself, a server's limiter looks the same.
	local bool
	// timedOut: AttemptTimeout ended it, while the call itself had time left.
	timedOut bool
	// forbidden: the error says that it must not be retried.
	forbidden bool
	// over: the call's own context has ended.
	over bool
	push pushback
	// after is how long to wait at least: with comeBack exactly this long. It is never negative.
	after time.Duration
}

// holdsBack reports whether the end says that no more is to be sent now, by a breaker's refusal or a pushback.
func (f failure) holdsBack() bool { return f.forbidden || f.push == stayAway || f.push == comeBack }

// limits is the part of a policy that decides, validated and with its defaults filled in.
type limits struct {
	maxAttempts int
	codes       uint32 // bit n is set for codes.Code(n)
	idempotent  bool
	base, max   int64 // ns, of the backoff
}

func (l *limits) has(c codes.Code) bool { return c < 32 && l.codes>>c&1 == 1 }

// retryable reports whether f is a failure that another attempt may follow; idempotent says that the method is
// declared to be, by its descriptor or by the policy.
func (l *limits) retryable(f failure, idempotent bool) bool {
	switch {
	case f.over || f.forbidden || f.push == stayAway:
		return false
	case f.push == comeBack:
		return true
	case f.unsent:
		return f.code == codes.Unavailable || f.timedOut || l.has(f.code)
	case idempotent:
		return f.timedOut || l.has(f.code)
	}
	return false
}

// whyNot is the reason why f is not retryable.
func whyNot(f failure) Reason {
	switch {
	case f.over:
		return CallerGone
	case f.forbidden:
		return Forbidden
	case f.push == stayAway:
		return PushedBack
	}
	return NotRetryable
}

// backoff is full jitter: uniform in [0, min(max, base * 2^n)), where n is how many backoffs came before. draw is 64
// random bits. Wider jitter than gRPC's own 20 % is what keeps clients that failed together from returning together.
func (l *limits) backoff(n int, draw uint64) time.Duration {
	bound := l.max
	if n < 62 && l.base <= l.max>>n {
		bound = l.base << n
	}
	hi, _ := bits.Mul64(draw, uint64(bound))
	return time.Duration(hi)
}

// maxPushback is the longest wait that a server can ask for: longer than that is as good as no.
const maxPushback = time.Minute

// progress is how far one call has come. Its zero value is a call that has not begun.
type progress struct {
	// attempts is how many were started, hedges included.
	attempts int
	// backoffs is how many there were since the server last said when to come back (gRFC A6: it starts over).
	backoffs int
	// reached: an attempt that failed got through to the service, as far as one can see.
	reached bool
	// stopped: the service said that it wants no retry.
	stopped bool
}

// failed takes account of the failure of an attempt.
func (p *progress) failed(f failure) {
	if !f.unsent && !f.local && !f.forbidden {
		p.reached = true
	}
	if f.push == stayAway {
		p.stopped = true
	}
}

// endsChain reports whether nobody further up is to repeat the call either, which ends in failure because of why: it got
// through and was repeated as often as the limits and the budget let it be, and retries do not help just now, as helps
// says; or those below say that nobody is to. What never got through, or what this layer was not to repeat, is for those
// further up to try again. ADR-0026.
func (p *progress) endsChain(l *limits, why Reason, helps bool) bool {
	switch why {
	case PushedBack: // a wait that is too long says nothing to those further up by itself
		return p.stopped || p.reached && !helps
	case Exhausted:
		return p.reached && l.maxAttempts > 1 && !helps
	case OverBudget, NoTime, Forbidden:
		return p.reached && !helps
	}
	return false
}

// experience is what share of the last few dozen retries succeeded. Its zero value has none, and expects nothing. It is
// stepped by time, and not safe for concurrent use.
type experience struct {
	share float64
	last  int64 // when a retry last ended
}

// forgetAfter is how long a retry's end is remembered when none follows: where retries are rare, what the last few dozen
// came to says nothing about now.
const forgetAfter = int64(5 * time.Minute)

// add takes account of one retry.
func (e *experience) add(now int64, succeeded bool) {
	const memory = 32
	if now-e.last >= forgetAfter {
		e.share = 0
	}
	e.last = now
	if succeeded {
		e.share += (1 - e.share) / memory
	} else {
		e.share -= e.share / memory
	}
}

// helps reports whether more retries succeed than not. In an outage hardly one does, and where single attempts fail by
// chance most do: then those further up may try again what this layer cannot, for want of attempts or of budget.
func (e *experience) helps(now int64) bool { return e.share > 0.5 && now-e.last < forgetAfter }

// vain reports whether f, which ended a retry, is the same trouble as before.
func (l *limits) vain(f failure, idempotent bool) bool {
	return f.push == stayAway || l.retryable(f, idempotent)
}

// decision is what follows a failed attempt.
type decision struct {
	retry bool
	wait  time.Duration // before the retry
	why   Reason        // if there is none
}

// moment is when and in what circumstances a decision is made.
type moment struct {
	now int64
	// deadline is when the call's time is over, 0 for never.
	deadline int64
	// typical is how long an attempt takes, 0 if that is not known.
	typical int64
	// draw is 64 random bits.
	draw uint64
}

// next decides what follows f. The budget has not been asked: that is for the caller to do, and last, so that only
// what would really be sent is paid for.
func (p *progress) next(l *limits, f failure, idempotent bool, at moment) decision {
	if !l.retryable(f, idempotent) {
		return decision{why: whyNot(f)}
	}
	if p.attempts >= l.maxAttempts {
		return decision{why: Exhausted}
	}
	wait := f.after
	if f.push == comeBack {
		p.backoffs = 0
	} else {
		wait += l.backoff(p.backoffs, at.draw)
		p.backoffs++
	}
	if f.after > maxPushback {
		return decision{why: PushedBack}
	}
	if at.deadline != 0 && at.deadline-at.now-int64(wait) <= at.typical {
		return decision{why: NoTime}
	}
	return decision{retry: true, wait: wait}
}
