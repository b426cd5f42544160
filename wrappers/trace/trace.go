package trace

import (
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc"
)

// Tracing traces calls. Make it with [New]; its four interceptors share its configuration and its counts. It is safe
// for concurrent use, and has nothing to close: the tracer belongs to whoever made it.
type Tracing struct {
	settings atomic.Pointer[settings]
	counts   [2]counts // by Side
	lost     atomic.Uint64
}

type counts struct{ started, attempts, ended atomic.Uint64 }

// New makes a Tracing. An error names the field, what it is and what is wanted.
func New(c Config) (*Tracing, error) {
	t := new(Tracing)
	if err := t.Update(c); err != nil {
		return nil, err
	}
	return t, nil
}

// Update replaces the configuration as a whole, while calls run: those that have started end under the one they
// started with. If it returns an error, nothing has changed.
func (t *Tracing) Update(c Config) error {
	s, err := c.settings()
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	t.settings.Store(s)
	return nil
}

// Counts are numbers of spans since the [Tracing] was made. Spans that are not sampled are not counted.
type Counts struct {
	Started  uint64 // all of them
	Attempts uint64 // those of Started that are for an attempt
	Open     uint64 // those of Started that have not ended
}

// State is what there is to know about a [Tracing] from outside.
type State struct {
	Client, Server Counts
	// Lost is how often the tracer could not put a context into the metadata or, other than by its absence, take it
	// out. A trace is in two pieces there.
	Lost uint64
}

// State returns the counts. Those of one side are read one after another, so under load they may be off by the calls
// that start or end meanwhile.
func (t *Tracing) State() State {
	return State{Client: t.counts[Client].read(), Server: t.counts[Server].read(), Lost: t.lost.Load()}
}

func (c *counts) read() Counts {
	ended := c.ended.Load() // first, so that it is never more than started
	started := c.started.Load()
	return Counts{Started: started, Attempts: c.attempts.Load(), Open: started - ended}
}

// UnaryClientInterceptor traces unary calls. Put it first in the chain.
func (t *Tracing) UnaryClientInterceptor() grpc.UnaryClientInterceptor { return t.unaryClient }

// StreamClientInterceptor traces streams of all kinds. Put it first in the chain.
func (t *Tracing) StreamClientInterceptor() grpc.StreamClientInterceptor { return t.streamClient }

// UnaryServerInterceptor traces the handlers of unary calls. Put it first in the chain.
func (t *Tracing) UnaryServerInterceptor() grpc.UnaryServerInterceptor { return t.unaryServer }

// StreamServerInterceptor traces the handlers of streams. Put it first in the chain.
func (t *Tracing) StreamServerInterceptor() grpc.StreamServerInterceptor { return t.streamServer }

// UnaryClientInterceptor traces unary calls under p with the global tracer. It is shorthand for a [Tracing] of its
// own, and panics if p is not valid.
func UnaryClientInterceptor(p Policy) grpc.UnaryClientInterceptor {
	return must(p).UnaryClientInterceptor()
}

// StreamClientInterceptor traces streams under p with the global tracer. It is shorthand for a [Tracing] of its own,
// and panics if p is not valid.
func StreamClientInterceptor(p Policy) grpc.StreamClientInterceptor {
	return must(p).StreamClientInterceptor()
}

// UnaryServerInterceptor traces the handlers of unary calls under p with the global tracer. It is shorthand for a
// [Tracing] of its own, and panics if p is not valid.
func UnaryServerInterceptor(p Policy) grpc.UnaryServerInterceptor {
	return must(p).UnaryServerInterceptor()
}

// StreamServerInterceptor traces the handlers of streams under p with the global tracer. It is shorthand for a
// [Tracing] of its own, and panics if p is not valid.
func StreamServerInterceptor(p Policy) grpc.StreamServerInterceptor {
	return must(p).StreamServerInterceptor()
}

func must(p Policy) *Tracing {
	t, err := New(Config{Policy: p})
	if err != nil {
		panic(err)
	}
	return t
}

type callPolicy struct {
	grpc.EmptyCallOption
	policy Policy
}

// WithPolicy has p hold for one call, whatever the configuration says, health checks included. It panics if p is not
// valid.
func WithPolicy(p Policy) grpc.CallOption {
	if err := p.validate(); err != nil {
		panic(fmt.Errorf("trace: WithPolicy: %w", err))
	}
	return &callPolicy{policy: p}
}

// policyFor is what holds for a call; on is false if it is not to be traced. The last option counts.
func (s *settings) policyFor(method string, opts []grpc.CallOption) (p Policy, on bool) {
	for i := len(opts) - 1; i >= 0; i-- {
		if o, ok := opts[i].(*callPolicy); ok {
			return o.policy, !o.policy.Disabled
		}
	}
	p, on = s.policies.Applies(method)
	return p, on && !p.Disabled
}
