package balancer

import (
	"container/heap"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/balancer/load"
)

// simulate has ten callers make n calls in virtual time; serve says how long a call at id takes and how it ends. It
// returns who served how many.
func simulate(t *testing.T, r *rig, n int, serve func(id string) (int64, error)) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	var under queue
	begin := func() {
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		counts[id]++
		took, err := serve(id)
		heap.Push(&under, running{r.clock.Now() + took, err, done})
	}
	for range 10 {
		begin()
	}
	for i := 10; len(under) > 0; i++ {
		c := heap.Pop(&under).(running)
		r.advance(time.Duration(c.at - r.clock.Now()))
		c.done(ended(c.err))
		if i < n {
			begin()
		}
	}
	return counts
}

type running struct {
	at   int64
	err  error
	done func(gbalancer.DoneInfo)
}

type queue []running

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(running)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

// TestSinkHole has an instance that fails at once, a hundred times as fast as the others succeed, and no blacklist.
// It must get less than its share: least_request sees nothing but an instance that is always free.
func TestSinkHole(t *testing.T) {
	const n = 5000
	serve := func(code codes.Code) func(string) (int64, error) {
		return func(id string) (int64, error) {
			if id == "i1" {
				return 0.1e6, fails(code)
			}
			return 10e6, nil
		}
	}
	off := Blacklist{Disabled: true}
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown, codes.ResourceExhausted} {
		r := newRig(t, Config{Strategy: PeakEWMA{}, Blacklist: off}, fleet(5))
		if got := simulate(t, r, n, serve(code)); got["i1"] > n/50 {
			t.Errorf("%v: %d of %d calls fell into the sink-hole: %v", code, got["i1"], n, got)
		}
	}
	r := newRig(t, Config{Strategy: LeastRequest{}, Blacklist: off}, fleet(5))
	if got := simulate(t, r, n, serve(codes.Unavailable)); got["i1"] < n/5 {
		t.Errorf("least_request: %v; the sink-hole of this test attracts nobody, so it proves nothing", got)
	}
	// With the blacklist least_request is safe too.
	r = newRig(t, Config{Strategy: LeastRequest{}}, fleet(5))
	if got := simulate(t, r, n, serve(codes.Unavailable)); got["i1"] > 20 {
		t.Errorf("with the blacklist %d calls fell into the sink-hole", got["i1"])
	}
}

// TestPeakEWMAAvoidsTheSlow: it sees latency before calls queue up, and the penalty is forgotten.
func TestPeakEWMAAvoidsTheSlow(t *testing.T) {
	r := newRig(t, Config{Strategy: PeakEWMA{Decay: time.Second}}, fleet(5))
	slow := int64(50e6)
	serve := func(id string) (int64, error) {
		if id == "i3" {
			return slow, nil
		}
		return 10e6, nil
	}
	if got := simulate(t, r, 5000, serve); got["i3"] > 5000/5/3 {
		t.Errorf("calls went to %v, want far fewer to i3, which is five times as slow", got)
	}
	slow = 10e6
	simulate(t, r, 5000, serve)
	if got := simulate(t, r, 5000, serve); got["i3"] < 5000/5/2 {
		t.Errorf("i3 is as fast as the others again, and calls go to %v", got)
	}
}

// TestUnmeasuredGetsOneCall: a new instance gets one call to find out, and no second one before it has ended.
func TestUnmeasuredGetsOneCall(t *testing.T) {
	r := newRig(t, Config{Strategy: PeakEWMA{Choices: 10}}, fleet(5))
	for range 20 {
		_, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(10 * time.Millisecond)
		done(ended(nil))
	}
	r.update(Config{Strategy: PeakEWMA{Choices: 10}}, fleet(6))
	id, done, err := r.begin(ask{})
	if err != nil || id != "i5" {
		t.Fatalf("the first call went to %q (%v), want the new instance", id, err)
	}
	var others []func(gbalancer.DoneInfo)
	for range 50 {
		id, done, err := r.begin(ask{})
		if err != nil || id == "i5" {
			t.Fatalf("a second call went to the new instance (%v) before the first had ended", err)
		}
		others = append(others, done)
	}
	r.advance(time.Millisecond)
	done(ended(nil))
	if id := r.call(ask{}); id != "i5" {
		t.Errorf("the next call went to %s, want the new instance, which turned out fast and is free", id)
	}
	for _, done := range others {
		done(ended(nil))
	}
}

// TestPeakEWMACost is the order in which endpoints are preferred.
func TestPeakEWMACost(t *testing.T) {
	record := func(e *Endpoint, latency int64) {
		PeakEWMA{}.Record(e, load.Sample{Now: start, Latency: latency})
	}
	for _, tt := range []struct {
		name   string
		worse  func(e *Endpoint)
		better func(e *Endpoint)
		weight [2]uint32
	}{
		{"slow", func(e *Endpoint) { record(e, 20e6) }, func(e *Endpoint) { record(e, 10e6) }, [2]uint32{1, 1}},
		{"busy", func(e *Endpoint) { record(e, 10e6); e.started.Add(1) }, func(e *Endpoint) { record(e, 10e6) }, [2]uint32{1, 1}},
		{"weak", func(e *Endpoint) { record(e, 10e6) }, func(e *Endpoint) { record(e, 10e6) }, [2]uint32{1, 2}},
		{"failed", func(e *Endpoint) { PeakEWMA{}.Record(e, load.Sample{Now: start, Latency: 1, Failed: true}) },
			func(e *Endpoint) { record(e, 4e9) }, [2]uint32{1, 1}},
		{"known", func(e *Endpoint) { record(e, 1) }, func(*Endpoint) {}, [2]uint32{1, 1}},
		{"unknown with a call under way", func(e *Endpoint) { e.started.Add(1) }, func(e *Endpoint) { record(e, 60e9) }, [2]uint32{1, 1}},
	} {
		es := members(tt.weight[0], tt.weight[1])
		tt.worse(es[0])
		tt.better(es[1])
		c := PeakEWMA{}.Build(Env{Members: es, Rand: seeded(1)})
		for range 100 {
			if c.Choose(Call{Now: start}) != 1 {
				t.Errorf("%s: preferred to the other", tt.name)
				break
			}
		}
	}
}

// TestPeakEWMAIdleIsUniform: alike instances without calls get alike numbers.
func TestPeakEWMAIdleIsUniform(t *testing.T) {
	es := members(same(8, 1)...)
	c := PeakEWMA{}.Build(Env{Members: es, Rand: seeded(77)})
	counts := make([]int, len(es))
	for _, e := range es {
		PeakEWMA{}.Record(e, load.Sample{Now: start, Latency: 1e6})
	}
	for range 16000 {
		counts[c.Choose(Call{Now: start + 1e9})]++
	}
	checkUniform(t, "peak_ewma at idle", counts)
}
