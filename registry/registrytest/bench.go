package registrytest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// bench is what one subtest works with: a registry, and short names for what every subtest does.
type bench struct {
	*testing.T
	Harness
	reg  registry.Registry
	next int // port of the next instance
}

func newBench(t *testing.T, h Harness) *bench {
	return &bench{T: t, Harness: h, reg: h.New(t), next: 20000}
}

// service returns the name of a service that nobody has used.
func (b *bench) service(hint string) string {
	return strings.ToLower("registrytest-" + hint + "-" + rand.Text()[:12])
}

// instance returns a valid instance with an address of its own.
func (b *bench) instance(id string) registry.Instance {
	b.next++
	return registry.Instance{ID: id, Addr: fmt.Sprintf("127.0.0.1:%d", b.next)}
}

// register announces in until the end of the test, or until the caller closes it. The context it passes has ended
// when it returns: it bounds the call, not the registration, so every subtest proves that.
func (b *bench) register(service string, in registry.Instance) registry.Registration {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	g, err := b.reg.Register(ctx, service, in)
	if err != nil {
		b.Fatalf("Register(%q, %s) = %v", service, short(in), err)
	}
	b.Cleanup(func() { b.closeQuietly(g) })
	return g
}

// closeQuietly tidies up. The registry may be away; whether Close works is tested where it matters.
func (b *bench) closeQuietly(g registry.Registration) {
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	_ = g.Close(ctx)
}

// update replaces a record.
func (b *bench) update(g registry.Registration, in registry.Instance) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	if err := g.Update(ctx, in); err != nil {
		b.Fatalf("Update(%s) = %v", short(in), err)
	}
}

// close deregisters.
func (b *bench) close(g registry.Registration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		b.Fatalf("Close = %v", err)
	}
}

// refused checks that Register refuses in, as something that can never work.
func (b *bench) refused(what, service string, in registry.Instance) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	g, err := b.reg.Register(ctx, service, in)
	if err == nil {
		b.Errorf("%s: Register accepted it, want an error", what)
		_ = g.Close(ctx)
	} else if !errors.Is(err, registry.ErrInvalid) {
		b.Errorf("%s: Register = %v, want an error that wraps registry.ErrInvalid", what, err)
	}
}

// record watches service.
func (b *bench) record(service string) *Recorder {
	b.Helper()
	return Record(b.T, b.reg, service, b.Timeout)
}

// has says whether ins are exactly want, in any order.
func has(want ...registry.Instance) func([]registry.Instance) bool {
	return func(ins []registry.Instance) bool {
		if len(ins) != len(want) {
			return false
		}
		byID := make(map[string]registry.Instance, len(ins))
		for _, in := range ins {
			byID[in.ID] = in
		}
		for _, w := range want {
			if in, ok := byID[w.ID]; !ok || !in.Equal(w) {
				return false
			}
		}
		return true
	}
}

// find returns the instance called id.
func find(ins []registry.Instance, id string) (registry.Instance, bool) {
	for _, in := range ins {
		if in.ID == id {
			return in, true
		}
	}
	return registry.Instance{}, false
}

// short is an instance in a message.
func short(in registry.Instance) string { return fmt.Sprintf("%.300s", fmt.Sprintf("%+v", in)) }

// ids returns the IDs in order.
func ids(ins []registry.Instance) []string {
	list := make([]string, len(ins))
	for i, in := range ins {
		list[i] = in.ID
	}
	return list
}

// within fails the test if f takes too long, instead of hanging; f then goes on by itself.
func (b *bench) within(what string, f func()) {
	b.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(b.Timeout):
		b.Fatalf("not done within %v: %s", b.Timeout, what)
	}
}

// poll waits until ok returns nil, and fails the test with its error when that takes too long.
func (b *bench) poll(ok func() error) {
	b.Helper()
	deadline := time.After(b.Timeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			b.Fatalf("after %v: %v", b.Timeout, err)
		}
	}
}

// endOnce makes sure that an outage ends with the test, if not before, so that what is closed then can be.
func (b *bench) endOnce(end func()) func() {
	once := sync.OnceFunc(end)
	b.Cleanup(once)
	return once
}
