package balancer

import (
	"cmp"
	"fmt"
	"sync/atomic"

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
// times a second. It takes about a second to leave, and ten to return, or half a minute with few calls.
//
// It works with every strategy, and within what filters leave over. Each candidate set has a part of its own. A retry
// leaves the zone if all instances there have been tried. Instances without a zone count as elsewhere. Streams are
// divided alike, and not measured. Where all candidates are in the zone, or none, nothing is divided.
//
// A call costs what one costs to a strategy that measures; and ten times a second each candidate is looked at, which is a
// millisecond or so for 10,000.
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

// gauge is what was measured at one endpoint for the sake of zones, since it is known. It only grows.
type gauge struct {
	begun, over  atomic.Uint64 // unary calls
	calls, nanos atomic.Uint64 // those that ended with a latency
}

// end counts a call out that took so many nanoseconds; negative if that means nothing.
func (g *gauge) end(took int64) {
	g.over.Add(1)
	if took >= 0 {
		g.nanos.Add(uint64(took))
		g.calls.Add(1)
	}
}

// gauge counts a unary call in for the sake of zones.
func (o *ending) gauge() {
	if o.kind == callctx.UnknownKind && isStream(o.method) || o.kind == callctx.Stream {
		return
	}
	o.gauged = true
	o.e.tally().gauge.begun.Add(1)
}

// ungauged counts it out without a measurement.
func (o *ending) ungauged() {
	if o.gauged {
		o.e.tally().gauge.end(-1)
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
	seen      [2]reading    // totals of near and far, as they were read last
	missing   float64       // the part of the zone's instances that cannot be used
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

// parts draws where a call goes first, and where it goes if nobody there can be used.
func (z *zones) parts(r uint64) (first, second *candidates) {
	if uint32(r>>32) < z.leaves.Load() {
		return z.far, z.near
	}
	return z.near, z.far
}

// divide makes the zones of the route's new set, if there are members here and elsewhere. previous is the set before. The
// part of the calls that leaves is the route's, and outlives the set. matched are the instances that could be members. mu
// is held.
func (r *route) divide(p *policy, previous *candidates, matched []*Endpoint) {
	local := p.settings.zone.Local
	if local != r.local {
		r.local, r.spill, r.pending = local, spill{}, [2]reading{}
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
			r.spill.level = mostSpill // when the zone is back, calls return little by little
		}
		return
	}
	var before zones
	if previous != nil && previous.zones != nil {
		before = zones{near: previous.zones.near, far: previous.zones.far}
		previous.zones.read(&r.pending) // or sets that change often would never learn anything
	}
	z.near.build(p, before.near)
	z.far.build(p, before.far)
	z.seen = z.totals()
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

// part is a candidate set without members for a part of s.
func (s *candidates) part() *candidates { return &candidates{kept: s.kept, strategy: s.strategy} }

func (z *zones) set(fraction float64) { z.leaves.Store(uint32(fraction * (1<<32 - 1))) }

// totals reads all members.
func (z *zones) totals() (t [2]reading) {
	for i, part := range []*candidates{z.near, z.far} {
		for _, e := range part.members {
			over := e.counted().gauge.over.Load() // first, so that the difference is never negative
			t[i].open += int64(e.counted().gauge.begun.Load() - over)
			t[i].nanos += e.counted().gauge.nanos.Load()
			t[i].calls += e.counted().gauge.calls.Load()
		}
	}
	return t
}

// read adds to sum what was measured since the last time.
func (z *zones) read(sum *[2]reading) {
	now := z.totals()
	for i := range now {
		sum[i].calls += now[i].calls - z.seen[i].calls
		sum[i].nanos += now[i].nanos - z.seen[i].nanos
		sum[i].open = now[i].open
	}
	z.seen = now
}

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
		z := r.set.zones
		z.read(&r.pending)
		r.spill.step(period, r.pending[0], r.pending[1], p.settings.zone.tolerance())
		r.spill.bound(p.settings.zone.least(), z.missing)
		r.pending = [2]reading{}
		z.set(r.spill.fraction)
	}
	if divided {
		p.spiller = p.after(spillPeriod, p.spillNow)
	}
}
