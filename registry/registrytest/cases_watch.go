package registrytest

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

func firstUpdate(b *bench) {
	b.record(b.service("empty")).Await("an empty set, of a service that nobody registered", has())

	gone := b.service("gone")
	rec := b.record(gone)
	in := b.instance("a")
	g := b.register(gone, in)
	rec.Await("the instance", has(in))
	b.close(g)
	rec.Await("an empty set, after the only instance left", has())
	b.record(gone).Await("an empty set, in a watch that begins afterwards", has())
}

func currentSetFirst(b *bench) {
	service := b.service("current")
	early := b.record(service)
	var all []registry.Instance
	for _, id := range []string{"m", "c", "x"} { // not in the order of their names
		in := b.instance(id)
		all = append(all, in)
		b.register(service, in)
		early.Await("instance "+id, has(all...)) // so that the order is known
	}
	if got, want := ids(early.Last()), ids(all); !slices.Equal(got, want) {
		b.Errorf("order = %q, want the oldest record first: %q", got, want)
	}

	// early has seen all three, so they are the current set for whoever comes now.
	late := b.record(service)
	late.Await("any update", func([]registry.Instance) bool { return true })
	first := late.Updates()[0]
	if !has(all...)(first) || !slices.Equal(ids(first), ids(all)) {
		b.Errorf("first update = %q, want the whole current set, oldest record first: %q", ids(first), ids(all))
	}
	in := b.instance("a")
	b.register(service, in)
	all = append(all, in)
	for _, rec := range []*Recorder{early, late} {
		rec.Await("the fourth instance, too", has(all...))
		if got := ids(rec.Last()); !slices.Equal(got, ids(all)) {
			b.Errorf("order = %q, want the oldest record first: %q", got, ids(all))
		}
	}
}

func servicesApart(b *bench) {
	// One process may serve two services: same ID, same address.
	one, two := b.service("one"), b.service("two")
	rec1, rec2 := b.record(one), b.record(two)
	in := b.instance("a")
	in1, in2 := in.Clone(), in.Clone()
	in1.Labels, in2.Labels = map[string]string{"of": "one"}, map[string]string{"of": "two"}
	g1 := b.register(one, in1)
	g2 := b.register(two, in2)
	rec1.Await("the record of the first service", has(in1))
	rec2.Await("the record of the second service", has(in2))

	in1 = in1.Clone()
	in1.Version = "2.0.0"
	b.update(g1, in1)
	rec1.Await("the change in the first service", has(in1))
	from := len(rec2.Updates())
	b.close(g1)
	rec1.Await("an empty first service", has())
	in2 = in2.Clone()
	in2.Version = "3.0.0"
	b.update(g2, in2)
	rec2.Await("the change in the second service", has(in2))
	for _, ins := range rec2.Updates()[from:] {
		if len(ins) != 1 || ins[0].Version == "2.0.0" {
			b.Errorf("second service reported %+v while only the first changed", ins)
		}
	}
}

func watchEnds(b *bench) {
	service := b.service("ends")
	b.register(service, b.instance("a"))

	ctx, cancel := context.WithCancel(context.Background())
	err := b.watchUntil(ctx, service, cancel) // after the first update
	if !errors.Is(err, context.Canceled) {
		b.Errorf("Watch whose context was cancelled = %v, want %v", err, context.Canceled)
	}

	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := b.watchUntil(ctx, service, nil); !errors.Is(err, context.DeadlineExceeded) {
		b.Errorf("Watch whose context ran out = %v, want %v", err, context.DeadlineExceeded)
	}

	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if err := b.watchUntil(ctx, service, nil); !errors.Is(err, context.Canceled) {
		b.Errorf("Watch with a context that had ended = %v, want %v", err, context.Canceled)
	}
}

// prompt is how long a Watch may take to return after its context ended, when nothing else is wrong. It is far less
// than a blocking query to a registry lasts.
func (b *bench) prompt() time.Duration { return min(b.Timeout, 5*time.Second) }

// watchUntil runs a Watch, calls stop after its first update if there is one to call, and returns what Watch
// returned. It fails the test if Watch does not return promptly after ctx ended.
func (b *bench) watchUntil(ctx context.Context, service string, stop func()) error {
	b.Helper()
	updated := make(chan struct{}, 1)
	returned := make(chan error, 1)
	go func() {
		returned <- b.reg.Watch(ctx, service, func([]registry.Instance) {
			select {
			case updated <- struct{}{}:
			default:
			}
		})
	}()
	if stop != nil {
		select {
		case <-updated:
		case err := <-returned:
			b.Fatalf("Watch = %v before its first update", err)
		case <-time.After(b.Timeout):
			b.Fatalf("no first update within %v", b.Timeout)
		}
		stop()
	}
	<-ctx.Done()
	select {
	case err := <-returned:
		return err
	case <-time.After(b.prompt()):
		b.Fatalf("Watch has not returned %v after its context ended", b.prompt())
		return nil
	}
}

func noGoroutineLeft(b *bench) {
	const watches = 20
	service := b.service("goroutines")
	b.register(service, b.instance("a"))
	// Goroutines inherit the label, so that those of other tests, which may run at the same time, are not counted.
	pprof.Do(context.Background(), pprof.Labels(goroutineLabel, service), func(context.Context) {
		for range watches {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			b.watchUntil(ctx, service, cancel)
		}
	})
	b.poll(func() error {
		// A client may keep a few idle connections with goroutines of theirs, but not one for each watch there was.
		if n := goroutinesLabelled(service); n >= watches/2 {
			return fmt.Errorf("%d watches that ended left %d goroutines", watches, n)
		}
		return nil
	})
}

const goroutineLabel = "registrytest"

// goroutinesLabelled counts the goroutines that carry a label. The profile's text form has a line "3 @ 0x..." for
// three goroutines with the same stack, and their labels on the next.
func goroutinesLabelled(value string) (n int) {
	var text strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&text, 1) // a Builder does not fail
	var group int
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Sscanf(line, "%d @ 0x", &group); err != nil &&
			strings.Contains(line, fmt.Sprintf("%q:%q", goroutineLabel, value)) {
			n += group
		}
	}
	return n
}

// vandal writes over everything it receives, once the watcher behind it has a copy.
type vandal struct{ registry.Watcher }

func (v vandal) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	return v.Watcher.Watch(ctx, service, func(ins []registry.Instance) {
		own := make([]registry.Instance, len(ins))
		for i, in := range ins {
			own[i] = in.Clone()
		}
		for i := range ins {
			for k := range ins[i].Labels {
				ins[i].Labels[k] = "vandal"
			}
			for j := range ins[i].AltAddrs {
				ins[i].AltAddrs[j] = "vandal:1"
			}
			for j := range ins[i].Services {
				ins[i].Services[j] = "vandal"
			}
			ins[i] = registry.Instance{ID: "vandal"}
		}
		update(own)
	})
}

func receiverOwns(b *bench) {
	service := b.service("owner")
	in := b.instance("a")
	in.AltAddrs, in.Services = []string{"[::1]:4711"}, []string{"pkg.Service"}
	in.Labels = map[string]string{"step": "0", "track": "canary"}
	g := b.register(service, in)

	vandals := Record(b.T, vandal{b.reg}, service, b.Timeout)
	clean := b.record(service)
	versions := []registry.Instance{in}
	for step := range 5 {
		vandals.Await("the record as it was registered, in a watch that writes over what it gets", has(in))
		clean.Await("the record as it was registered, beside a watch that writes over what it gets", has(in))
		in = in.Clone()
		in.Labels["step"] = fmt.Sprint(step + 1)
		versions = append(versions, in)
		b.update(g, in)
	}
	clean.Await("the last change", has(in))
	b.record(service).Await("the record, in a watch that begins afterwards", has(in))
	for _, ins := range clean.Updates() {
		for _, got := range ins {
			if !slices.ContainsFunc(versions, got.Equal) {
				b.Errorf("an update that was delivered is now %+v: another watch could write to it", got)
			}
		}
	}
}

// gated delivers nothing before gate is closed, and so blocks the watch behind it.
type gated struct {
	registry.Watcher
	entered chan struct{} // receives when an update is held back
	gate    chan struct{}
	overlap chan struct{} // receives when an update came while another was held back
}

func (w gated) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	var inside atomic.Int32
	return w.Watcher.Watch(ctx, service, func(ins []registry.Instance) {
		if inside.Add(1) > 1 {
			select {
			case w.overlap <- struct{}{}:
			default:
			}
		}
		defer inside.Add(-1)
		select {
		case w.entered <- struct{}{}:
		default:
		}
		<-w.gate
		update(ins)
	})
}

// overlapWait is how long a slow watcher stays busy after everybody else has seen all changes.
const overlapWait = 100 * time.Millisecond

func slowWatcher(b *bench) {
	service := b.service("slow")
	w := gated{b.reg, make(chan struct{}, 1), make(chan struct{}), make(chan struct{}, 1)}
	slow := Record(b.T, w, service, b.Timeout)
	open := sync.OnceFunc(func() { close(w.gate) })
	b.Cleanup(open) // runs before the recorder's, which waits for the watch
	b.within("the first update of a watch", func() { <-w.entered })

	var all []registry.Instance
	var gs []registry.Registration
	for i := range 10 {
		all = append(all, b.instance(fmt.Sprintf("i%d", i)))
	}
	var err error
	b.within("Register, while another watch is busy in its update", func() {
		for _, in := range all {
			var g registry.Registration
			if g, err = b.reg.Register(context.Background(), service, in); err != nil {
				return
			}
			gs = append(gs, g)
		}
	})
	if err != nil {
		b.Fatalf("Register = %v", err)
	}
	for _, g := range gs {
		b.Cleanup(func() { b.closeQuietly(g) })
	}
	b.record(service).Await("all instances, while another watch is busy in its update", has(all...))
	select { // what must not happen can only be given a chance to
	case <-w.overlap:
		b.Error("an update while another was being delivered")
	case <-time.After(overlapWait):
	}
	open()
	slow.Await("the latest set, once the slow watch has time", has(all...))
}
