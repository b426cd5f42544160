package retry

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
)

// trial is what unary calls and streams have in common: how far the call has come, and what may follow a failure.
type trial struct {
	r     *Retrier
	m     *method
	rules *rules
	ctx   context.Context // the call's; with its deadline
	name  string

	limits   limits // of the rules, or less
	chained  bool   // it is part of answering a retry, and says so
	waited   bool   // the caller went away while the call waited for its next attempt
	progress progress
	tried    callctx.Tried
	attempts []Attempt
	// giveUpAt is a deadline that the context does not have, 0 for none: a stream's may outlive its first message.
	giveUpAt int64
}

// obeyChain applies ChainStop.
func (t *trial) obeyChain() {
	if t.rules.chainStop && answersRetry(t.ctx) {
		t.chained, t.limits.maxAttempts = true, 1
	}
}

// newAttempt is one more attempt.
func (t *trial) newAttempt() *whole {
	a := new(whole)
	t.count(a)
	return a
}

// count makes a the next attempt.
func (t *trial) count(a *whole) {
	a.init(t.progress.attempts, t.r.clock.Now())
	t.progress.attempts++
}

// prepare gives a its context and its options. The witness that costs an allocation is always there.
func (t *trial) prepare(a *whole, ctx context.Context, kind callctx.Kind, opts []grpc.CallOption) []grpc.CallOption {
	var tried *callctx.Tried
	if a.more.earlier > 0 {
		tried = &t.tried
	}
	return a.prepare(announce(ctx, a.more.earlier, t.chained), kind, tried, a.options[:0], opts, false)
}

func (t *trial) idempotent() bool { return t.m.idempotent || t.rules.idempotent }

// again decides whether the failure f is followed by another attempt, and waits until it is time for it.
func (t *trial) again(f failure) (why Reason, again bool) {
	now := t.r.clock.Now()
	d := t.progress.next(&t.limits, f, t.idempotent(), t.moment(now))
	if d.retry && !t.m.budget(t.rules).withdraw() {
		t.m.refused.Add(1)
		d = decision{why: OverBudget}
	}
	if !d.retry {
		return d.why, false
	}
	t.m.retries.Add(1)
	t.tell(t.config().OnRetry, t.event(callctx.Retry, d.wait, ""))
	if t.rules.dryRun {
		return "", false
	}
	t.r.sleep(t.ctx, d.wait)
	if t.waited = t.ctx.Err() != nil; t.waited {
		return CallerGone, false
	}
	return "", true
}

// failed takes account of the failure of a, which has no hedges.
func (t *trial) failed(a *attempt, err error) failure {
	f, now := t.diagnose(a, err), t.r.clock.Now()
	t.note(a, err, f, now)
	t.roundFailed(a, f, now)
	return f
}

// roundFailed learns, after f, with which first and its hedges have failed, whether that was a retry in vain.
func (t *trial) roundFailed(first *attempt, f failure, now int64) {
	if first.number() > 1 && t.limits.vain(f, t.idempotent()) {
		t.m.retried(now, false)
	}
}

// note enters a's failure into the account.
func (t *trial) note(a *attempt, err error, f failure, now int64) {
	t.progress.failed(f)
	t.attempts = append(t.attempts, a.report(now, err, f))
	t.tried.Add(a.room.Call().Picked())
	t.m.trouble()
}

// noteBefore enters an attempt that ended after the call was decided into the account, before the one that decided.
func (t *trial) noteBefore(a *attempt, err error, f failure, now int64) {
	t.attempts = slices.Insert(t.attempts, len(t.attempts)-1, a.report(now, err, f))
}

// diagnose finds out what there is to know about the failure err of a.
func (t *trial) diagnose(a *attempt, err error) failure {
	f := diagnose(t.ctx, err, a.trailer)
	f.unsent = a.safe()
	f.local = a.unsent() && f.push == noPushback && f.after > 0
	f.timedOut = t.rules.attemptTimeout > 0 && f.code == codes.DeadlineExceeded && !f.over
	return f
}

func (t *trial) moment(now int64) moment {
	at := moment{now: now, deadline: t.giveUpAt, typical: t.m.typical(now), draw: t.r.rand()}
	if d, ok := t.ctx.Deadline(); ok {
		at.deadline = max(now+int64(t.r.clock.Until(d)), 1)
	}
	return at
}

// giveUp ends the call with err. What was not retried because nobody would want it keeps its error as it is.
func (t *trial) giveUp(err error, why Reason) error {
	if t.rules.chainStop && t.progress.endsChain(&t.limits, why, t.m.retriesHelp(t.r.clock.Now())) {
		t.endChain(err)
	}
	if t.waited { // the caller may not be there to hear, but interceptors further out are
		err = status.FromContextError(t.ctx.Err()).Err()
	} else if t.progress.attempts == 1 {
		switch why {
		case "", NotRetryable, CallerGone, Forbidden: // "" is a dry run
			return err
		case Exhausted, PushedBack:
			if t.limits.maxAttempts == 1 {
				return err
			}
		}
	}
	t.m.gaveUp.Add(1)
	t.tell(t.config().OnGiveUp, t.event(callctx.RetryRefused, 0, why))
	return &Error{Attempts: t.attempts, Reason: why, err: err}
}

// endChain notes with the handler that makes the call, if it is one, that nobody further up is to repeat what ended with
// err.
func (t *trial) endChain(err error) {
	if !t.rules.chainStop || t.rules.dryRun {
		return
	}
	if s := servingIn(t.ctx); s != nil {
		s.endChain(outcome.Code(err))
	}
}

func (t *trial) config() *Config { return &t.r.state.Load().config }

// event describes what was decided.
func (t *trial) event(kind callctx.EventKind, wait time.Duration, why Reason) Event {
	e := Event{
		Context: t.ctx, Method: t.name, Attempts: t.progress.attempts, Wait: wait, Reason: why, DryRun: t.rules.dryRun,
		kind: kind,
	}
	if n := len(t.attempts); n > 0 && kind != callctx.Hedge {
		e.Last = t.attempts[n-1]
	}
	return e
}

// tell tells f, and whoever watches the call, what was decided.
func (t *trial) tell(f func(Event), e Event) {
	number := e.Attempts + 1
	if e.kind == callctx.RetryRefused {
		number = e.Attempts
	}
	callctx.Report(t.ctx, callctx.Event{
		Kind: e.kind, By: "retry", Attempt: number, Delay: e.Wait, Err: e.Last.Err,
		Detail: string(e.Reason), DryRun: e.DryRun,
	})
	if f != nil {
		f(e)
	}
}

// hedgeDelay is when to hedge an attempt of this call, 0 for never.
func (t *trial) hedgeDelay(reply any) time.Duration {
	if !t.rules.hedging() || t.limits.maxAttempts < t.progress.attempts+2 || !t.idempotent() {
		return 0
	}
	if _, ok := reply.(proto.Message); !ok {
		return 0 // nothing private could be made for a hedge, trap 16
	}
	return t.m.hedgeDelay(t.rules, t.r.clock.Now())
}
