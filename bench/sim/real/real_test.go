package real

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/server"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
)

func TestAllNamesEveryStrategy(t *testing.T) {
	var got []string
	for _, m := range All() {
		if name := strings.TrimPrefix(m.Name, "evenkeel/"); !strings.Contains(name, "+") { // a variant
			got = append(got, name)
		}
		if _, err := m.New((&rig{sim: engine.New()}).env(1, fleet(3))); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	if !slices.Equal(got, balancer.Strategies()) {
		t.Errorf("All has %q, want %q", got, balancer.Strategies())
	}
}

func TestConfigurationsThatAreWrong(t *testing.T) {
	env := (&rig{sim: engine.New()}).env(1, fleet(1))
	for _, m := range []lb.Maker{
		FromJSON("json", `{"strategy":{"nonesuch":{}}}`),
		New("config", balancer.Config{Strategy: balancer.LeastRequest{Choices: 99}}),
	} {
		if b, err := m.New(env); err == nil || b != nil {
			t.Errorf("%s: a balancer (%v) and error %v, want an error and none", m.Name, b, err)
		}
	}
}

// TestConnectedFromTheStart: before any time has passed every server can be chosen.
func TestConnectedFromTheStart(t *testing.T) {
	for _, m := range shipped() {
		t.Run(m.Name, func(t *testing.T) {
			r := newRig(t, m, fleet(5)...)
			if now := r.sim.Now(); now != 1 {
				t.Errorf("it is %d, want 1", now)
			}
			r.wantReached(0, 1, 2, 3, 4)
		})
	}
}

// TestBlacklist: three failures in a row take a server out, for 30 s give or take 10 %; then one call probes it.
func TestBlacklist(t *testing.T) {
	r := newRig(t, New("rr", balancer.Config{}), fleet(3)...)
	fail := func(err error, deadline time.Duration) {
		for i := 0; i < 3; {
			c := lb.Call{}
			if deadline > 0 {
				c.Deadline = r.sim.Now() + int64(deadline)
			}
			s, perr := r.b.Pick(&c)
			if perr != nil {
				t.Fatal(perr)
			}
			var cerr error
			if s == 1 {
				cerr = err
				i++
			}
			r.b.Done(&c, s, lb.Result{Err: cerr})
		}
	}
	// The end of a call without time does not count against the server, so the deadline reaches the policy.
	fail(expired, 9*time.Millisecond)
	r.wantReached(0, 1, 2)
	fail(expired, time.Second)
	r.wantReached(0, 2)
	r.at(27 * time.Second)
	r.wantReached(0, 2)
	r.at(33*time.Second + 1)
	r.wantReached(0, 1, 2)
	fail(unavailable, 0)
	r.wantReached(0, 2)
}

func TestTriedServersAreAvoided(t *testing.T) {
	for _, m := range shipped() {
		t.Run(m.Name, func(t *testing.T) {
			r := newRig(t, m, fleet(3)...)
			r.wantReached(0, 1, 2) // so that the policy has named them all
			for range 20 {
				if s := r.call(lb.Call{Tried: []int{0, 2}}, nil); s != 1 {
					t.Fatalf("a call that was on 0 and 2 went to %d, want 1", s)
				}
			}
			r.call(lb.Call{Tried: []int{0, 1, 2}}, nil) // again somewhere
			r.call(lb.Call{Tried: []int{7}}, nil)       // nobody knows 7 any more
			r.wantReached(0, 1, 2)                      // the next call has not been anywhere
		})
	}
}

// keyed chooses the server whose number is the call's key.
type keyed struct{}

func (keyed) Name() string                            { return "keyed" }
func (keyed) Build(env balancer.Env) balancer.Chooser { return keyedChooser(env.Members) }

type keyedChooser []*balancer.Endpoint

func (k keyedChooser) Choose(c balancer.Call) int {
	if !c.HasHashKey {
		return 0
	}
	return slices.IndexFunc(k, func(e *balancer.Endpoint) bool { return e.Instance().ID == "i"+c.HashKey })
}

func TestCallsCarryTheirKey(t *testing.T) {
	r := newRig(t, New("keyed", balancer.Config{Strategy: keyed{}}), fleet(3)...)
	for _, c := range []struct {
		call lb.Call
		want int
	}{
		{lb.Call{Key: "2", HasKey: true}, 2},
		{lb.Call{Key: "1", HasKey: true, Deadline: 10}, 1},
		{lb.Call{Key: "2"}, 0},
		{lb.Call{}, 0},
	} {
		if got := r.call(c.call, nil); got != c.want {
			t.Errorf("%+v went to %d, want %d", c.call, got, c.want)
		}
	}
}

func TestFiltersAndDraining(t *testing.T) {
	green := func(in *registry.Instance) { in.Labels = map[string]string{"color": "green"} }
	drains := func(in *registry.Instance) { in.Draining = true }
	s := fleet(4)
	s[1], s[2] = with(s[1], green), with(s[2], green)
	r := newRig(t, New("green", balancer.Config{Filter: filters.Label("color", "green")}), s...)
	r.wantReached(1, 2)
	s[0], s[2] = with(s[0], green), with(s[2], drains)
	r.b.Update(s)
	r.wantReached(0, 1)
}

// TestTheSetChanges: what is new is used as soon as a picker with it is out, what has left is not used at once, and calls
// on it may still end.
func TestTheSetChanges(t *testing.T) {
	r := newRig(t, New("rr", balancer.Config{}), fleet(3)...)
	var old lb.Call
	at, err := r.b.Pick(&old)
	if err != nil {
		t.Fatal(err)
	}
	r.b.Update([]lb.Server{shown(1, 1), shown(3, 3)})
	r.wantReached(1)
	r.at(time.Millisecond)
	r.wantReached(1, 3)
	r.b.Done(&old, at, lb.Result{Err: unavailable})
	// Another process at the address of 1 takes the connection over.
	r.b.Update([]lb.Server{shown(4, 1), shown(3, 3)})
	r.wantReached(3, 4)
	r.b.Update(nil)
	if s, err := r.b.Pick(new(lb.Call)); status.Code(err) != codes.Unavailable {
		t.Errorf("without servers a call went to %d with error %v, want UNAVAILABLE", s, err)
	}
	r.b.Update(fleet(2))
	r.wantReached(0) // the first connection is what calls wait for, the other one has a millisecond
	r.at(2 * time.Millisecond)
	r.wantReached(0, 1)
}

func TestLostConnections(t *testing.T) {
	r := newRig(t, New("rr", balancer.Config{}), fleet(3)...)
	r.b.Lost(1)
	r.b.Lost(1)
	r.b.Lost(99)
	r.wantReached(0, 2)
	// The first attempts come after 1, 1.6 and 2.56 s, each give or take 20 %, and fail.
	r.at(7 * time.Second)
	r.wantReached(0, 2)
	r.b.Ready(1)
	r.wantReached(0, 2)          // the next attempt is still to come
	r.at(7*time.Second + 4916e6) // 4.096 s and 20 %
	r.wantReached(0, 1, 2)
	// Lost again while it is being connected to: one attempt at a time.
	r.b.Lost(2)
	r.at(13 * time.Second)
	r.b.Ready(2)
	r.b.Lost(2)
	r.wantReached(0, 1)
	for s := range 3 {
		r.b.Lost(s)
	}
	for range 3 {
		if s, err := r.b.Pick(new(lb.Call)); status.Code(err) != codes.Unavailable {
			t.Errorf("with all servers lost a call went to %d with error %v, want UNAVAILABLE", s, err)
		}
		r.at(time.Duration(r.sim.Now()) + time.Second)
	}
	for s := range 3 {
		r.b.Ready(s)
	}
	r.at(time.Duration(r.sim.Now()) + 200*time.Second) // more than any backoff
	r.wantReached(0, 1, 2)
}

// TestOneSeedOneRun: the whole simulation, with ejections, churn and failures, is the same for one seed and another for
// another one.
func TestOneSeedOneRun(t *testing.T) {
	s := scenario.Scenario{
		Name: "test", Clients: 4, Work: scenario.Exponential(100 * time.Millisecond), Attempts: 2,
		Servers: []scenario.Group{{Name: "all", Count: 6, Server: server.Config{Cores: 2}}},
		Steps: []scenario.Step{{Name: "a third dies", Load: 0.6, Measure: 40 * time.Second,
			Events: []scenario.Event{{At: time.Second, Do: scenario.Crash(0.34)}}}},
	}
	for _, m := range shipped() {
		t.Run(m.Name, func(t *testing.T) {
			run := func(seed uint64) *scenario.Result {
				r, err := scenario.Run(s, m, seed)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			one, again, other := run(1), run(1), run(2)
			if one.Hash != again.Hash || one.Events != again.Events {
				t.Errorf("two runs with one seed have %d and %d events and the hashes %x and %x", one.Events, again.Events,
					one.Hash, again.Hash)
			}
			if one.Hash == other.Hash {
				t.Error("two seeds give the same run")
			}
		})
	}
}

// BenchmarkSetup is what a fleet of 100 clients of 100 servers costs before its first call.
func BenchmarkSetup(b *testing.B) {
	for b.Loop() {
		for i := range 100 {
			r := &rig{sim: engine.New()}
			if _, err := New("rr", balancer.Config{}).New(r.env(uint64(i), fleet(100))); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkCall is a pick and its end.
func BenchmarkCall(b *testing.B) {
	for _, m := range shipped() {
		b.Run(m.Name, func(b *testing.B) {
			r := &rig{sim: engine.New()}
			bal, err := m.New(r.env(1, fleet(100)))
			if err != nil {
				b.Fatal(err)
			}
			var c lb.Call
			b.ReportAllocs()
			for b.Loop() {
				c = lb.Call{Deadline: 5e9}
				s, err := bal.Pick(&c)
				if err != nil {
					b.Fatal(err)
				}
				bal.Done(&c, s, lb.Result{Latency: 1e6})
			}
		})
	}
}
