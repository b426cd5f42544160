package registrytest

import (
	"context"
	"errors"
	"time"
)

func malformed(b *bench) {
	service := b.service("malformed")
	rec := b.record(service)
	first := b.instance("first")
	g := b.register(service, first)
	rec.Await("the instance", has(first))

	from := len(rec.Updates()) - 1
	b.PutMalformed(b.T, b.reg, service)
	second := b.instance("second")
	b.register(service, second)
	rec.Await("both instances, beside a malformed record", has(first, second))
	first = first.Clone()
	first.Labels = map[string]string{"track": "canary"}
	b.update(g, first)
	rec.Await("a change, beside a malformed record", has(first, second))
	for _, ins := range rec.Updates()[from:] {
		if _, ok := find(ins, "first"); !ok {
			b.Errorf("a malformed record made another disappear: %q", ids(ins))
		}
	}
	if errs := rec.Errors(); len(errs) > 0 {
		b.Errorf("a malformed record ended the watch: %v", errs[0])
	}
	b.record(service).Await("both, in a watch that begins beside a malformed record", has(first, second))

	alone := b.service("malformed")
	b.PutMalformed(b.T, b.reg, alone)
	b.record(alone).Await("an empty set, where there is only a malformed record", has())
}

func restart(b *bench) {
	service := b.service("restart")
	old := b.record(service)
	x, y, z := b.instance("x"), b.instance("y"), b.instance("z")
	x.Labels = map[string]string{"n": "1"}
	gx, gy, gz := b.register(service, x), b.register(service, y), b.register(service, z)
	gone := b.register(service, b.instance("gone"))
	b.close(gone)
	x = x.Clone()
	x.Labels["n"] = "2"
	b.update(gx, x)
	old.Await("three instances", has(x, y, z))

	b.Restart(b.T, b.reg)
	fresh := b.record(service)
	fresh.Await("every record, put back into a registry that restarted empty", has(x, y, z))

	// The watch from before the restart, and the registrations, follow what happens after it.
	x = x.Clone()
	x.Labels["n"] = "3"
	b.update(gx, x)
	b.close(gy)
	w := b.instance("w")
	b.register(service, w)
	for _, rec := range []*Recorder{old, fresh} {
		rec.Await("changes after the restart", has(x, z, w))
	}
	b.close(gz)

	// And once more: whoever was put back can be put back again, and who left stays away.
	b.Restart(b.T, b.reg)
	last := b.record(service)
	last.Await("the records, after a second restart", has(x, w))
	for _, id := range []string{"y", "z", "gone"} {
		b.staysGone(last, 0, service, id)
	}
}

func outageIsError(b *bench) {
	service := b.service("outage")
	rec := b.record(service)
	x, y := b.instance("x"), b.instance("y")
	b.register(service, x)
	b.register(service, y)
	rec.Await("two instances", has(x, y))

	from := len(rec.Updates())
	end := b.endOnce(b.Outage(b.T, b.reg))
	if err := rec.AwaitError("the outage ends a watch"); err == nil ||
		errors.Is(err, context.Canceled) {
		b.Errorf("Watch in an outage = %v, want why the registry failed", err)
	}
	late := b.record(b.service("outage"))
	late.AwaitError("a watch that begins in the outage fails")
	for _, r := range []*Recorder{rec, late} {
		for _, ins := range r.Updates()[min(from, len(r.Updates())):] {
			if !has(x, y)(ins) {
				b.Errorf("an update in the outage: %q, want none", ids(ins))
			}
		}
	}
	if n := len(late.Updates()); n > 0 {
		b.Errorf("a watch that began in the outage got %d updates, want an error only", n)
	}
	end()
	b.record(service).Await("two instances, after the outage", has(x, y))
	late.Await("an empty set, after the outage", has())
}

// outageWait bounds the calls that cannot reach the registry. They may return earlier.
const outageWait = time.Second

func writesDuringOutage(b *bench) {
	service := b.service("outage")
	x, y := b.instance("x"), b.instance("y")
	gx := b.register(service, x)
	b.register(service, y)
	b.record(service).Await("two instances", has(x, y))

	end := b.endOnce(b.Outage(b.T, b.reg))
	ctx, cancel := context.WithTimeout(context.Background(), outageWait)
	defer cancel()
	x = x.Clone()
	x.Draining = true
	if err := gx.Update(ctx, x); err != nil {
		b.Errorf("Update in an outage = %v, want nil", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), outageWait)
	defer cancel()
	z := b.instance("z")
	g, err := b.reg.Register(ctx, service, z)
	if err != nil {
		b.Fatalf("Register in an outage = %v, want nil", err)
	}
	b.Cleanup(func() { b.closeQuietly(g) })
	z = z.Clone()
	z.Version = "2.0.0"
	ctx, cancel = context.WithTimeout(context.Background(), outageWait)
	defer cancel()
	if err := g.Update(ctx, z); err != nil {
		b.Errorf("Update in an outage, of a record registered in it = %v, want nil", err)
	}
	bad := b.instance("bad")
	bad.Labels = map[string]string{"with space": "x"}
	b.refused("a forbidden key in an outage", service, bad)

	end()
	b.record(service).Await("what was written in the outage", has(x, y, z))
}

func closeDuringOutage(b *bench) {
	service := b.service("outage")
	x, y := b.instance("x"), b.instance("y")
	gx := b.register(service, x)
	b.register(service, y)
	b.record(service).Await("two instances", has(x, y))

	end := b.endOnce(b.Outage(b.T, b.reg))
	ctx, cancel := context.WithTimeout(context.Background(), outageWait)
	defer cancel()
	if err := gx.Close(ctx); err == nil {
		b.Error("Close in an outage = nil, want why the record could not be removed")
	}
	if err := gx.Close(context.Background()); err != nil {
		b.Errorf("second Close, in an outage = %v, want nil", err)
	}
	end()

	rec := b.record(service)
	rec.Await("only the instance that was not closed", has(y))
	b.staysGone(rec, len(rec.Updates())-1, service, "x")
	b.Restart(b.T, b.reg)
	rec = b.record(service)
	rec.Await("only the instance that was not closed, after a restart", has(y))
	b.staysGone(rec, 0, service, "x")
}
