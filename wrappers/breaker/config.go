package breaker

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"time"

	"github.com/evenkeel/evenkeel/internal/scope"
	"github.com/evenkeel/evenkeel/outcome"
)

// Key says which calls share a breaker. Whatever it is, calls of different targets (of two ClientConns, say) and
// calls under different policies never do. In JSON it is "method", "service" or "target".
type Key uint8

const (
	// Method: each method has a breaker of its own. It is the zero value.
	Method Key = iota
	// Service: the methods of a gRPC service share one.
	Service
	// Target: all calls of a ClientConn share one; on a server, all calls to it.
	Target
)

// keyNames are the keys' names, in their order.
var keyNames = [...]string{"method", "service", "target"}

// String returns the key's name.
func (k Key) String() string {
	if int(k) < len(keyNames) {
		return keyNames[k]
	}
	return fmt.Sprintf("key(%d)", uint8(k))
}

// Fallback answers a call that the breaker turned away or that failed: it fills reply, the message that the caller
// gets, and returns nil. Or it returns an error, err itself or another, which the caller gets instead. err is an
// [*Error] if the call was turned away, else what it ended with.
//
// It runs on the caller's goroutine after the call was reported, without a lock, and may take its time, but ctx
// may be over. Calls that it makes with ctx pass the breakers as any other and get no fallback of their own, so it
// may ask the same service again. It must be safe for concurrent use.
type Fallback func(ctx context.Context, method string, req, reply any, err error) error

// Policy says when a breaker opens and how it comes back. Its zero value is sane: see each field. It is a value,
// to be read from JSON (durations are texts such as "5s"; Fallback is not in it) or written in Go.
type Policy struct {
	// Disabled lets calls pass, neither counted nor turned away.
	Disabled bool
	// DryRun decides, counts and reports, and lets everything through: nothing is turned away, no Timeout set, no
	// Fallback called.
	DryRun bool
	// Key says which calls share a breaker; the zero value is [Method].
	Key Key

	// ConsecutiveFailures is how many failures in a row open it; 0 means 10, -1 switches the criterion off. A run
	// of UNKNOWN and INTERNAL counts only if also half of Window failed.
	ConsecutiveFailures int
	// FailureRatio is the share of failures in Window that opens it, above 0 up to 1; 0 means 0.5, -1 switches the
	// criterion off.
	FailureRatio float64
	// MinCalls is how many calls must have counted in Window before FailureRatio and SlowRatio mean anything; 0
	// means 20.
	MinCalls int
	// Window is how long a call counts, from 1 ms up; 0 means 10 s.
	Window time.Duration
	// BucketPeriod is the step by which Window moves, at least a hundredth of it; 0 means a tenth.
	BucketPeriod time.Duration
	// Classifier names what a failure is: a classifier registered with [outcome.Register]. Empty means
	// [outcome.Default].
	Classifier string

	// SlowCall is how long a unary call may take before it is slow; 0 means that none is. Streams are never slow.
	SlowCall time.Duration
	// SlowRatio is the share of slow calls in Window that opens it, above 0 up to 1; 0 means 0.5.
	SlowRatio float64

	// OpenFor is how long it stays open before it lets probes through; 0 means 5 s.
	OpenFor time.Duration
	// Probes is how many calls a half-open breaker lets through, and all have to succeed; 0 means 1.
	Probes int
	// ProbeTimeout is how long a probe may take before it counts as failed, whatever becomes of it; 0 means 5 s. A
	// stream has passed with the first message that the service sends.
	ProbeTimeout time.Duration
	// Ramp is how long it takes, once the probes succeeded, until all calls are let through again; 0 means 10 s.
	Ramp time.Duration
	// RampFrom is the share that is let through at the beginning of Ramp, above 0 up to 1; 0 means 0.1.
	RampFrom float64
	// NoRamp lets all calls through as soon as the probes succeeded.
	NoRamp bool

	// MaxConcurrent is how many calls, streams among them, may be in flight at once; 0 means any number. Calls that only
	// DryRun lets through are not among them, so that it foretells what would be turned away.
	MaxConcurrent int
	// Timeout ends a unary call, if its own deadline is later; 0 means never. It counts as a failure however short it
	// is, unless the caller's own deadline was too short to mean anything (see package outcome).
	Timeout time.Duration

	// Fallback answers unary calls that were turned away or failed; nil means that they end with their error.
	Fallback Fallback
	// FallbackFails has a call that Fallback answered still count as failed for everybody upstream: it ends with a
	// [*FallbackError] that holds the reply. See [AcceptFallback].
	FallbackFails bool
}

// Config is what [New] and [Breakers.Update] take: the policy for all methods, others for some, and what concerns
// all breakers together. Its zero value has the default policy for every method.
type Config struct {
	Policy
	// Methods are policies by "/pkg.Service/Method", "/pkg.Service/*" or "*", which replaces Policy; the most
	// exact counts, and it counts as a whole: its zero fields mean the defaults, not what Policy says. Health
	// checks and reflection pass without a breaker unless they are named here.
	Methods map[string]Policy
	// MaxBreakers bounds the number of breakers, from 1 to 10,000; 0 means 1,000. When a call would need one more,
	// the closed one that was idle for longest makes room, and if all are in use or not closed the call passes
	// without a breaker.
	MaxBreakers int
	// IdleAfter is how long a breaker must be of no use to be removed; 0 means 10 min.
	IdleAfter time.Duration
	// OnStateChange is told of every change, one at a time and in order, outside all locks; nil means nobody. It
	// may make calls. It runs on the goroutine of a call, which waits for it.
	OnStateChange func(StateChange)
	// OnReject is told of every call that was turned away, or would have been but for DryRun, outside all locks,
	// by several goroutines at once; nil means nobody. The call waits for it.
	OnReject func(*Error)
}

const (
	maxDuration    = 365 * 24 * time.Hour // so that sums do not overflow
	maxCount       = 1_000_000
	maxBuckets     = 100 // gobreaker walks over all of them when the window moves
	maxBreakersMax = 10_000
)

// spec is the part of a policy that gobreaker takes when a breaker is made and never again.
type spec struct {
	window, period, openFor time.Duration
	probes                  uint32
}

// rule is a validated Policy with its defaults filled in; immutable.
type rule struct {
	spec
	limits
	version       uint64 // of the configuration it is from; a larger one is newer
	scope         uint32 // which entry of the configuration it is, the same after every Update
	scopeText     string
	disabled, dry bool
	key           Key
	classify      outcome.Classifier
	slowCall      int64
	brief         int64 // a shorter call is neither slow, nor long enough to matter when in its life it counts
	probeTimeout  int64
	ramp          int64
	rampFrom      float64
	maxConcurrent int64
	timeout       time.Duration
	fallback      Fallback
	fallbackFails bool
}

// checkRanges says which field of p is out of its range.
func (p *Policy) checkRanges() error {
	for _, f := range []struct {
		name string
		d    time.Duration
		min  time.Duration
	}{{"window", p.Window, time.Millisecond}, {"bucketPeriod", p.BucketPeriod, 1}, {"slowCall", p.SlowCall, 1},
		{"openFor", p.OpenFor, 1}, {"probeTimeout", p.ProbeTimeout, 1}, {"ramp", p.Ramp, 1}, {"timeout", p.Timeout, 1}} {
		if f.d != 0 && (f.d < f.min || f.d > maxDuration) {
			return fmt.Errorf("%s = %v, want %v to %v", f.name, f.d, f.min, maxDuration)
		}
	}
	for _, f := range []struct {
		name   string
		n, min int
	}{{"consecutiveFailures", p.ConsecutiveFailures, -1}, {"minCalls", p.MinCalls, 0}, {"probes", p.Probes, 0},
		{"maxConcurrent", p.MaxConcurrent, 0}} {
		if f.n < f.min || f.n > maxCount {
			return fmt.Errorf("%s = %d, want %d to %d", f.name, f.n, f.min, maxCount)
		}
	}
	for _, f := range []struct {
		name string
		x    float64
		off  bool
	}{{"failureRatio", p.FailureRatio, p.FailureRatio == -1}, {"slowRatio", p.SlowRatio, false},
		{"rampFrom", p.RampFrom, false}} {
		if !f.off && (math.IsNaN(f.x) || f.x < 0 || f.x > 1) {
			return fmt.Errorf("%s = %v, want above 0 up to 1", f.name, f.x)
		}
	}
	if int(p.Key) >= len(keyNames) {
		return fmt.Errorf("key = %v, want one of %q", p.Key, keyNames)
	}
	return nil
}

// resolve validates p and fills in the defaults.
func (p *Policy) resolve() (*rule, error) {
	if err := p.checkRanges(); err != nil {
		return nil, err
	}
	r := &rule{
		spec: spec{
			window:  cmp.Or(p.Window, 10*time.Second),
			openFor: cmp.Or(p.OpenFor, 5*time.Second),
			probes:  uint32(cmp.Or(p.Probes, 1)),
		},
		limits: limits{
			run:       uint32(max(cmp.Or(p.ConsecutiveFailures, 10), 0)),
			ratio:     max(cmp.Or(p.FailureRatio, 0.5), 0),
			minCalls:  uint32(cmp.Or(p.MinCalls, 20)),
			slowRatio: cmp.Or(p.SlowRatio, 0.5),
		},
		disabled: p.Disabled, dry: p.DryRun, key: p.Key,
		slowCall:      int64(p.SlowCall),
		probeTimeout:  int64(cmp.Or(p.ProbeTimeout, 5*time.Second)),
		ramp:          int64(cmp.Or(p.Ramp, 10*time.Second)),
		rampFrom:      cmp.Or(p.RampFrom, 0.1),
		maxConcurrent: int64(p.MaxConcurrent),
		timeout:       p.Timeout,
		fallback:      p.Fallback, fallbackFails: p.FallbackFails,
	}
	r.period = cmp.Or(p.BucketPeriod, r.window/10)
	if r.period > r.window || (r.window+r.period-1)/r.period > maxBuckets {
		return nil, fmt.Errorf("bucketPeriod = %v, want %v to %v, which are window/%d and window",
			r.period, r.window/maxBuckets, r.window, maxBuckets)
	}
	if p.NoRamp {
		r.ramp = 0
	}
	r.setBrief()
	var err error
	if r.classify, err = outcome.Lookup(p.Classifier); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *rule) setBrief() {
	r.brief = int64(r.period)
	if r.slowCall > 0 {
		r.brief = min(r.brief, r.slowCall)
	}
}

// rules is a validated Config, immutable but for the notes in routes.
type rules struct {
	routes        routes
	version       uint64
	table         *scope.Table[*rule]
	byScope       map[uint32]*rule
	maxBreakers   int
	idleAfter     int64
	onStateChange func(StateChange)
	onReject      func(*Error)
}

// resolve validates c. ids gives each entry of Methods its number; 0 is Policy's.
func (c *Config) resolve(version uint64, ids func(string) uint32) (*rules, error) {
	if c.MaxBreakers < 0 || c.MaxBreakers > maxBreakersMax {
		return nil, fmt.Errorf("breaker: maxBreakers = %d, want 1 to %d", c.MaxBreakers, maxBreakersMax)
	}
	if c.IdleAfter < 0 || c.IdleAfter > maxDuration {
		return nil, fmt.Errorf("breaker: idleAfter = %v, want 1ns to %v", c.IdleAfter, maxDuration)
	}
	all, err := c.Policy.resolve()
	if err != nil {
		return nil, fmt.Errorf("breaker: %w", err)
	}
	rs := &rules{
		version:       version,
		byScope:       map[uint32]*rule{0: all},
		maxBreakers:   cmp.Or(c.MaxBreakers, 1000),
		idleAfter:     int64(cmp.Or(c.IdleAfter, 10*time.Minute)),
		onStateChange: c.OnStateChange,
		onReject:      c.OnReject,
	}
	all.version = version
	methods := make(map[string]*rule, len(c.Methods))
	for key, p := range c.Methods {
		r, err := p.resolve()
		if err != nil {
			return nil, fmt.Errorf("breaker: methods[%q].%w", key, err)
		}
		methods[key] = r
	}
	if rs.table, err = scope.New(all, methods); err != nil {
		return nil, fmt.Errorf("breaker: methods: %w", err)
	}
	for key, r := range methods { // numbers are given out for good, so only once all of c is right
		r.version, r.scope, r.scopeText = version, ids(key), key
		rs.byScope[r.scope] = r
	}
	return rs, nil
}
