package real

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/registry"
)

func TestMain(m *testing.M) {
	balancer.RegisterStrategy("keyed", func(json.RawMessage) (balancer.Strategy, error) { return keyed{}, nil })
	slog.SetDefault(slog.New(slog.DiscardHandler)) // ejections are what is tested, and nobody's business
	os.Exit(m.Run())
}

// shipped is All without the strategy that is here for a test.
func shipped() []lb.Maker {
	return slices.DeleteFunc(All(), func(m lb.Maker) bool { return m.Name == "evenkeel/keyed" })
}

// rig is one client of a fleet whose servers answer when the test says.
type rig struct {
	t   *testing.T
	sim *engine.Sim
	b   *Balancer
}

func newRig(t *testing.T, m lb.Maker, servers ...lb.Server) *rig {
	t.Helper()
	r := &rig{t: t, sim: engine.New()}
	b, err := m.New(r.env(1, servers))
	if err != nil {
		t.Fatal(err)
	}
	r.b = b.(*Balancer)
	return r
}

func (r *rig) env(seed uint64, servers []lb.Server) lb.Env {
	unanswered := func(_ int, timeout int64, answer func(lb.Load, bool)) {
		r.sim.After(timeout, func() { answer(lb.Load{}, false) })
	}
	return lb.Env{Clients: 1, Servers: servers, Now: r.sim.Now, After: r.sim.After, Probe: unanswered,
		Rand: rand.New(rand.NewPCG(seed, 1)).Uint64}
}

// fleet is servers with the indices 0 to n-1.
func fleet(n int) []lb.Server {
	list := make([]lb.Server, n)
	for i := range list {
		list[i] = shown(i, i)
	}
	return list
}

// shown is the process with this index at an address of its own.
func shown(index, address int) lb.Server {
	return lb.Server{Index: index, Instance: &registry.Instance{
		ID: fmt.Sprint("i", index), Addr: fmt.Sprintf("10.0.%d.%d:80", address/250, address%250+1),
	}}
}

// with returns a copy of s whose record is changed.
func with(s lb.Server, change func(*registry.Instance)) lb.Server {
	in := s.Instance.Clone()
	change(&in)
	s.Instance = &in
	return s
}

// at runs the simulation until d from its start.
func (r *rig) at(d time.Duration) { r.sim.Run(int64(d) + 1) }

// call makes a call that ends at once.
func (r *rig) call(c lb.Call, err error) int {
	r.t.Helper()
	s, perr := r.b.Pick(&c)
	if perr != nil {
		r.t.Fatalf("at %v: %v", time.Duration(r.sim.Now()), perr)
	}
	r.b.Done(&c, s, lb.Result{Latency: 1, Err: err})
	return s
}

// reached makes calls that succeed and returns the servers that they went to, in order.
func (r *rig) reached(calls int) []int {
	r.t.Helper()
	var got []int
	for range calls {
		got = append(got, r.call(lb.Call{}, nil))
	}
	slices.Sort(got)
	return slices.Compact(got)
}

func (r *rig) wantReached(want ...int) {
	r.t.Helper()
	if got := r.reached(20 * max(len(want), 5)); !slices.Equal(got, want) {
		r.t.Errorf("at %v calls went to %v, want %v", time.Duration(r.sim.Now()), got, want)
	}
}

var (
	unavailable = status.Error(codes.Unavailable, "test")
	expired     = status.Error(codes.DeadlineExceeded, "test")
)
