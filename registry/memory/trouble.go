package memory

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// How long a registration takes to put its record back after a restart: at least putBackAfter, and with others
// before it up to putBackSpread more, so that watchers see a set that grows, as they do with a real registry.
const (
	putBackAfter  = 10 * time.Millisecond
	putBackSpread = 50 * time.Millisecond
)

var errOutage = errors.New("the registry is unreachable")

// Fail begins an outage, which lasts until [Registry.Recover]. Running watches and new ones return an error that
// wraps err; nil stands for "the registry is unreachable". Register and Update succeed, and are seen after the
// outage. Close returns an error that wraps err, and its record is gone after the outage. Fail in an outage replaces
// the reason.
func (r *Registry) Fail(err error) {
	if err == nil {
		err = errOutage
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Nobody can look during an outage, so writes may take effect at once: when it ends they are in place.
	r.outage, r.failure = err, err
	r.outages++
	for _, s := range r.services {
		s.notifyLocked()
	}
}

// Recover ends an outage; without one it does nothing. The registry still knows what it knew, unless
// [Registry.Restart] was called meanwhile.
func (r *Registry) Recover() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outage == nil {
		return
	}
	r.outage = nil
	r.putBackLocked()
}

// Restart forgets every record, as a registry does that restarts without its data. Every running watch whose
// instances are gone gets an empty update first, however late it looks. Live registrations put their records back
// one after the other, within 60 ms, or after [Registry.Recover] if there is an outage. A restart takes no
// connection down here: put it between Fail and Recover to make watches fail as well.
func (r *Registry) Restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restarts++
	for name, s := range r.services {
		clear(s.records)
		for _, g := range s.owners {
			g.lost = true
		}
		s.notifyLocked()
		r.tidyLocked(name, s)
	}
	r.putBackLocked() // comes to nothing in an outage; Recover plans it anew
}

// putBackLocked plans the return of every lost record, in the order of their age.
func (r *Registry) putBackLocked() {
	var lost []*registration
	for _, s := range r.services {
		for _, g := range s.owners {
			if g.lost {
				lost = append(lost, g)
			}
		}
	}
	slices.SortFunc(lost, func(a, b *registration) int { return cmp.Compare(a.seq, b.seq) })
	for i, g := range lost {
		g.stopTimerLocked()
		g.timer = time.AfterFunc(putBackAfter+putBackSpread*time.Duration(i)/time.Duration(len(lost)), g.putBack)
	}
}

// putBack puts a lost record back. Whatever happened since it was planned is looked at again under the lock, since
// stopping a timer does not stop a call that has begun.
func (g *registration) putBack() {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if g.lost && g.r.outage == nil && g.s.owners[g.in.ID] == g {
		g.putLocked()
	}
}

// PutForeign puts a record into the registry that nobody keeps alive and nobody checked, as another program may
// write one into a shared registry: of a server that is dead, or malformed, which watchers leave out. It replaces a
// record with the same ID. The record stays until remove is called, [Registry.Restart] forgets it, or another
// record with its ID replaces it; a second remove does nothing.
func (r *Registry) PutForeign(name string, in registry.Instance) (remove func()) {
	rec := &record{in: in.Clone(), bad: in.Validate()}

	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.serviceLocked(name)
	r.seq++
	rec.seq = r.seq
	s.records[in.ID] = rec
	s.notifyLocked()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.records[in.ID] == rec {
			delete(s.records, in.ID)
			s.notifyLocked()
			r.tidyLocked(name, s)
		}
	}
}
