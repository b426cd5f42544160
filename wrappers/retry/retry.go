package retry

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/scope"
)

// Retrier tries failed calls again as its [Config] says. Its interceptors share one budget and one memory of the
// methods' latencies; a Retrier may serve several connections, best of one backend. Make it with [New]; there is
// nothing to close. It is safe for concurrent use.
type Retrier struct {
	state    atomic.Pointer[state]
	clock    clock.Clock
	rand     func() uint64
	fallback *Budget

	mu        sync.Mutex // guards histories, and orders Updates
	histories map[string]*history
	overflow  *history // of the methods that are too many
}

// New returns a Retrier. The error names the field, what was got and what is wanted.
func New(c Config) (*Retrier, error) { return newRetrier(c, clock.New(), clock.Rand) }

func newRetrier(c Config, clk clock.Clock, rand func() uint64) (*Retrier, error) {
	fallback, err := newBudget(defaultPercent, defaultPerSecond, clk)
	if err != nil {
		return nil, err
	}
	r := &Retrier{
		clock: clk, rand: rand, fallback: fallback,
		histories: make(map[string]*history), overflow: newHistory(),
	}
	if err := r.Update(c); err != nil {
		return nil, err
	}
	return r, nil
}

// Update replaces the configuration while calls are running: a call keeps the policy that it began with. What is
// known about the methods stays, and so does the account of a budget whose numbers stay. An error changes nothing.
func (r *Retrier) Update(c Config) error {
	c.Methods = maps.Clone(c.Methods)
	all, methods, err := c.resolve(r.fallback)
	if err != nil {
		return err
	}
	s := &state{config: c}
	if s.table, err = scope.New(all, methods); err != nil {
		return fmt.Errorf("retry: methods: %w", err)
	}
	s.known.Store(&map[string]*method{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.state.Load(); old != nil {
		adopt(c.Policy.Budget, old.config.Policy.Budget)
		for key, p := range c.Methods {
			adopt(p.Budget, old.config.Methods[key].Budget)
		}
	}
	r.state.Store(s)
	return nil
}

func adopt(b, old *Budget) {
	if b != nil && old != nil {
		b.adopt(old)
	}
}

func (r *Retrier) historyOf(name string) *history {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.histories[name]; h != nil {
		return h
	}
	if len(r.histories) >= maxMethods {
		return r.overflow
	}
	h := newHistory()
	r.histories[name] = h
	return h
}

// UnaryClientInterceptor returns the interceptor for unary calls. Among others it belongs after those for tracing and
// rate limiting and before the one for circuit breaking.
func (r *Retrier) UnaryClientInterceptor() grpc.UnaryClientInterceptor { return r.unary() }

// StreamClientInterceptor returns the interceptor for streams: server-streaming calls are tried again until their
// first message was delivered, and client and bidirectional streams until their first message was sent.
func (r *Retrier) StreamClientInterceptor() grpc.StreamClientInterceptor { return r.stream }

// UnaryServerInterceptor returns the function of that name, for those who keep both sides in one place.
func (r *Retrier) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return UnaryServerInterceptor()
}

// StreamServerInterceptor returns the function of that name.
func (r *Retrier) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return StreamServerInterceptor()
}

// UnaryClientInterceptor is short for a [Retrier] with one policy that only this interceptor uses. It panics on an
// invalid policy; use [New] for one that comes from elsewhere, or to share a budget with streams.
func UnaryClientInterceptor(p Policy) grpc.UnaryClientInterceptor {
	return must(p).UnaryClientInterceptor()
}

// StreamClientInterceptor is short for a [Retrier] with one policy that only this interceptor uses. It panics on an
// invalid policy.
func StreamClientInterceptor(p Policy) grpc.StreamClientInterceptor {
	return must(p).StreamClientInterceptor()
}

func must(p Policy) *Retrier {
	r, err := New(Config{Policy: p})
	if err != nil {
		panic(err)
	}
	return r
}

// policyOption carries a policy to the interceptor; grpc itself ignores it.
type policyOption struct {
	grpc.EmptyCallOption
	rules *rules
}

// WithPolicy is a call option that replaces the policy for one call, also for methods that are exempt. Without a
// Budget of its own the call uses the method's. It panics on an invalid policy. Making the option validates the
// policy, so make it once and use it often. Without a Retrier on the connection it does nothing.
func WithPolicy(p Policy) grpc.CallOption {
	rules, err := p.resolve()
	if err != nil {
		panic("retry: WithPolicy: " + err.Error())
	}
	return policyOption{rules: rules}
}

// State is what a [Retrier] has done and knows, for people and metrics. It is a snapshot that nobody changes.
type State struct {
	// Balance is how many retries the Config's budget would pay for now.
	Balance float64
	// Methods are the methods that were called, by name.
	Methods []MethodState
}

// MethodState is what a [Retrier] has done and knows about one method. Counts are since the Retrier was made.
type MethodState struct {
	// Method is the full name; it is empty for the sum of those beyond 4,096.
	Method string
	// Calls were made, of which each had one first attempt; Retries and Hedges are further attempts.
	Calls, Retries, Hedges int64
	// HedgesWon are calls that a hedge decided.
	HedgesWon int64
	// GaveUp are calls that failed though they were tried again or should have been.
	GaveUp int64
	// Refused are retries and hedges that the budget refused.
	Refused int64
	// Idempotent: the method is declared so, by its descriptor or by the policy.
	Idempotent bool
	// Median is the median latency of first attempts, 0 if too few were measured lately.
	Median time.Duration
	// HedgeDelay is when a hedge would be sent, 0 for never.
	HedgeDelay time.Duration
}

// State returns what the Retrier has done and knows.
func (r *Retrier) State() State {
	s := r.state.Load()
	var out State
	if all, _ := s.table.For(""); all != nil {
		out.Balance = all.budget.Balance()
	}
	r.mu.Lock()
	histories := maps.Clone(r.histories)
	r.mu.Unlock()
	if r.overflow.calls.Load() > 0 {
		histories[""] = r.overflow
	}
	now := r.clock.Now()
	for name, h := range histories {
		rules, _ := s.table.For(name)
		m := MethodState{
			Method: name, Calls: h.calls.Load(), Retries: h.retries.Load(), Hedges: h.hedges.Load(),
			HedgesWon: h.hedgesWon.Load(), GaveUp: h.gaveUp.Load(), Refused: h.refused.Load(),
			Idempotent: rules.idempotent || declared(name), Median: time.Duration(h.typical(now)),
		}
		if rules.hedging() && m.Idempotent {
			m.HedgeDelay = h.hedgeDelay(rules, now)
		}
		out.Methods = append(out.Methods, m)
	}
	slices.SortFunc(out.Methods, func(a, b MethodState) int { return cmp.Compare(a.Method, b.Method) })
	return out
}
