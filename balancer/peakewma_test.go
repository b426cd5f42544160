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

// alone makes one call at a time, perSecond of them, for d; serve says how long a call at id takes and how it ends. It
// returns when each instance was called, since the beginning.
func alone(t *testing.T, r *rig, perSecond float64, d time.Duration, serve func(id string) (time.Duration, error)) map[string][]time.Duration {
	t.Helper()
	calls := make(map[string][]time.Duration)
	begin, next := r.clock.Now(), 0.0
	for {
		at := time.Duration(r.clock.Now() - begin)
		if at >= d {
			return calls
		}
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		calls[id] = append(calls[id], at)
		took, err := serve(id)
		r.advance(took)
		done(ended(err))
		next += 1e9 / perSecond
		r.advance(max(0, time.Duration(next)-time.Duration(r.clock.Now()-begin)))
	}
}

// longest is the longest time without a call after from, among calls in the first d.
func longest(calls []time.Duration, from, d time.Duration) time.Duration {
	last, most := from, time.Duration(0)
	for _, at := range append(calls, d) {
		if at > from {
			last, most = at, max(most, at-last)
		}
	}
	return most
}

// peaking are the strategies that choose by this client's own latencies: keel does where no server reports.
var peaking = []Strategy{PeakEWMA{}, PeakEWMA{Choices: 3}, Keel{}}

// TestOneBadAnswer: an instance that once answered slowly, or failed once, is called again soon, at any rate of calls,
// be it the first answer of all or not. By the published rule (Finagle, Linkerd) it is after 53 s and 69 s.
func TestOneBadAnswer(t *testing.T) {
	slow := func() (time.Duration, error) { return time.Second, nil }
	fail := func() (time.Duration, error) { return time.Millisecond, fails(codes.Unavailable) }
	for _, s := range peaking {
		for _, perSecond := range []float64{50, 5, 2} {
			share := time.Duration(5 / perSecond * 1e9) // from one call at an instance to the next, on average
			for _, tt := range []struct {
				name string
				bad  func() (time.Duration, error)
				nth  int // which answer of i1
				want time.Duration
			}{
				{"slow", slow, 8, 10 * time.Second},
				{"slow at first", slow, 1, 12 * time.Second},
				{"failure", fail, 8, 15 * time.Second},
				{"failure at first", fail, 1, 15 * time.Second},
			} {
				r := newRig(t, Config{Strategy: s, Blacklist: Blacklist{Disabled: true}}, fleet(5))
				n, at, begin := 0, time.Duration(0), r.clock.Now()
				const d = time.Minute
				calls := alone(t, r, perSecond, d, func(id string) (time.Duration, error) {
					if id == "i1" {
						if n++; n == tt.nth {
							at = time.Duration(r.clock.Now() - begin)
							return tt.bad()
						}
					}
					return 5 * time.Millisecond, nil
				})
				if at == 0 && n < tt.nth {
					t.Fatalf("%T, %v calls/s: i1 got %d calls, too few for this test", s, perSecond, n)
				}
				if got := longest(calls["i1"], at, d); got > tt.want+6*share {
					t.Errorf("%+v, %v calls/s, %s: %v without a call, want at most %v", s, perSecond, tt.name, got, tt.want+6*share)
				}
			}
		}
	}
}

// TestAlwaysBad: an instance that is always slow, or fails always or mostly and fast, is tried now and then at most,
// without the blacklist's help.
func TestAlwaysBad(t *testing.T) {
	n := 0
	for _, s := range peaking {
		for _, tt := range []struct {
			name string
			bad  func() (time.Duration, error)
			want int
		}{
			{"slow", func() (time.Duration, error) { return time.Second, nil }, 8},
			{"fails", func() (time.Duration, error) { return 100 * time.Microsecond, fails(codes.Unavailable) }, 8},
			{"refuses", func() (time.Duration, error) { return 100 * time.Microsecond, fails(codes.ResourceExhausted) }, 8},
			{"fails two of three", func() (time.Duration, error) {
				if n++; n%3 > 0 {
					return 100 * time.Microsecond, fails(codes.Unavailable)
				}
				return 5 * time.Millisecond, nil
			}, 40},
		} {
			r := newRig(t, Config{Strategy: s, Blacklist: Blacklist{Disabled: true}}, fleet(5))
			calls := alone(t, r, 20, 200*time.Second, func(id string) (time.Duration, error) {
				if id == "i1" {
					return tt.bad()
				}
				return 5 * time.Millisecond, nil
			})
			if got := len(calls["i1"]); got == 0 || got > tt.want {
				t.Errorf("%+v, %s: %d of 4000 calls, want some and at most %d", s, tt.name, got, tt.want)
			}
		}
	}
}

// TestFewErrorsEverywhere: where all instances fail one call in a hundred, none is left without calls.
func TestFewErrorsEverywhere(t *testing.T) {
	for _, s := range peaking {
		r := newRig(t, Config{Strategy: s, Blacklist: Blacklist{Disabled: true}}, fleet(5))
		rand := seeded(3)
		const d = 120 * time.Second
		calls := alone(t, r, 50, d, func(string) (time.Duration, error) {
			if below(rand(), 100) == 0 {
				return time.Millisecond, fails(codes.Unavailable)
			}
			return 5 * time.Millisecond, nil
		})
		for id, at := range calls {
			if got := longest(at, 0, d); got > 20*time.Second || len(at) < 6000/5/2 {
				t.Errorf("%+v: %s got %d of 6000 calls, and none for %v", s, id, len(at), got)
			}
		}
	}
}

// TestRareCallsAvoidTheSlow: with a call to an instance every two seconds, a slow one gets less than its share. (go-zero and
// kratos send a call to whoever had none for 1 s or 3 s, and so more than its share.)
func TestRareCallsAvoidTheSlow(t *testing.T) {
	for _, s := range peaking {
		r := newRig(t, Config{Strategy: s}, fleet(10))
		calls := alone(t, r, 5, 1000*time.Second, func(id string) (time.Duration, error) {
			if id == "i1" {
				return 100 * time.Millisecond, nil
			}
			return 10 * time.Millisecond, nil
		})
		if got := len(calls["i1"]); got == 0 || got > 5000/10/2 {
			t.Errorf("%+v: %d of 5000 calls went to the slow one of ten, want some, and less than half its share", s, got)
		}
	}
}

// TestIdleIsNotFree: calls that come all at once are spread like any others, after a time without calls to any, and
// after one without calls to one of them.
func TestIdleIsNotFree(t *testing.T) {
	for _, s := range peaking {
		for _, all := range []bool{true, false} {
			r := newRig(t, Config{Strategy: s}, fleet(6))
			alone(t, r, 100, 10*time.Second, func(string) (time.Duration, error) { return 10 * time.Millisecond, nil })
			r.advance(5 * time.Minute)
			for _, e := range r.p.known {
				if !all && e.Instance().ID != "i2" {
					s.(Measurer).Record(e, load.Sample{Now: r.clock.Now(), Latency: 10e6})
				}
			}
			counts := make(map[string]int)
			var under []func(gbalancer.DoneInfo)
			for range 120 {
				id, done, err := r.begin(ask{})
				if err != nil {
					t.Fatal(err)
				}
				counts[id]++
				under = append(under, done)
			}
			for _, in := range fleet(6) {
				if n := counts[in.ID]; n < 10 || n > 45 {
					t.Errorf("%+v, all idle %t: 120 calls at once were spread %v, want 20 to each, or twice as many", s, all, counts)
					break
				}
			}
			for _, done := range under {
				done(ended(nil))
			}
		}
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
		{"slow by a tenth of a millisecond", func(e *Endpoint) { record(e, 0.3e6) }, func(e *Endpoint) { record(e, 0.2e6) }, [2]uint32{1, 1}},
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
