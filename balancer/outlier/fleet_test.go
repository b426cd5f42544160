package outlier

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// world is a fleet that is asked at random, with what a caller of a detector does about its verdicts: it takes an
// endpoint out, for good or for a time, and shares its calls among the others.
type world struct {
	t      testing.TB
	rand   *rand.Rand
	judge  Judge
	now    int64
	hosts  []*Host
	fails  []float64 // how likely a call to each is to fail
	rate   float64   // calls a second to each, while all are in
	length time.Duration

	until   []int64       // when an ejection ends
	first   []int64       // when it was ejected for the first time; 0 for never
	owed    float64       // calls that are not a whole one yet
	ejected int           // how often somebody was
	missing time.Duration // endpoint-time out of service
	elapsed time.Duration
}

const begun = int64(1000 * time.Hour)

// newWorld has n endpoints which all fail with the same probability.
func newWorld(t testing.TB, judge Judge, n int, rate, fails float64) *world {
	w := &world{t: t, rand: rand.New(rand.NewPCG(7, uint64(n))), judge: judge, now: begun, rate: rate,
		length: 30 * time.Second, until: make([]int64, n), first: make([]int64, n)}
	for range n {
		w.hosts = append(w.hosts, new(Host))
		w.fails = append(w.fails, fails)
	}
	w.step()
	return w
}

func ours(t testing.TB, c Config) *Detector {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func a50(t testing.TB, c A50, seed uint64) *Standard {
	t.Helper()
	s, err := NewA50(c, rand.New(rand.NewPCG(seed, 5)).Uint64)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failures draws how many of n calls fail.
func (w *world) failures(n uint64, p float64) uint64 {
	if p > 0.5 {
		return n - w.failures(n, 1-p)
	}
	failed := uint64(0)
	for at := 0.0; p > 0; failed++ { // from one failure to the next, which skips the many that are none
		at += 1 + math.Floor(w.rand.ExpFloat64()/-math.Log1p(-p))
		if at > float64(n) {
			break
		}
	}
	return failed
}

// step is one interval of the judge's. Endpoints are asked in turn.
func (w *world) step() {
	d := w.judge.Interval()
	in := 0
	for _, h := range w.hosts {
		if !h.Out {
			in++
		}
	}
	w.owed += w.rate * d.Seconds() * float64(len(w.hosts)) / float64(max(in, 1))
	n := uint64(w.owed)
	w.owed -= float64(n)
	for i, h := range w.hosts {
		if h.Out {
			w.missing += d
			continue
		}
		h.Calls += n
		h.Failures += w.failures(n, w.fails[i])
	}
	w.now += int64(d)
	w.elapsed += d
	for i, h := range w.hosts {
		if h.Out && w.until[i] != 0 && w.now >= w.until[i] {
			h.Out = false
		}
	}
	for _, v := range w.judge.Step(w.now, w.hosts) {
		w.obey(v)
	}
}

func (w *world) obey(v Verdict) {
	h := w.hosts[v.Host]
	if v.Reason == "" || h.Out != v.Return {
		w.t.Fatalf("verdict %+v about an endpoint of which out is %t", v, h.Out)
	}
	h.Out = !v.Return
	if v.Return {
		return
	}
	w.ejected++
	if v.For == 0 { // with A50 it is the judge that ends an ejection
		w.until[v.Host] = w.now + int64(w.length)
	}
	if w.first[v.Host] == 0 {
		w.first[v.Host] = w.now
	}
}

func (w *world) run(d time.Duration) {
	for end := w.elapsed + d; w.elapsed < end; {
		w.step()
	}
}

// outOfService is which part of the endpoints was out on average.
func (w *world) outOfService() float64 {
	return float64(w.missing) / float64(w.elapsed) / float64(len(w.hosts))
}

// outNow tells how many of the first k endpoints are out, and how many of the others.
func (w *world) outNow(k int) (sick, well int) {
	for i, h := range w.hosts {
		switch {
		case h.Out && i < k:
			sick++
		case h.Out:
			well++
		}
	}
	return sick, well
}
