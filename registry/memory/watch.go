package memory

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/evenkeel/evenkeel/registry"
)

// Watch implements [registry.Watcher]. It runs on the caller's goroutine and starts no other. States that follow
// each other faster than update returns are skipped but for the last; only the empty state of a [Registry.Restart]
// never is. A record that cannot be an instance is logged once, to [slog.Default], for as long as it stays.
func (r *Registry) Watch(ctx context.Context, name string, update func([]registry.Instance)) error {
	w := r.join(name)
	defer r.leave(w)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		snap, err := r.snapshot(w)
		if err != nil {
			return fmt.Errorf("memory: watch of service %q: %w", name, err)
		}
		if snap.restarted && len(w.shown) > 0 {
			w.shown = nil
			update(instances(nil))
			continue
		}
		w.report(snap.records)
		if shown := visible(snap.records); !w.started || !slices.Equal(shown, w.shown) {
			w.started, w.shown = true, shown
			update(instances(shown))
			continue // the state may have changed meanwhile, or the context ended
		}
		select {
		case <-ctx.Done():
		case <-snap.changed:
		}
	}
}

// watch is the memory of one Watch. Its fields belong to the goroutine that runs it.
type watch struct {
	name     string
	s        *service
	outages  int // as of the registry when the watch began
	restarts int // as of the registry at the last snapshot
	started  bool
	shown    []*record        // what the receiver was told last
	reported map[*record]bool // records that were logged as malformed, and are still there
}

type snapshot struct {
	records   []*record
	restarted bool
	changed   <-chan struct{}
}

func (r *Registry) join(name string) *watch {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &watch{name: name, s: r.serviceLocked(name), outages: r.outages, restarts: r.restarts}
	w.s.watches++
	return w
}

func (r *Registry) leave(w *watch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.s.watches--
	r.tidyLocked(w.name, w.s)
}

// snapshot returns the state, or why there is none. An outage that is over already still ends the watch, as it
// would have cut the connection to a real registry.
func (r *Registry) snapshot(w *watch) (snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outage != nil || w.outages != r.outages {
		return snapshot{}, r.failure
	}
	if w.s.changed == nil {
		w.s.changed = make(chan struct{})
	}
	snap := snapshot{
		records:   slices.Collect(maps.Values(w.s.records)),
		restarted: w.restarts != r.restarts,
		changed:   w.s.changed,
	}
	w.restarts = r.restarts
	return snap, nil
}

// visible returns the records to show: proper ones, oldest first, the newest for each address.
func visible(records []*record) []*record {
	newest := make(map[string]*record, len(records))
	for _, rec := range records {
		if old := newest[rec.in.Addr]; rec.bad == nil && (old == nil || old.seq < rec.seq) {
			newest[rec.in.Addr] = rec
		}
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b *record) int { return cmp.Compare(a.seq, b.seq) })
}

// instances returns copies for one receiver.
func instances(records []*record) []registry.Instance {
	ins := make([]registry.Instance, len(records))
	for i, rec := range records {
		ins[i] = rec.in.Clone()
	}
	return ins
}

// report logs the malformed records that were not there before.
func (w *watch) report(records []*record) {
	bad := make(map[*record]bool)
	for _, rec := range records {
		if rec.bad == nil {
			continue
		}
		bad[rec] = true
		if !w.reported[rec] {
			slog.Warn("memory: malformed record left out", "service", w.name, "id", rec.in.ID, "error", rec.bad)
		}
	}
	w.reported = bad
}
