package server

import (
	"math"
	"math/rand/v2"
	"time"
)

// Antagonist is what the neighbours on its machine leave to a server: cores and speed that change with time.
//
// It is a stationary process whose distribution at any moment and whose pace are chosen apart from each other. A
// normal variable z is the sum of one that is drawn once (machines differ) and of Ornstein-Uhlenbeck processes with a
// time constant each (neighbours come and go). The rank of z among all that it could be, a number in (0,1), gives the
// cores and the speed of that moment by their quantile functions: 0 is the worst machine at its worst moment.
//
// Its numbers come from its server's own stream and from nothing else, so they are the same whatever policy decides
// who gets the requests.
type Antagonist struct {
	// Cores is the quantile function of what the server can use, as a multiple of its allocation.
	Cores func(rank float64) float64
	// Speed is that of how fast a core is; nil means always 1.
	Speed func(rank float64) float64
	// Parts share the variance of what changes; what their Shares leave of 1 is drawn once.
	Parts []Part
	// Step is how often it changes; 0 means every 100 ms.
	Step time.Duration
}

// Part is one Ornstein-Uhlenbeck process.
type Part struct {
	// Tau is the time after which it has forgotten 63 % of where it was.
	Tau time.Duration
	// Share is its part of the variance.
	Share float64
}

// Afflict starts an antagonist on a server, for good. r is its randomness.
func Afflict(s *Server, a Antagonist, r *rand.Rand) {
	if a.Step == 0 {
		a.Step = 100 * time.Millisecond
	}
	p := &process{server: s, a: a, r: r, x: make([]float64, len(a.Parts))}
	rest := 1.0
	for i, part := range a.Parts {
		p.x[i] = r.NormFloat64()
		rest -= part.Share
	}
	p.fixed = math.Sqrt(max(rest, 0)) * r.NormFloat64()
	p.apply()
	// Machines do not change in step.
	s.sim.At(s.sim.Now()+int64(r.Float64()*float64(a.Step)), p, 0, 0)
}

type process struct {
	server *Server
	a      Antagonist
	r      *rand.Rand
	fixed  float64
	x      []float64 // each has variance 1
}

// Handle implements [engine.Handler].
func (p *process) Handle(uint8, uint64) {
	for i, part := range p.a.Parts {
		keep := math.Exp(-float64(p.a.Step) / float64(part.Tau))
		p.x[i] = keep*p.x[i] + math.Sqrt(1-keep*keep)*p.r.NormFloat64()
	}
	p.apply()
	p.server.sim.At(p.server.sim.Now()+int64(p.a.Step), p, 0, 0)
}

func (p *process) apply() {
	z := p.fixed
	for i, part := range p.a.Parts {
		z += math.Sqrt(part.Share) * p.x[i]
	}
	rank := math.Erfc(-z/math.Sqrt2) / 2
	speed := 1.0
	if p.a.Speed != nil {
		speed = p.a.Speed(rank)
	}
	p.server.SetShare(p.a.Cores(rank)*p.server.cfg.Cores, speed)
}
