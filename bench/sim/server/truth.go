package server

import (
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Truth is its state for the lower bound: how long a request of work w, arriving now, would take if nothing else came,
// and what that would do to those that it has.
func (s *Server) Truth(w float64) lb.Truth {
	t := lb.Truth{Up: s.Answers(), RIF: s.RIF(), Finish: math.MaxInt64, Fail: s.faults.Fail}
	if !t.Up {
		return t
	}
	s.advance()
	if s.cfg.Workers > 0 {
		t.Finish = int64(s.wait() + w/s.speed)
		return t
	}
	t.Finish, t.Harm = s.finish(w), s.harm(w)
	return t
}

// finish is exact while the cores are all busy until the request ends, or never: each request ahead takes its own rest
// or, if it is still there when this one ends, as much as this one.
func (s *Server) finish(w float64) int64 {
	total := w
	for _, r := range s.running {
		total += min(w, r.target-s.attained)
	}
	return int64(max(w, total/s.cores) / s.speed)
}

// harm is what lb.Truth says. While both are there each of the others is slowed down from one share of the cores to that
// of one request more; its latency before is what it has taken and, at the present rate, its rest.
func (s *Server) harm(w float64) float64 {
	n := float64(len(s.running))
	before, after := max(1, n/s.cores), max(1, (n+1)/s.cores)
	if after == before {
		return 0
	}
	sum := 0.0
	for _, r := range s.running {
		rest := (r.target - s.attained) / s.speed
		latency := float64(s.last-r.arrived) + rest*before
		sum += fourth(latency+min(w/s.speed, rest)*(after-before)) - fourth(latency)
	}
	return sum
}

func fourth(x float64) float64 { return x * x * x * x }

// wait estimates how long a request that comes now waits for a worker.
func (s *Server) wait() float64 {
	if len(s.running) < s.cfg.Workers {
		return 0
	}
	total := 0.0
	for _, r := range s.running {
		total += r.target - s.attained
	}
	for r := s.head; r != nil; r = r.next {
		total += r.target
	}
	return total / float64(s.cfg.Workers) / s.speed
}
