package baseline

import (
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Limits returns limits on what a server works on at once, from their specifications, over the policy m: none; Netflix's
// concurrency-limits AIMD, Vegas and Gradient2 with their defaults.
func Limits(m lb.Maker) []lb.Maker {
	with := func(name string, fresh func() limiter) lb.Maker {
		m := m
		m.Name = name
		m.Admission = func(func() uint64) (lb.Admission, error) { return &limit{limiter: fresh()}, nil }
		return m
	}
	none := m
	none.Name = "no_limit"
	return []lb.Maker{
		none,
		with("limit_aimd", func() limiter { return &aimd{10} }),
		with("limit_vegas", func() limiter { return &vegas{value: 20} }),
		with("limit_gradient2", func() limiter { return &gradient2{value: 20} }),
	}
}

// limiter is a limit that learns from each end.
type limiter interface {
	limit() float64
	// end is a request that took rtt; inFlight counts it.
	end(rtt float64, inFlight int, dropped bool)
}

type limit struct {
	limiter
	inFlight int
}

// Arrive implements [lb.Admission].
func (l *limit) Arrive(int64, int64) (any, bool) {
	if l.inFlight >= int(l.limit()) {
		return nil, false
	}
	l.inFlight++
	return nil, true
}

// Leave implements [lb.Admission].
func (l *limit) Leave(now, began int64, _ any, e lb.Ending) {
	if e != lb.Vain {
		l.end(float64(max(now-began, 1)), l.inFlight, e == lb.TimedOut)
	}
	l.inFlight--
}

// aimd is AIMDLimit: nine tenths after a drop, or after 5 s; one more after a success while half of it is in use.
type aimd struct{ value float64 }

func (a *aimd) limit() float64 { return a.value }
func (a *aimd) end(rtt float64, inFlight int, dropped bool) {
	switch {
	case dropped || rtt > float64(5*second):
		a.value = max(20, min(a.value-1, 0.9*a.value)) // its minLimit is 20
	case 2*float64(inFlight) >= a.value:
		a.value = min(200, a.value+1)
	}
}

// vegas is VegasLimit: it estimates the queue from the least round trip seen, and looks for that anew from time to
// time.
type vegas struct {
	value, least float64
	samples      int
}

func (v *vegas) limit() float64 { return v.value }
func (v *vegas) end(rtt float64, inFlight int, dropped bool) {
	v.samples++
	if float64(v.samples) >= 30*0.75*v.value { // probeMultiplier 30, its jitter from 0.5 to 1 at its middle
		v.samples, v.least = 0, rtt
		return
	}
	if v.least == 0 || rtt < v.least {
		v.least = rtt
		return
	}
	log := max(1, math.Log10(v.value))
	queue := math.Ceil(v.value * (1 - v.least/rtt))
	switch {
	case dropped:
		v.value -= log
	case 2*float64(inFlight) < v.value:
		return
	case queue <= log:
		v.value += 6 * log
	case queue < 3*log:
		v.value += log
	case queue > 6*log:
		v.value -= log
	}
	v.value = min(1000, max(1, v.value))
}

// gradient2 is Gradient2Limit: the round trip against its own average over 600.
type gradient2 struct {
	value, long float64
	samples     int
}

func (g *gradient2) limit() float64 { return g.value }
func (g *gradient2) end(rtt float64, inFlight int, _ bool) {
	const warmup, span = 10, 600
	if g.samples++; g.samples <= warmup {
		g.long += (rtt - g.long) / float64(g.samples)
	} else {
		g.long += (rtt - g.long) * 2 / (span + 1)
	}
	if g.long/rtt > 2 {
		g.long *= 0.95
	}
	if float64(inFlight) < g.value/2 {
		return
	}
	gradient := max(0.5, min(1, 1.5*g.long/rtt)) // rttTolerance 1.5
	next := g.value*gradient + 4                 // queueSize 4
	g.value = min(200, max(20, 0.8*g.value+0.2*next))
}
