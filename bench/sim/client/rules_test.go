package client

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// rule tries up to most times, each time after wait, and hedges after slow if that is not 0. It is one call's.
type rule struct {
	most       int
	wait, slow int64
	stops      bool // failures are not for those further up to repeat

	began, failed int
	told          []lb.Failure
	chained       []bool
	succeeded     []int
}

func (r *rule) Begin(_ int64, chained bool) lb.Attempts {
	r.chained = append(r.chained, chained)
	return r
}
func (r *rule) Began() int64 { r.began++; return r.slow }
func (r *rule) Hedge() bool  { return r.began < r.most }
func (r *rule) Stops() bool  { return r.stops }
func (r *rule) Failed(f lb.Failure) (int64, bool) {
	r.failed++
	r.told = append(r.told, f)
	return r.wait, f.Code == codes.Unavailable && !f.Stop && r.began < r.most
}
func (r *rule) Succeeded(_ int64, number int) { r.succeeded = append(r.succeeded, number) }

func ruled(r *rule, cfg Config, configs ...server.Config) *world {
	cfg.Retry = func(int) lb.Retry { return r }
	return newWorld(cfg, configs...)
}

// TestRetry: the rule's wait is part of the latency, and an attempt avoids where the earlier ones were.
func TestRetry(t *testing.T) {
	r := &rule{most: 3, wait: 20 * ms}
	w := ruled(r, Config{}, server.Config{}, server.Config{}, server.Config{})
	for i := range 2 {
		w.servers[i].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond})
	}
	w.call(10*ms, 5*ms)
	w.sim.Run(500 * ms)
	want := End{Arrived: 10 * ms, Latency: 2*(2*hop+ms+20*ms) + 2*hop + 5*ms, Server: 2, Attempts: 3}
	if len(w.ended) != 1 || w.ended[0] != want {
		t.Errorf("ended %+v, want %+v", w.ended, want)
	}
	if len(w.policy.tried) != 2 || w.policy.tried[0] != 0 || w.policy.tried[1] != 1 {
		t.Errorf("the third attempt avoids %v, want [0 1]", w.policy.tried)
	}
	if r.failed != 2 || len(r.succeeded) != 1 || r.succeeded[0] != 3 || len(w.policy.done) != 3 {
		t.Errorf("the rule heard of %d failures and successes %v, the policy of %d ends", r.failed, r.succeeded,
			len(w.policy.done))
	}
}

// TestUnsent: a server that has no place was reached; one that is not there was not.
func TestUnsent(t *testing.T) {
	for name, tt := range map[string]struct {
		breaks func(*server.Server)
		want   lb.Failure
	}{
		"no place":   {func(s *server.Server) { s.Admit(full{}) }, lb.Failure{Code: codes.ResourceExhausted}},
		"no process": {(*server.Server).Crash, lb.Failure{Code: codes.Unavailable, Unsent: true}},
	} {
		r := &rule{most: 1}
		w := ruled(r, Config{}, server.Config{})
		tt.breaks(w.servers[0])
		w.call(10*ms, 5*ms)
		w.sim.Run(500 * ms)
		if len(r.told) != 1 || r.told[0] != tt.want {
			t.Errorf("%s: the rule was told %+v, want %+v", name, r.told, tt.want)
		}
	}
}

// full admits nothing.
type full struct{ lb.Admission }

func (full) Arrive(_, _ int64) (any, bool) { return nil, false }

// TestRetryIsOver: attempts that may not be are not, and a deadline ends the wait for one.
func TestRetryIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		wait    int64
		want    codes.Code
		latency int64
		sent    int
	}{
		"after two":            {10 * ms, codes.Unavailable, 2*(2*hop+ms) + 10*ms, 2},
		"deadline in the wait": {500 * ms, codes.DeadlineExceeded, 100 * ms, 1},
	} {
		w := ruled(&rule{most: 2, wait: c.wait}, Config{Deadline: 100 * time.Millisecond}, server.Config{})
		w.servers[0].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond})
		w.call(10*ms, 5*ms)
		w.sim.Run(2000 * ms)
		if len(w.ended) != 1 || w.ended[0].Code != c.want || w.ended[0].Latency != c.latency || len(w.sent) != c.sent {
			t.Errorf("%s: ended %+v with %d sent; want %v after %d, %d sent", name, w.ended, len(w.sent), c.want,
				c.latency, c.sent)
		}
	}
}

// TestHedge: the rival of a slow attempt goes elsewhere and ends the call; the loser gives its server's time back.
func TestHedge(t *testing.T) {
	r := &rule{most: 2, slow: 15 * ms}
	w := ruled(r, Config{}, server.Config{}, server.Config{})
	w.servers[0].Hang(true)
	w.call(10*ms, 5*ms)
	w.sim.Run(500 * ms)
	want := End{Arrived: 10 * ms, Latency: 15*ms + 2*hop + 5*ms, Server: 1, Attempts: 2}
	if len(w.ended) != 1 || w.ended[0] != want || w.servers[0].RIF() != 0 {
		t.Errorf("ended %+v with %d left at the loser, want %+v and 0", w.ended, w.servers[0].RIF(), want)
	}
	if len(w.policy.tried) != 1 || w.policy.tried[0] != 0 {
		t.Errorf("the rival avoids %v, want [0]", w.policy.tried)
	}
	var told []codes.Code
	for _, d := range w.policy.done {
		told = append(told, status.Code(d.Err))
	}
	if len(told) != 2 || told[0] != codes.OK || told[1] != codes.Canceled {
		t.Errorf("the policy was told %v, want OK of the winner and CANCELLED of the loser", told)
	}
}

// TestHedgeLoses: a failure is nobody's business while a rival may succeed.
func TestHedgeLoses(t *testing.T) {
	r := &rule{most: 2, slow: 5 * ms}
	w := ruled(r, Config{}, server.Config{}, server.Config{})
	w.servers[1].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond})
	w.call(10*ms, 50*ms)
	w.sim.Run(500 * ms)
	if len(w.ended) != 1 || w.ended[0].Code != codes.OK || w.ended[0].Latency != 2*hop+50*ms || r.failed != 0 {
		t.Errorf("ended %+v, the rule heard of %d failures; want OK by the first attempt, 0", w.ended, r.failed)
	}
}

// chain is a world whose servers call those of another before they answer.
func chain(front, back *rule) (*world, *world) {
	behind := ruled(back, Config{}, server.Config{})
	w := ruled(front, Config{Deadline: 100 * time.Millisecond,
		Next: func(int) *Client { return behind.client }}, server.Config{})
	behind.client.sim = w.sim
	behind.servers[0] = server.New(w.sim, server.Config{})
	behind.sim = w.sim
	return w, behind
}

// TestChain: a call lasts as long as both servers work, and what the second one does is the first one's failure.
func TestChain(t *testing.T) {
	w, behind := chain(&rule{most: 1}, &rule{most: 1})
	behind.works = []float64{float64(7 * ms)}
	w.call(10*ms, 5*ms)
	w.sim.Run(10*ms + hop + 5*ms + hop + 3*ms)
	if w.servers[0].RIF() != 1 || behind.servers[0].RIF() != 1 {
		t.Errorf("%d and %d in flight while the first waits for the second, want 1 and 1", w.servers[0].RIF(),
			behind.servers[0].RIF())
	}
	w.sim.Run(50 * ms)
	if len(w.ended) != 1 || w.ended[0].Code != codes.OK || w.ended[0].Latency != 4*hop+12*ms || len(behind.ended) != 0 {
		t.Errorf("ended %+v, and %d behind; want OK after %d, and none, since no user called there", w.ended,
			len(behind.ended), 4*hop+12*ms)
	}
	behind.servers[0].Crash()
	w.call(60*ms, 5*ms)
	w.sim.Run(400 * ms)
	if len(w.ended) != 2 || w.ended[1].Code != codes.Unavailable || w.servers[0].RIF() != 0 {
		t.Errorf("ended %+v with %d left, want UNAVAILABLE and 0", w.ended, w.servers[0].RIF())
	}
}

// TestChainDeadline: the deadline of the first call is that of all, and nothing is left anywhere.
func TestChainDeadline(t *testing.T) {
	w, behind := chain(&rule{most: 1}, &rule{most: 1})
	behind.servers[0].Hang(true)
	w.call(10*ms, 5*ms)
	w.sim.Run(1000 * ms)
	if len(w.ended) != 1 || w.ended[0].Code != codes.DeadlineExceeded || w.ended[0].Latency != 100*ms {
		t.Errorf("ended %+v, want DEADLINE_EXCEEDED after 100 ms", w.ended)
	}
	if a, b := w.servers[0].RIF(), behind.servers[0].RIF(); a != 0 || b != 0 || w.sim.Pending() != 0 {
		t.Errorf("%d and %d in flight and %d events are left, want none", a, b, w.sim.Pending())
	}
	if len(behind.policy.done) != 1 {
		t.Errorf("the balancer of the server was told of %d ends, want 1", len(behind.policy.done))
	}
}

// TestChainMultiplies: retries of both layers multiply, and the second layer knows that it answers a retry.
func TestChainMultiplies(t *testing.T) {
	front, back := &rule{most: 3}, &rule{most: 3}
	w, behind := chain(front, back)
	behind.client.retry = perCall{back}
	behind.servers[0].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond})
	w.call(10*ms, ms)
	w.sim.Run(1000 * ms)
	if len(w.sent) != 3 || len(behind.sent) != 9 {
		t.Errorf("%d and %d attempts, want 3 and 9", len(w.sent), len(behind.sent))
	}
	if len(back.chained) != 3 || back.chained[0] || !back.chained[1] || !back.chained[2] {
		t.Errorf("the second layer was told %v about retries, want false, true, true", back.chained)
	}
}

// TestChainStops: what the second layer does not want repeated is not, and what it can say nothing about is.
func TestChainStops(t *testing.T) {
	for name, tt := range map[string]struct {
		breaks func(w, behind *world)
		front  int
		back   int
	}{
		"the second layer fails": {func(_, b *world) {
			b.servers[0].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond})
		}, 1, 3},
		"the first layer fails": {func(w, _ *world) {
			w.servers[0].SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond})
		}, 3, 0},
	} {
		back := &rule{most: 3, stops: true}
		w, behind := chain(&rule{most: 3}, back)
		behind.client.retry = perCall{back}
		tt.breaks(w, behind)
		w.call(10*ms, ms)
		w.sim.Run(1000 * ms)
		if len(w.sent) != tt.front || len(behind.sent) != tt.back || len(w.ended) != 1 || w.ended[0].Code != codes.Unavailable {
			t.Errorf("%s: %d and %d attempts, ended %+v; want %d and %d, UNAVAILABLE", name, len(w.sent), len(behind.sent),
				w.ended, tt.front, tt.back)
		}
	}
}

// perCall gives each call a rule of its own.
type perCall struct{ *rule }

func (p perCall) Begin(d int64, chained bool) lb.Attempts {
	p.rule.Begin(d, chained)
	return &rule{most: p.most, wait: p.wait, slow: p.slow, stops: p.stops}
}

// TestStreams: a stream is in flight at its server from beginning to end, its messages are work, it has no deadline,
// and it breaks with its server.
func TestStreams(t *testing.T) {
	cfg := Config{Deadline: 10 * time.Millisecond,
		Streams: Streams{Part: 1, Lasts: 10 * time.Second, Every: 100 * time.Millisecond}}
	w := newWorld(cfg, server.Config{})
	for range 100 {
		w.works = append(w.works, float64(ms))
	}
	w.client.SetRate(20)
	w.sim.Run(1e9)
	w.client.SetRate(0)
	n := len(w.sent)
	if n < 8 || len(w.ended) != 0 || len(w.streamed) > n/2 || w.servers[0].RIF() < n/2 || w.client.Open() != 0 {
		t.Fatalf("%d streams began, %d ended, %d are in flight, %d calls ended and %d are open", n, len(w.streamed),
			w.servers[0].RIF(), len(w.ended), w.client.Open())
	}
	if used := w.servers[0].Used(); used < 20*float64(ms) {
		t.Errorf("messages were worked on for %v ns", used)
	}
	w.servers[0].Crash()
	w.sim.Run(20e9)
	broken := 0
	for _, c := range w.streamed {
		if c == codes.Unavailable {
			broken++
		}
	}
	if len(w.streamed) != n || broken < n/2 || len(w.policy.done) != n {
		t.Errorf("%d of %d streams ended, %d broke, the policy was told of %d", len(w.streamed), n, broken,
			len(w.policy.done))
	}
	if rif := w.servers[0].RIF(); rif != 0 {
		t.Errorf("%d are still in flight", rif)
	}
}

// TestKeys: a call has the key that is drawn for it.
func TestKeys(t *testing.T) {
	w := newWorld(Config{}, server.Config{})
	w.call(ms, ms)
	if w.policy.key != "" || w.policy.hasKey {
		t.Errorf("a call without a key has %q", w.policy.key)
	}
	w.client.SetKeys(func(*rand.Rand) string { return "k" })
	w.call(2*ms, ms)
	if w.policy.key != "k" || !w.policy.hasKey {
		t.Errorf("a call has the key %q, want k", w.policy.key)
	}
}
