package balancer

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/registry"
)

// EventKind is what an [Event] is about.
type EventKind uint8

const (
	// Ejected: an endpoint was taken out for Event.For.
	Ejected EventKind = iota + 1
	// Returned: an endpoint is back in full service.
	Returned
	// Published: a new picker is in force, over Event.Instances endpoints.
	Published
	// WouldEject: an endpoint would have been ejected for Event.For, but for Outliers.DryRun.
	WouldEject
)

// String returns the kind's name in lower case.
func (k EventKind) String() string {
	switch k {
	case Ejected:
		return "ejected"
	case Returned:
		return "returned"
	case Published:
		return "published"
	case WouldEject:
		return "would eject"
	}
	return "unknown"
}

// Event is something that a policy decided.
type Event struct {
	Kind      EventKind
	Target    string        // the channel's target, such as lb:///orders
	Service   string        // the service's name in the registry
	ID, Addr  string        // of the instance; empty for Published
	Reason    string        // of an ejection or return
	For       time.Duration // how long an ejection is to last
	Ejections int           // how many ejections the endpoint's next one builds on
	Instances int           // how many are known, for Published
}

// observers are the functions that Observe was called with.
var observers struct {
	sync.RWMutex
	next int
	fns  map[int]func(Event)
}

// observed is whether there are any, for those who would make an event for nobody.
var observed atomic.Bool

// Observe calls f for every event of every policy in the process, until stop is called. f is called outside all
// locks, on a goroutine of the policy's: one policy's events come one at a time and in order, those of several
// policies concurrently. A channel's Close waits for an f that is running, so f must not close the channel. Ejections
// and returns, also those of a dry run, are logged with [log/slog] whether they are observed or not. Nothing is delivered after stop has
// returned, unless f was about to be called already.
func Observe(f func(Event)) (stop func()) {
	observers.Lock()
	defer observers.Unlock()
	if observers.fns == nil {
		observers.fns = make(map[int]func(Event))
	}
	id := observers.next
	observers.next++
	observers.fns[id] = f
	observed.Store(true)
	return func() {
		observers.Lock()
		defer observers.Unlock()
		delete(observers.fns, id)
		observed.Store(len(observers.fns) > 0)
	}
}

// tell queues an event for a goroutine that holds no lock, and starts it if it does not run; mu is held.
func (p *policy) tell(e Event) {
	e.Target, e.Service = p.opts.Target.String(), p.service
	p.events = append(p.events, e)
	if len(p.events) == 1 && !p.telling {
		p.telling = true
		p.after(0, p.deliverEvents)
	}
}

func (p *policy) deliverEvents() {
	for {
		p.mu.Lock()
		events := p.events
		p.events = nil
		p.telling = len(events) > 0
		p.mu.Unlock()
		if len(events) == 0 {
			return
		}
		for _, e := range events {
			e.log()
			for _, f := range observerFuncs() {
				f(e)
			}
		}
	}
}

func observerFuncs() []func(Event) {
	observers.RLock()
	defer observers.RUnlock()
	fns := make([]func(Event), 0, len(observers.fns))
	for _, f := range observers.fns {
		fns = append(fns, f)
	}
	return fns
}

func (e Event) log() {
	switch e.Kind {
	case Ejected:
		slog.Warn("evenkeel: instance blacklisted", "service", e.Service, "instance", e.ID, "addr", e.Addr,
			"for", e.For.Round(time.Millisecond), "ejections", e.Ejections, "reason", e.Reason)
	case WouldEject:
		slog.Warn("evenkeel: instance would be blacklisted (dry run)", "service", e.Service, "instance", e.ID,
			"addr", e.Addr, "for", e.For.Round(time.Millisecond), "reason", e.Reason)
	case Returned:
		slog.Info("evenkeel: instance back from the blacklist", "service", e.Service, "instance", e.ID, "addr", e.Addr,
			"reason", e.Reason)
	}
}

// ChannelState is what one live policy knows and has counted.
type ChannelState struct {
	Target    string // the channel's target, such as lb:///orders
	Service   string
	State     connectivity.State
	Strategy  string // its name in JSON
	Filter    string // canonical; empty means every instance
	Require   string
	Leaving   float64 // the part of the calls without a filter of their own that leaves the zone, if one is preferred
	Filters   int     // how many filters candidate sets are kept for
	Endpoints []EndpointState
	Counters  Counters
}

// Counters count since the policy was built.
type Counters struct {
	Publications uint64 // pickers made
	Ejections    uint64
	Returns      uint64
	WouldEject   uint64 // ejections that Outliers.DryRun has spared
}

// EndpointState is what is known about one endpoint.
type EndpointState struct {
	Instance  registry.Instance
	State     connectivity.State
	Err       error         // why it is in TRANSIENT_FAILURE
	InFlight  int64         // calls and streams under way
	Calls     uint64        // begun, discarded picks included
	Failures  uint64        // ended with an outcome.Failure
	Share     float64       // of its calls that it gets, 1 for all; less in its slow start, if it is slow or if it is kept in
	Load      float64       // the strategy's own figure, 0 if it has none; peak_ewma: expected latency in ns
	Ejected   bool          // blacklisted
	Kept      bool          // blacklisted or on probation, and yet in service: too few of the config's filter are left
	Probing   bool          // back on probation, one call at a time
	Remaining time.Duration // until the ejection ends
	Ejections int           // how many the next one builds on

	// For strategies that probe how busy instances are (keel, prequal).
	Probes     uint64 // that it answered with figures, in time or up to a second late
	Unanswered uint64 // that it did not answer in time, or with an error
	Mute       bool   // it gets none over this connection, since it does not know of them; or turned one away, and none for 1 min
}

// loader is implemented by a strategy that has a figure of its own for an endpoint's load.
type loader interface {
	Load(e *Endpoint, now int64) float64
}

// Channels returns the state of every live policy in the process, by target. It is meant for people and monitoring:
// it takes each policy's lock in turn and costs time and memory in proportion to the endpoints.
func Channels() []ChannelState {
	var all []ChannelState
	for _, p := range live.list() {
		all = append(all, p.describe())
	}
	slices.SortStableFunc(all, func(a, b ChannelState) int { return cmp.Compare(a.Target, b.Target) })
	return all
}

func (p *policy) describe() ChannelState {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := ChannelState{
		Target: p.opts.Target.String(), Service: p.service, State: p.aggregate(),
		Strategy: p.settings.strategy.Name(), Filter: p.settings.filter.String(), Require: p.settings.require.String(),
		Filters: len(p.routes), Counters: p.counts,
	}
	if p.byConfig.set != nil && p.byConfig.set.zones != nil {
		s.Leaving = p.byConfig.spill.fraction
	}
	now := p.clock.Now()
	figure, _ := p.settings.strategy.(loader)
	kept := func(e *Endpoint) bool {
		if p.byConfig.set == nil {
			return false
		}
		_, in := p.byConfig.set.kept[e]
		return in && e.phase() != healthy
	}
	for _, e := range p.known {
		es := EndpointState{
			Instance: e.Instance().Clone(), State: e.child.state, Err: e.child.err,
			InFlight: e.InFlight(), Share: float64(e.part()) / fullShare, Calls: e.started.Load(), Failures: e.failures.Load(),
			Kept: kept(e), Ejected: e.phase() == ejected, Probing: e.phase() == probing, Ejections: e.sentence.level,
			Probes: e.counted().answered.Load(), Unanswered: e.counted().unanswered.Load(), Mute: e.mute(now),
		}
		if es.Ejected {
			es.Remaining = nanoseconds(max(0, e.sentence.until-now))
		}
		if figure != nil {
			es.Load = figure.Load(e, now)
		}
		s.Endpoints = append(s.Endpoints, es)
	}
	return s
}

// live are the policies that are not closed.
var live = registryOfPolicies{m: make(map[*policy]struct{})}

type registryOfPolicies struct {
	mu sync.Mutex
	m  map[*policy]struct{}
}

func (l *registryOfPolicies) add(p *policy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m[p] = struct{}{}
}

func (l *registryOfPolicies) remove(p *policy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, p)
}

func (l *registryOfPolicies) list() []*policy {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*policy, 0, len(l.m))
	for p := range l.m {
		all = append(all, p)
	}
	return all
}
