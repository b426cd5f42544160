package load_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
)

const (
	decay   = float64(load.DefaultDecay)
	penalty = float64(load.DefaultPenalty)
	begin   = int64(time.Hour)
	ms      = int64(time.Millisecond)
	s       = int64(time.Second)
)

func TestPeakEWMA(t *testing.T) {
	type event struct {
		at     int64 // from the beginning, in ns
		sample load.Sample
		want   float64 // the estimate right after, in ns; a relative error of 1e-3 is allowed for the clock's ticks
	}
	ok := func(latency int64) load.Sample { return load.Sample{Latency: latency} }
	failed := func(latency int64) load.Sample { return load.Sample{Latency: latency, Failed: true} }
	cancelled := func(latency int64) load.Sample { return load.Sample{Latency: latency, Cancelled: true} }
	e := math.Exp
	for _, tt := range []struct {
		name   string
		events []event
	}{
		{"the first sample counts fully", []event{{0, ok(10 * ms), 10e6}}},
		{"a peak counts at once", []event{{0, ok(10 * ms), 10e6}, {ms, ok(50 * ms), 50e6}}},
		{"and is forgotten slowly", []event{{0, ok(50 * ms), 50e6}, {10 * s, ok(10 * ms), 10e6*(1-e(-1)) + 50e6*e(-1)}}},
		{"a mean is of what there was", []event{{0, ok(50 * ms), 50e6}, {2 * s, ok(10 * ms), 10e6*(1-e(-.2)) + 50e6*e(-.2)},
			{4 * s, ok(10 * ms), 10e6*(1-e(-.4)) + 50e6*e(-.4)}}},
		{"a fast failure is a slow answer", []event{{0, failed(1), 5e9}}},
		{"a slow failure is as slow as it was", []event{{0, failed(8 * s), 8e9}}},
		{"a failure is never faster than what is known", []event{{0, ok(9 * s), 9e9}, {0, failed(1), 9e9}}},
		{"a penalty is forgotten", []event{{0, failed(1), 5e9}, {30 * s, ok(10 * ms), 10e6*(1-e(-3)) + 5e9*e(-3)},
			{100 * s, ok(10 * ms), 10e6}}},
		{"a stream is no latency", []event{{0, ok(10 * ms), 10e6}, {ms, ok(-1), 10e6}}},
		{"but a stream may fail", []event{{0, failed(-1), 5e9}}},
		{"a caller that waited longer than expected counts", []event{{0, ok(10 * ms), 10e6}, {ms, cancelled(30 * ms), 30e6}}},
		{"one that gave up early does not", []event{{0, ok(10 * ms), 10e6}, {ms, cancelled(3 * ms), 10e6}}},
		{"the clock goes backwards", []event{{0, ok(50 * ms), 50e6}, {-1800 * s, ok(10 * ms), 50e6}, {-1800 * s, ok(60 * ms), 60e6}}},
		{"no time passes", []event{{0, ok(50 * ms), 50e6}, {0, ok(10 * ms), 50e6}}},
		{"zero is not nothing", []event{{0, ok(0), 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m load.PeakEWMA
			for i, e := range tt.events {
				e.sample.Now = begin + e.at
				m.Record(e.sample, decay, penalty)
				if got := m.Estimate(begin+e.at, decay); math.Abs(got-e.want) > e.want*1e-3 {
					t.Errorf("event %d: %v, want %v", i, time.Duration(got), time.Duration(e.want))
				}
				if !m.Seen() {
					t.Errorf("event %d: not seen", i)
				}
			}
		})
	}
}

func TestUnseen(t *testing.T) {
	var m load.PeakEWMA
	m.Record(load.Sample{Now: begin, Latency: -1}, decay, penalty)
	m.Record(load.Sample{Now: begin, Cancelled: true}, decay, penalty)
	if m.Seen() || m.Estimate(begin, decay) != 0 {
		t.Errorf("seen %t, estimate %v after nothing that counts", m.Seen(), m.Estimate(begin, decay))
	}
}

func TestEstimateDecays(t *testing.T) {
	var m load.PeakEWMA
	m.Record(load.Sample{Now: begin, Latency: s}, decay, penalty)
	for _, after := range []int64{0, s, 10 * s, 60 * s, 600 * s} {
		want := float64(s) * math.Exp(-float64(after)/decay)
		if got := m.Estimate(begin+after, decay); math.Abs(got-want) > want*1e-3 {
			t.Errorf("after %v: %v, want %v", time.Duration(after), got, want)
		}
	}
	if got := m.Estimate(begin-3600*s, decay); got < 0.99e9 || got > 1.01e9 {
		t.Errorf("an hour earlier: %v, want the estimate as it was", got)
	}
}

// twin is the estimate in float64 and whole nanoseconds.
type twin struct {
	seen  bool
	value float64
	at    int64
}

func (w *twin) estimate(now int64) float64 {
	if !w.seen {
		return 0
	}
	return w.value * math.Exp(-float64(max(0, now-w.at))/decay)
}

func (w *twin) record(p load.Sample) {
	known, latency := w.estimate(p.Now), float64(p.Latency)
	switch {
	case p.Failed:
		known = max(known, penalty, latency)
	case p.Latency < 0, p.Cancelled && latency <= known:
		return
	case latency > known:
		known = latency
	default: // decayed from what it was toward the sample
		left := math.Exp(-float64(max(0, p.Now-w.at)) / decay)
		known = w.value*left + latency*(1-left)
	}
	w.seen, w.value, w.at = true, max(known, 1), p.Now
}

// TestAgainstTwin feeds both the same random life. The metric keeps time in ticks of a millisecond, so they may differ
// by what a tick decays: a ten-thousandth for each update that counts.
func TestAgainstTwin(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 100 {
		var m load.PeakEWMA
		var w twin
		now := rnd.Int64N(200*24*3600*s) + 1 // anywhere in four wraps of the ticks
		typical := math.Exp(rnd.Float64()*12) * 1e4
		for k := range 400 {
			now += int64(rnd.ExpFloat64() * 1e8)
			p := load.Sample{Now: now, Latency: int64(typical * math.Exp(rnd.NormFloat64()))}
			switch rnd.IntN(20) {
			case 0:
				p.Failed = true
			case 1:
				p.Cancelled = true
			case 2:
				p.Latency = -1
			}
			m.Record(p, decay, penalty)
			w.record(p)
			ask := now + rnd.Int64N(5*s)
			got, want := m.Estimate(ask, decay), w.estimate(ask)
			if math.Abs(got-want) > 0.02*want+1 || m.Seen() != w.seen {
				t.Fatalf("round %d, sample %d (%+v): %v, want %v", round, k, p, got, want)
			}
		}
	}
}

// TestTicksWrap crosses the end of the 32 bits, 52 days, while samples keep coming, and idles for 20 days.
func TestTicksWrap(t *testing.T) {
	const wrap = int64(1) << 52
	var m load.PeakEWMA
	m.Record(load.Sample{Now: wrap - 5*s, Latency: s}, decay, penalty)
	if got, want := m.Estimate(wrap+5*s, decay), float64(s)*math.Exp(-1); math.Abs(got-want) > want*1e-3 {
		t.Errorf("10 s later, across the wrap: %v, want %v", got, want)
	}
	m.Record(load.Sample{Now: wrap + 5*s, Latency: 2 * s}, decay, penalty)
	if got := m.Estimate(wrap+5*s, decay); math.Abs(got-2e9) > 1e6 {
		t.Errorf("a peak right after the wrap: %v, want 2s", time.Duration(got))
	}
	if got := m.Estimate(wrap+20*24*3600*s, decay); got > 1 {
		t.Errorf("after 20 idle days: %v, want it forgotten", time.Duration(got))
	}
}

// TestConcurrent: no sample is lost that is a peak, whoever records at the same time.
func TestConcurrent(t *testing.T) {
	var m load.PeakEWMA
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for k := range 2000 {
				m.Record(load.Sample{Now: begin, Latency: int64(1 + k*8 + g)}, decay, penalty)
				m.Estimate(begin, decay)
			}
		})
	}
	wg.Wait()
	if got := m.Estimate(begin, decay); got != 16000 {
		t.Errorf("estimate is %v, want the highest of all samples, 16000", got)
	}
}

func ExamplePeakEWMA() {
	var m load.PeakEWMA
	record := func(at time.Duration, s load.Sample) {
		s.Now = int64(at)
		m.Record(s, float64(load.DefaultDecay), float64(load.DefaultPenalty))
		estimate := time.Duration(m.Estimate(int64(at), float64(load.DefaultDecay)))
		fmt.Println(at, "expects", estimate.Round(time.Millisecond))
	}
	record(1*time.Second, load.Sample{Latency: int64(20 * time.Millisecond)})
	record(2*time.Second, load.Sample{Latency: int64(90 * time.Millisecond)}) // a peak counts at once
	record(9*time.Second, load.Sample{Latency: int64(20 * time.Millisecond)}) // and is forgotten slowly
	record(10*time.Second, load.Sample{Latency: 1, Failed: true})             // failing fast is not being fast
	// Output:
	// 1s expects 20ms
	// 2s expects 90ms
	// 9s expects 55ms
	// 10s expects 5s
}
