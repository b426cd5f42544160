package balancer

import (
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
func (p *policy) reconcile(s gresolver.State) *plan {
	l := &plan{p: p}
	found := endpointsOf(s)
	var changes []change
	next := make(map[string]*child, len(found))
	known := make([]*Endpoint, 0, len(found))
	for _, f := range found {
		c := p.children[f.key]
		if c != nil && c.state == connectivity.TransientFailure && c.e.Instance().ID != f.in.ID {
			// A new instance where connecting failed before: it does not wait for the old one's backoff, which
			// grows to two minutes.
			changes = append(changes, p.dismiss(c, l))
			c = nil
		}
		if c == nil {
			c = &child{ClientConn: p.cc, p: p, key: f.key, endpoint: f.Endpoint, state: connectivity.Connecting}
			p.states[c.state]++
			p.enlist(c, f.in)
			l.fresh = append(l.fresh, c)
			changes = append(changes, change{e: c.e, is: f.in})
		} else {
			changes = p.renew(c, f.in, changes)
			if !slices.EqualFunc(c.endpoint.Addresses, f.Addresses, gresolver.Address.Equal) {
				l.moved = append(l.moved, c)
			}
			c.endpoint = f.Endpoint
		}
		next[f.key] = c
		known = append(known, c.e)
	}
	for key, c := range p.children {
		if next[key] == nil {
			changes = append(changes, p.dismiss(c, l))
		}
	}
	p.children, p.known = next, known
	p.applyChanges(changes)
	return l
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
	e := &Endpoint{child: c, id: callctx.Endpoint{ID: in.ID, Addr: in.Addr}}
	e.set(in)
	e.conn.Store(c.conn)
	e.done = func(info gbalancer.DoneInfo) {
		if e.uneventful(info.Err, info.BytesSent || info.BytesReceived) {
			e.ended.Add(1)
			return
		}
		e.finishPlain(info)
	}
	c.e = e
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
	e.conn.Store(nil) // pickers that are still in use skip it
	e.child.dirty = false
	delete(p.sick, e)
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

func (p *policy) allRoutes() []*route {
	all := make([]*route, 0, len(p.routes)+1)
	all = append(all, p.byConfig)
	for _, r := range p.routes {
		all = append(all, r)
	}
	return all
}

// adopt puts a configuration into force. Endpoints keep their state; the routes are laid anew, and keep what their
// choosers remember. mu is held, or the policy is not yet in use.
func (p *policy) adopt(s *settings) {
	if p.settings != nil && p.settings.source == s.source {
		return // gRPC parses the same text again at every update of the resolver
	}
	p.settings = s
	p.active.Store(s)
	if s.judge.disabled {
		for e := range p.sick {
			p.heal(e, "the blacklist was disabled")
		}
	}
	relay := func(old *route, f filters.Filter) *route {
		r := newRoute(s.require, f, p.known)
		if old != nil {
			r.set = old.set
		}
		return r
	}
	p.byConfig = relay(p.byConfig, s.filter)
	for f, old := range p.routes {
		p.routes[f] = relay(old, f)
	}
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

// evictRoutes forgets the filters that were not used since it was last called, and any of them if all were.
func (p *policy) evictRoutes() {
	for f, r := range p.routes {
		if !r.set.used.Swap(false) {
			delete(p.routes, f)
		}
	}
	for f := range p.routes {
		if len(p.routes) <= maxRoutes*3/4 {
			return
		}
		delete(p.routes, f)
	}
}

// found is an endpoint of the resolver with what the policy knows it by.
type found struct {
	gresolver.Endpoint
	key string
	in  *registry.Instance
}

// endpointsOf lists the endpoints of a resolver's state. Of two with the same addresses the last wins.
func endpointsOf(s gresolver.State) []found {
	endpoints := s.Endpoints
	if endpoints == nil { // a resolver, or a parent policy, of the older kind
		for _, a := range s.Addresses {
			endpoints = append(endpoints, gresolver.Endpoint{Addresses: []gresolver.Address{a}})
		}
	}
	out := make([]found, 0, len(endpoints))
	at := make(map[string]int, len(endpoints))
	for _, ep := range endpoints {
		if len(ep.Addresses) == 0 {
			continue
		}
		f := found{ep, keyOf(ep), registry.FromEndpoint(ep)}
		if f.in == nil {
			f.in = &registry.Instance{Addr: ep.Addresses[0].Addr}
		}
		if i, dup := at[f.key]; dup {
			out[i] = f
			continue
		}
		at[f.key] = len(out)
		out = append(out, f)
	}
	return out
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
