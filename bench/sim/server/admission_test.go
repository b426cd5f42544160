package server

import (
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// doorman admits up to most at once and writes down who left how.
type doorman struct {
	most, inside int
	remaining    []int64
	left         []lb.Ending
	took         []int64
}

func (d *doorman) Arrive(_, remaining int64) (any, bool) {
	d.remaining = append(d.remaining, remaining)
	if d.inside >= d.most {
		return nil, false
	}
	d.inside++
	return d, true
}

func (d *doorman) Leave(now, began int64, place any, e lb.Ending) {
	if place != any(d) {
		panic("another place")
	}
	d.inside--
	d.left, d.took = append(d.left, e), append(d.took, now-began)
}

// TestAdmission: each request that is admitted leaves once, in its way, and others are rejected at once.
func TestAdmission(t *testing.T) {
	const ms = int64(time.Millisecond)
	for name, c := range map[string]struct {
		cfg      Config
		deadline int64
		do       func(*engine.Sim, *Server, *Request)
		want     lb.Ending
		took     int64
	}{
		"served":      {Config{}, 0, func(*engine.Sim, *Server, *Request) {}, lb.Served, 10 * ms},
		"gone":        {Config{}, 0, func(sim *engine.Sim, s *Server, r *Request) { sim.Run(1 + 3*ms); s.Cancel(r) }, lb.Vain, 3 * ms},
		"timed out":   {Config{}, 1 + 4*ms, func(sim *engine.Sim, s *Server, r *Request) { sim.Run(1 + 4*ms); s.Cancel(r) }, lb.TimedOut, 4 * ms},
		"crash":       {Config{}, 0, func(sim *engine.Sim, s *Server, r *Request) { sim.Run(1 + 5*ms); s.Crash() }, lb.Vain, 5 * ms},
		"fault":       {Config{}, 0, nil, lb.Vain, 2 * ms},
		"queue, full": {Config{Workers: 1, Queue: 1}, 0, nil, lb.Vain, 0},
	} {
		sim := engine.New()
		s, e, d := New(sim, c.cfg), newEnds(sim), &doorman{most: 1}
		switch name {
		case "fault":
			s.SetFaults(Faults{Fail: 1, FailAfter: 2 * time.Millisecond})
		case "queue, full":
			for range 2 {
				s.Start(&Request{Work: 1e9, Luck: 0.5, Owner: e})
			}
		}
		s.Admit(d)
		r := &Request{Work: float64(10 * ms), Luck: 0.5, Deadline: c.deadline, Owner: e}
		s.Start(r)
		second := &Request{Work: 1, Luck: 0.5, Owner: e}
		if name != "queue, full" {
			s.Start(second)
			if e.how[second] != Rejected || e.at[second] != 1 {
				t.Errorf("%s: a second request ended as %d at %d, want it rejected at once", name, e.how[second], e.at[second])
			}
		}
		if c.do != nil {
			c.do(sim, s, r)
		}
		sim.Run(100 * ms)
		s.Cancel(r) // has ended
		if len(d.left) != 1 || d.left[0] != c.want || d.took[0] != c.took || d.inside != 0 {
			t.Errorf("%s: left by %v after %v with %d inside, want by %d after %d, once", name, d.left, d.took, d.inside,
				c.want, c.took)
		}
		if c.deadline != 0 && d.remaining[0] != c.deadline-1 {
			t.Errorf("%s: told of %d remaining, want %d", name, d.remaining[0], c.deadline-1)
		}
	}
}

// TestHold: what is held is in flight and takes no processor time.
func TestHold(t *testing.T) {
	sim := engine.New()
	s, e := New(sim, Config{Cores: 1}), newEnds(sim)
	s.Hold(3)
	r := &Request{Work: 1e6, Luck: 0.5, Owner: e}
	s.Start(r)
	if s.RIF() != 4 || s.Load().RIF != 4 {
		t.Errorf("%d in flight, %d told, want 4", s.RIF(), s.Load().RIF)
	}
	sim.Run(1e9)
	if e.at[r] != 1+1e6 {
		t.Errorf("a request ended at %d beside three that are held, want %d", e.at[r], int64(1+1e6))
	}
	s.Hold(-3)
	if s.RIF() != 0 {
		t.Errorf("%d in flight", s.RIF())
	}
}
