package real

import (
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// WithRetry is a policy whose clients try calls again, and hedge them, by package retry: what its interceptors decide
// with, in virtual time. Methods are as idempotent as p says.
func WithRetry(m lb.Maker, name string, p retry.Policy) lb.Maker {
	m.Name = name
	m.Retry = func(now func() int64, random func() uint64) (lb.Retry, error) {
		core, err := retry.NewCore(p, &simClock{now: now}, random)
		if err != nil {
			return nil, err
		}
		return retrier{core}, nil
	}
	return m
}

type retrier struct{ core *retry.Core }

// Begin implements [lb.Retry].
func (r retrier) Begin(deadline int64, chained bool) lb.Attempts {
	return decisions{r.core.Begin(deadline, chained)}
}

type decisions struct{ s *retry.Steps }

// Began implements [lb.Attempts].
func (s decisions) Began() int64 { return int64(s.s.Began()) }

// Hedge implements [lb.Attempts].
func (s decisions) Hedge() bool { return s.s.Hedge() }

// Failed implements [lb.Attempts].
func (s decisions) Failed(f lb.Failure) (int64, bool) {
	wait, why := s.s.Failed(retry.Failure(f))
	return int64(wait), why == ""
}

// Stops implements [lb.Attempts].
func (s decisions) Stops() bool { return s.s.EndsChain() }

// Succeeded implements [lb.Attempts].
func (s decisions) Succeeded(int64, int) { s.s.Succeeded() }

// WithLimit is a policy whose servers have the adaptive limit of package ratelimit.
func WithLimit(m lb.Maker, name string, a ratelimit.Adaptive) lb.Maker {
	m.Name = name
	m.Admission = func(random func() uint64) (lb.Admission, error) {
		core, err := ratelimit.NewCore(a, random)
		if err != nil {
			return nil, err
		}
		return admission{core}, nil
	}
	return m
}

type admission struct{ core *ratelimit.Core }

// Arrive implements [lb.Admission].
func (a admission) Arrive(now, remaining int64) (any, bool) {
	p, ok := a.core.Arrive(now, method, time.Duration(remaining))
	return p, ok
}

// Leave implements [lb.Admission].
func (a admission) Leave(now, began int64, place any, e lb.Ending) {
	end := ratelimit.EndVain
	switch e {
	case lb.Served:
		end = ratelimit.EndServed
	case lb.TimedOut:
		end = ratelimit.EndTimedOut
	}
	a.core.Leave(now, began, place.(ratelimit.Place), end)
}
