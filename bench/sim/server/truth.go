package server

import (
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Truth is its state for the lower bound: how long a request of work w, arriving now, would take if nothing else came.
func (s *Server) Truth(w float64) lb.Truth {
	t := lb.Truth{Up: s.Answers(), RIF: s.RIF(), Finish: math.MaxInt64, Fail: s.faults.Fail}
	if !t.Up {
		return t
	}
	s.advance()
	t.Finish = int64(s.finish(w))
	return t
}

// finish is exact while the cores are all busy until the request ends, or never: each request ahead takes its own rest
// or, if it is still there when this one ends, as much as this one.
func (s *Server) finish(w float64) float64 {
	if s.cfg.Workers > 0 {
		return s.wait() + w/s.speed
	}
	total := w
	for _, r := range s.running {
		total += min(w, r.target-s.attained)
	}
	return max(w, total/s.cores) / s.speed
}

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
