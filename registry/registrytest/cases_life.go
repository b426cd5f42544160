package registrytest

import (
	"context"
	"fmt"
	"sync"

	"github.com/evenkeel/evenkeel/registry"
)

func deregistration(b *bench) {
	service := b.service("leave")
	rec := b.record(service)
	x, y, z := b.instance("x"), b.instance("y"), b.instance("z")
	gx, gy, gz := b.register(service, x), b.register(service, y), b.register(service, z)
	rec.Await("three instances", has(x, y, z))
	from := len(rec.Updates()) - 1
	b.close(gy)
	rec.Await("the other two", has(x, z))
	b.close(gx)
	rec.Await("the last one", has(z))
	for _, ins := range rec.Updates()[from:] {
		if _, ok := find(ins, "z"); !ok {
			b.Errorf("an update without the instance that stayed: %q", ids(ins))
		}
	}
	b.close(gz)
	rec.Await("an empty set", has())
}

func hundred(b *bench) {
	const n = 100
	service := b.service("hundred")
	rec := b.record(service)
	all := make([]registry.Instance, n)
	gs := make([]registry.Registration, n)
	for i := range all {
		all[i] = b.instance(fmt.Sprintf("i%d", i))
		all[i].Labels = map[string]string{"number": fmt.Sprint(i)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	b.each(n, func(i int) (err error) {
		gs[i], err = b.reg.Register(ctx, service, all[i])
		return err
	})
	for _, g := range gs {
		b.Cleanup(func() { b.closeQuietly(g) })
	}
	rec.Await("100 instances that were registered at once", has(all...))
	b.record(service).Await("100 instances, in a watch that begins afterwards", has(all...))
	b.each(n, func(i int) error { return gs[i].Close(ctx) })
	rec.Await("an empty set, after they left at once", has())
}

// each calls f with 0 to n-1, all at once, and fails the test if a call does.
func (b *bench) each(n int, f func(int) error) {
	b.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			b.Fatalf("call %d of %d at once = %v", i, n, err)
		}
	}
}

func sameAddress(b *bench) {
	service := b.service("address")
	rec := b.record(service)
	older := b.instance("older")
	newer := older.Clone()
	newer.ID = "newer"
	gOlder := b.register(service, older)
	rec.Await("the only instance at the address", has(older))
	gNewer := b.register(service, newer)
	rec.Await("the newer of two instances at one address", has(newer))

	// An update does not make a record younger.
	from := len(rec.Updates()) - 1
	older = older.Clone()
	older.Labels = map[string]string{"hidden": "yes"}
	b.update(gOlder, older)
	newer = newer.Clone()
	newer.Labels = map[string]string{"shown": "yes"}
	b.update(gNewer, newer)
	rec.Await("the change of the newer", has(newer))
	for _, ins := range rec.Updates()[from:] {
		if _, ok := find(ins, "older"); ok {
			b.Errorf("an update with the older instance, while the newer is there: %q", ids(ins))
		}
	}
	b.record(service).Await("the newer, in a watch that begins afterwards", has(newer))

	b.close(gNewer)
	rec.Await("the older, with its change, after the newer left", has(older))
	b.close(gOlder)
	rec.Await("an empty set", has())
	again := older.Clone()
	again.ID = "again"
	b.register(service, again)
	rec.Await("a new ID at a known address", has(again))
}

func sameID(b *bench) {
	service := b.service("id")
	rec := b.record(service)
	first, second := b.instance("a"), b.instance("a") // at different addresses
	gFirst := b.register(service, first)
	rec.Await("the instance", has(first))
	gSecond := b.register(service, second)
	rec.Await("the newer of two records with one ID", has(second))

	from := len(rec.Updates()) - 1
	b.close(gFirst)
	// When the witness has come and gone, so has what Close did.
	witness := b.instance("witness")
	gWitness := b.register(service, witness)
	rec.Await("the newer record, and a witness", has(second, witness))
	b.close(gWitness)
	rec.Await("the newer record, after the older registration was closed", has(second))
	for _, ins := range rec.Updates()[from:] {
		if in, ok := find(ins, "a"); !ok || !in.Equal(second) {
			b.Errorf("an update without the newer record, after the older registration was closed: %+v", ins)
		}
	}
	second = second.Clone()
	second.Version = "2.0.0"
	b.update(gSecond, second)
	rec.Await("the change of the newer record", has(second))
	b.close(gSecond)
	rec.Await("an empty set", has())
}

func closeTwice(b *bench) {
	service := b.service("twice")
	rec := b.record(service)
	in := b.instance("a")
	g := b.register(service, in)
	rec.Await("the instance", has(in))
	b.close(g)
	rec.Await("an empty set", has())
	again := b.register(service, in)
	rec.Await("the instance, registered again", has(in))

	from := len(rec.Updates()) - 1
	b.close(g) // fails the test if it is an error
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Close(ended); err != nil {
		b.Errorf("third Close, with a context that has ended = %v, want nil", err)
	}
	in = in.Clone()
	in.Version = "2.0.0"
	b.update(again, in)
	rec.Await("the second registration's change", has(in))
	for _, ins := range rec.Updates()[from:] {
		if len(ins) != 1 {
			b.Errorf("a second Close removed another registration's record: %q", ids(ins))
		}
	}
}

func updateAfterClose(b *bench) {
	service := b.service("closed")
	rec := b.record(service)
	in := b.instance("a")
	g := b.register(service, in)
	rec.Await("the instance", has(in))
	b.close(g)
	rec.Await("an empty set", has())
	from := len(rec.Updates()) - 1
	in = in.Clone()
	in.Version = "2.0.0"
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	if err := g.Update(ctx, in); err == nil {
		b.Error("Update after Close = nil, want an error")
	}
	b.staysGone(rec, from, service, "a")
}

func updatesRaceWithClose(b *bench) {
	const n = 8
	service := b.service("race")
	rec := b.record(service)
	in := b.instance("a")
	g := b.register(service, in)
	rec.Await("the instance", has(in))
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	b.each(n, func(i int) error {
		next := in.Clone()
		next.Weight = uint32(i + 2)
		return g.Update(ctx, next)
	})
	in = in.Clone()
	in.Version = "last"
	b.update(g, in)
	rec.Await("the last of many updates", has(in))

	b.each(n+1, func(i int) error {
		if i == n/2 {
			return g.Close(ctx)
		}
		next := in.Clone()
		next.Weight = uint32(i + 2)
		_ = g.Update(ctx, next) // an error if it comes after Close
		return nil
	})
	rec.Await("an empty set, after Close among updates", has())
	b.staysGone(rec, len(rec.Updates())-1, service, "a")
}

// staysGone checks that id, which is gone as of the given update, does not come back: a witness comes and goes, and
// none of the updates meanwhile has it.
func (b *bench) staysGone(rec *Recorder, from int, service, id string) {
	b.Helper()
	witness := b.instance("witness")
	g := b.register(service, witness)
	seen := func(ins []registry.Instance) bool { _, ok := find(ins, witness.ID); return ok }
	rec.Await("the witness", seen)
	b.close(g)
	rec.Await("the witness leaves", func(ins []registry.Instance) bool { return !seen(ins) })
	for _, ins := range rec.Updates()[from:] {
		if _, ok := find(ins, id); ok {
			b.Errorf("instance %q came back after Close: %q", id, ids(ins))
			return
		}
	}
}
