package breaker

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/outcome"
)

// callOption is a call's own wish. gRPC passes it along and ignores it.
type callOption struct {
	grpc.EmptyCallOption
	bypass   bool
	key      string
	fallback Fallback
	override *override
}

// Bypass lets this call pass the breakers, neither counted nor turned away.
func Bypass() grpc.CallOption { return &callOption{bypass: true} }

// WithKey gives this call, and all others with the same key, target and policy, a breaker of their own, whatever
// the policy's Key says: for a shard, say. An empty key changes nothing. Keys count toward Config.MaxBreakers.
func WithKey(key string) grpc.CallOption { return &callOption{key: key} }

// WithFallback answers this call, if it is unary, by f instead of the policy's Fallback. A nil f changes nothing.
func WithFallback(f Fallback) grpc.CallOption { return &callOption{fallback: f} }

// Override is what a single call may have different from its [Policy]: all that is decided for each call by itself. Its
// zero fields change nothing.
//
// When a breaker opens and how it comes back, its window, limits, OpenFor, Probes and Ramp, is not in it. Those belong
// to the breaker, which one call shares with others that did not ask for anything: give calls that need other limits
// a policy of their own in Config.Methods, and calls that need another breaker a [WithKey].
type Override struct {
	// DryRun lets the call through, whatever the breaker says, which is reported. It has no Timeout then, and no
	// Fallback is asked.
	DryRun bool
	// Classifier names what a failure of this call is, as in Policy.
	Classifier string
	// SlowCall is how long this call may take before it is slow, if it is unary and the policy has a SlowCall; -1: it
	// never is.
	SlowCall time.Duration
	// ProbeTimeout is how long the call may take if it is a probe.
	ProbeTimeout time.Duration
	// MaxConcurrent turns this call away when as many are in flight, so that a smaller number than the policy's keeps
	// room for calls that matter more; -1: it is let through with any number.
	MaxConcurrent int
	// Timeout ends the call, if it is unary; -1: it has none.
	Timeout time.Duration
	// FallbackFails has this call count as failed although a fallback answered it.
	FallbackFails bool
}

// override is a validated Override.
type override struct {
	Override
	classify outcome.Classifier // nil: the policy's
}

// WithOverride has o hold for one call. Where several are given, the last one holds. It panics if o is not valid, being a
// programmer's error, and does nothing on a connection without breakers. Making the option validates it, so make
// it once and use it often. It is safe for concurrent use.
func WithOverride(o Override) grpc.CallOption {
	v, err := o.resolve()
	if err != nil {
		panic("breaker: WithOverride: " + err.Error())
	}
	return &callOption{override: v}
}

// resolve validates o.
func (o Override) resolve() (*override, error) {
	for _, f := range []struct {
		name string
		d    time.Duration
		off  bool // -1 is fine
	}{{"slowCall", o.SlowCall, true}, {"probeTimeout", o.ProbeTimeout, false}, {"timeout", o.Timeout, true}} {
		if (f.d < 0 || f.d > maxDuration) && !(f.off && f.d == -1) {
			return nil, fmt.Errorf("%s = %v, want %v to %v", f.name, f.d, time.Duration(1), maxDuration)
		}
	}
	if o.MaxConcurrent < -1 || o.MaxConcurrent > maxCount {
		return nil, fmt.Errorf("maxConcurrent = %d, want -1 to %d", o.MaxConcurrent, maxCount)
	}
	v := &override{Override: o}
	if o.Classifier != "" {
		var err error
		if v.classify, err = outcome.Lookup(o.Classifier); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// with is r as it holds for a call with o.
func (r *rule) with(o *override) *rule {
	own := *r
	own.dry = r.dry || o.DryRun
	own.fallbackFails = r.fallbackFails || o.FallbackFails
	if o.classify != nil {
		own.classify = o.classify
	}
	if o.ProbeTimeout > 0 {
		own.probeTimeout = int64(o.ProbeTimeout)
	}
	if r.slowCall > 0 && o.SlowCall != 0 {
		own.slowCall = int64(o.SlowCall)
		if o.SlowCall < 0 {
			own.slowCall = math.MaxInt64 // it counts as a call that is not slow
		}
		own.setBrief()
	}
	if o.MaxConcurrent != 0 {
		own.maxConcurrent = int64(max(o.MaxConcurrent, 0))
	}
	if o.Timeout != 0 {
		own.timeout = max(o.Timeout, 0)
	}
	return &own
}

// noWishes is what most calls have.
var noWishes callOption

// wishes puts together what opts say; the last one counts.
//
//go:noinline // most calls have no options, and its registers are wanted for them
func wishes(opts []grpc.CallOption) *callOption {
	w := &noWishes
	for _, o := range opts {
		x, ok := o.(*callOption)
		if !ok {
			continue
		}
		if w == &noWishes {
			w = new(callOption)
		}
		w.bypass = w.bypass || x.bypass
		if x.key != "" {
			w.key = x.key
		}
		if x.fallback != nil {
			w.fallback = x.fallback
		}
		if x.override != nil {
			w.override = x.override
		}
	}
	return w
}
