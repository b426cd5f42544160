package baseline

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/registry"
)

// world is what a balancer sees of a simulation: a clock, timers, scripted or seeded randomness, and servers that say
// what the test says. Answers to probes come after a millisecond.
type world struct {
	t      *testing.T
	now    int64
	seq    int
	timers []*timer

	draws   []uint64 // the client's stream; if it is over, rand goes on, and without rand the test fails
	rand    *rand.Rand
	loads   map[int]lb.Load // answers to probes; a server that is not in it does not answer
	truths  map[int]lb.Truth
	asked   []int   // servers that were probed
	askedAt []int64 // when
}

type timer struct {
	at  int64
	seq int
	f   func()
}

func newWorld(t *testing.T) *world {
	return &world{t: t, now: 1, loads: make(map[int]lb.Load), truths: make(map[int]lb.Truth)}
}

// seed replaces the script by a stream.
func (w *world) seed(seed uint64) *world {
	w.rand = rand.New(rand.NewPCG(seed, 1))
	return w
}

func (w *world) draw() uint64 {
	if len(w.draws) > 0 {
		d := w.draws[0]
		w.draws = w.draws[1:]
		return d
	}
	if w.rand == nil {
		w.t.Fatal("the balancer draws more often than the test expects")
	}
	return w.rand.Uint64()
}

func (w *world) after(d int64, f func()) (stop func()) {
	w.seq++
	t := &timer{w.now + d, w.seq, f}
	w.timers = append(w.timers, t)
	return func() { w.timers = slices.DeleteFunc(w.timers, func(o *timer) bool { return o == t }) }
}

func (w *world) probe(server int, timeout int64, answer func(lb.Load, bool)) {
	w.asked, w.askedAt = append(w.asked, server), append(w.askedAt, w.now)
	if l, ok := w.loads[server]; ok {
		w.after(millisecond, func() { answer(l, true) })
		return
	}
	w.after(timeout, func() { answer(lb.Load{}, false) })
}

// until runs what is due by then.
func (w *world) until(at int64) {
	for len(w.timers) > 0 {
		next := slices.MinFunc(w.timers, func(a, b *timer) int { return cmp.Or(cmp.Compare(a.at, b.at), a.seq-b.seq) })
		if next.at > at {
			break
		}
		w.timers = slices.DeleteFunc(w.timers, func(o *timer) bool { return o == next })
		w.now = next.at
		next.f()
	}
	w.now = max(w.now, at)
}

func (w *world) env(servers ...int) lb.Env {
	return lb.Env{
		Client: 0, Clients: 100, Servers: shown(servers...), Now: func() int64 { return w.now }, After: w.after,
		Rand: w.draw, Probe: w.probe, Peek: func(s int) lb.Truth { return w.truths[s] },
	}
}

// shown is what the registry shows.
func shown(servers ...int) []lb.Server {
	list := make([]lb.Server, len(servers))
	for i, s := range servers {
		in := registry.Instance{ID: fmt.Sprint("i", s), Addr: fmt.Sprintf("10.0.%d.%d:80", s/250, s%250+1)}
		list[i] = lb.Server{Index: s, Instance: &in}
	}
	return list
}

func (w *world) make(m lb.Maker, servers ...int) lb.Balancer {
	w.t.Helper()
	b, err := m.New(w.env(servers...))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// first are the servers 0 to n-1.
func first(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// of is a draw that dice.below(n) turns into i.
func of(i, n int) uint64 { return (uint64(i)<<32 + uint64(n) - 1) / uint64(n) << 32 }

// two are the draws that dice.pair(n) turns into i and j.
func two(i, j, n int) []uint64 {
	if j > i {
		return []uint64{of(i, n), of(j-1, n-1)}
	}
	return []uint64{of(i, n), of(j, n-1)}
}

// step is one row of a scenario.
type step struct {
	at    int64 // ms
	draws []uint64
	set   []int           // the registry shows these
	loads map[int]lb.Load // servers say this from now on

	pick string // begins a call of this name
	want int    // where it is to go

	done string // ends the call of this name, begun at another step
	err  error
	load *lb.Load
}

// play runs a scenario on one client of a fleet and checks every pick.
func play(t *testing.T, w *world, b lb.Balancer, steps []step) {
	t.Helper()
	calls, servers, began := make(map[string]*lb.Call), make(map[string]int), make(map[string]int64)
	for i, s := range steps {
		w.draws = append(w.draws, s.draws...)
		w.until(s.at*millisecond + 1)
		for server, l := range s.loads {
			w.loads[server] = l
		}
		if s.set != nil {
			b.Update(shown(s.set...))
		}
		if s.done != "" {
			if calls[s.done] == nil {
				t.Fatalf("step %d: no call %q", i, s.done)
			}
			b.Done(calls[s.done], servers[s.done], lb.Result{Latency: w.now - began[s.done], Err: s.err, Load: s.load})
			delete(calls, s.done)
		}
		if s.pick == "" {
			continue
		}
		c := new(lb.Call)
		got, err := b.Pick(c)
		if err != nil {
			t.Fatalf("step %d: call %q: %v", i, s.pick, err)
		}
		if got != s.want {
			t.Errorf("step %d: call %q went to %d, want %d", i, s.pick, got, s.want)
		}
		calls[s.pick], servers[s.pick], began[s.pick] = c, got, w.now
	}
	if len(w.draws) > 0 {
		t.Errorf("%d draws are left over", len(w.draws))
	}
}

// chiSquare is the statistic of counts against their expectations.
func chiSquare(got []int, want []float64) float64 {
	x := 0.0
	for i, g := range got {
		d := float64(g) - want[i]
		x += d * d / want[i]
	}
	return x
}
