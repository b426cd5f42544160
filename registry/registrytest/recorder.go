package registrytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// retryAfter is the pause before a watch that failed is started again.
const retryAfter = 20 * time.Millisecond

// Recorder watches a service and remembers what it saw. [Record] makes one. It is safe for concurrent use, except
// that Await and AwaitError belong to the test's goroutine, as t.Fatal does.
type Recorder struct {
	t       testing.TB
	service string
	timeout time.Duration
	stop    context.CancelFunc
	done    chan struct{} // closed when the watching goroutine has ended

	mu      sync.Mutex // guards what follows
	updates [][]registry.Instance
	errs    []error       // what watches that failed returned, the one that was stopped excepted
	faults  []string      // what the contract forbids
	changed chan struct{} // closed at the next update or error
	inside  bool          // an update is being delivered
	watches int           // how many were started; an update carries its watch's number
	ended   int           // how many have returned
}

// Record watches service until the test ends, from a goroutine of its own, and starts a watch that failed again. A
// condition that [Recorder.Await] waits for may take as long as timeout, 0 means 10 s. The watch runs to the end of
// the test, which fails if the registry broke the rules that hold for every update (see the package documentation).
// It works inside a testing/synctest bubble.
func Record(t testing.TB, w registry.Watcher, service string, timeout time.Duration) *Recorder {
	t.Helper()
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Recorder{t: t, service: service, timeout: timeout, stop: stop,
		done: make(chan struct{}), changed: make(chan struct{})}
	go r.run(ctx, w)
	t.Cleanup(r.Stop)
	return r
}

// Stop ends the watch, waits until it has, and reports what the registry did wrong. The end of the test calls it; a
// second call does nothing.
func (r *Recorder) Stop() {
	r.t.Helper()
	r.stop()
	timer := time.NewTimer(r.timeout)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
		r.t.Errorf("watch of %s: still running %v after its context ended", r.service, r.timeout)
	}
	r.mu.Lock()
	faults := r.faults
	r.faults = nil
	r.mu.Unlock()
	for _, f := range faults {
		r.t.Errorf("watch of %s: %s", r.service, f)
	}
}

// Await waits until the latest update satisfies ok and returns it. It fails the test, naming what was awaited and
// what was seen instead, when that takes too long. ok may be called often, and must not modify what it gets.
func (r *Recorder) Await(what string, ok func([]registry.Instance) bool) []registry.Instance {
	r.t.Helper()
	timer := time.NewTimer(r.timeout)
	defer timer.Stop()
	for {
		last, seen, changed := r.look()
		if seen && ok(last) {
			return last
		}
		select {
		case <-changed:
		case <-timer.C:
			r.t.Fatalf("watch of %s: not seen within %v: %s\n%s", r.service, r.timeout, what, r)
		}
	}
}

// AwaitError waits until a watch has failed since the Recorder began, and returns the last error. It fails the test
// when that takes too long.
func (r *Recorder) AwaitError(what string) error {
	r.t.Helper()
	timer := time.NewTimer(r.timeout)
	defer timer.Stop()
	for {
		_, _, changed := r.look()
		if errs := r.Errors(); len(errs) > 0 {
			return errs[len(errs)-1]
		}
		select {
		case <-changed:
		case <-timer.C:
			r.t.Fatalf("watch of %s: no error within %v: %s\n%s", r.service, r.timeout, what, r)
		}
	}
}

// Last returns the latest update, nil if there was none. It must not be modified.
func (r *Recorder) Last() []registry.Instance {
	last, _, _ := r.look()
	return last
}

// Updates returns every update so far, oldest first. It must not be modified.
func (r *Recorder) Updates() [][]registry.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clip(r.updates)
}

// Errors returns what watches that failed returned, oldest first. It must not be modified.
func (r *Recorder) Errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clip(r.errs)
}

// String tells what was seen last, for messages.
func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d updates", len(r.updates))
	if n := len(r.updates); n > 0 {
		fmt.Fprintf(&b, ", the last with %d instances:", len(r.updates[n-1]))
		for _, in := range r.updates[n-1][:min(10, len(r.updates[n-1]))] {
			fmt.Fprintf(&b, "\n\t%+q", short(in))
		}
	}
	if n := len(r.errs); n > 0 {
		fmt.Fprintf(&b, "\n%d errors, the last: %v", n, r.errs[n-1])
	}
	return b.String()
}

func (r *Recorder) look() (last []registry.Instance, seen bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.updates); n > 0 {
		last, seen = r.updates[n-1], true
	}
	return last, seen, r.changed
}

// run watches until ctx ends.
func (r *Recorder) run(ctx context.Context, w registry.Watcher) {
	defer close(r.done)
	for {
		r.mu.Lock()
		r.watches++
		number := r.watches
		r.mu.Unlock()
		err := w.Watch(ctx, r.service, func(ins []registry.Instance) { r.take(number, ins) })
		r.returned(ctx, err)
		timer := time.NewTimer(retryAfter)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// take records one update and what is wrong with it.
func (r *Recorder) take(number int, ins []registry.Instance) {
	r.mu.Lock()
	if r.inside {
		r.faultLocked("an update while another was being delivered")
	}
	if number <= r.ended {
		r.faultLocked("an update after Watch had returned")
	}
	r.inside = true
	r.mu.Unlock()

	faults := check(ins) // outside the lock, so that an update that overlaps gets here meanwhile

	r.mu.Lock()
	defer r.mu.Unlock()
	r.inside = false
	for _, f := range faults {
		r.faultLocked(f)
	}
	r.updates = append(r.updates, ins)
	r.wakeLocked()
}

// returned records the end of a watch.
func (r *Recorder) returned(ctx context.Context, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended++
	if r.inside {
		r.faultLocked("Watch returned while an update was being delivered")
	}
	if err == nil {
		r.faultLocked("Watch returned no error")
	}
	if ctx.Err() == nil {
		r.errs = append(r.errs, err)
	}
	r.wakeLocked()
}

func (r *Recorder) wakeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// faultLocked remembers a fault, once.
func (r *Recorder) faultLocked(f string) {
	if !slices.Contains(r.faults, f) && len(r.faults) < 10 {
		r.faults = append(r.faults, f)
	}
}

// check says what no update may contain.
func check(ins []registry.Instance) (faults []string) {
	at := make(map[string]string, len(ins))
	for _, in := range ins {
		if err := in.Validate(); err != nil {
			faults = append(faults, fmt.Sprintf("an update with an invalid instance: %v", err))
		}
		if other, twice := at[in.Addr]; twice {
			faults = append(faults, fmt.Sprintf("an update with address %q twice, in instances %q and %q",
				in.Addr, other, in.ID))
		}
		at[in.Addr] = in.ID
	}
	return faults
}
