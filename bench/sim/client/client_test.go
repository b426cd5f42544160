package client

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/network"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

const (
	ms  = int64(time.Millisecond)
	hop = ms // one way, in these tests
)

// world is one client and a few servers; it is what the client finds and whom it tells.
type world struct {
	sim     *engine.Sim
	servers []*server.Server
	client  *Client
	policy  *plan

	works    []float64 // of the calls, in order; then 0
	sent     []int64
	probed   []int64
	ended    []End
	streamed []codes.Code
}

// newWorld has servers of one core, and calls that go to them in turn.
func newWorld(cfg Config, configs ...server.Config) *world {
	w := &world{sim: engine.New()}
	for _, c := range configs {
		w.servers = append(w.servers, server.New(w.sim, c))
	}
	cfg.Network = network.Config{Local: time.Duration(hop), Jitter: -1}
	cfg.Work = func(*rand.Rand) float64 {
		if len(w.works) == 0 {
			return 0
		}
		work := w.works[0]
		w.works = w.works[1:]
		return work
	}
	w.client = New(w.sim, cfg, 0, "", 1, w, w)
	w.policy = &plan{n: len(configs)}
	w.client.Use(w.policy, nil)
	return w
}

func (w *world) Server(i int) (*server.Server, string) { return w.servers[i], "" }
func (w *world) Sent(*Client, int, string)             { w.sent = append(w.sent, w.sim.Now()) }
func (w *world) Streamed(_ int, code codes.Code)       { w.streamed = append(w.streamed, code) }
func (w *world) Ended(e End)                           { w.ended = append(w.ended, e) }
func (w *world) Probed(_ int, now int64)               { w.probed = append(w.probed, now) }

// call has a call of so much work arrive at a time.
func (w *world) call(at, work int64) {
	w.sim.Run(at)
	w.works = append(w.works, float64(work))
	w.client.arrive()
}

// plan takes servers in turn and writes down how attempts end.
type plan struct {
	n, next int
	refuse  error
	picked  int
	done    []lb.Result
	tried   []int // of the last pick
	key     string
	hasKey  bool
}

func (p *plan) Pick(c *lb.Call) (int, error) {
	if p.refuse != nil {
		return 0, p.refuse
	}
	p.tried = append([]int(nil), c.Tried...)
	p.key, p.hasKey = c.Key, c.HasKey
	p.picked++
	p.next++
	return (p.next - 1) % p.n, nil
}
func (p *plan) Done(_ *lb.Call, _ int, r lb.Result) { p.done = append(p.done, r) }
func (p *plan) Update([]lb.Server)                  {}

// TestLatencyCountsFromArrival: through the attempt that was refused, two ways each, and the work.
func TestLatencyCountsFromArrival(t *testing.T) {
	w := newWorld(Config{Attempts: 2}, server.Config{}, server.Config{})
	w.servers[0].Crash()
	w.call(10*ms, 7*ms)
	w.sim.Run(100 * ms)
	want := End{Arrived: 10 * ms, Latency: 4*hop + 7*ms, Server: 1, Attempts: 2}
	if len(w.ended) != 1 || w.ended[0] != want {
		t.Fatalf("ended %+v, want %+v", w.ended, want)
	}
	if len(w.sent) != 2 || len(w.policy.done) != 2 || len(w.policy.tried) != 1 || w.policy.tried[0] != 0 {
		t.Errorf("%d sent, %d done, the second attempt avoids %v; want 2, 2, [0]", len(w.sent), len(w.policy.done),
			w.policy.tried)
	}
	if c := status.Code(w.policy.done[0].Err); c != codes.Unavailable || w.policy.done[0].Load != nil {
		t.Errorf("the policy was told %v and a load %v of a server without a process", c, w.policy.done[0].Load)
	}
	// The policy measures each attempt by itself.
	if got := w.policy.done[1].Latency; got != 2*hop+7*ms {
		t.Errorf("the second attempt took %d by the policy's account, want %d", got, 2*hop+7*ms)
	}
}

// TestOpenLoop: calls go on arriving at their rate while no answer comes.
func TestOpenLoop(t *testing.T) {
	arrivals := func(hang bool) []int64 {
		w := newWorld(Config{Deadline: time.Hour}, server.Config{})
		w.servers[0].Hang(hang)
		w.client.SetRate(1000)
		w.sim.Run(2e9)
		return w.sent
	}
	well, hung := arrivals(false), arrivals(true)
	if len(well) != len(hung) || len(well) < 1800 || len(well) > 2200 {
		t.Fatalf("%d calls to a server that answers, %d to one that does not, want 2000 of both, more or less", len(well),
			len(hung))
	}
	for i := range well {
		if well[i] != hung[i] {
			t.Fatalf("call %d comes at %d if calls are answered and at %d if not", i, well[i], hung[i])
		}
	}
}

// TestDeadline: a call without an answer ends at its deadline, for everybody once.
func TestDeadline(t *testing.T) {
	w := newWorld(Config{Deadline: 50 * time.Millisecond, Attempts: 3}, server.Config{})
	w.servers[0].Hang(true)
	w.call(10*ms, ms)
	w.sim.Run(1000 * ms)
	want := End{Arrived: 10 * ms, Latency: 50 * ms, Code: codes.DeadlineExceeded, Server: 0, Attempts: 1}
	if len(w.ended) != 1 || w.ended[0] != want || w.client.Open() != 0 {
		t.Errorf("ended %+v, %d open; want %+v, 0", w.ended, w.client.Open(), want)
	}
	if len(w.policy.done) != 1 || status.Code(w.policy.done[0].Err) != codes.DeadlineExceeded {
		t.Errorf("the policy was told %+v, want DEADLINE_EXCEEDED once", w.policy.done)
	}
	if rif := w.servers[0].RIF(); rif != 0 {
		t.Errorf("the server still has %d requests", rif)
	}
}

// TestDeadlineOnTheWay: a request that is still under way at its deadline is not worked on, and neither is an answer
// that comes after it.
func TestDeadlineOnTheWay(t *testing.T) {
	for name, c := range map[string]struct{ deadline, used int64 }{
		"request": {hop / 2, 0},
		"answer":  {2*hop + 2*ms - 1, 2 * ms},
	} {
		w := newWorld(Config{Deadline: time.Duration(c.deadline)}, server.Config{})
		w.call(ms, 2*ms)
		w.sim.Run(100 * ms)
		if len(w.ended) != 1 || w.ended[0].Code != codes.DeadlineExceeded || w.ended[0].Latency != c.deadline ||
			len(w.policy.done) != 1 {
			t.Errorf("%s: ended %+v, told %d times; want DEADLINE_EXCEEDED after %d, once", name, w.ended,
				len(w.policy.done), c.deadline)
		}
		if used := int64(w.servers[0].Used()); used != c.used {
			t.Errorf("%s: the server worked for %d ns, want %d", name, used, c.used)
		}
	}
}

// TestCancellationFreesCapacity: two calls share a core until the deadline of the first; what is left of the second
// then runs at full speed.
func TestCancellationFreesCapacity(t *testing.T) {
	w := newWorld(Config{Deadline: 40 * time.Millisecond}, server.Config{Cores: 1})
	w.call(10*ms, 1000*ms) // until 50 ms
	w.call(20*ms, 20*ms)   // at the server from 21 ms on
	w.sim.Run(200 * ms)
	// 29 ms at half speed are 14.5 of the 20, and 5.5 are left.
	want := 2*hop + 29*ms + 5*ms + ms/2
	if len(w.ended) != 2 || w.ended[1].Code != codes.OK || w.ended[1].Latency != want {
		t.Errorf("ended %+v, want the second after %d", w.ended, want)
	}
}

func TestPickFails(t *testing.T) {
	w := newWorld(Config{}, server.Config{})
	w.policy.refuse = status.Error(codes.Unavailable, "nobody")
	w.call(5*ms, ms)
	w.sim.Run(100 * ms)
	want := End{Arrived: 5 * ms, Code: codes.Unavailable, Server: -1}
	if len(w.ended) != 1 || w.ended[0] != want || len(w.sent) != 0 || len(w.policy.done) != 0 {
		t.Errorf("ended %+v, %d sent, %d done; want %+v, 0, 0", w.ended, len(w.sent), len(w.policy.done), want)
	}
}

// TestServerFailures: what a server says of itself comes with its failures too, and neither is tried again, since the
// server may have begun.
func TestServerFailures(t *testing.T) {
	fails := func(w *world) { w.servers[0].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond}) }
	for name, c := range map[string]struct {
		cfg  server.Config
		do   func(*world)
		want codes.Code
	}{
		"application": {server.Config{}, fails, codes.Unavailable},
		"queue full": {server.Config{Workers: 1, Queue: 1}, func(w *world) {
			w.call(ms, 100*ms)
			w.call(ms, 100*ms)
		}, codes.ResourceExhausted},
	} {
		w := newWorld(Config{Attempts: 3}, c.cfg)
		c.do(w)
		w.call(ms, ms)
		w.sim.Run(20 * ms)
		if len(w.ended) != 1 || w.ended[0].Code != c.want || w.ended[0].Attempts != 1 || w.policy.done[0].Load == nil {
			t.Errorf("%s: ended %+v, told %+v; want %v after one attempt, with a load", name, w.ended, w.policy.done, c.want)
		}
	}
}

// TestProbe: the answer comes after two ways and costs the calls in service their time.
func TestProbe(t *testing.T) {
	const cost = 50 * int64(time.Microsecond)
	w := newWorld(Config{}, server.Config{Cores: 1})
	w.call(ms, 10*ms)
	var answers []lb.Load
	var at []int64
	w.sim.Run(3 * ms)
	for range 4 {
		w.client.Probe(0, 3*ms, func(l lb.Load, ok bool) {
			if !ok {
				t.Error("no answer of a server that is up")
			}
			answers, at = append(answers, l), append(at, w.sim.Now())
		})
	}
	w.sim.Run(50 * ms)
	if len(answers) != 4 || at[0] != 3*ms+2*hop || answers[0].RIF != 1 || len(w.probed) != 4 {
		t.Errorf("answers %+v at %v, %d recorded; want 4 with one request in flight, at %d", answers, at, len(w.probed),
			3*ms+2*hop)
	}
	if want := 2*hop + 10*ms + 4*cost; len(w.ended) != 1 || w.ended[0].Latency != want {
		t.Errorf("ended %+v, want after %d: the work, and what four probes cost", w.ended, want)
	}
}

// TestProbeWithoutAnswer: a dead server refuses after two ways, a hung one is waited for until the timeout, and one that
// is too far away as well. The answer is given once in each case.
func TestProbeWithoutAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		do            func(*server.Server)
		timeout, want int64
	}{
		"dead": {(*server.Server).Crash, 5 * ms, 2 * hop},
		"hung": {func(s *server.Server) { s.Hang(true) }, 5 * ms, 5 * ms},
		"slow": {func(*server.Server) {}, 2*hop - 1, 2*hop - 1},
	} {
		w := newWorld(Config{}, server.Config{})
		c.do(w.servers[0])
		var at []int64
		w.client.Probe(0, c.timeout, func(_ lb.Load, ok bool) {
			if ok {
				t.Errorf("%s: an answer", name)
			}
			at = append(at, w.sim.Now()-1)
		})
		w.sim.Run(100 * ms)
		if len(at) != 1 || at[0] != c.want {
			t.Errorf("%s: told after %v, want [%d]", name, at, c.want)
		}
	}
}

// TestNobodyElsesLuck: neither probes nor what the policy answers change when calls come and what they need.
func TestNobodyElsesLuck(t *testing.T) {
	run := func(probe bool, n int) (sent []int64, ends []End) {
		w := newWorld(Config{Attempts: 2}, make([]server.Config, n)...)
		w.client.cfg.Work = func(r *rand.Rand) float64 { return r.ExpFloat64() * 1e6 }
		if n == 2 {
			w.servers[1].Crash()
		}
		w.client.SetRate(100)
		for i := range int64(100) {
			w.sim.Run(i * 10 * ms)
			if probe {
				w.client.Probe(0, ms, func(lb.Load, bool) {})
			}
		}
		return w.sent, w.ended
	}
	arrivals := func(ends []End) map[int64]bool {
		at := make(map[int64]bool)
		for _, e := range ends {
			at[e.Arrived] = true
		}
		return at
	}
	_, one := run(false, 1)
	_, probing := run(true, 1)
	_, two := run(false, 2)
	if len(one) < 80 {
		t.Fatalf("%d calls ended", len(one))
	}
	inProbing, inTwo := arrivals(probing), arrivals(two)
	for _, e := range one[:len(one)-5] { // those last may be under way elsewhere
		if !inProbing[e.Arrived] || !inTwo[e.Arrived] {
			t.Fatalf("the call that came at %d comes at another time under another policy", e.Arrived)
		}
	}
}
