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

// lasts is how long the estimate of m lasts while others are called, in parts of decay.
func lasts(m *load.PeakEWMA, now int64) float64 {
	var other load.PeakEWMA // is fast, beyond doubt, and was called 1 s and 2 s later
	var faded [3]float64
	for i := range faded {
		other.Record(load.Sample{Now: now + int64(i)*s, Latency: 1}, decay, penalty)
		faded[i], _ = load.Compare(m, &other, decay)
	}
	return 1e9 / decay / math.Log(faded[1]/faded[2])
}

func TestPeakEWMA(t *testing.T) {
	type event struct {
		at     int64 // from the beginning, in ns
		sample load.Sample
		want   float64 // the estimate right after, in ns; a relative error of 1e-3 is allowed for the clock's ticks
		unsure bool    // it is in doubt
	}
	ok := func(latency int64) load.Sample { return load.Sample{Latency: latency} }
	failed := func(latency int64) load.Sample { return load.Sample{Latency: latency, Failed: true} }
	cancelled := func(latency int64) load.Sample { return load.Sample{Latency: latency, Cancelled: true} }
	e := math.Exp
	const yes, no = true, false
	for _, tt := range []struct {
		name   string
		events []event
	}{
		{"the first sample counts fully, and may be chance", []event{{0, ok(10 * ms), 10e6, yes}}},
		{"the second confirms it", []event{{0, ok(10 * ms), 10e6, yes}, {100 * ms, ok(10 * ms), 10e6, no}}},
		{"a first one of next to nothing is corrected soon", []event{{0, ok(0), 1, yes}, {s, ok(80 * ms), 40e6, yes},
			{2 * s, ok(80 * ms), 60e6, no}}},
		{"a faster one replaces it soon", []event{{0, ok(s), 1e9, yes}, {4 * s, ok(10 * ms), 10e6 + 990e6*e(-2), yes},
			{14 * s, ok(10 * ms), 10e6 + 990e6*e(-2)*e(-5), no}}},
		{"a faster one counts by the time", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{3 * s, ok(2 * ms), 2e6 + 8e6*e(-.2), no}, {7 * s, ok(2 * ms), 2e6 + 8e6*e(-.2)*e(-.4), no}}},
		{"a slower one too", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{s + 100*ms, ok(110 * ms), 10e6 + 100e6*(1-e(-.01)), no}}},
		{"and for a fifth at most", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{60 * s, ok(35 * ms), 15e6, no}}},
		{"a much slower one may be chance", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{60 * s, ok(s), 208e6, yes}}},
		{"a second one confirms it", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{60 * s, ok(s), 208e6, yes}, {62 * s, ok(400 * ms), 400e6 - 192e6*e(-1), no}}},
		{"not one that was under way", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{60 * s, ok(s), 208e6, yes}, {60*s + 100*ms, ok(400 * ms), 208e6, yes}}},
		{"nor does that one keep a later one from it", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{60 * s, ok(s), 208e6, yes}, {60*s + 100*ms, ok(400 * ms), 208e6, yes},
			{60*s + 450*ms, ok(400 * ms), 304e6, no}}},
		{"a fast failure is a slow answer", []event{{0, failed(1), 5e9, yes}}},
		{"at once", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no}, {s, failed(1), 5e9, yes}}},
		{"a slow failure is as slow as it was", []event{{0, failed(8 * s), 8e9, yes}}},
		{"a failure is never faster than what is known", []event{{0, ok(9 * s), 9e9, yes}, {0, failed(1), 9e9, yes}}},
		{"failures at one moment are one event", []event{{0, ok(10 * ms), 10e6, yes}, {s, ok(10 * ms), 10e6, no},
			{2 * s, failed(10 * ms), 5e9, yes}, {2*s + 2*ms, failed(10 * ms), 5e9, yes},
			{2*s + 3*ms, failed(10 * ms), 5e9, yes}}},
		{"a failure of a later call confirms it", []event{{0, failed(1), 5e9, yes}, {15 * s, failed(1), 5e9, no}}},
		{"a penalty is forgotten with the first success", []event{{0, failed(1), 5e9, yes},
			{20 * s, ok(10 * ms), 10e6 + 4990e6*e(-10), no}}},
		{"one confirmed is not so soon", []event{{0, failed(1), 5e9, yes}, {15 * s, failed(1), 5e9, no},
			{25 * s, ok(10 * ms), 10e6 + 4990e6*e(-1), no}}},
		{"a stream is no latency", []event{{0, ok(10 * ms), 10e6, yes}, {0, ok(-1), 10e6, yes}}},
		{"but a stream may fail", []event{{0, failed(-1), 5e9, yes}}},
		{"a caller that waited longer than expected counts", []event{{0, ok(10 * ms), 10e6, yes},
			{s, ok(10 * ms), 10e6, no}, {60 * s, cancelled(35 * ms), 15e6, no}}},
		{"one that gave up early does not", []event{{0, ok(10 * ms), 10e6, yes}, {0, cancelled(9 * ms), 10e6, yes}}},
		{"the clock goes backwards", []event{{0, ok(50 * ms), 50e6, yes}, {-1800 * s, ok(10 * ms), 50e6, yes},
			{-1799 * s, ok(60 * ms), 55e6, no}}},
		{"no time passes", []event{{0, ok(50 * ms), 50e6, yes}, {0, ok(10 * ms), 50e6, yes}}},
		{"zero is not nothing", []event{{0, ok(0), 1, yes}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m load.PeakEWMA
			for i, e := range tt.events {
				e.sample.Now = begin + e.at
				m.Record(e.sample, decay, penalty)
				if got := m.Estimate(); math.Abs(got-e.want) > e.want*1e-3 {
					t.Errorf("event %d: %v, want %v", i, time.Duration(got), time.Duration(e.want))
				}
				if !m.Seen() {
					t.Errorf("event %d: not seen", i)
				}
				want := 1.0
				if e.unsure {
					want = 0.2
				}
				if got := lasts(&m, begin+e.at); e.want > 1 && math.Abs(got-want) > 0.01 {
					t.Errorf("event %d: lasts for %.3f times decay, want %v", i, got, want)
				}
			}
		})
	}
}

func TestUnseen(t *testing.T) {
	var m, seen load.PeakEWMA
	m.Record(load.Sample{Now: begin, Latency: -1}, decay, penalty)
	m.Record(load.Sample{Now: begin, Cancelled: true}, decay, penalty)
	if m.Seen() || m.Estimate() != 0 {
		t.Errorf("seen %t, estimate %v after nothing that counts", m.Seen(), m.Estimate())
	}
	seen.Record(load.Sample{Now: begin, Latency: ms}, decay, penalty)
	if x, y := load.Compare(&m, &seen, decay); x != 0 || math.Abs(y-1e6) > 1 {
		t.Errorf("compared with one that is known: %v, %v; want nothing, and the latency", x, y)
	}
}

func TestCompare(t *testing.T) {
	e := math.Exp
	type known struct{ latency, at int64 } // from two calls, so beyond doubt
	for _, tt := range []struct {
		name         string
		a, b         known
		wantA, wantB float64
	}{
		{"at one time", known{50 * ms, 0}, known{10 * ms, 0}, 50e6, 10e6},
		{"the older one fades", known{50 * ms, 0}, known{10 * ms, 5 * s}, 50e6 * e(-.5), 10e6},
		{"until it is half of the other", known{50 * ms, 0}, known{10 * ms, 60 * s}, 5e6, 10e6},
		{"one that is alike, too", known{10 * ms, 0}, known{10 * ms, 60 * s}, 5e6, 10e6},
		{"one that is fast stays so", known{3 * ms, 0}, known{10 * ms, 60 * s}, 3e6, 10e6},
		{"time without calls to either is none", known{50 * ms, -3600 * s}, known{10 * ms, -3600 * s}, 50e6, 10e6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var a, b load.PeakEWMA
			for _, before := range []int64{s, 0} {
				a.Record(load.Sample{Now: begin + tt.a.at - before, Latency: tt.a.latency}, decay, penalty)
				b.Record(load.Sample{Now: begin + tt.b.at - before, Latency: tt.b.latency}, decay, penalty)
			}
			x, y := load.Compare(&a, &b, decay)
			if math.Abs(x-tt.wantA) > 1e-3*tt.wantA || math.Abs(y-tt.wantB) > 1e-3*tt.wantB {
				t.Errorf("%v, %v; want %v, %v", x, y, tt.wantA, tt.wantB)
			}
			if p, q := load.Compare(&b, &a, decay); p != y || q != x {
				t.Errorf("the other way round: %v, %v; want %v, %v", p, q, y, x)
			}
		})
	}
}

// TestCompareFirstAnswers: as long as there is one answer from each, neither is doubted more than the other.
func TestCompareFirstAnswers(t *testing.T) {
	var a, b load.PeakEWMA
	a.Record(load.Sample{Now: begin, Latency: 50 * ms}, decay, penalty)
	b.Record(load.Sample{Now: begin + 5*s, Latency: 10 * ms}, decay, penalty)
	if x, _ := load.Compare(&a, &b, decay); math.Abs(x-50e6*math.Exp(-.5)) > 5e4 {
		t.Errorf("%v from an answer 5 s earlier, want it to fade as if beyond doubt", time.Duration(x))
	}
	b.Record(load.Sample{Now: begin + 5*s + 20*ms, Latency: 10 * ms}, decay, penalty)
	if x, _ := load.Compare(&a, &b, decay); x > 6e6 {
		t.Errorf("%v when the other's is confirmed, want it to fade five times as fast", time.Duration(x))
	}
}

// twin is the estimate in float64 and whole nanoseconds.
type twin struct {
	seen, unsure bool
	value        float64
	at           int64
}

func (w *twin) left(d int64) float64 {
	if w.unsure {
		d *= 5
	}
	return math.Exp(-float64(max(0, d)) / decay)
}

func (w *twin) record(p load.Sample) {
	latency, age := float64(p.Latency), p.Now-w.at
	underWay := age > 0 && age <= max(p.Latency, 0)
	if p.Failed {
		latency = max(latency, penalty)
	} else if p.Latency < 0 || p.Cancelled && latency <= w.value || w.unsure && underWay {
		return
	}
	if !w.seen {
		*w = twin{true, true, latency, p.Now}
		return
	}
	was, share := w.value, 1-w.left(age)
	confirmed := w.unsure && age > 0 && !underWay
	if confirmed {
		share = max(share, 0.5)
	} else if latency > was {
		share = min(share, 0.2)
	}
	switch {
	case p.Failed:
		w.value = max(was, latency)
	default:
		w.value = was*(1-share) + latency*share
	}
	switch {
	case !p.Failed && latency <= was/2:
		w.unsure = w.unsure && w.value > 2*latency
	case w.value > 2*was:
		w.unsure = true
	case confirmed:
		w.unsure = false
	}
	w.value, w.at = max(w.value, 1), p.Now
}

// TestAgainstTwin feeds both the same random life. The metric keeps time in ticks of a millisecond, so they may
// differ by what a tick decays: a ten-thousandth for each update that counts. Where a rounding decides about a
// doubt they part for a while, which is rare.
func TestAgainstTwin(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	samples, apart := 0, 0
	for range 100 {
		var m load.PeakEWMA
		var w twin
		now := rnd.Int64N(200*24*3600*s) + 1 // anywhere in four wraps of the ticks
		typical := math.Exp(rnd.Float64()*12) * 1e4
		for range 400 {
			now += int64(rnd.ExpFloat64() * 1e9)
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
			if m.Seen() != w.seen {
				t.Fatalf("seen %t, want %t", m.Seen(), w.seen)
			}
			samples++
			if got := m.Estimate(); math.Abs(got-w.value) > 0.02*w.value+1 {
				apart++
			}
		}
	}
	if apart > samples/200 {
		t.Errorf("differs from the twin after %d of %d samples, want next to none", apart, samples)
	}
}

// TestOverlappingCalls: however many calls are in flight, an estimate is confirmed within two latencies, and then
// follows what the answers say in the configured time, not in a fifth of it.
func TestOverlappingCalls(t *testing.T) {
	for _, inFlight := range []int64{1, 2, 10, 20, 50} {
		var m load.PeakEWMA
		now := begin
		answer := func(latency int64, d time.Duration) {
			for end := now + int64(d); now < end; now += latency / inFlight {
				m.Record(load.Sample{Now: now, Latency: latency}, decay, penalty)
			}
		}
		answer(100*ms, 200*time.Millisecond)
		if got := lasts(&m, now); math.Abs(got-1) > 0.01 {
			t.Errorf("%d in flight: the first estimate lasts for %.3f times decay, want it confirmed", inFlight, got)
		}
		answer(100*ms, 5*time.Second)
		answer(150*ms, 2*time.Second)
		if got, want := m.Estimate(), 100e6+50e6*(1-math.Exp(-0.2)); math.Abs(got-want) > 1e6 {
			t.Errorf("%d in flight: %v after 2 s of 150 ms instead of 100 ms, want %v",
				inFlight, time.Duration(got), time.Duration(want))
		}
		m.Record(load.Sample{Now: now, Latency: ms, Failed: true}, decay, penalty)
		answer(100*ms, time.Second) // of what was under way, and then of nine calls one after another at least
		if got := m.Estimate(); got > 200e6 {
			t.Errorf("%d in flight: %v a second after a failure, want at most twice what it was",
				inFlight, time.Duration(got))
		}
	}
}

// TestOverlappingCallsThatDiffer: nor does it take an even stream of answers that take the same time.
func TestOverlappingCallsThatDiffer(t *testing.T) {
	for _, inFlight := range []float64{1, 10, 50} {
		rnd := rand.New(rand.NewPCG(3, 4))
		var m load.PeakEWMA
		answers, unsure := 0, 0
		for now := begin; now < begin+100*s; now += int64(100e6 / inFlight * rnd.ExpFloat64()) {
			m.Record(load.Sample{Now: now, Latency: int64(100e6 * (0.5 + rnd.Float64()))}, decay, penalty)
			if answers++; lasts(&m, now) < 0.9 {
				unsure++
			}
		}
		if unsure > answers/50 {
			t.Errorf("%v in flight: in doubt after %d of %d answers, want next to none", inFlight, unsure, answers)
		}
	}
}

// TestTicksWrap crosses the end of the 32 bits, 52 days, while samples keep coming, and idles for 20 days.
func TestTicksWrap(t *testing.T) {
	const wrap = int64(1) << 52
	var m, other load.PeakEWMA
	for _, at := range []int64{-6 * s, -5 * s} {
		m.Record(load.Sample{Now: wrap + at, Latency: s}, decay, penalty)
	}
	other.Record(load.Sample{Now: wrap + 5*s, Latency: 1}, decay, penalty)
	want := float64(s) * math.Exp(-1)
	if got, _ := load.Compare(&m, &other, decay); math.Abs(got-want) > want*1e-3 {
		t.Errorf("10 s later, across the wrap: %v, want %v", got, want)
	}
	m.Record(load.Sample{Now: wrap + 5*s, Latency: 0}, decay, penalty)
	if got := m.Estimate(); math.Abs(got-want) > want*1e-3 {
		t.Errorf("an answer right after the wrap: %v, want %v", time.Duration(got), time.Duration(want))
	}
	other.Record(load.Sample{Now: wrap + 20*24*3600*s, Latency: 1}, decay, penalty)
	if got, _ := load.Compare(&m, &other, decay); got > 1 {
		t.Errorf("after 20 idle days: %v, want it forgotten", time.Duration(got))
	}
}

// TestConcurrent: no failure is lost, whoever records at the same time.
func TestConcurrent(t *testing.T) {
	var m load.PeakEWMA
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for k := range 2000 {
				m.Record(load.Sample{Now: begin, Latency: 5*s + int64(k*8+g)*ms, Failed: true}, decay, penalty)
				m.Record(load.Sample{Now: begin, Latency: ms}, decay, penalty)
			}
		})
	}
	wg.Wait()
	if got, want := m.Estimate(), float64(5*s+15999*ms); math.Abs(got-want) > 1e-6*want {
		t.Errorf("estimate is %v, want the slowest of all failures, %v", time.Duration(got), time.Duration(want))
	}
}

func ExamplePeakEWMA() {
	var m load.PeakEWMA
	record := func(at time.Duration, s load.Sample) {
		s.Now = int64(at)
		m.Record(s, float64(load.DefaultDecay), float64(load.DefaultPenalty))
		fmt.Println(at, "expects", time.Duration(m.Estimate()).Round(time.Millisecond))
	}
	record(1*time.Second, load.Sample{Latency: int64(20 * time.Millisecond)})
	record(2*time.Second, load.Sample{Latency: int64(20 * time.Millisecond)})
	record(3*time.Second, load.Sample{Latency: int64(90 * time.Millisecond)}) // counts for one of several
	record(9*time.Second, load.Sample{Latency: int64(20 * time.Millisecond)})
	record(10*time.Second, load.Sample{Latency: 1, Failed: true}) // failing fast is not being fast
	// Output:
	// 1s expects 20ms
	// 2s expects 20ms
	// 3s expects 27ms
	// 9s expects 24ms
	// 10s expects 5s
}

func ExampleCompare() {
	var fast, slow load.PeakEWMA
	record := func(m *load.PeakEWMA, at, latency time.Duration) {
		sample := load.Sample{Now: int64(at), Latency: int64(latency)}
		m.Record(sample, float64(load.DefaultDecay), float64(load.DefaultPenalty))
	}
	record(&slow, 1*time.Second, 100*time.Millisecond)
	record(&slow, 2*time.Second, 100*time.Millisecond)
	for _, at := range []time.Duration{2, 10, 20, 40} { // only the fast one is called
		record(&fast, at*time.Second, 10*time.Millisecond)
		x, y := load.Compare(&fast, &slow, float64(load.DefaultDecay))
		fmt.Println(at*time.Second, time.Duration(x).Round(time.Millisecond), time.Duration(y).Round(time.Millisecond))
	}
	// Output:
	// 2s 10ms 100ms
	// 10s 10ms 45ms
	// 20s 10ms 17ms
	// 40s 10ms 5ms
}
