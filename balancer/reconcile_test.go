package balancer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/internal/beacon"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// TestNewIDAtKnownAddress is a restarted process: its health starts afresh, on the connection that is there.
func TestNewIDAtKnownAddress(t *testing.T) {
	ins := fleet(4)
	r := newRig(t, Config{Strategy: PeakEWMA{}}, ins)
	r.sicken("i2", fails(codes.Unavailable))
	under := r.hold("i2")
	created := r.cc.Created()
	ins[2].ID = "i2-again"
	r.update(Config{Strategy: PeakEWMA{}}, ins)
	s := r.state("i2-again")
	if s.Ejected || s.Calls != 0 || s.InFlight != 0 || s.Load != 0 || s.State != connectivity.Ready {
		t.Errorf("the new instance starts with %+v", s)
	}
	if r.cc.Created() != created {
		t.Errorf("%d connections were made", r.cc.Created()-created)
	}
	if id := r.call(ask{ctx: bind(t, "id=i2-again")}); id != "i2-again" {
		t.Errorf("a call for it went to %s", id)
	}
	under(ended(fails(codes.Unavailable)))
	if s := r.state("i2-again"); s.Ejected || s.Failures != 0 || s.InFlight != 0 {
		t.Errorf("the end of a call to the old instance counts for the new one: %+v", s)
	}
	_, _, err := r.begin(ask{ctx: bind(t, "id=i2")})
	if err == nil || !strings.Contains(err.Error(), "0 match") {
		t.Errorf("a pick for the old instance: %v", err)
	}
}

// TestComeAndGo keeps one instance and has the others change completely, again and again.
func TestComeAndGo(t *testing.T) {
	r := newRig(t, Config{}, fleet(1))
	all := fleet(40)
	for round := range 20 {
		now := append(fleet(1), all[1+round:11+round]...)
		r.update(Config{}, now)
		if got := r.calls(110, ask{}); len(got) != 11 || got["i0"] != 10 {
			t.Fatalf("round %d: calls go to %v, want all 11 in turn", round, got)
		}
		if len(r.p.children) != 11 || len(r.p.known) != 11 || r.p.states[connectivity.Ready] != 11 {
			t.Fatalf("round %d: %d children, %d known, states %v; want 11", round, len(r.p.children), len(r.p.known), r.p.states)
		}
	}
	r.update(Config{}, nil)
	if r.cc.State() != connectivity.TransientFailure || r.p.states != [len(r.p.states)]int{} {
		t.Errorf("without instances the channel is %v, and children are in states %v", r.cc.State(), r.p.states)
	}
	r.update(Config{}, fleet(3))
	checkTurns(t, r, ask{}, "i0 i1 i2")
}

func endpoints(addrs ...string) []gresolver.Endpoint {
	var eps []gresolver.Endpoint
	for _, group := range addrs {
		var ep gresolver.Endpoint
		for _, a := range strings.Fields(group) {
			ep.Addresses = append(ep.Addresses, gresolver.Address{Addr: a})
		}
		eps = append(eps, ep)
	}
	return eps
}

// TestKindsOfEndpoints: who gets calls, for endpoints as resolvers of all kinds make them.
func TestKindsOfEndpoints(t *testing.T) {
	for _, tt := range []struct {
		name   string
		eps    []gresolver.Endpoint
		refuse string
		want   map[string]int // by address, of 12 calls
	}{
		{"foreign", endpoints("a:1", "b:1"), "", map[string]int{"a:1": 6, "b:1": 6}},
		{"IPv6", endpoints("[2001:db8::1]:80", "[2001:db8::2]:80", "10.0.0.1:80"), "",
			map[string]int{"[2001:db8::1]:80": 4, "[2001:db8::2]:80": 4, "10.0.0.1:80": 4}},
		{"two addresses are one endpoint", endpoints("10.0.0.1:80 [2001:db8::1]:80", "10.0.0.2:80"), "",
			map[string]int{"10.0.0.1:80": 6, "10.0.0.2:80": 6}},
		{"the second is used if the first does not answer", endpoints("10.0.0.1:80 [2001:db8::1]:80", "10.0.0.2:80"), "10.0.0.1:80",
			map[string]int{"[2001:db8::1]:80": 6, "10.0.0.2:80": 6}},
		{"the same endpoint twice", endpoints("a:1", "a:1", "b:1"), "", map[string]int{"a:1": 6, "b:1": 6}},
		{"the same addresses in another order", endpoints("a:1 b:1", "b:1 a:1", "c:1"), "", map[string]int{"b:1": 6, "c:1": 6}},
		{"an address twice", endpoints("a:1 a:1", "b:1"), "", map[string]int{"a:1": 6, "b:1": 6}},
		{"an endpoint without addresses", append(endpoints("a:1"), gresolver.Endpoint{}), "", map[string]int{"a:1": 12}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cc := lbtest.New()
			cc.Refuse = func(addr string) error {
				if addr == tt.refuse {
					return errRefused
				}
				return nil
			}
			r := bareRig(t, cc)
			r.updateEndpoints(Config{}, tt.eps)
			got := r.calls(12, ask{})
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("calls go to %v, want %v", got, tt.want)
			}
			for _, s := range r.p.describe().Endpoints {
				if s.Instance.Addr == "" {
					t.Errorf("an endpoint has no address: %+v", s)
				}
			}
		})
	}
}

// TestAddressesOnly is a resolver, or a parent policy, that knows no endpoints.
func TestAddressesOnly(t *testing.T) {
	r := bareRig(t, lbtest.New())
	err := r.p.UpdateClientConnState(gbalancer.ClientConnState{ResolverState: gresolver.State{
		Addresses: []gresolver.Address{{Addr: "a:1"}, {Addr: "b:1"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.flush()
	r.p.mu.Lock()
	for _, e := range r.p.known {
		r.ever[e] = true
	}
	r.p.mu.Unlock()
	if got := r.calls(10, ask{}); got["a:1"] != 5 || got["b:1"] != 5 {
		t.Errorf("calls go to %v, want 5 to each address", got)
	}
}

// TestAlternativeAddressChanges: the instance stays the same, and so does its connection while its address is there.
func TestAlternativeAddressChanges(t *testing.T) {
	ins := fleet(2)
	r := newRig(t, Config{}, ins)
	ins[1].AltAddrs = []string{"[2001:db8::2]:80"}
	r.update(Config{}, ins) // other addresses are another endpoint: it is connected to anew
	checkTurns(t, r, ask{}, "i0 i1")
	created := r.cc.Created()
	ins[1].Addr, ins[1].AltAddrs = ins[1].AltAddrs[0], []string{ins[1].Addr}
	r.update(Config{}, ins)
	checkTurns(t, r, ask{}, "i0 i1")
	if r.cc.Created() != created {
		t.Errorf("the same addresses in another order made %d connections", r.cc.Created()-created)
	}
}

// TestServerNameChanges: a changed TLS name is another address to pick_first, and reaches it.
func TestServerNameChanges(t *testing.T) {
	eps := endpoints("a:1", "b:1")
	r := bareRig(t, lbtest.New())
	r.updateEndpoints(Config{}, eps)
	created := r.cc.Created()
	eps = endpoints("a:1", "b:1")
	eps[0].Addresses[0].ServerName = "other"
	r.updateEndpoints(Config{}, eps)
	if got := r.cc.Created() - created; got != 1 {
		t.Errorf("%d connections were made for a changed server name, want 1", got)
	}
	if got := r.calls(10, ask{}); got["a:1"] != 5 {
		t.Errorf("calls go to %v, want 5 to each", got)
	}
}

// TestNotServing: an instance whose health service says NOT_SERVING gets no calls; if all do, the error says so.
func TestNotServing(t *testing.T) {
	cc := lbtest.New()
	sick := map[string]bool{fleet(3)[1].Addr: true}
	cc.Unhealthy = func(addr string) bool { return sick[addr] }
	r := bareRig(t, cc)
	r.update(Config{}, fleet(3))
	checkTurns(t, r, ask{}, "i0 i2")
	if s := r.state("i1"); s.State != connectivity.TransientFailure || s.Err == nil || !strings.Contains(s.Err.Error(), "NOT_SERVING") {
		t.Errorf("the instance is in state %v (%v), want TRANSIENT_FAILURE and why", s.State, s.Err)
	}
	_, _, err := r.begin(ask{ctx: bind(t, "id=i1")})
	if err == nil || !strings.Contains(err.Error(), "NOT_SERVING") {
		t.Errorf("a pick for it: %v, want an error that says NOT_SERVING", err)
	}
	delete(sick, fleet(3)[1].Addr)
	r.drop(fleet(3)[1].Addr)
	checkTurns(t, r, ask{}, "i0 i1 i2")
}

// TestIdleIsWoken: an endpoint whose connection the server closed is connected to again without a call.
func TestIdleIsWoken(t *testing.T) {
	r := newRig(t, Config{}, fleet(3))
	for _, in := range fleet(3) {
		r.cc.Conn(in.Addr).Move(connectivity.Idle, nil)
	}
	r.settle()
	r.p.ExitIdle()
	r.flush()
	if n := r.p.states[connectivity.Ready]; n != 3 {
		t.Errorf("%d of 3 are connected again without a call", n)
	}
	checkTurns(t, r, ask{}, "i0 i1 i2")
}

func TestUpdateErrors(t *testing.T) {
	r := newRig(t, Config{}, fleet(2))
	err := r.p.UpdateClientConnState(gbalancer.ClientConnState{
		ResolverState: gresolver.State{Endpoints: endpoints("z:1")},
		BalancerConfig: struct {
			serviceconfig.LoadBalancingConfig
		}{},
	})
	if !errors.Is(err, gbalancer.ErrBadResolverState) || !strings.Contains(err.Error(), "want evenkeel's own") {
		t.Errorf("a foreign config: %v", err)
	}
	checkTurns(t, r, ask{}, "i0 i1")
	err = lbtest.Update(r.p, nil, nil)
	if !errors.Is(err, gbalancer.ErrBadResolverState) || !errors.Is(err, errNoEndpoints) {
		t.Errorf("no endpoints: %v", err)
	}
	// The configuration stays when an update brings none.
	r.update(Config{Filter: filter(t, "id=i1")}, fleet(2))
	if err := lbtest.Update(r.p, nil, lbtest.Endpoints(fleet(2)...)); err != nil {
		t.Fatal(err)
	}
	checkTurns(t, r, ask{}, "i1")
}

// TestResolverErrorKeepsServing: with instances known, a resolver in trouble changes nothing.
func TestResolverErrorKeepsServing(t *testing.T) {
	r := newRig(t, Config{}, fleet(2))
	updates := r.cc.Updates()
	r.p.ResolverError(errRefused)
	checkTurns(t, r, ask{}, "i0 i1")
	if r.cc.Updates() != updates {
		t.Error("an error of the resolver was published though instances are known")
	}
}

// TestBeacon: the resolver learns that its instances arrived.
func TestBeacon(t *testing.T) {
	r := bareRig(t, lbtest.New())
	var b beacon.Beacon
	if err := r.p.UpdateClientConnState(gbalancer.ClientConnState{ResolverState: gresolver.State{
		Endpoints: lbtest.Endpoints(fleet(1)...), Attributes: beacon.Put(nil, &b),
	}}); err != nil {
		t.Fatal(err)
	}
	if !b.Lit() {
		t.Error("the beacon is dark after an update")
	}
}

// TestUnconcernedSetsStay: a change of one endpoint leaves the candidate sets of others alone.
func TestUnconcernedSetsStay(t *testing.T) {
	r := newRig(t, Config{}, shop())
	r.call(ask{ctx: bind(t, "zone=eu")})
	r.call(ask{ctx: bind(t, "zone=us")})
	set := func(f string) *candidates { return r.p.routes[filter(t, f)].set }
	eu, us, all := set("zone=eu"), set("zone=us"), r.p.byConfig.set
	r.sicken("s0", fails(codes.Unavailable)) // in eu
	if set("zone=eu") == eu || r.p.byConfig.set == all {
		t.Error("a set that has the endpoint is the old one")
	}
	if set("zone=us") != us {
		t.Error("a set that has not the endpoint was built anew")
	}
	ins := shop()
	ins[1].Weight = 7 // in us
	ins = append(ins, registry.Instance{ID: "n", Addr: "10.9.9.9:80", Zone: "ap"})
	eu = set("zone=eu")
	r.update(Config{}, ins)
	if set("zone=eu") != eu || set("zone=us") == us {
		t.Error("an update rebuilt eu, which it does not concern, or not us, which it does")
	}
}

// TestRemovedEndpointIsNotPicked, not even by a picker from before the update.
func TestRemovedEndpointIsNotPicked(t *testing.T) {
	for _, s := range strategiesUnderTest {
		r := newRig(t, Config{Strategy: s}, fleet(3))
		old := r.cc.Picker()
		next := fleet(2)
		next[1].ID = "successor"
		r.update(Config{Strategy: s}, next)
		for range 50 {
			res, err := old.Pick(pickInfo(t))
			if err != nil || res.SubConn != r.cc.Conn("10.0.0.1:80") {
				t.Fatalf("%s: an old picker chose %v (%v), want the one that is still there", s.Name(), res.SubConn, err)
			}
			res.Done(ended(nil))
		}
	}
}
