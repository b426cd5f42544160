package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // thousands of ejections are nobody's business
	os.Exit(m.Run())
}

// fakeClock stands still until a test moves it. What is due runs on the goroutine that calls fire.
type fakeClock struct {
	mu     sync.Mutex
	now    int64
	step   int64 // how far a reading moves it, which is what a publication costs then
	timers []*fakeTimer
}

type fakeTimer struct {
	c  *fakeClock
	at int64
	f  func()
}

func (c *fakeClock) Now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += c.step
	return c.now
}

func (c *fakeClock) Until(t time.Time) time.Duration { return t.Sub(time.Unix(0, c.Now())) }

func (c *fakeClock) AfterFunc(d time.Duration, f func()) clock.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{c, c.now + int64(d), f}
	c.timers = append(c.timers, t)
	return t
}

func (t *fakeTimer) Stop() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	i := slices.Index(t.c.timers, t)
	if i < 0 {
		return false
	}
	t.c.timers = slices.Delete(t.c.timers, i, i+1)
	return true
}

// take removes the earliest timer that is due at limit and moves the clock there; nil if there is none.
func (c *fakeClock) take(limit int64) *fakeTimer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) == 0 {
		return nil
	}
	t := slices.MinFunc(c.timers, func(a, b *fakeTimer) int { return cmp.Compare(a.at, b.at) })
	if t.at > limit {
		return nil
	}
	c.timers = slices.Delete(c.timers, slices.Index(c.timers, t), slices.Index(c.timers, t)+1)
	c.now = max(c.now, t.at)
	return t
}

// set moves the clock, also backwards, and runs nothing.
func (c *fakeClock) set(now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

func (c *fakeClock) pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers)
}

// seeded is reproducible randomness, for one goroutine.
func seeded(seed uint64) func() uint64 { return rand.New(rand.NewPCG(seed, 1)).Uint64 }

// fleet makes n instances i0, i1, ... at made-up addresses.
func fleet(n int) []registry.Instance {
	ins := make([]registry.Instance, n)
	for i := range ins {
		ins[i] = registry.Instance{ID: fmt.Sprintf("i%d", i), Addr: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)}
	}
	return ins
}

// rig is a policy on a fake channel and a fake clock, driven by one goroutine. It knows what each instance answers,
// and checks at the end that every call that began was counted out.
type rig struct {
	t       *testing.T
	cc      *lbtest.ClientConn
	p       *policy
	clock   *fakeClock
	answers map[string]error // by instance ID; none is success
	ids     map[string]string
	ever    map[*Endpoint]bool
	open    int64
	frozen  bool // settle does nothing: what the network and the timers would do stays undone
}

const start = int64(1000 * time.Hour)

func newRig(t *testing.T, c Config, ins []registry.Instance) *rig {
	t.Helper()
	r := bareRig(t, lbtest.New())
	r.update(c, ins)
	return r
}

// bareRig is a rig whose policy has not heard of any instance yet.
func bareRig(t *testing.T, cc *lbtest.ClientConn) *rig {
	r := &rig{
		t: t, cc: cc, clock: &fakeClock{now: start}, answers: make(map[string]error),
		ids: make(map[string]string), ever: make(map[*Endpoint]bool),
	}
	r.p = lbtest.BuildWith(r.cc, builder{clock: r.clock, rand: seeded(1)}, "orders").(*policy)
	t.Cleanup(r.close)
	return r
}

func (r *rig) close() {
	r.settle()
	var inFlight int64
	for e := range r.ever {
		inFlight += e.InFlight()
	}
	if inFlight != r.open {
		r.t.Errorf("%d calls are in flight by the counters, want %d", inFlight, r.open)
	}
	r.p.Close()
	if n := r.clock.pending(); n > 0 {
		r.t.Errorf("%d timers are left after Close, want none", n)
	}
}

func mustParse(t testing.TB, c Config) *settings {
	t.Helper()
	js, err := LoadBalancingConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseConfig(js[len(`{"evenkeel":`) : len(js)-1])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// update hands a configuration and instances to the policy, and lets connections and the publication settle.
func (r *rig) update(c Config, ins []registry.Instance) {
	r.t.Helper()
	for _, in := range ins {
		r.ids[in.Addr] = in.ID
	}
	r.updateEndpoints(c, lbtest.Endpoints(slices.Clone(ins)...))
}

func (r *rig) updateEndpoints(c Config, eps []gresolver.Endpoint) {
	r.t.Helper()
	if err := lbtest.Update(r.p, mustParse(r.t, c), eps); err != nil && len(eps) > 0 {
		r.t.Fatal(err)
	}
	r.p.mu.Lock()
	for _, e := range r.p.known {
		r.ever[e] = true
	}
	r.p.mu.Unlock()
	r.flush()
}

// settle delivers what is due now.
func (r *rig) settle() {
	for !r.frozen {
		if r.cc.Step() {
			continue
		}
		t := r.clock.take(r.clock.Now())
		if t == nil {
			return
		}
		t.f()
	}
}

// advance moves the clock by d and delivers all that becomes due on the way, in order.
func (r *rig) advance(d time.Duration) {
	r.settle()
	end := r.clock.Now() + int64(d)
	for {
		t := r.clock.take(end)
		if t == nil {
			break
		}
		t.f()
		r.settle()
	}
	r.clock.set(end)
}

// flush lets the publication window end.
func (r *rig) flush() { r.advance(time.Duration(minWindow)) }

// ask is one call that a test makes.
type ask struct {
	ctx    context.Context
	method string
}

// begin picks for a call; done ends it with what the instance answers, or as told.
func (r *rig) begin(a ask) (id string, done func(gbalancer.DoneInfo), err error) {
	info := gbalancer.PickInfo{Ctx: cmp.Or[context.Context](a.ctx, r.t.Context()), FullMethodName: cmp.Or(a.method, "/orders.Orders/Get")}
	res, err := r.cc.Picker().Pick(info)
	if err != nil {
		return "", nil, err
	}
	id, ok := r.ids[res.SubConn.(*lbtest.SubConn).Addr]
	if !ok {
		id = res.SubConn.(*lbtest.SubConn).Addr
	}
	r.open++
	return id, func(i gbalancer.DoneInfo) {
		r.open--
		res.Done(i)
		r.settle()
	}, nil
}

// ended is the end of a call that was sent and answered.
func ended(err error) gbalancer.DoneInfo {
	return gbalancer.DoneInfo{Err: err, BytesSent: true, BytesReceived: true}
}

// call makes a whole call and says who served it. A refused pick fails the test.
func (r *rig) call(a ask) string {
	r.t.Helper()
	id, done, err := r.begin(a)
	if err != nil {
		r.t.Fatalf("pick: %v", err)
	}
	done(ended(r.answers[id]))
	return id
}

// calls makes n calls and counts who served them.
func (r *rig) calls(n int, a ask) map[string]int {
	r.t.Helper()
	got := make(map[string]int)
	for range n {
		got[r.call(a)]++
	}
	return got
}

// state is what the policy knows about an instance.
func (r *rig) state(id string) EndpointState {
	r.t.Helper()
	for _, e := range r.p.describe().Endpoints {
		if e.Instance.ID == id {
			return e
		}
	}
	r.t.Fatalf("instance %q is not known", id)
	return EndpointState{}
}

// out lists the instances that are ejected.
func (r *rig) out() []string {
	var ids []string
	for _, e := range r.p.describe().Endpoints {
		if e.Ejected {
			ids = append(ids, e.Instance.ID)
		}
	}
	return ids
}

func fails(c codes.Code) error { return status.Error(c, "no") }

// with returns a context that carries a call record.
func with(ctx context.Context, call *callctx.Call) context.Context {
	rec := callctx.Copy(ctx)
	rec.Call = call
	return callctx.With(ctx, rec)
}

// deadline is a context whose deadline is d from the clock's now; it never expires by itself.
type deadline struct {
	context.Context
	at time.Time
}

func (d deadline) Deadline() (time.Time, bool) { return d.at, true }

func (r *rig) deadline(d time.Duration) context.Context {
	return deadline{r.t.Context(), time.Unix(0, r.clock.Now()).Add(d)}
}

// checkExpected fails unless counts look like draws with these expectations: Pearson's chi-square at the one in
// 100,000 level, by the Wilson-Hilferty approximation of the quantile.
func checkExpected(t testing.TB, what string, counts []int, expected []float64) {
	t.Helper()
	chi := 0.0
	for i, n := range counts {
		d := float64(n) - expected[i]
		chi += d * d / expected[i]
	}
	df := float64(len(counts) - 1)
	const z = 4.265 // of the normal distribution, upper 1e-5
	h := 2 / (9 * df)
	if limit := df * math.Pow(1-h+z*math.Sqrt(h), 3); chi > limit {
		t.Errorf("%s: chi-square is %.1f with %.0f degrees of freedom, want at most %.1f: %v", what, chi, df, limit, counts)
	}
}

func checkUniform(t testing.TB, what string, counts []int) {
	t.Helper()
	total := 0
	for _, n := range counts {
		total += n
	}
	expected := make([]float64, len(counts))
	for i := range expected {
		expected[i] = float64(total) / float64(len(counts))
	}
	checkExpected(t, what, counts, expected)
}

var errRefused = errors.New("connection refused")

// drop breaks the connection to addr, and lets the policy do about it what it does.
func (r *rig) drop(addr string) {
	r.cc.Conn(addr).Move(connectivity.Idle, nil)
	r.flush()
}

// reconnect ends the backoff of a connection that was refused.
func (r *rig) reconnect(addr string) {
	r.cc.Conn(addr).Move(connectivity.Idle, nil)
	r.flush()
}

// checkNoAllocations makes a call that succeeds again and again. Only without the race detector: under it a sync.Pool
// drops what it is given, at random. make test runs what has Alloc in its name without it first.
func checkNoAllocations(t *testing.T, what string, p gbalancer.Picker, info gbalancer.PickInfo) {
	t.Helper()
	end := ended(nil)
	n := testing.AllocsPerRun(1000, func() {
		res, err := p.Pick(info)
		if err != nil {
			t.Fatal(err)
		}
		res.Done(end)
	})
	if n > 0 {
		t.Errorf("%s: %v allocations a call, want none", what, n)
	}
}
