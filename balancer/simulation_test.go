package balancer

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// TestNewBuilder: a policy of the builder uses the time and the randomness that it was given, and nobody else sees it.
func TestNewBuilder(t *testing.T) {
	cc, c, draws := lbtest.New(), &fakeClock{now: start}, 0
	b := NewBuilder(c, func() uint64 { draws++; return 0 })
	cfg, err := b.(gbalancer.ConfigParser).ParseConfig([]byte(`{"strategy":{"random":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	p := lbtest.BuildWith(cc, b, "simulated")
	if err := lbtest.Update(p, cfg, lbtest.Endpoints(fleet(3)...)); err != nil {
		t.Fatal(err)
	}
	cc.Settle()
	for w := c.take(start + minWindow); w != nil; w = c.take(start + minWindow) {
		w.f()
	}
	for range 2 {
		res, err := cc.Picker().Pick(gbalancer.PickInfo{FullMethodName: "/a/b"})
		if err != nil {
			t.Fatal(err)
		}
		if addr := res.SubConn.(*lbtest.SubConn).Addr; addr != fleet(1)[0].Addr {
			t.Errorf("a call went to %s, want the first, since the randomness is 0", addr)
		}
	}
	if draws != 2 {
		t.Errorf("%d numbers were drawn, want 2", draws)
	}
	// Three failures eject the first, for the time of the clock that was given.
	for range 3 {
		res, _ := cc.Picker().Pick(gbalancer.PickInfo{FullMethodName: "/a/b"})
		res.Done(gbalancer.DoneInfo{Err: status.Error(codes.Unavailable, "test"), BytesSent: true})
	}
	if len(p.(*policy).sick) != 1 {
		t.Fatalf("%d instances are out, want 1", len(p.(*policy).sick))
	}
	if w := c.take(start + int64(33*time.Second)); w == nil {
		t.Error("the end of the ejection is not on the clock that was given")
	}
	for _, s := range Channels() {
		if s.Service == "simulated" {
			t.Error("Channels lists the policy, want it not to")
		}
	}
}

// TestNewBuilderLeavesNothingBehind: policies need not be closed.
func TestNewBuilderLeavesNothingBehind(t *testing.T) {
	p := func() weak.Pointer[policy] {
		cc := lbtest.New()
		p := lbtest.BuildWith(cc, NewBuilder(&fakeClock{now: start}, seeded(1)), "simulated")
		if err := lbtest.Update(p, nil, lbtest.Endpoints(fleet(3)...)); err != nil {
			t.Fatal(err)
		}
		cc.Settle()
		return weak.Make(p.(*policy))
	}()
	for range 10 { // one is enough; more are for a collection that was under way
		runtime.GC()
		if p.Value() == nil {
			return
		}
	}
	t.Error("a policy that nobody has any more is still there after ten collections")
}

func TestStrategies(t *testing.T) {
	names := Strategies()
	for _, want := range []string{"keel", "least_request", "peak_ewma", "prequal", "random", "round_robin", "weighted"} {
		if !slices.Contains(names, want) {
			t.Errorf("Strategies is %q, want %q among them", names, want)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("Strategies is %q, want them in order", names)
	}
	if _, err := parseStrategy("nonesuch", nil); err == nil || !strings.Contains(err.Error(), names[0]) {
		t.Errorf("an unknown strategy is refused with %v, want the names", err)
	}
}
