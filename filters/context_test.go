package filters

import (
	"context"
	"testing"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/registry"
)

func TestContext(t *testing.T) {
	a, b := Label("a", "1"), Label("b", "2")
	bg := context.Background()
	services := []string{"orders", "stock"}
	copied := NewContext(bg, a, services...)
	services[0] = "changed"
	for _, tt := range []struct {
		name    string
		ctx     context.Context
		service string
		want    Filter
		ok      bool
	}{
		{"nothing bound", bg, "orders", Filter{}, false},
		{"named", NewContext(bg, a, "orders"), "orders", a, true},
		{"another service", NewContext(bg, a, "orders"), "stock", Filter{}, false},
		{"all services", NewContext(bg, a), "stock", a, true},
		{"inner first", NewContext(NewContext(bg, a, "orders"), b, "orders"), "orders", b, true},
		{"inner names another", NewContext(NewContext(bg, a, "orders"), b, "stock"), "orders", a, true},
		{"outer for all, seen through an inner one", NewContext(NewContext(bg, a), b, "stock"), "orders", a, true},
		{"inner for all", NewContext(NewContext(bg, a, "orders"), b), "orders", b, true},
		{"zero on purpose", NewContext(NewContext(bg, a), Filter{}, "orders"), "orders", Filter{}, true},
		{"services are copied", copied, "orders", a, true},
		{"and not shared", copied, "changed", Filter{}, false},
		{"through other values", context.WithValue(NewContext(bg, a, "orders"), ctxKey{}, 1), "orders", a, true},
		{"broken", NewContext(bg, Any(), "orders"), "orders", Any(), true},
	} {
		f, ok := FromContext(tt.ctx, tt.service)
		if f != tt.want || ok != tt.ok {
			t.Errorf("%s: FromContext(%q) = %q, %v, want %q, %v", tt.name, tt.service, f, ok, tt.want, tt.ok)
		}
		if f, ok := FromRecord(callctx.From(tt.ctx), tt.service); f != tt.want || ok != tt.ok {
			t.Errorf("%s: FromRecord(%q) = %q, %v, want %q, %v", tt.name, tt.service, f, ok, tt.want, tt.ok)
		}
	}
}

type ctxKey struct{}

func TestContextKeepsTheRecord(t *testing.T) {
	call := new(callctx.Call)
	outer := callctx.With(context.Background(), callctx.Record{HashKey: "k", HasHashKey: true, Call: call})
	inner := NewContext(outer, Label("a", "1"), "orders")
	if rec := callctx.From(inner); rec.HashKey != "k" || !rec.HasHashKey || rec.Call != call {
		t.Errorf("NewContext lost what the record said: %+v", rec)
	}
	if callctx.From(outer).Filters != nil {
		t.Error("NewContext changed the outer record")
	}
	rec := callctx.From(NewContext(inner, Filter{}))
	if rec.Filters.Next != nil {
		t.Error("a binding of all services keeps those that it hides")
	}
}

func TestAllocations(t *testing.T) {
	in := &registry.Instance{
		ID: "i", Version: "1.4.0-rc.1", Zone: "eu-1", Services: []string{"a.B"},
		Labels: map[string]string{"track": "canary"},
	}
	f := MustParse("any(track=x; version>=1.4.0-alpha,version<2),not(zone in (a,b)),id,serves(a.B)," +
		"version!=1.5.0,prefer(a;b)")
	rec := callctx.From(NewContext(NewContext(context.Background(), f), Filter{}, "a", "b"))
	want := Label("track", "canary")
	for name, do := range map[string]func() bool{
		"Match": func() bool { return f.Match(in) },
		"Tiers": func() bool {
			return len(f.Tiers()) == 3 && len(want.Tiers()) == 1 && len(Filter{}.Tiers()) == 1
		},
		"String":     func() bool { return f.String() != "" },
		"FromRecord": func() bool { g, ok := FromRecord(rec, "orders"); return g == f && ok },
	} {
		if !do() {
			t.Errorf("%s: wrong answer", name)
		}
		if n := testing.AllocsPerRun(100, func() { do() }); n != 0 {
			t.Errorf("%s allocates %v times, want 0", name, n)
		}
	}
}
