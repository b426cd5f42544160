package ratelimit

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/outcome"
)

// sim is a server of some workers with one queue, in discrete events: the slow and obviously right world that a
// gate is put into. Nothing in it knows how the gate works.
type sim struct {
	rng     *rand.Rand
	service func(*rand.Rand) time.Duration
	workers int
	gate    *gate // nil: everybody enters
	timeout time.Duration

	now    int64
	set    int64 // how much the gate's clock is off
	events events
	queue  []*job
	busy   int
	measure
}

// measure is what was seen since it was last set to zero.
type measure struct {
	from             int64
	arrived, refused int
	late             int // answered after their deadline, which is as good as not
	latencies        []time.Duration
}

type job struct {
	at    int64
	began int64 // by the gate's clock
	t     *timing
}

type event struct {
	at int64
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// clock is what the gate's clock shows.
func (s *sim) clock() int64 { return s.now + s.set }

func (s *sim) after(d time.Duration, do func()) { heap.Push(&s.events, event{s.now + int64(d), do}) }

// run offers perSecond calls a second, at random, for d. Arrivals are not among the events: at a high load they are
// most of what happens.
func (s *sim) run(d time.Duration, perSecond float64) {
	end := s.now + int64(d)
	gap := func() int64 { return int64(s.rng.ExpFloat64() / perSecond * 1e9) }
	arrival := s.now + gap()
	for {
		ends := int64(math.MaxInt64)
		if len(s.events) > 0 {
			ends = s.events[0].at
		}
		switch {
		case min(arrival, ends) > end:
			s.now = end
			return
		case ends <= arrival:
			s.now = ends
			heap.Pop(&s.events).(event).do()
		default:
			s.now = arrival
			s.arrive()
			arrival += gap()
		}
	}
}

func (s *sim) arrive() {
	s.arrived++
	began := s.clock()
	var tm *timing
	if s.gate != nil {
		remaining := outcome.NoDeadline
		if s.timeout > 0 {
			remaining = s.timeout
		}
		v, t, _ := s.gate.arrive(began, "/s/m", remaining)
		if v != enter {
			s.refused++
			return
		}
		tm = t
	}
	s.queue = append(s.queue, &job{at: s.now, began: began, t: tm})
	s.next()
}

func (s *sim) next() {
	for s.busy < s.workers && len(s.queue) > 0 {
		j := s.queue[0]
		s.queue = s.queue[1:]
		s.busy++
		s.after(s.service(s.rng), func() { s.done(j) })
	}
}

func (s *sim) done(j *job) {
	s.busy--
	took := time.Duration(s.now - j.at)
	e := served
	if s.timeout > 0 && took > s.timeout {
		e = timedOut
		s.late++
	} else {
		s.latencies = append(s.latencies, took)
	}
	if s.gate != nil {
		s.gate.leave(s.clock(), j.began, j.t, e)
	}
	s.next()
}

func (s *sim) reset() { s.measure = measure{from: s.now} }

// goodput is how many calls a second were answered in time.
func (m *measure) goodput(now int64) float64 {
	return float64(len(m.latencies)) / time.Duration(now-m.from).Seconds()
}

func (m *measure) quantile(q float64) time.Duration {
	if len(m.latencies) == 0 {
		return 0
	}
	slices.Sort(m.latencies)
	return m.latencies[min(len(m.latencies)-1, int(q*float64(len(m.latencies))))]
}

// services are distributions with a mean of 10 ms.
var services = []struct {
	name string
	draw func(*rand.Rand) time.Duration
}{
	{"fixed", func(*rand.Rand) time.Duration { return 10 * time.Millisecond }},
	{"uniform", func(r *rand.Rand) time.Duration { return time.Duration((5 + 10*r.Float64()) * 1e6) }},
	{"exponential", func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * 10e6) }},
	{"bimodal", func(r *rand.Rand) time.Duration { // one call in 50 takes 20 times as long
		if r.IntN(50) == 0 {
			return 145 * time.Millisecond
		}
		return 7250 * time.Microsecond
	}},
	{"lognormal", func(r *rand.Rand) time.Duration { return time.Duration(10e6 * math.Exp(r.NormFloat64()-0.5)) }},
}

func testGate(t *testing.T, a Adaptive, seed uint64) *gate {
	t.Helper()
	r, err := a.resolve()
	if err != nil {
		t.Fatal(err)
	}
	return newGate(r, rand.New(rand.NewPCG(seed, 7)).Uint64)
}

func newSim(workers int, service func(*rand.Rand) time.Duration, g *gate, seed uint64) *sim {
	return &sim{rng: rand.New(rand.NewPCG(seed, 1)), service: service, workers: workers, gate: g}
}
