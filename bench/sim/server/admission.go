package server

import (
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Admit has an admission decide about requests that come from now on.
func (s *Server) Admit(a lb.Admission) { s.admission = a }

// admit asks the admission.
func (s *Server) admit(r *Request) bool {
	r.place, r.inside = nil, false
	if s.admission == nil {
		return true
	}
	remaining := int64(math.MaxInt64)
	if r.Deadline != 0 {
		remaining = r.Deadline - r.arrived
	}
	r.place, r.inside = s.admission.Arrive(r.arrived, remaining)
	return r.inside
}

// leave tells the admission, once, if there is one.
func (s *Server) leave(r *Request, e lb.Ending) {
	if r.inside {
		r.inside = false
		s.admission.Leave(s.sim.Now(), r.arrived, r.place, e)
	}
}

// Hold makes it n more requests in flight, or fewer, that need no processor now: streams, and calls that wait for others.
func (s *Server) Hold(n int) { s.held += n }
