package balancer

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/registry"
)

func nanoseconds(n int64) time.Duration { return time.Duration(n) }

// maxRoutes bounds how many filters candidate sets are kept for.
const maxRoutes = 1024

// plan is what an update of the resolver asks of the children, to be done without mu.
type plan struct {
	p            *policy
	fresh, moved []*child
	left         []*child
}

// connect starts the new children, and tells the others about addresses that changed.
func (l *plan) connect() error {
	var first error
	for _, c := range l.fresh {
		c.leaf = l.p.leaf.Build(c, l.p.opts)
	}
	for _, c := range slices.Concat(l.fresh, l.moved) {
		state := pickfirst.EnableHealthListener(gresolver.State{Endpoints: []gresolver.Endpoint{c.endpoint}})
		if err := c.leaf.UpdateClientConnState(gbalancer.ClientConnState{ResolverState: state}); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (l *plan) close() {
	for _, c := range l.left {
		if c.leaf != nil {
			c.leaf.Close()
		}
	}
}

// reconcile brings children and endpoints in line with what the resolver found. A child is known by its addresses,
// an endpoint by the instance's ID on top: labels and weights change without touching the connection, and a new
// instance at an old address starts with a clean record on the old connection. mu is held.
//
// It works in place, and marks with a generation who is still there: two maps and three lists of all endpoints, made
// anew at every update, were three quarters of what an update of 10,000 endpoints costs (BenchmarkChange in bench).
func (p *policy) reconcile(s gresolver.State) *plan {
	l := &plan{p: p}
	endpoints := p.narrow(listOf(s))
	p.line(endpoints)
	var changes []change
	known := p.known[:0] // nobody keeps it beyond mu
	for i, c := range p.order {
		ep := endpoints[c.at]
		in := registry.FromEndpoint(ep)
		if in == nil {
			in = &registry.Instance{Addr: ep.Addresses[0].Addr}
		}
		if c.e != nil && c.state == connectivity.TransientFailure && c.e.Instance().ID != in.ID {
			// A new instance where connecting failed before: it does not wait for the old one's backoff, which
			// grows to two minutes.
			changes = append(changes, p.dismiss(c, l))
			c = p.newChild(c.key)
			p.order[i] = c
		}
		if c.e == nil {
			p.states[c.state]++
			p.enlist(c, in)
			l.fresh = append(l.fresh, c)
			changes = append(changes, change{e: c.e, is: in})
		} else {
			changes = p.renew(c, in, changes)
			if !slices.EqualFunc(c.endpoint.Addresses, ep.Addresses, gresolver.Address.Equal) {
				l.moved = append(l.moved, c)
			}
		}
		c.endpoint = ep
		known = append(known, c.e)
	}
	if len(p.children) > len(p.order) {
		var left []*child
		for key, c := range p.children {
			if c.seen != p.generation {
				delete(p.children, key)
				left = append(left, c)
			}
		}
		slices.SortFunc(left, func(a, b *child) int { return cmp.Compare(a.e.number, b.e.number) })
		for _, c := range left {
			changes = append(changes, p.dismiss(c, l))
		}
	}
	if n := len(known); n < len(p.known) {
		clear(p.known[n:]) // or what is gone would stay in memory
	}
	p.known = known
	p.applyChanges(changes)
	return l
}

// line puts the children of what the resolver found into p.order, new ones among them, and notes in each where its
// endpoint stands: of two with the same addresses the last, at the place of the first.
func (p *policy) line(endpoints []gresolver.Endpoint) {
	p.generation++
	before, order := p.order, slices.Grow(p.spare[:0], len(endpoints))
	at := 0 // a resolver's list seldom changes its order, which saves looking keys up
	for i, ep := range endpoints {
		if len(ep.Addresses) == 0 {
			continue
		}
		key := keyOf(ep)
		var c *child
		switch {
		case at < len(before) && before[at].key == key:
			c = before[at]
			at++
		case at+1 < len(before) && before[at+1].key == key: // one has left
			c = before[at+1]
			at += 2
		default:
			if c = p.children[key]; c == nil {
				c = p.newChild(key)
				order = append(order, c)
			}
		}
		if c.seen != p.generation {
			c.seen = p.generation
			order = append(order, c)
		}
		c.at = i
	}
	clear(before)
	p.order, p.spare = order, before[:0]
}

// newChild makes the child of a key; it has no endpoint yet.
func (p *policy) newChild(key string) *child {
	c := &child{ClientConn: p.cc, p: p, key: key, state: connectivity.Connecting, seen: p.generation}
	p.children[key] = c
	return c
}

// dismiss takes c and its endpoint out of what is known; the plan closes it.
func (p *policy) dismiss(c *child, l *plan) change {
	c.closed = true
	p.states[c.state]--
	l.left = append(l.left, c)
	return p.discharge(c.e)
}

// enlist gives c a new endpoint for the instance in.
func (p *policy) enlist(c *child, in *registry.Instance) {
	e := &Endpoint{child: c, id: callctx.Endpoint{ID: in.ID, Addr: in.Addr}, newcomer: len(p.known) > 0}
	p.numbers++
	e.number = uint32(p.numbers) // it would take decades to wrap, and then an order would be another
	e.set(in)
	e.connect(c.conn)
	e.done = func(info gbalancer.DoneInfo) {
		if e.uneventful(info.Err, info.BytesSent || info.BytesReceived) {
			e.ended.Add(1)
			return
		}
		e.finishPlain(info)
	}
	c.e = e
	if e.newcomer && c.conn != nil {
		p.warm(e)
	}
}

// renew takes over the record that the registry has now for the instance behind c.
func (p *policy) renew(c *child, in *registry.Instance, changes []change) []change {
	was := c.e.Instance()
	switch {
	case was.ID != in.ID: // a new instance: its health starts afresh, its connection stays
		changes = append(changes, p.discharge(c.e))
		p.enlist(c, in)
		return append(changes, change{e: c.e, is: in})
	case was != in && !was.Equal(*in):
		c.e.set(in)
		return append(changes, change{e: c.e, was: was, is: in})
	}
	return changes
}

// discharge ends the life of an endpoint.
func (p *policy) discharge(e *Endpoint) change {
	e.connect(nil) // pickers that are still in use skip it
	e.child.dirty = false
	delete(p.sick, e)
	p.forgetShare(e)
	return change{e: e, was: e.Instance()}
}

// applyChanges brings the routes up to date.
func (p *policy) applyChanges(changes []change) {
	if len(changes) == 0 {
		return
	}
	// A changed endpoint that is gone must not be looked at as dirty.
	p.dirty = slices.DeleteFunc(p.dirty, func(e *Endpoint) bool { return e.child.e != e || e.child.closed })
	for _, r := range p.allRoutes() {
		if r.err == nil {
			r.apply(changes)
		}
	}
}

// allRoutes are the routes in the order in which they came, that of the configuration first.
func (p *policy) allRoutes() []*route {
	all := make([]*route, 0, len(p.routes)+1)
	for _, r := range p.routes {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *route) int { return cmp.Compare(a.number, b.number) })
	return slices.Insert(all, 0, p.byConfig)
}

// adopt puts a configuration into force. Endpoints keep their state; the routes are laid anew, and keep what their
// choosers remember. mu is held, or the policy is not yet in use.
func (p *policy) adopt(s *settings) {
	if p.settings != nil && p.settings.source == s.source {
		return // gRPC parses the same text again at every update of the resolver
	}
	p.settings = s
	p.active.Store(s)
	p.refit()
	if s.judge.disabled {
		for _, e := range p.patients() {
			p.heal(e, "the blacklist was disabled")
			p.warm(e)
		}
	}
	if len(p.warming) > 0 {
		defer p.reheat() // by the new ramp, once the new routes are laid
	}
	relay := func(old *route, f filters.Filter) *route {
		r := newRoute(s.require, f, p.known)
		if old != nil {
			r.set, r.number = old.set, old.number
			r.local, r.spill, r.borders = old.local, old.spill, old.borders
		}
		return r
	}
	p.byConfig = relay(p.byConfig, s.filter)
	for f, old := range p.routes {
		p.routes[f] = relay(old, f)
	}
	p.scheduleRelay()
}

// admit makes the candidate set of a filter that k has not met, and remembers it for the pickers to come.
func (p *policy) admit(k *picker, f filters.Filter) *candidates {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.routes[f]
	if r == nil {
		if len(p.routes) >= maxRoutes {
			p.evictRoutes()
		}
		r = newRoute(p.settings.require, f, p.known)
		p.numbers++
		r.number = p.numbers
		p.routes[f] = r
	}
	if r.stale {
		r.rebuild(p)
	}
	r.set.used.Store(true)
	if p.current != nil {
		sets := make(map[filters.Filter]*candidates, len(p.routes))
		if old := p.current.byFilter.Load(); old != nil {
			for f, set := range *old {
				if p.routes[f] != nil {
					sets[f] = set
				}
			}
		}
		sets[f] = r.set
		p.current.byFilter.Store(&sets)
	}
	return r.set
}

// evictRoutes forgets the filters that were not used since it was last called, and the eldest if there are still too
// many.
func (p *policy) evictRoutes() {
	for f, r := range p.routes {
		if !r.set.used.Swap(false) {
			delete(p.routes, f)
		}
	}
	excess := len(p.routes) - maxRoutes*3/4
	if excess <= 0 {
		return
	}
	eldest := slices.SortedFunc(maps.Keys(p.routes), func(f, g filters.Filter) int {
		return cmp.Compare(p.routes[f].number, p.routes[g].number)
	})
	for _, f := range eldest[:excess] {
		delete(p.routes, f)
	}
}

// listOf is the list of endpoints in a resolver's state.
func listOf(s gresolver.State) []gresolver.Endpoint {
	if s.Endpoints != nil {
		return s.Endpoints
	}
	endpoints := make([]gresolver.Endpoint, 0, len(s.Addresses)) // a resolver, or a parent policy, of the older kind
	for _, a := range s.Addresses {
		endpoints = append(endpoints, gresolver.Endpoint{Addresses: []gresolver.Address{a}})
	}
	return endpoints
}

// keyOf is what an endpoint is known by: its addresses in any order.
func keyOf(ep gresolver.Endpoint) string {
	if len(ep.Addresses) == 1 {
		return ep.Addresses[0].Addr
	}
	addrs := make([]string, len(ep.Addresses))
	for i, a := range ep.Addresses {
		addrs[i] = a.Addr
	}
	slices.Sort(addrs)
	return strings.Join(slices.Compact(addrs), "\x00")
}
