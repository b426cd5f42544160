package balancer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
)

func filter(t testing.TB, text string) filters.Filter {
	t.Helper()
	f, err := filters.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// bind returns a context with a filter for the services.
func bind(t testing.TB, text string, services ...string) context.Context {
	t.Helper()
	return filters.NewContext(t.Context(), filter(t, text), services...)
}

// shop has eight stable instances in two zones, and two canaries: c0 in eu, c1 in us.
func shop() []registry.Instance {
	ins := fleet(10)
	for i := range ins {
		in := &ins[i]
		in.ID, in.Version, in.Zone = fmt.Sprintf("s%d", i), "1.4.0", []string{"eu", "us"}[i%2]
		in.Labels = map[string]string{"track": "stable"}
		if i >= 8 {
			in.ID, in.Version, in.Labels["track"] = fmt.Sprintf("c%d", i-8), "1.5.0-rc.1", "canary"
		}
	}
	return ins
}

// TestWhichFilter: the context's filter beats the configuration's, never Require, and binds whom it names.
func TestWhichFilter(t *testing.T) {
	for _, tt := range []struct {
		name, filter, require string
		ctx                   func(t *testing.T) context.Context
		want                  string // the IDs that get calls
	}{
		{"none", "", "", nil, "c0 c1 s0 s1 s2 s3 s4 s5 s6 s7"},
		{"configured", "track=canary", "", nil, "c0 c1"},
		{"required", "", "zone=eu", nil, "c0 s0 s2 s4 s6"},
		{"both", "track=canary", "zone=eu", nil, "c0"},
		{"context", "", "", func(t *testing.T) context.Context { return bind(t, "track=canary") }, "c0 c1"},
		{"context beats configured", "track=stable", "", func(t *testing.T) context.Context { return bind(t, "track=canary") }, "c0 c1"},
		{"a zero filter does too", "track=canary", "", func(t *testing.T) context.Context { return bind(t, "") },
			"c0 c1 s0 s1 s2 s3 s4 s5 s6 s7"},
		{"but not what is required", "track=stable", "zone=us", func(t *testing.T) context.Context { return bind(t, "track=canary") }, "c1"},
		{"named service", "", "", func(t *testing.T) context.Context { return bind(t, "track=canary", "stock", "orders") }, "c0 c1"},
		{"other service", "zone=eu", "", func(t *testing.T) context.Context { return bind(t, "track=canary", "stock") }, "c0 s0 s2 s4 s6"},
		{"inner beats outer", "", "", func(t *testing.T) context.Context {
			return filters.NewContext(bind(t, "track=canary"), filters.Zone("us"), "orders")
		}, "c1 s1 s3 s5 s7"},
		{"version range", "", "", func(t *testing.T) context.Context {
			return filters.NewContext(t.Context(), filters.Version(">=1.5.0-0"))
		}, "c0 c1"},
		{"prefer what there is", "prefer(track=canary,zone=eu; zone=us)", "", nil, "c0"},
		{"prefer the next", "prefer(track=gone; zone=us)", "", nil, "c1 s1 s3 s5 s7"},
		{"prefer, else all", "prefer(track=gone)", "zone=eu", nil, "c0 s0 s2 s4 s6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{Filter: filter(t, tt.filter), Require: filter(t, tt.require)}, shop())
			var a ask
			if tt.ctx != nil {
				a.ctx = tt.ctx(t)
			}
			checkTurns(t, r, a, tt.want)
		})
	}
}

// checkTurns makes ten rounds of calls, and wants each of the instances to get ten.
func checkTurns(t *testing.T, r *rig, a ask, want string) {
	t.Helper()
	ids := strings.Fields(want)
	got := r.calls(10*len(ids), a)
	for _, id := range ids {
		if got[id] != 10 {
			t.Fatalf("calls go to %v, want 10 to each of %s", got, want)
		}
	}
}

// TestPreferFallsBackAndReturns: the only canary drains, comes back, is ejected, is probed, and comes back.
func TestPreferFallsBackAndReturns(t *testing.T) {
	ins := shop()[:9]
	prefer := Config{Filter: filter(t, "prefer(track=canary)")}
	const all, stable = "c0 s0 s1 s2 s3 s4 s5 s6 s7", "s0 s1 s2 s3 s4 s5 s6 s7"
	r := newRig(t, prefer, ins)
	checkTurns(t, r, ask{}, "c0")
	ins[8].Draining = true
	r.update(prefer, ins)
	checkTurns(t, r, ask{}, stable)
	ins[8].Draining = false
	r.update(prefer, ins)
	checkTurns(t, r, ask{}, "c0")

	// One of one may not be ejected, but an alternative is judged before that.
	r.answers["c0"] = fails(codes.Unavailable)
	if got := r.calls(83, ask{}); got["c0"] != 3 || got["s0"] != 10 {
		t.Fatalf("calls go to %v, want 3 to the canary and then 10 to each of the others", got)
	}
	r.serveOut("c0")
	if got := r.calls(81, ask{}); got["c0"] != 1 {
		t.Fatalf("calls go to %v, want one to the canary, to probe", got)
	}
	r.serveOut("c0")
	r.answers["c0"] = nil
	if id := r.call(ask{}); id != "c0" {
		t.Fatalf("the probing call went to %s, want the canary", id)
	}
	checkTurns(t, r, ask{}, "c0")

	// It loses its connection and gets another.
	r.cc.Refuse = func(addr string) error {
		if addr == ins[8].Addr {
			return errRefused
		}
		return nil
	}
	r.drop(ins[8].Addr)
	checkTurns(t, r, ask{}, stable)
	r.cc.Refuse = nil
	r.reconnect(ins[8].Addr)
	checkTurns(t, r, ask{}, "c0")
	checkTurns(t, r, ask{ctx: bind(t, "")}, all)
}

// TestPreferProbesEarlierAlternatives: those that the alternative in use does not contain, too.
func TestPreferProbesEarlierAlternatives(t *testing.T) {
	const stable = "s0 s1 s2 s3 s4 s5 s6 s7"
	r := newRig(t, Config{Filter: filter(t, "prefer(track=canary; track=stable)")}, shop()[:9])
	checkTurns(t, r, ask{}, "c0")
	r.sicken("c0", fails(codes.Unavailable))
	checkTurns(t, r, ask{}, stable)
	r.serveOut("c0")
	r.answers["c0"] = nil
	if id := r.call(ask{}); id != "c0" {
		t.Fatalf("the first call after the ejection went to %s, want the canary to be probed", id)
	}
	checkTurns(t, r, ask{}, "c0")
}

// TestPreferNeedsOneHealthy: with two canaries, one that works is enough to stay there.
func TestPreferNeedsOneHealthy(t *testing.T) {
	r := newRig(t, Config{Filter: filter(t, "prefer(track=canary)")}, shop())
	r.sicken("c0", fails(codes.Unavailable))
	checkTurns(t, r, ask{}, "c1")
	r.sicken("c1", fails(codes.Unavailable))
	checkTurns(t, r, ask{}, "s0 s1 s2 s3 s4 s5 s6 s7")
}

// TestChangesWithoutConnections: what the registry says about an instance changes, and no connection is touched.
func TestChangesWithoutConnections(t *testing.T) {
	ins := shop()
	cfg := Config{Filter: filter(t, "track=canary")}
	r := newRig(t, cfg, ins)
	r.answers["c0"] = fails(codes.NotFound)
	r.calls(10, ask{})
	under := r.hold("c0")
	before := r.state("c0")
	created := r.cc.Created()
	check := func(step, want string) {
		t.Helper()
		r.update(cfg, ins)
		checkTurns(t, r, ask{}, want)
		if r.cc.Created() != created {
			t.Errorf("%s: %d connections were made", step, r.cc.Created()-created)
		}
	}
	ins[0].Labels = map[string]string{"track": "canary"}
	check("label", "c0 c1 s0")
	ins[8].Draining = true
	check("draining", "c1 s0")
	ins[9].Draining, ins[0].Draining = true, true
	check("all draining", "c0 c1 s0")
	ins[8].Draining, ins[9].Draining, ins[0].Draining = false, false, false
	check("no longer draining", "c0 c1 s0")
	cfg.Filter = filter(t, "version<1.5.0-0,zone=eu")
	check("another filter", "s0 s2 s4 s6")
	ins[1].Zone = "eu"
	check("zone", "s0 s1 s2 s4 s6")
	ins[2].Version = "2.0.0"
	check("version", "s0 s1 s4 s6")
	cfg = Config{Strategy: Weighted{}, Filter: filter(t, "track=canary")}
	ins[8].Weight = 3
	r.update(cfg, ins)
	if got := r.calls(500, ask{}); got["c0"] < 298 || got["c0"] > 302 {
		t.Errorf("with weights 3, 1, 1 calls go to %v, want 300 to c0", got)
	}
	ins[8].Weight = 1
	ins[9].Weight = 8
	r.update(cfg, ins)
	if got := r.calls(1000, ask{}); got["c1"] < 798 || got["c1"] > 802 {
		t.Errorf("with weights 1, 8, 1 calls go to %v, want 800 to c1", got)
	}
	if after := r.state("c0"); after.InFlight != 1 || after.Calls <= before.Calls {
		t.Errorf("state of c0 is %+v, want the call that is under way and all the calls before", after)
	}
	under(ended(nil))
	if r.cc.Created() != created {
		t.Errorf("%d connections were made", r.cc.Created()-created)
	}
}

// TestStateSurvives: an ejection outlives updates, reconnects and configurations.
func TestStateSurvives(t *testing.T) {
	r := newRig(t, Config{}, shop())
	r.sicken("s3", fails(codes.Unavailable))
	under := r.hold("s3")
	want := r.state("s3")
	for name, change := range map[string]func(){
		"the same again": func() { r.update(Config{}, shop()) },
		"order":          func() { s := shop(); s[0], s[9] = s[9], s[0]; r.update(Config{}, s) },
		"others leave":   func() { r.update(Config{}, shop()[:5]) },
		"labels":         func() { s := shop(); s[3].Labels = nil; r.update(Config{}, s) },
		"reconnect":      func() { r.drop(shop()[3].Addr) },
		"strategy":       func() { r.update(Config{Strategy: LeastRequest{Choices: 3}}, shop()) },
		"filter":         func() { r.update(Config{Filter: filter(t, "zone=us")}, shop()) },
	} {
		change()
		got := r.state("s3")
		if got.Ejected != want.Ejected || got.Calls != want.Calls || got.InFlight != want.InFlight ||
			got.Failures != want.Failures || got.Ejections != want.Ejections || got.Remaining > want.Remaining {
			t.Errorf("after %s: %+v, want %+v", name, got, want)
		}
		if n := r.calls(100, ask{})["s3"]; n > 0 {
			t.Errorf("after %s: %d calls went to the ejected instance", name, n)
		}
	}
	under(ended(nil)) // it had been kept in for its own filter, so this clears it
	if s := r.state("s3"); s.Ejected || s.InFlight != 0 {
		t.Errorf("after the success of a call to the kept instance: %+v", s)
	}
}

func TestErrorTexts(t *testing.T) {
	refuse := func(string) error { return errRefused }
	for _, tt := range []struct {
		name string
		cfg  Config
		ins  []registry.Instance
		set  func(r *rig)
		ctx  string
		want string // "" means that the pick queues
	}{
		{"no instance known", Config{}, nil, nil, "",
			`evenkeel: service "orders": no instance is known: filter "": 0 known, 0 connected, 0 match, 0 blacklisted`},
		{"and the resolver failed", Config{}, nil, func(r *rig) { r.p.ResolverError(errRefused) }, "",
			`evenkeel: service "orders": no instance is known: filter "": 0 known, 0 connected, 0 match, 0 blacklisted; ` +
				`last resolver error: connection refused`},
		{"none matches", Config{Require: filter(t, "zone=eu")}, shop(), nil, "track=green",
			`evenkeel: service "orders": no instance matches: filter "track=green,zone=eu": 10 known, 10 connected, 0 match, 0 blacklisted`},
		{"blacklisted ones are counted", Config{}, shop(), func(r *rig) { r.sicken("s1", fails(codes.Unavailable)) }, "track=green",
			`evenkeel: service "orders": no instance matches: filter "track=green": 10 known, 10 connected, 0 match, 1 blacklisted`},
		{"none can be connected to", Config{}, shop(), func(r *rig) {
			r.cc.Refuse = refuse
			r.drop(shop()[8].Addr)
			r.drop(shop()[9].Addr)
		}, "track=canary",
			`evenkeel: service "orders": no matching instance can be connected to: filter "track=canary": 10 known, 8 connected, ` +
				`2 match, 0 blacklisted; last connection error: connection refused`},
		{"one is still trying", Config{}, shop(), func(r *rig) {
			r.cc.Refuse = refuse
			r.drop(shop()[8].Addr)
			r.cc.Conn(shop()[9].Addr).Move(connectivity.Idle, nil)
			r.cc.Step() // it is to connect again, and has not begun
			r.frozen = true
		}, "track=canary", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.cfg, tt.ins)
			if tt.set != nil {
				tt.set(r)
			}
			a := ask{}
			if tt.ctx != "" {
				a.ctx = bind(t, tt.ctx)
			}
			_, _, err := r.begin(a)
			r.frozen = false
			if tt.want == "" {
				if err != gbalancer.ErrNoSubConnAvailable {
					t.Fatalf("pick: %v, want it to queue", err)
				}
				return
			}
			if err == nil || err.Error() != tt.want {
				t.Fatalf("pick:\n%v, want\n%s", err, tt.want)
			}
			// gRPC ends even a wait-for-ready call on a status, so this must be none.
			if _, ok := status.FromError(err); ok {
				t.Error("the error is a status")
			}
		})
	}
}

// TestConnectionErrorIsNoStatus: a connection error that is a status does not leak through as one.
func TestConnectionErrorIsNoStatus(t *testing.T) {
	r := newRig(t, Config{}, fleet(1))
	r.cc.Refuse = func(string) error { return status.Error(codes.Unauthenticated, "who are you") }
	r.drop(fleet(1)[0].Addr)
	_, _, err := r.begin(ask{})
	if _, ok := status.FromError(err); err == nil || ok || !strings.Contains(err.Error(), "who are you") {
		t.Errorf("pick: %v (a status: %t), want a plain error that quotes it", err, ok)
	}
}

func TestBrokenFilter(t *testing.T) {
	r := newRig(t, Config{}, shop())
	for range 3 {
		_, _, err := r.begin(ask{ctx: filters.NewContext(t.Context(), filters.Label("bad key!", "x"))})
		if s, ok := status.FromError(err); !ok || s.Code() != codes.Internal ||
			!strings.HasPrefix(s.Message(), `evenkeel: service "orders": filter: filters: Label: key = "bad key!"`) {
			t.Fatalf("pick: %v, want INTERNAL with the reason", err)
		}
	}
	r.call(ask{})
	// Require and the context's filter may be fine each, and not together.
	many := make([]filters.Filter, 9)
	for i := range many {
		many[i] = filters.Label("k", fmt.Sprint(i))
	}
	prefer := filters.Prefer(many[0], many[1:]...)
	wide := filters.All(prefer, prefer)
	if wide.Err() == nil && filters.All(wide, filters.Prefer(filters.Zone("eu"), many...)).Err() == nil {
		t.Fatal("the limit on alternatives has moved: make these two filters wider")
	}
	r.update(Config{Require: filters.Prefer(many[0], many[1:]...)}, shop())
	_, _, err := r.begin(ask{ctx: filters.NewContext(t.Context(), filters.Prefer(filters.Zone("eu"), many...))})
	if s, ok := status.FromError(err); !ok || s.Code() != codes.Internal {
		t.Fatalf("pick: %v, want INTERNAL", err)
	}
}

// TestManyFilters: the memory for candidate sets is bounded, and filters in use are found again.
func TestManyFilters(t *testing.T) {
	r := newRig(t, Config{}, shop())
	mine := ask{ctx: bind(t, "track=canary")}
	for i := range 5 * maxRoutes {
		_, _, err := r.begin(ask{ctx: filters.NewContext(t.Context(), filters.Label("user", fmt.Sprint(i)))})
		if err == nil || !strings.Contains(err.Error(), "0 match") {
			t.Fatalf("filter %d: %v", i, err)
		}
		if n := r.p.describe().Filters; n > maxRoutes {
			t.Fatalf("%d candidate sets are kept, want %d at most", n, maxRoutes)
		}
		if i%100 == 0 {
			checkTurns(t, r, mine, "c0 c1")
		}
	}
	r.update(Config{}, shop()[:9])
	checkTurns(t, r, mine, "c0")
	for i := range 100 { // broken filters are all different
		f := filters.Label("bad key!", fmt.Sprint(i))
		if _, _, err := r.begin(ask{ctx: filters.NewContext(t.Context(), f)}); err == nil {
			t.Fatal("a broken filter finds somebody")
		}
	}
	r.advance(time.Second)
	checkTurns(t, r, mine, "c0")
}
