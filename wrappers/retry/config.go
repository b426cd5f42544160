package retry

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// Policy says when a failed call is tried again. Its zero value is meant to be used: up to 3 attempts, after
// UNAVAILABLE of methods that are declared idempotent and, of any method, after failures of which it is certain that
// no handler ran; full jitter from 25 ms to 1 s between them; a budget of 20 % of the calls plus 10 a second; no
// timeouts and no hedging of its own. The package documentation says what each case means.
type Policy struct {
	// MaxAttempts is how many attempts a call may have, hedges included; 0 means 3, 1 means no retry, and 20 is the
	// most. grpc-go's own retries run inside each of them (see the package documentation).
	MaxAttempts int
	// AttemptTimeout bounds each attempt; 0 means no bound but the call's own deadline. An attempt of a method that
	// is declared idempotent is tried again when it ran into it. For a server-streaming call it is the time to the
	// first message; client and bidirectional streams have none.
	AttemptTimeout time.Duration
	// Timeout is the deadline of a call whose context has none; 0 means that it stays without. For a
	// server-streaming call it is the time to the first message, over all attempts; client and bidirectional streams
	// have none.
	Timeout time.Duration
	// Codes are the status codes after which a method that is declared idempotent is tried again. Nil means
	// UNAVAILABLE; a list that is empty but not nil means none, which leaves the failures that are safe for any
	// method. OK is no failure and CANCELLED is the caller's wish, so they are not allowed.
	Codes []codes.Code
	// Idempotent declares the policy's methods idempotent: running one twice is as good as once. Methods whose proto
	// file says so (option idempotency_level = IDEMPOTENT or NO_SIDE_EFFECTS) need no declaration here.
	Idempotent bool
	// Backoff is the wait between attempts.
	Backoff Backoff
	// Budget bounds what retries and hedges add. Nil means the one of the Config, and there 20 % of the calls plus
	// 10 a second.
	Budget *Budget
	// Hedge sends a second attempt when the first is slow; its zero value does not.
	Hedge Hedge
	// ChainStop keeps the retries of a chain of services from multiplying; it is for calls that handlers make, in the
	// handler's context, and needs the server-side interceptor of this package. Downwards: what a handler calls while
	// it answers a retry has one attempt, without hedging, and says so to those further down. Upwards: when this policy
	// has repeated a call as often as it may, or is told not to repeat it (a negative grpc-retry-pushback-ms), and the
	// handler fails with the same code, then the handler's caller is told not to repeat it either, by the same trailer
	// of gRFC A6, which the retries of every gRPC client obey. It is not told if no attempt got through to the service,
	// since another instance of the handler's service may do better, nor if the policy was not to repeat the call, nor
	// while most retries of the last minutes succeed: then retries further up help too.
	ChainStop bool
	// DryRun decides and reports, pays from the budget, and sends nothing: every call has one attempt. Timeouts are
	// not applied either.
	DryRun bool
}

// Backoff is the wait before a retry: uniform between 0 and min(Max, Base doubled with each retry), known as full
// jitter. Its zero value has the defaults.
type Backoff struct {
	// Base bounds the first wait; 0 means 25 ms.
	Base time.Duration
	// Max bounds every wait; 0 means 1 s, or Base if that is longer. An hour is the most.
	Max time.Duration
}

// Hedge says when another attempt is sent although the first has not failed. Only unary calls of methods that are
// declared idempotent are hedged, and only if their reply is a proto.Message. Its zero value hedges nothing.
type Hedge struct {
	// Delay is how long after an attempt the next one is sent; 0 leaves it to Quantile. With a Quantile it is used
	// until the method's latencies are known.
	Delay time.Duration
	// Quantile makes the delay follow the method's latencies: 0.95 hedges the slowest twentieth of the calls. 0
	// means the fixed Delay; otherwise it is from 0.5 to 0.999. It is taken over the last 20 to 30 seconds, at least
	// 20/(1-Quantile) calls, rounded up by at most 6.25 %, and is at least 1 ms. Without Delay nothing is hedged
	// until there are so many calls.
	Quantile float64
	// Max is how many hedges a call may have; 0 means 1. MaxAttempts bounds them too.
	Max int
}

// Config configures a [Retrier]. Its zero value applies the zero Policy to every method. Health checks and reflection
// are exempt unless Methods names them.
type Config struct {
	Policy
	// Methods are the policies of some methods, by "/pkg.Service/Method", "/pkg.Service/*" or "*"; the most exact
	// wins, and nothing is inherited from Policy but the Budget.
	Methods map[string]Policy

	// OnRetry is called when a call is going to be tried again, before the wait; OnHedge when a hedge is sent;
	// OnGiveUp when a call fails that was tried again or would have been, if Reason were not in the way. They run on
	// the call's own goroutines, under no lock and possibly several at once; the call waits for them.
	OnRetry, OnHedge, OnGiveUp func(Event)
}

// Event is what a [Config]'s functions are told.
type Event struct {
	// Context is the call's.
	Context context.Context
	// Method is the full method name.
	Method string
	// Attempts is how many attempts were started so far.
	Attempts int
	// Last is the attempt that failed; for OnHedge it is zero.
	Last Attempt
	// Wait is how long the retry waits, or how long the hedge has waited.
	Wait time.Duration
	// Reason says, for OnGiveUp, why there is no further attempt.
	Reason Reason
	// DryRun: nothing was done about it.
	DryRun bool

	kind callctx.EventKind
}

const (
	mostAttempts = 20
	maxBackoff   = time.Hour
	maxTimeout   = 365 * 24 * time.Hour
	minHedge     = time.Millisecond
)

// rules are a validated Policy with its defaults filled in. They are immutable.
type rules struct {
	limits
	attemptTimeout, timeout time.Duration
	budget                  *Budget
	hedgeDelay              time.Duration
	hedgeQuantile           float64
	hedges                  int
	chainStop, dryRun       bool
	plain                   bool // the first attempt needs nothing but to be made
}

// hedging reports whether calls are hedged at all.
func (r *rules) hedging() bool {
	return (r.hedgeDelay > 0 || r.hedgeQuantile > 0) && r.maxAttempts > 1
}

// leastSamples is how many latencies the quantile is computed from at least.
func (r *rules) leastSamples() int { return int(20 / (1 - r.hedgeQuantile)) }

// resolve validates p. The budget is left nil if p has none. Errors name the field, what was got and what is wanted.
func (p *Policy) resolve() (*rules, error) {
	if p.MaxAttempts < 0 || p.MaxAttempts > mostAttempts {
		return nil, fmt.Errorf("maxAttempts = %d, want 0 to %d", p.MaxAttempts, mostAttempts)
	}
	for _, f := range []struct {
		name    string
		d, most time.Duration
	}{
		{"attemptTimeout", p.AttemptTimeout, maxTimeout}, {"timeout", p.Timeout, maxTimeout},
		{"backoff.base", p.Backoff.Base, maxBackoff}, {"backoff.max", p.Backoff.Max, maxBackoff},
		{"hedge.delay", p.Hedge.Delay, maxTimeout},
	} {
		if f.d < 0 || f.d > f.most {
			return nil, fmt.Errorf("%s = %v, want 0s to %v", f.name, f.d, f.most)
		}
	}
	if q := p.Hedge.Quantile; q != 0 && !(q >= 0.5 && q <= 0.999) {
		return nil, fmt.Errorf("hedge.quantile = %v, want 0 or 0.5 to 0.999", q)
	}
	if p.Hedge.Max < 0 || p.Hedge.Max >= mostAttempts {
		return nil, fmt.Errorf("hedge.max = %d, want 0 to %d", p.Hedge.Max, mostAttempts-1)
	}
	if p.Hedge.Max > 0 && p.Hedge.Delay == 0 && p.Hedge.Quantile == 0 {
		return nil, fmt.Errorf("hedge.max = %d without a delay or a quantile, want one of them", p.Hedge.Max)
	}
	r := &rules{
		limits: limits{
			maxAttempts: cmp.Or(p.MaxAttempts, 3),
			idempotent:  p.Idempotent,
			base:        int64(cmp.Or(p.Backoff.Base, 25*time.Millisecond)),
			max:         int64(p.Backoff.Max),
		},
		attemptTimeout: p.AttemptTimeout, timeout: p.Timeout,
		budget:     p.Budget,
		hedgeDelay: p.Hedge.Delay, hedgeQuantile: p.Hedge.Quantile, hedges: cmp.Or(p.Hedge.Max, 1),
		chainStop: p.ChainStop, dryRun: p.DryRun,
	}
	if r.max == 0 {
		r.max = max(int64(time.Second), r.base)
	}
	if r.max < r.base {
		return nil, fmt.Errorf("backoff.max = %v, want at least backoff.base, which is %v",
			time.Duration(r.max), time.Duration(r.base))
	}
	list := p.Codes
	if list == nil {
		list = []codes.Code{codes.Unavailable}
	}
	for _, c := range list {
		if c == codes.OK || c == codes.Canceled || c >= codes.Code(len(codeNames)) {
			return nil, fmt.Errorf("codes has %v, want codes other than OK and CANCELLED, up to %d", c, len(codeNames)-1)
		}
		r.codes |= 1 << c
	}
	r.plain = r.attemptTimeout == 0 && r.timeout == 0 && !r.hedging() && !r.chainStop
	return r, nil
}

// resolve validates c and returns the rules for everything and for the methods it names, all with a budget.
func (c *Config) resolve(fallback *Budget) (all *rules, methods map[string]*rules, err error) {
	if all, err = c.Policy.resolve(); err != nil {
		return nil, nil, fmt.Errorf("retry: %w", err)
	}
	all.budget = cmp.Or(all.budget, fallback)
	methods = make(map[string]*rules, len(c.Methods))
	for _, key := range slices.Sorted(maps.Keys(c.Methods)) {
		p := c.Methods[key]
		r, err := p.resolve()
		if err != nil {
			return nil, nil, fmt.Errorf("retry: methods[%q].%w", key, err)
		}
		r.budget = cmp.Or(r.budget, all.budget)
		methods[key] = r
	}
	return all, methods, nil
}
