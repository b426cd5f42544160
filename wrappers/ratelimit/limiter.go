package ratelimit

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/scope"
)

// Limiter limits calls. Make it with [New] and hand its interceptors to a client or a server; those of one Limiter
// share its buckets, so that unary calls and streams count together. It starts no goroutine and needs no closing.
// It is safe for concurrent use.
type Limiter struct {
	clock    clock.Clock
	rand     func() uint64
	settings atomic.Pointer[settings]
	updating sync.Mutex // held while settings are replaced; calls never take it
}

// settings are a validated Config and the state that belongs to it. They are immutable, the state is not.
type settings struct {
	Config
	table  *scope.Table[*entry]
	scopes map[string]*entry
}

// entry is a policy and its state. Entries with the same scope before and after an Update share what still fits.
type entry struct {
	scope string
	resolved
	one    *bucket  // of all callers; nil if there are many, or no limit of rate
	many   *buckets // by method or caller
	gate   *gate    // nil if there is no adaptive limit
	counts *counters
}

// counters count what happened in a scope since the Limiter was made.
type counters struct {
	admitted, waited atomic.Uint64
	waiting          atomic.Int64
	refused          [reasons]atomic.Uint64
}

// New makes a Limiter. The error names the field, what it got and what it wants.
func New(c Config) (*Limiter, error) {
	l := &Limiter{clock: clock.New(), rand: clock.Rand}
	if err := l.Update(c); err != nil {
		return nil, err
	}
	return l, nil
}

// Update replaces the whole configuration, functions included, while calls run: the next call is judged by it.
// Buckets keep what is in them where the policy for the same methods still has them ("*" is the scope of
// Config.Policy) and splits callers in the same way; a bucket whose burst shrinks loses what does not fit. So do
// adaptive limits and counters. Calls that already wait go on when they were told. On an error nothing has
// changed. Its cost is linear in the number of buckets.
func (l *Limiter) Update(c Config) error {
	policies, err := c.resolve()
	if err != nil {
		return err
	}
	l.updating.Lock()
	defer l.updating.Unlock()
	c.Methods = maps.Clone(c.Methods)
	s := &settings{Config: c, scopes: make(map[string]*entry, len(policies))}
	var old map[string]*entry
	if before := l.settings.Load(); before != nil {
		old = before.scopes
	}
	now := l.clock.Now()
	for name, p := range policies {
		s.scopes[name] = newEntry(name, p, old[name], now, l.rand)
	}
	if s.table, err = scope.New(s.scopes[everywhere], s.scopes); err != nil {
		return fmt.Errorf("ratelimit: methods: %w", err)
	}
	l.settings.Store(s)
	return nil
}

// newEntry makes an entry of p, with what still fits of old, which may be nil.
func newEntry(name string, p resolved, old *entry, now int64, rand func() uint64) *entry {
	e := &entry{scope: name, resolved: p, counts: new(counters)}
	fits := false
	if old != nil {
		e.counts = old.counts
		fits = old.Rate > 0 && old.key == p.key && old.metadata == p.metadata && old.PerMethod == p.PerMethod
		if old.gate != nil && p.Adaptive.Enabled {
			e.gate = old.gate
			e.gate.change(p.adaptive)
		}
	}
	if p.Adaptive.Enabled && e.gate == nil {
		e.gate = newGate(p.adaptive, rand)
	}
	switch split := p.key != noKey || p.PerMethod; {
	case p.Rate == 0:
	case fits && split:
		e.many = old.many
		e.many.change(now, p)
	case fits:
		e.one = old.one
		e.one.change(now, p.Rate, p.Burst)
	case split:
		e.many = newBuckets(p)
	default:
		e.one = newBucket(p.Rate, p.Burst)
	}
	return e
}

// idle reports whether e limits nothing.
func (e *entry) idle() bool { return e.Rate == 0 && e.gate == nil }

// bucket is the bucket of k.
func (e *entry) bucket(now int64, k *id) *bucket {
	if e.one != nil {
		return e.one
	}
	return e.many.get(now, *k)
}

// patience is how long a call may wait for its tokens that has remaining until its deadline, negative if it has
// none.
func (r *resolved) patience(hasDeadline bool, remaining time.Duration) time.Duration {
	limit := time.Duration(math.MaxInt64)
	if r.MaxWait > 0 {
		limit = r.MaxWait
	} else if !hasDeadline {
		limit = waitWithout
	}
	if hasDeadline {
		limit = min(limit, remaining)
	}
	return limit
}

// Reason says why a call was refused.
type Reason uint8

const (
	// Rate: the caller's bucket did not hold enough tokens, or would not before the deadline.
	Rate Reason = iota
	// Cost: the call costs more than a full bucket holds, so that it can never pass.
	Cost
	// Concurrency: the server works on as many calls as it can.
	Concurrency
	// Deadline: the call is expected to take longer than its deadline leaves it.
	Deadline

	reasons = iota
)

// String returns the reason's name in lower case.
func (r Reason) String() string {
	if int(r) < reasons {
		return [reasons]string{"rate", "cost", "concurrency", "deadline"}[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Event is a refusal. In a dry run it is one that would have been.
type Event struct {
	Method string // full name, "/pkg.Service/Method"
	Scope  string // the policy that refused: a key of Config.Methods, "*" for Config.Policy
	Caller string // who called, if the policy has a Key
	Reason Reason
	Cost   int // how many tokens the call, or the message, asked for; 0 without a limit of rate
	// RetryIn is when it makes sense to try again, as told to the caller; negative means that it does not.
	RetryIn time.Duration
	// Message says that it was a message of a stream that had begun before.
	Message bool
	DryRun  bool
}

// State is what a Limiter is doing. It is a copy.
type State struct {
	DryRun bool
	Scopes []ScopeState // "*" and those of Config.Methods, by name
}

// ScopeState is the state of one policy. Counters count calls since New, whatever Updates came between, while
// the policy limited anything. In a dry run
// every call is Admitted, and Refused counts those that would not have been.
type ScopeState struct {
	Scope    string
	Policy   Policy  // with the defaults filled in, but for Adaptive
	Tokens   float64 // in the bucket, if the policy has a single one; negative while calls wait
	Callers  int     // how many buckets there are, if the policy has several
	Overflow uint64  // how many calls were counted in the bucket that is shared when there are MaxKeys others
	Admitted uint64
	Waited   uint64 // how many of them had to wait
	Waiting  int    // how many calls wait now
	Refused  Refusals
	// Concurrency is the adaptive limit, nil if there is none.
	Concurrency *ConcurrencyState
}

// Refusals counts refusals by their reason.
type Refusals struct{ Rate, Cost, Concurrency, Deadline uint64 }

// State returns what l is doing, for people and metrics. It takes the locks that calls take, for a moment each.
func (l *Limiter) State() State {
	s := l.settings.Load()
	now := l.clock.Now()
	out := State{DryRun: s.DryRun}
	for _, e := range s.scopes {
		c := e.counts
		st := ScopeState{
			Scope: e.scope, Policy: e.Policy,
			Admitted: c.admitted.Load(), Waited: c.waited.Load(), Waiting: int(c.waiting.Load()),
			Refused: Refusals{c.refused[Rate].Load(), c.refused[Cost].Load(), c.refused[Concurrency].Load(),
				c.refused[Deadline].Load()},
		}
		if e.one != nil {
			st.Tokens = e.one.tokens(now)
		}
		if e.many != nil {
			st.Callers, st.Overflow = e.many.size()
		}
		if e.gate != nil {
			g := e.gate.state()
			st.Concurrency = &g
		}
		out.Scopes = append(out.Scopes, st)
	}
	slices.SortFunc(out.Scopes, func(a, b ScopeState) int { return cmp.Compare(a.Scope, b.Scope) })
	return out
}
