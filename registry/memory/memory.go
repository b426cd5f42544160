// Package memory is a registry inside one process: the embedded default, for programs whose servers and clients
// live together, for examples, and for tests.
//
// It needs no configuration and no other process, and keeps the whole contract of package registry:
//
//	reg := memory.New()
//	r, err := reg.Register(ctx, "orders", registry.Instance{ID: "orders-1", Addr: "127.0.0.1:9001"})
//	...
//	defer r.Close(ctx)
//	conn, err := grpc.NewClient("lb:///orders", grpc.WithResolvers(resolver.NewBuilder(reg)), ...)
//
// Writers never wait for watchers. A change marks the service as changed and returns; each Watch runs on its
// caller's goroutine, takes the state when it has time, and hands over a copy of its own. So a slow watcher skips
// states that are past, never the last one, and holds nobody up. The package starts no goroutine that stays: what
// runs is the Watch that you called.
//
// Of two records with one address watchers see the newer; the older shows again when the newer goes. Of two
// registrations with one ID in a service the newer takes the record over for good, and the older can no longer
// change or remove it. The age of a record is that of its registration; Update does not make it younger.
//
// # Rehearsing trouble
//
// A registry that cannot fail hides how an application behaves when a real one does. Three methods make this one
// fail on purpose, and what clients and servers see is what they see with a real registry:
//
//   - [Registry.Fail] and [Registry.Recover] are an outage: watches end with an error, registrations wait;
//   - [Registry.Restart] is a registry that came back empty: watchers see no instance at all, then one after the
//     other as the live registrations put their records back;
//   - [Registry.PutForeign] is a record of somebody else's: of a server long dead, or not a proper record at all.
//
// Do not use it between processes: a record is known to the program that registered it, and to no other.
package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/evenkeel/evenkeel/registry"
)

// Registry is an in-process registry. Its zero value is empty and ready, as is what [New] returns. It is safe for
// concurrent use and must not be copied. It holds no resources and need not be closed.
type Registry struct {
	// mu guards all that follows and the fields of services and registrations. Nothing that could wait, call back
	// or log runs under it.
	mu       sync.Mutex
	services map[string]*service // those with a record, a registration or a watch
	seq      uint64              // the youngest record's age
	outage   error               // why the registry is away, nil if it is not
	failure  error               // why it was away last
	outages  int                 // how often Fail was called
	restarts int                 // how often Restart was called
}

// service is what is known about one service.
type service struct {
	records map[string]*record       // by ID: what the registry knows
	owners  map[string]*registration // by ID: who keeps a record alive; Restart does not touch it
	watches int
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// record is immutable, so that watchers may read it without the lock.
type record struct {
	in  registry.Instance
	seq uint64 // its age: that of the registration, or of the call of PutForeign
	bad error  // why it cannot be an instance, nil if it can
}

var _ registry.Registry = (*Registry)(nil)

// New returns an empty registry.
func New() *Registry { return &Registry{} }

// Register implements [registry.Registrar]. It never waits, so ctx is not consulted. An error wraps
// [registry.ErrInvalid].
func (r *Registry) Register(_ context.Context, name string, in registry.Instance) (registry.Registration, error) {
	if name == "" || !utf8.ValidString(name) {
		return nil, fmt.Errorf("%w: service = %q, want a name in UTF-8", registry.ErrInvalid, name)
	}
	if err := in.Validate(); err != nil {
		return nil, err
	}
	g := &registration{r: r, name: name, in: in.Clone()}

	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.serviceLocked(name)
	if old := s.owners[in.ID]; old != nil {
		old.stopTimerLocked()
	}
	r.seq++
	g.s, g.seq = s, r.seq
	s.owners[in.ID] = g
	g.putLocked()
	return g, nil
}

// serviceLocked returns the service called name; the caller gives it a record, an owner or a watch.
func (r *Registry) serviceLocked(name string) *service {
	s := r.services[name]
	if s == nil {
		s = &service{records: make(map[string]*record), owners: make(map[string]*registration)}
		if r.services == nil {
			r.services = make(map[string]*service)
		}
		r.services[name] = s
	}
	return s
}

// tidyLocked forgets a service that nobody announces or watches any more.
func (r *Registry) tidyLocked(name string, s *service) {
	if len(s.records) == 0 && len(s.owners) == 0 && s.watches == 0 {
		delete(r.services, name)
	}
}

// notifyLocked wakes the watches.
func (s *service) notifyLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// registration keeps one record alive. It is that record's owner until it is closed or another registration takes
// its ID over. Its fields other than r, s, name and seq are guarded by r.mu.
type registration struct {
	r    *Registry
	s    *service // stays in r.services for as long as this is an owner
	name string
	seq  uint64

	in    registry.Instance
	lost  bool        // the registry restarted, and the record is not back yet
	timer *time.Timer // puts a lost record back; nil if that is not planned
}

// Update implements [registry.Registration]. It never waits, so its context is not consulted.
func (g *registration) Update(_ context.Context, in registry.Instance) error {
	if err := in.Validate(); err != nil {
		return err
	}
	in = in.Clone()

	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if err := sameEndpoint(g.in, in); err != nil {
		return err
	}
	if g.s.owners[in.ID] != g {
		return fmt.Errorf("memory: update of instance %q of service %q: want an open registration: this one is closed, "+
			"or another has taken the ID over", in.ID, g.name)
	}
	if !g.lost && g.in.Equal(in) {
		return nil
	}
	g.in = in
	if g.lost && g.r.outage != nil {
		return nil // Recover will see to it
	}
	g.putLocked()
	return nil
}

// sameEndpoint says what an update would change that an update cannot, or nil.
func sameEndpoint(old, in registry.Instance) error {
	switch {
	case in.ID != old.ID:
		return fmt.Errorf("%w: update of instance %q: ID = %q, want it unchanged", registry.ErrInvalid, old.ID, in.ID)
	case in.Addr != old.Addr:
		return fmt.Errorf("%w: update of instance %q: Addr = %q, want %q as before",
			registry.ErrInvalid, old.ID, in.Addr, old.Addr)
	case !slices.Equal(in.AltAddrs, old.AltAddrs):
		return fmt.Errorf("%w: update of instance %q: AltAddrs = %q, want %q as before",
			registry.ErrInvalid, old.ID, in.AltAddrs, old.AltAddrs)
	}
	return nil
}

// Close implements [registry.Registration]. It never waits. During an outage it says so by an error, and the record
// is gone all the same when the registry is back.
func (g *registration) Close(context.Context) error {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	id := g.in.ID
	if g.s.owners[id] != g {
		return nil // closed before, or the record is another's now
	}
	g.stopTimerLocked()
	delete(g.s.owners, id)
	if rec := g.s.records[id]; rec != nil && rec.seq == g.seq {
		delete(g.s.records, id)
		g.s.notifyLocked()
	}
	g.r.tidyLocked(g.name, g.s)
	if g.r.outage != nil {
		return fmt.Errorf("memory: deregister instance %q of service %q: %w", id, g.name, g.r.outage)
	}
	return nil
}

// putLocked writes the record.
func (g *registration) putLocked() {
	g.stopTimerLocked()
	g.lost = false
	g.s.records[g.in.ID] = &record{in: g.in, seq: g.seq}
	g.s.notifyLocked()
}

func (g *registration) stopTimerLocked() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}
