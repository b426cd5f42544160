package balancer

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
)

// Zone keeps calls in the client's own zone as long as that serves them well. Its zero value is switched off.
//
// Calls go to instances of the same zone ([registry.Instance].Zone), chosen there by the strategy. A part of them goes to
// the others: one in a hundred, to know how they fare; more when the own zone is slow, and as many as it takes until it
// is at most Tolerance slower than the others; and if instances of the zone are missing (not connected, blacklisted), as
// many as those had beyond a reserve of 40 %. If none is left, all. Latency is measured by this client, on unary calls, so
// it contains the way to the other zone, and a zone whose calls do not end counts as slow by that. The part is adjusted ten
// times a second, by the calls under way in the zone. It takes a few tenths of a second to leave, and up to ten seconds to
// return; half a minute with few calls.
//
// It works with every strategy, and within what filters leave over. Each candidate set has a part of its own. A retry
// leaves the zone if all instances there have been tried. Instances without a zone count as elsewhere. Streams are
// divided alike, and not measured. Where all candidates are in the zone, or none, nothing is divided.
//
// A call costs what one costs to a strategy that measures; and ten times a second there is about a microsecond's work for
// each filter in use.
type Zone struct {
	// Local is the zone that the client is in; empty switches the preference off.
	Local string `json:"local,omitempty"`
	// Tolerance is how much slower the own zone may be before calls leave it, as a part of the others' latency, up to
	// 10; 0 means 0.25. The dearer traffic between zones is, the more.
	Tolerance float64 `json:"tolerance,omitempty"`
	// RemotePercent is which part of the calls goes to the others always, up to 50; 0 means 1. Too few, and it takes
	// long to find out whether they are better.
	RemotePercent float64 `json:"remotePercent,omitempty"`
}

func (z Zone) validate() error {
	switch {
	case !(z.Tolerance >= 0 && z.Tolerance <= 10):
		return fmt.Errorf("zone.tolerance = %v, want 0 to 10", z.Tolerance)
	case !(z.RemotePercent >= 0 && z.RemotePercent <= 50):
		return fmt.Errorf("zone.remotePercent = %v, want 0 to 50", z.RemotePercent)
	case z.Local == "" && z != Zone{}:
		return fmt.Errorf(`zone.local = "" with other fields set, want the client's zone`)
	}
	return nil
}

func (z Zone) tolerance() float64 { return cmp.Or(z.Tolerance, 0.25) }
func (z Zone) least() float64     { return cmp.Or(z.RemotePercent, 1) / 100 }

// gauge counts calls on one side of a route that zones divide. It only grows.
type gauge struct {
	begun, over  atomic.Uint64 // unary calls
	calls, nanos atomic.Uint64 // those that ended with a latency
	_            [4]uint64     // a cache line of its own
}

// end counts a call out that took so many nanoseconds; negative if that means nothing.
func (g *gauge) end(took int64) {
	g.over.Add(1)
	if took >= 0 {
		g.nanos.Add(uint64(took))
		g.calls.Add(1)
	}
}

// gauges are those of a side: one for each instance where these are few, so that calls share no more than they share at the
// instances anyway; and never so many that it takes time to add them up. They are the route's and outlive its sets.
type gauges [64]gauge

// of is where the calls of e are counted.
func (g *gauges) of(e *Endpoint) *gauge { return &g[e.number%uint32(len(g))] }

// read adds them up.
func (g *gauges) read() (t reading) {
	for i := range g {
		over := g[i].over.Load() // first, so that the difference is never negative
		begun := g[i].begun.Load()
		t.over += over
		t.begun += begun
		t.open += int64(begun - over)
		t.nanos += g[i].nanos.Load()
		t.calls += g[i].calls.Load()
	}
	return t
}

// since is what came to t after an earlier reading.
func (t reading) since(before reading) reading {
	t.begun -= before.begun
	t.over -= before.over
	t.calls -= before.calls
	t.nanos -= before.nanos
	return t
}

// gauge counts a unary call in for the sake of zones; g is nil where nothing is divided.
func (o *ending) gauge(g *gauge) {
	if g == nil || o.kind == callctx.UnknownKind && isStream(o.method) || o.kind == callctx.Stream {
		return
	}
	o.gauged = g
	g.begun.Add(1)
}

// ungauged counts it out without a measurement.
func (o *ending) ungauged() {
	if o.gauged != nil {
		o.gauged.end(-1)
	}
}

// took is the latency to go by when a call ended. A failure that came at once says nothing about how busy the endpoint
// is, and the blacklist deals with it; one that the caller waited for does.
func (o *ending) took(latency int64, class outcome.Class, err error) int64 {
	if class == outcome.OK || gaveUp(err) {
		return max(latency, 0)
	}
	return -1
}

// zones divides a candidate set by where its members are. Both parts have members; the parts are candidate sets that
// nothing but choose is used of.
type zones struct {
	near, far *candidates
	leaves    atomic.Uint32 // the part of the calls that leaves, of 2^32
	measured  *borders
	missing   float64 // the part of the zone's instances that cannot be used
}

// borders are what is measured of a route's calls in the zone (near) and elsewhere.
type borders struct {
	near, far gauges
	seen      [2]reading // of near and far, as they were read last; the policy's mutex guards it
}

// read is what was measured since the last time.
func (b *borders) read() (near, far reading) {
	now := [2]reading{b.near.read(), b.far.read()}
	near, far = now[0].since(b.seen[0]), now[1].since(b.seen[1])
	b.seen = now
	return near, far
}

// andParts is the set, if there is one, and its parts.
func (s *candidates) andParts() []*candidates {
	switch {
	case s == nil:
		return nil
	case s.zones == nil:
		return []*candidates{s}
	}
	return []*candidates{s, s.zones.near, s.zones.far}
}

// draw says whether a call leaves the zone.
func (z *zones) draw(r uint64) bool { return uint32(r>>32) < z.leaves.Load() }

// side is the part for calls that leave, or for those that do not, and where they are counted.
func (z *zones) side(leaves bool) (*candidates, *gauges) {
	if leaves {
		return z.far, &z.measured.far
	}
	return z.near, &z.measured.near
}

// choose is [candidates.choose] for a set that is divided: it draws where a call goes first, and asks the other part if
// nobody there can be used. g is where the call is to be counted.
func (z *zones) choose(r uint64, ask Call, call *callctx.Call) (e *Endpoint, kept bool, g *gauge) {
	leaves := z.draw(r)
	for range 2 {
		part, counts := z.side(leaves)
		if e, kept := part.named(ask, call); e != nil {
			return e, kept, counts.of(e)
		}
		leaves = !leaves
	}
	return nil, false, nil
}

// divide makes the zones of the route's new set, if there are members here and elsewhere. previous is the set before. The
// part of the calls that leaves is the route's, and outlives the set. matched are the instances that could be members. mu
// is held.
func (r *route) divide(p *policy, previous *candidates, matched []*Endpoint) {
	local := p.settings.zone.Local
	if local != r.local {
		r.local, r.spill, r.borders = local, spill{}, nil
	}
	if local == "" {
		return
	}
	set := r.set
	z := &zones{near: set.part(), far: set.part()}
	for _, e := range set.members {
		part := z.far
		if _, kept := set.kept[e]; e.Instance().Zone == local && !kept { // rather a healthy one elsewhere
			part = z.near
		}
		part.members = append(part.members, e)
	}
	all := inZone(matched, local)
	if len(z.near.members) == 0 || len(z.far.members) == 0 {
		if len(z.near.members) == 0 && all > 0 {
			r.spill.lost()
		}
		r.spill.met = r.spill.met || len(z.near.members) > 0
		return
	}
	r.spill.met = true
	var before zones
	if previous != nil && previous.zones != nil {
		before = zones{near: previous.zones.near, far: previous.zones.far}
	}
	z.near.build(p, before.near)
	z.far.build(p, before.far)
	if r.borders == nil {
		r.borders = new(borders)
	}
	z.measured = r.borders
	z.missing = 1 - float64(len(z.near.members))/float64(max(all, len(z.near.members)))
	r.spill.bound(p.settings.zone.least(), z.missing)
	z.set(r.spill.fraction)
	set.zones, set.rand = z, p.rand
	if p.spiller == nil {
		p.spilledAt = p.clock.Now()
		p.spiller = p.after(spillPeriod, p.spillNow)
	}
}

// inZone counts the instances of a zone that do not leave by themselves and have been connected to before: those that join
// are not missing yet.
func inZone(matched []*Endpoint, zone string) int {
	n := 0
	for _, e := range matched {
		if in := e.Instance(); in.Zone == zone && !in.Draining && !e.newcomer {
			n++
		}
	}
	return n
}

// strangeZone returns the client's zone and those of the instances that the resolver found if it is none of these, once
// for each zone: most likely it is misspelt, and nothing would ever stay in it.
func (p *policy) strangeZone(s gresolver.State) (local string, others []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	local = p.settings.zone.Local
	found := listOf(s) // all: those of a subset may be elsewhere by chance
	if local == "" || local == p.oddZone || len(found) == 0 {
		return "", nil
	}
	for _, ep := range found {
		in := instanceOf(ep)
		switch {
		case in == nil || in.Zone == "":
		case in.Zone == local:
			return "", nil
		case !slices.Contains(others, in.Zone):
			others = append(others, in.Zone)
		}
	}
	p.oddZone = local
	slices.Sort(others)
	return local, others
}

// part is a candidate set without members for a part of s.
func (s *candidates) part() *candidates { return &candidates{kept: s.kept, strategy: s.strategy} }

func (z *zones) set(fraction float64) { z.leaves.Store(uint32(fraction * (1<<32 - 1))) }

// spillNow adjusts which part of the calls leaves, for every set that is divided.
func (p *policy) spillNow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spiller = nil
	if p.closed {
		return
	}
	now := p.clock.Now()
	period := float64(max(now-p.spilledAt, 0))
	p.spilledAt = now
	divided := false
	for _, r := range p.allRoutes() {
		if r.set == nil || r.set.zones == nil || r.local != p.settings.zone.Local {
			continue
		}
		divided = true
		near, far := r.borders.read()
		r.spill.step(period, near, far, p.settings.zone.tolerance())
		r.spill.bound(p.settings.zone.least(), r.set.zones.missing)
		r.set.zones.set(r.spill.fraction)
	}
	if divided {
		p.spiller = p.after(spillPeriod, p.spillNow)
	}
}
