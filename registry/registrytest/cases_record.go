package registrytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"

	"github.com/evenkeel/evenkeel/registry"
)

func changesSeen(b *bench) {
	service := b.service("changes")
	rec := b.record(service)
	neighbour := b.instance("neighbour")
	neighbour.Labels = map[string]string{"track": "stable"}
	b.register(service, neighbour)
	in := b.instance("a")
	g := b.register(service, in)
	rec.Await("both instances", has(neighbour, in))

	set := func(k, v string) func(*registry.Instance) {
		return func(in *registry.Instance) {
			in.Labels = maps.Clone(in.Labels)
			if in.Labels == nil {
				in.Labels = make(map[string]string)
			}
			in.Labels[k] = v
		}
	}
	for _, c := range []struct {
		what   string
		change func(*registry.Instance)
	}{
		{"a label is added", set("track", "canary")},
		{"a second label is added, with an empty value", set("deprecated", "")},
		{"a label's value changes", set("track", "stable")},
		{"a label is removed", func(in *registry.Instance) { in.Labels = map[string]string{"track": "stable"} }},
		{"all labels are removed", func(in *registry.Instance) { in.Labels = nil }},
		{"the version is set", func(in *registry.Instance) { in.Version = "1.4.2" }},
		{"the version changes", func(in *registry.Instance) { in.Version = "1.5.0-rc.1" }},
		{"the version is taken away", func(in *registry.Instance) { in.Version = "" }},
		{"the zone is set", func(in *registry.Instance) { in.Zone = "eu-1" }},
		{"the zone changes", func(in *registry.Instance) { in.Zone = "eu-2" }},
		{"the weight is set", func(in *registry.Instance) { in.Weight = 10 }},
		{"the weight changes", func(in *registry.Instance) { in.Weight = 3 }},
		{"the services are set", func(in *registry.Instance) { in.Services = []string{"pkg.A", "pkg.B"} }},
		{"a service is removed", func(in *registry.Instance) { in.Services = []string{"pkg.B"} }},
		{"it drains", func(in *registry.Instance) { in.Draining = true }},
		{"it no longer drains", func(in *registry.Instance) { in.Draining = false }},
		{"everything changes", func(in *registry.Instance) {
			*in = registry.Instance{ID: in.ID, Addr: in.Addr, Version: "9.9.9", Zone: "us", Weight: 7, Draining: true,
				Services: []string{"x.Y"}, Labels: map[string]string{"k": "v"}}
		}},
	} {
		in = in.Clone()
		c.change(&in)
		b.update(g, in)
		rec.Await(fmt.Sprintf("%s: %+v", c.what, in), has(neighbour, in))
	}
}

func everyField(b *bench) {
	service := b.service("fields")
	rec := b.record(service)
	all := []registry.Instance{
		{
			ID: "everything", Addr: "192.0.2.1:65535", AltAddrs: []string{"[2001:db8::1]:443", "alt.example.com:1"},
			Version: "1.4.2-rc.1+build.5", Zone: "Zürich, Keller 2", Weight: 65535, Draining: true,
			Services: []string{"pkg.Service", "grpc.health.v1.Health", "a=b"},
			Labels: map[string]string{
				"track": "canary", "A-Z_0-9": "x", "Weight": "label", "addr": "label", "draining": "label",
			},
		},
		{ID: "nothing", Addr: "192.0.2.2:1"},
		{ID: "ipv6", Addr: "[2001:db8::2]:8080"},
		{ID: "name", Addr: "orders.example.com:8080"},
	}
	for _, in := range all {
		b.register(service, in)
	}
	rec.Await(fmt.Sprintf("every field as it was registered: %+v", all), has(all...))
}

func valuesArrive(b *bench) {
	service := b.service("values")
	rec := b.record(service)
	in := b.instance("a")
	in.Labels = map[string]string{
		"empty":     "",
		"space":     "  before and after  ",
		"unicode":   "Größe 寸法 размер 🛶 👩‍👩‍👧",
		"rtl":       "عربى \u202ex",
		"combining": "e\u0301 is not \u00e9",
		"control":   "tab\tnewline\nreturn\rnul\x00bell\a",
		"syntax":    `"quoted" 'single' back\slash {json:[1,2]} a=b,c=d;e <html>&amp;%41?#/`,
		"utf8":      "\ufffd \uffff \U0010ffff",
		"number":    "007",
		"longest":   strings.Repeat("x", b.MaxValue),
		"longwide":  strings.Repeat("é", b.MaxValue/2),
	}
	b.register(service, in)
	rec.Await(fmt.Sprintf("every value as it was registered: %+q", in.Labels), has(in))
}

func manyLabels(b *bench) {
	service := b.service("labels")
	rec := b.record(service)
	in := b.instance("a")
	in.Version, in.Zone, in.Weight, in.Services = "1.0.0", "eu-1", 5, []string{"pkg.Service"}
	in.Labels = make(map[string]string)
	for i := range 60 {
		in.Labels[fmt.Sprintf("l%02d%s", i, strings.Repeat("_", 61))] = fmt.Sprintf("value %d", i)
	}
	b.register(service, in)
	rec.Await("an instance with 60 labels whose keys have 64 characters", has(in))
}

// limits tries what a registry may be unable to store. Then it says so; it never stores something else.
func limits(b *bench) {
	with := func(change func(*registry.Instance)) registry.Instance {
		in := b.instance("a")
		change(&in)
		return in
	}
	many := make(map[string]string)
	for i := range 500 {
		many[fmt.Sprintf("label%d", i)] = "value"
	}
	for _, c := range []struct {
		what string
		in   registry.Instance
	}{
		{"a value one byte longer than the longest", with(func(in *registry.Instance) {
			in.Labels = map[string]string{"long": strings.Repeat("x", b.MaxValue+1)}
		})},
		{"a wide value longer than the longest", with(func(in *registry.Instance) {
			in.Labels = map[string]string{"long": strings.Repeat("寸", b.MaxValue/3+1)}
		})},
		{"500 labels", with(func(in *registry.Instance) { in.Labels = many })},
		{"the largest weight", with(func(in *registry.Instance) { in.Weight = math.MaxUint32 })},
		{"an ID with signs", with(func(in *registry.Instance) { in.ID = `pod 7/é?x=%41&y#z"\..` })},
		{"a long zone", with(func(in *registry.Instance) { in.Zone = strings.Repeat("z", 5000) })},
		{"500 services", with(func(in *registry.Instance) {
			for i := range 500 {
				in.Services = append(in.Services, fmt.Sprintf("pkg.Service%d", i))
			}
		})},
	} {
		service := b.service("limits")
		ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
		g, err := b.reg.Register(ctx, service, c.in)
		cancel()
		switch {
		case err == nil:
			b.Cleanup(func() { b.closeQuietly(g) })
			b.record(service).Await(c.what+", unchanged, since Register accepted it", has(c.in))
		case !errors.Is(err, registry.ErrInvalid):
			b.Errorf("%s: Register = %v, want nil or an error that wraps registry.ErrInvalid", c.what, err)
		default:
			b.nothingWritten(c.what, service)
		}
	}
}

func weightZero(b *bench) {
	service := b.service("weight")
	in := b.instance("a")
	in.Weight = 0
	b.register(service, in)
	one := in.Clone()
	one.Weight = 1
	b.record(service).Await("an instance with weight 0 or 1, which mean the same", has(one))
}

// nothingWritten checks that service has no record, after something was refused. It cannot wait for what must not
// come, so it registers a witness: when that is seen, what was written before it would be.
func (b *bench) nothingWritten(what, service string) {
	b.Helper()
	rec := b.record(service)
	rec.Await("any update", func([]registry.Instance) bool { return true })
	witness := b.instance("witness")
	g := b.register(service, witness)
	rec.Await("only the witness, since this was refused: "+what, has(witness))
	b.close(g)
	rec.Await("an empty set, after the witness left; refused was: "+what, has())
	for _, ins := range rec.Updates() {
		for _, in := range ins {
			if in.ID != witness.ID {
				b.Errorf("%s: was refused, but %+v was written", what, in)
			}
		}
	}
}

func forbiddenKeys(b *bench) {
	for _, key := range []string{
		"id", "version", "zone", "with space", "", "dot.ted", "sla/sh", "ümlaut", "a=b", "new\nline",
		strings.Repeat("k", 65),
	} {
		service := b.service("keys")
		what := fmt.Sprintf("label key %q", key)
		in := b.instance("a")
		in.Labels = map[string]string{"good": "x", key: "x"}
		b.refused(what, service, in)
		b.nothingWritten(what, service)
	}
}

func invalidInstances(b *bench) {
	good := b.instance("a")
	for _, c := range invalid {
		in := good.Clone()
		c.spoil(&in)
		service := b.service("invalid")
		b.refused(c.what, service, in)
		b.nothingWritten(c.what, service)
	}
	b.refused("no service name", "", good)

	// An update is judged like a new record, and one that is refused changes nothing.
	service := b.service("invalid")
	rec := b.record(service)
	g := b.register(service, good)
	rec.Await("the instance", has(good))
	for _, c := range invalid {
		in := good.Clone()
		in.Version = "6.6.6"
		c.spoil(&in)
		b.updateRefused(c.what, g, in)
	}
	b.unchanged(rec, g, good)
}

var invalid = []struct {
	what  string
	spoil func(*registry.Instance)
}{
	{"no ID", func(in *registry.Instance) { in.ID = "" }},
	{"no address", func(in *registry.Instance) { in.Addr = "" }},
	{"an address without a port", func(in *registry.Instance) { in.Addr = "127.0.0.1" }},
	{"an address without a host", func(in *registry.Instance) { in.Addr = ":80" }},
	{"port 0", func(in *registry.Instance) { in.Addr = "127.0.0.1:0" }},
	{"port 65536", func(in *registry.Instance) { in.Addr = "127.0.0.1:65536" }},
	{"a named port", func(in *registry.Instance) { in.Addr = "127.0.0.1:http" }},
	{"IPv6 without brackets", func(in *registry.Instance) { in.Addr = "2001:db8::1:80" }},
	{"a bad further address", func(in *registry.Instance) { in.AltAddrs = []string{"127.0.0.1:1", "nowhere"} }},
	{"a version that is not UTF-8", func(in *registry.Instance) { in.Version = "\xff" }},
	{"a zone that is not UTF-8", func(in *registry.Instance) { in.Zone = "\xff" }},
	{"an empty gRPC service", func(in *registry.Instance) { in.Services = []string{""} }},
	{"a value that is not UTF-8", func(in *registry.Instance) { in.Labels = map[string]string{"k": "a\xffb"} }},
	{"a forbidden label key", func(in *registry.Instance) { in.Labels = map[string]string{"with space": "x"} }},
}

func updateKeeps(b *bench) {
	service := b.service("keeps")
	rec := b.record(service)
	in := b.instance("a")
	in.AltAddrs = []string{"[::1]:4711"}
	g := b.register(service, in)
	rec.Await("the instance", has(in))
	for _, c := range []struct {
		field  string
		change func(*registry.Instance)
	}{
		{"ID", func(in *registry.Instance) { in.ID = "b" }},
		{"Addr", func(in *registry.Instance) { in.Addr = "127.0.0.1:4712" }},
		{"AltAddrs", func(in *registry.Instance) { in.AltAddrs = []string{"[::1]:4712"} }},
		{"AltAddrs", func(in *registry.Instance) { in.AltAddrs = nil }},
	} {
		other := in.Clone()
		other.Version = "6.6.6"
		c.change(&other)
		if err := b.updateRefused("another "+c.field, g, other); err != nil && !strings.Contains(err.Error(), c.field) {
			b.Errorf("another %s: Update = %q, want an error that names the field", c.field, err)
		}
	}
	b.unchanged(rec, g, in)
}

// updateRefused checks that g refuses in, as something that can never work, and returns the error.
func (b *bench) updateRefused(what string, g registry.Registration, in registry.Instance) error {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.Timeout)
	defer cancel()
	err := g.Update(ctx, in)
	if !errors.Is(err, registry.ErrInvalid) {
		b.Errorf("%s: Update = %v, want an error that wraps registry.ErrInvalid", what, err)
	}
	return err
}

// unchanged checks that updates that were refused left no trace: the next good one is all that is seen.
func (b *bench) unchanged(rec *Recorder, g registry.Registration, in registry.Instance) {
	b.Helper()
	next := in.Clone()
	next.Version = "2.0.0"
	b.update(g, next)
	rec.Await("the good update after those that were refused", has(next))
	for _, ins := range rec.Updates() {
		if len(ins) > 0 && !has(in)(ins) && !has(next)(ins) {
			b.Errorf("an update that was refused was written all the same: %+v", ins)
		}
	}
}
