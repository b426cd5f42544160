package retry

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// Core is what decides behind the interceptors, without them: for who has the time and the events of calls of his own,
// such as a simulator. It decides by the same code, with one policy, one budget and one memory of latencies, as for one
// method of one [Retrier]. Make it with [NewCore]; what wants to retry calls of a [google.golang.org/grpc.ClientConn] wants
// [New] instead. It is not safe for concurrent use.
type Core struct {
	rules   *rules
	clock   clock.Clock
	random  func() uint64
	history *history
}

// NewCore returns a Core for methods that are idempotent if the policy says so. random returns 64 random bits. A Budget
// of the policy gives its numbers; the account is the Core's own, on the clock c. Errors are those of [New].
func NewCore(p Policy, c clock.Clock, random func() uint64) (*Core, error) {
	r, err := p.resolve()
	if err != nil {
		return nil, fmt.Errorf("retry: %w", err)
	}
	percent, perSecond := float64(defaultPercent), float64(defaultPerSecond)
	if p.Budget != nil {
		percent, perSecond = p.Budget.percent, p.Budget.perSecond
	}
	if r.budget, err = newBudget(percent, perSecond, c); err != nil {
		return nil, fmt.Errorf("retry: %w", err)
	}
	return &Core{rules: r, clock: c, random: random, history: newHistory()}, nil
}

// Begin begins a call whose deadline is at that time of the Core's clock, 0 for none. answersRetry says that it is made
// while a retry is being answered, as the server-side interceptors find out.
func (c *Core) Begin(deadline int64, answersRetry bool) *Steps {
	c.rules.budget.deposit()
	c.history.begin()
	s := &Steps{core: c, limits: c.rules.limits, deadline: deadline}
	if c.rules.chainStop && answersRetry {
		s.limits.maxAttempts = 1
	}
	return s
}

// Steps is one call of a [Core]. Tell it of each attempt when it begins, and of the failure of the last one that is
// under way, or of the success that ends the call.
type Steps struct {
	core     *Core
	limits   limits
	progress progress
	deadline int64
	began    int64 // the first attempt
	hedges   int
	retrying bool   // an attempt failed, and another followed
	why      Reason // there is no further attempt
}

// Began is an attempt that begins. If hedge is not 0 and the call has not ended after so long, [Steps.Hedge] is to be asked.
func (s *Steps) Began() (hedge time.Duration) {
	now, r := s.core.clock.Now(), s.core.rules
	if s.progress.attempts == 0 {
		s.began = now
	}
	s.progress.attempts++
	if !r.hedging() || !r.idempotent || s.hedges >= r.hedges || s.progress.attempts >= s.limits.maxAttempts {
		return 0
	}
	return s.core.history.hedgeDelay(r, now)
}

// Hedge reports whether another attempt is to be sent now although none has failed. It pays for it from the budget.
func (s *Steps) Hedge() bool {
	if s.progress.attempts >= s.limits.maxAttempts || !s.core.rules.budget.withdraw() {
		return false
	}
	s.hedges++
	return true
}

// Failure is how an attempt of a [Core]'s call failed.
type Failure struct {
	// Code is the status code.
	Code codes.Code
	// Unsent: it is certain that nothing was sent, and so that the call has not got through to the service. A server that
	// answers without running a handler, as one that sheds load does, has been reached.
	Unsent bool
	// Stop: the server says that it wants no retry, by a negative pushback.
	Stop bool
}

// Failed decides what follows the failure of the last attempt that was under way: another one after wait, or nothing
// more, for a reason.
func (s *Steps) Failed(how Failure) (wait time.Duration, why Reason) {
	c := s.core
	c.history.trouble()
	now := c.clock.Now()
	f := failure{code: how.Code, unsent: how.Unsent}
	if how.Stop {
		f.push = stayAway
	}
	s.progress.failed(f)
	if s.retrying && s.limits.vain(f, c.rules.idempotent) {
		c.history.retried(now, false)
	}
	d := s.progress.next(&s.limits, f, c.rules.idempotent,
		moment{now: now, deadline: s.deadline, typical: c.history.typical(now), draw: c.random()})
	if d.retry && !c.rules.budget.withdraw() {
		d = decision{why: OverBudget}
	}
	s.why = d.why
	if !d.retry {
		return 0, d.why
	}
	s.hedges, s.retrying = 0, true
	return d.wait, ""
}

// EndsChain reports, after the failure that ended the call, whether a handler that made it tells its own caller not to
// repeat it either: [Policy].ChainStop says when.
func (s *Steps) EndsChain() bool {
	r := s.core.rules
	return r.chainStop && !r.dryRun && s.progress.endsChain(&s.limits, s.why, s.core.history.retriesHelp(s.core.clock.Now()))
}

// Succeeded ends the call. Its first attempt teaches how long attempts take, at least so long if another overtook it.
func (s *Steps) Succeeded() {
	now := s.core.clock.Now()
	if s.retrying {
		s.core.history.retried(now, true)
	}
	if s.progress.attempts == 1+s.hedges {
		s.core.history.record(now, now-s.began)
	}
}
