package balancer

import (
	"fmt"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
)

// candidates is what the calls with one filter choose from, in one snapshot. It is immutable but for used and top.
type candidates struct {
	members  []*Endpoint
	chooser  Chooser
	strategy string // whose chooser it is
	// kept are members although they are blacklisted, because too few would be left without them.
	kept map[*Endpoint]struct{}
	// probes are endpoints back from an ejection that get one call at a time.
	probes []*Endpoint
	// none says why there are no members, if so.
	none *absence
	// plain: there are members, nobody is to be probed, is kept in or has a reduced share, no zone is preferred, the ends
	// of calls can be judged without knowing the calls, and their keys are in their records. measured is the same for a
	// strategy that measures, or if calls are timed, and a zone may be preferred.
	plain, measured bool
	// zones divides the set where the client's zone is preferred; nil if there is nothing to prefer.
	zones *zones
	// limited: some members have a reduced share; then rand and top, the largest share, decide about calls.
	limited bool
	rand    func() uint64
	top     atomic.Uint32
	// used is set by picks and taken back when filters that nobody uses any more are looked for.
	used atomic.Bool
}

// route is a filter in use: which endpoints match it, whatever their state, and the candidates among them. The
// matches change only with the registry, the candidates with every change of a matching endpoint. It is guarded by
// the policy's mutex.
type route struct {
	number uint64 // as an endpoint's
	tiers  []tier
	set    *candidates
	stale  bool
	err    error // the filter is broken
	// Where a zone is preferred: which, which part of the calls leaves it, and what is measured to decide that.
	local   string
	spill   spill
	borders *borders
}

// tier is one alternative of a route: a filter without prefer has a single one.
type tier struct {
	filter  filters.Filter
	matched []*Endpoint
}

func newRoute(require, filter filters.Filter, known []*Endpoint) *route {
	effective := filters.All(require, filter)
	if err := effective.Err(); err != nil {
		return &route{err: err, stale: true}
	}
	r := &route{stale: true}
	for _, f := range effective.Tiers() {
		t := tier{filter: f}
		for _, e := range known {
			if f.Match(e.Instance()) {
				t.matched = append(t.matched, e)
			}
		}
		r.tiers = append(r.tiers, t)
	}
	return r
}

// change is what an update of the registry did to one endpoint: it came (was nil), left (is nil) or got a new record.
type change struct {
	e       *Endpoint
	was, is *registry.Instance
}

// apply brings the matches up to date.
func (r *route) apply(changes []change) {
	for i := range r.tiers {
		t := &r.tiers[i]
		gone := make(map[*Endpoint]struct{})
		for _, c := range changes {
			was := c.was != nil && t.filter.Match(c.was)
			is := c.is != nil && t.filter.Match(c.is)
			r.stale = r.stale || was || is
			switch {
			case was && !is:
				gone[c.e] = struct{}{}
			case is && !was:
				t.matched = append(t.matched, c.e)
			}
		}
		if len(gone) > 0 {
			t.matched = slices.DeleteFunc(t.matched, func(e *Endpoint) bool { _, ok := gone[e]; return ok })
		}
	}
}

// touched marks the route stale if it may concern e.
func (r *route) touched(e *Endpoint) {
	for _, t := range r.tiers {
		if r.stale || t.filter.Match(e.Instance()) {
			r.stale = true
			return
		}
	}
}

// census sorts the matches of a tier by what can be done with them.
type census struct {
	healthy, restricted []*Endpoint
	draining, dying     []*Endpoint // to get no new calls; dying ones are blacklisted as well
	pending             bool        // some are idle or connecting
	connErr             error       // why one has no connection
}

func take(matched []*Endpoint) census {
	c := census{healthy: make([]*Endpoint, 0, len(matched))}
	for _, e := range matched {
		switch {
		case e.subConn() == nil:
			if e.child.state == connectivity.TransientFailure {
				c.connErr = e.child.err
			} else {
				c.pending = true
			}
		case e.Instance().Draining && e.phase() != healthy:
			c.dying = append(c.dying, e)
		case e.Instance().Draining:
			c.draining = append(c.draining, e)
		case e.phase() == healthy:
			c.healthy = append(c.healthy, e)
		default:
			c.restricted = append(c.restricted, e)
		}
	}
	return c
}

// rebuild makes the candidates anew from the state of the matching endpoints, which the policy's mutex holds still.
func (r *route) rebuild(p *policy) {
	previous := r.set
	set := new(candidates)
	r.set, r.stale = set, false
	if r.err != nil {
		set.none = &absence{broken: r.err}
		return
	}
	var c census
	var matched []*Endpoint
	for i, t := range r.tiers {
		matched = t.matched
		c = take(matched)
		if len(c.healthy) > 0 || i == len(r.tiers)-1 {
			break
		}
		// An alternative without a healthy instance is not usable, and is judged before the cap: but one whose
		// time is over is probed, so that the calls can go back to it.
		set.addProbes(c.restricted)
	}
	set.members = c.healthy
	switch n := len(c.healthy) + len(c.restricted); {
	case len(c.healthy) == 0 && len(c.draining) > 0: // the least bad: they answer, and have a moment left
		set.members = c.draining
		set.addProbes(c.restricted)
	case n > 0:
		set.keep(c.restricted, &p.settings.judge, n)
	default:
		set.members = c.dying
	}
	if len(set.members) == 0 {
		last := &r.tiers[len(r.tiers)-1]
		set.none = &absence{filter: last.filter.String(), matched: len(last.matched), pending: c.pending, connErr: c.connErr}
		return
	}
	set.build(p, previous)
	r.divide(p, previous, matched)
	if !set.limited && len(set.probes)+len(set.kept) == 0 && p.settings.keyFrom == "" {
		set.plain, set.measured = p.settings.plain, p.settings.timed // where a zone is preferred, calls are timed
	}
}

// build makes the chooser of a set whose members are complete. previous is the same set before, nil at first.
func (s *candidates) build(p *policy, previous *candidates) {
	env := Env{Members: s.members, Rand: p.rand, Probe: p.prober.probe, now: p.clock.Now}
	s.strategy = p.settings.strategy.Name()
	if previous != nil && previous.strategy == s.strategy {
		env.Previous = previous.chooser
	}
	s.chooser = p.settings.strategy.Build(env)
	if p.reduced > 0 {
		s.limit(p.rand)
	}
}

// keep decides which of the restricted endpoints stay members: those beyond the number that may be out, the least
// bad first. The others are probed, or out.
func (s *candidates) keep(restricted []*Endpoint, j *judge, n int) {
	if excess := len(restricted) - j.allowed(n); excess > 0 {
		slices.SortStableFunc(restricted, worse)
		s.kept = make(map[*Endpoint]struct{}, excess)
		for _, e := range restricted[:excess] {
			s.kept[e] = struct{}{}
			s.members = append(s.members, e)
		}
		restricted = restricted[excess:]
	}
	s.addProbes(restricted)
}

func (s *candidates) addProbes(restricted []*Endpoint) {
	earlier := s.probes // of another alternative, which may have the same endpoints
	for _, e := range restricted {
		if e.phase() == probing && !slices.Contains(earlier, e) {
			s.probes = append(s.probes, e)
		}
	}
}

// absence is why a candidate set has no members.
type absence struct {
	broken  error // the filter cannot be used
	filter  string
	matched int
	pending bool // some matches are idle or connecting
	connErr error
}

// unavailable is the answer to a pick for which there is nobody. An error that is no status fails a call at once,
// with UNAVAILABLE, unless it waits for ready (grpc-go's picker wrapper; gRFC A54 on statuses).
func (k *picker) unavailable(a *absence) error {
	switch {
	case a.broken != nil: // waiting cannot mend it, so it is a status, which ends even a wait-for-ready call
		return status.Errorf(codes.Internal, "evenkeel: service %q: filter: %v", k.p.service, a.broken)
	case a.pending:
		return gbalancer.ErrNoSubConnAvailable
	}
	why, more := "no instance matches", ""
	switch {
	case a.matched > 0:
		why = "no matching instance can be connected to"
	case k.known == 0:
		why = "no instance is known"
	}
	// The causes are not wrapped: a status among them would end even a wait-for-ready call.
	switch {
	case a.connErr != nil:
		more = fmt.Sprintf("; last connection error: %v", a.connErr)
	case k.known == 0 && k.resolverErr != nil:
		more = fmt.Sprintf("; last resolver error: %v", k.resolverErr)
	}
	return fmt.Errorf("evenkeel: service %q: %s: filter %q: %d known, %d connected, %d match, %d blacklisted%s",
		k.p.service, why, a.filter, k.known, k.connected, a.matched, k.out, more)
}
