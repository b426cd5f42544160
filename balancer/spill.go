package balancer

import "math"

// spill decides which part of the calls leaves the client's zone. It gives the zone a limit of calls under way, and finds
// the limit by how long calls take here and elsewhere. It knows nothing about the number or size of the instances. It is
// guarded by the policy's mutex. ADR-0021.
//
// Why a limit and not a part of the calls: what goes wrong in a zone is a queue, and calls under way are that queue. They
// are counted at once, while latencies come late, when it is long already; a loop over latencies alone makes the zones of
// S9 (bench/sim) take turns in overflowing. A zone that slows down fills its limit and sheds by itself, one that is well
// again empties it and is given calls by itself. Only the limit has to be learnt, and that has time.
type spill struct {
	fraction float64 // of the calls leaves, 0 to 1
	cut      float64 // by which part the limit is below what would do for all calls, 0 to 1
	near     tide    // in the zone
	far      tide    // elsewhere
	met      bool    // somebody in the zone could be used once

	// Means over the last spillWindow.
	asked  float64 // calls that begin anywhere, in a nanosecond
	served float64 // calls of the zone that end, in a nanosecond
	busy   float64 // calls under way in the zone
}

const (
	// spillPeriod is the time between two steps, in nanoseconds.
	spillPeriod = 100e6
	// spillWindow is the time that counts, in nanoseconds, where calls are enough.
	spillWindow = 0.5e9
	// pull is the part by which calls under way are brought nearer to the limit in a period. All of it would do if the
	// calls came as steadily as they are counted.
	pull = 0.5
	// spread is how far calls under way may be from their mean if nothing is wrong, in standard deviations (of a Poisson
	// distribution) and, where they are few, in calls.
	spread = 2
	// gain is the part by which the limit changes in a period, for each factor e that the zone is too slow; and regain
	// the part of the cut that ends in a period in which it is fast enough.
	gain, regain = 0.07, 0.03
	// doubt is how many standard errors are put down to chance. A whole one would let a zone be slower than it may in a
	// surge, and less than this is enough only where calls are many: where they are few, excess asks for more.
	doubt = 0.3
	// mostSpill leaves a part of the calls in the zone, or nobody would know when it is well again.
	mostSpill = 0.95
	// unsureSpill is the part that leaves while nothing is known about the others to compare with.
	unsureSpill = 0.1
	// overprovision is how many times what it needs a zone is taken to have: so much may be missing before the others
	// are asked to step in (Envoy's overprovisioning factor).
	overprovision = 1.4
)

// tide is the mean latency of one side, over the last spillWindow or the last twenty calls, whichever is longer, but not
// over more than a few seconds if there was a call since: what was measured before a change is misleading, and few calls
// are compared with the less trust.
type tide struct {
	calls, nanos float64
	known        bool
	silent       float64 // for how long none has ended, in nanoseconds
	stuck        float64 // for how much of that calls have been under way at least
	open         bool    // calls were under way at the last look
}

const (
	tideCalls  = 20
	tideOldest = 3e9
	// tideKnown is for how long a side counts as known of which nothing more is heard.
	tideKnown = 60e9
)

// flow takes in what was measured within a period.
func (t *tide) flow(period float64, r reading) {
	calls := float64(r.calls)
	keep := max(math.Exp(-period/spillWindow), 1-calls/tideCalls)
	keep = min(keep, math.Exp(-period/tideOldest))
	t.calls = t.calls*keep + calls
	t.nanos = t.nanos*keep + float64(r.nanos)
	t.silent += period
	t.stuck += period
	if r.calls > 0 {
		t.known, t.silent = true, 0
	}
	if r.calls > 0 || !t.open {
		t.stuck = 0 // what is under way now may have begun a moment ago
	}
	t.open = r.open > 0
	if t.silent > tideKnown {
		t.known, t.calls, t.nanos = false, 0, 0
	}
}

// latency is how long a call takes there, and by how many calls that is known; 0 if it is not. Who does not answer at all
// is at least that slow.
func (t *tide) latency() (nanos, calls float64) {
	if !t.known {
		return 0, 0
	}
	return max(t.nanos/t.calls, t.stuck), t.calls
}

// reading is what was counted at one side within a period.
type reading struct {
	begun, over  uint64 // calls
	calls, nanos uint64 // those that ended with a latency, and how long they took together
	open         int64  // calls that are under way
}

// step takes what was counted in the last period of so many nanoseconds. tolerance is how much slower near may be.
func (s *spill) step(period float64, near, far reading, tolerance float64) {
	if period <= 0 { // the clock stood still, or went backwards
		return
	}
	s.near.flow(period, near)
	s.far.flow(period, far)
	open := float64(near.open)
	part := 1 - math.Exp(-period/spillWindow)
	s.asked += part * (float64(near.begun+far.begun)/period - s.asked)
	s.served += part * (float64(near.over)/period - s.served)
	s.busy += part * (open - s.busy)
	if !s.near.known && !s.far.known { // calls under way say nothing while it is not known how long they take
		s.fraction = 0
		return
	}

	limit := s.limit(open, tolerance)
	// As many calls stay as the zone has served lately, and more or less to come nearer to the limit.
	stay := max(0, s.served+pull*(limit-open)/spillPeriod)
	s.fraction = 0
	if stay < s.asked {
		s.fraction = 1 - stay/s.asked
	}
}

// limit adjusts how many calls may be under way in the zone, where so many are now, and returns that.
func (s *spill) limit(open, tolerance float64) float64 {
	may, _ := s.far.latency()
	if may *= 1 + tolerance; may == 0 {
		may, _ = s.near.latency()
	}
	all := s.asked * may // under way on average if all stay, and take as long as they may (Little's law)
	most := all + spread*math.Sqrt(all) + spread
	part := 1 - s.cut
	excess := s.excess(tolerance)
	switch {
	case excess > 0:
		part = min(part, max(s.busy, open)/most) // what is not used is no limit
		part *= math.Exp(-gain * excess)
	case excess < 0:
		part += (1 - part) * max(regain, 1-math.Exp(gain*excess))
	}
	part = min(max(part, (1-mostSpill)*all/most), 1)
	s.cut = 1 - part
	return part * most
}

// bound keeps the fraction in its limits. least is the part of the calls that leaves in any case, to know how the others
// are, and missing the part of the zone's instances that cannot be used.
func (s *spill) bound(least, missing float64) {
	if !s.far.known {
		least = max(least, unsureSpill)
	}
	s.fraction = min(max(s.fraction, least, 1-overprovision*(1-missing)), mostSpill)
}

// lost says that nobody in the zone can be used. When it is back, calls return little by little. A zone that was never
// there is not back: a client that starts is not all that there is for it, and connections elsewhere are often there first.
func (s *spill) lost() {
	if s.met {
		s.fraction, s.cut = mostSpill, 1
	}
}

// excess is by how much near is too slow: the logarithm of the factor, 0 if that may be chance, and negative if it is faster
// than it may be.
func (s *spill) excess(tolerance float64) float64 {
	near, calls := s.near.latency()
	far, others := s.far.latency()
	if near <= 0 || far <= 0 {
		return 0
	}
	excess := math.Log(near / (far * (1 + tolerance)))
	if excess <= 0 {
		return excess
	}
	// The standard error of the ratio, if latencies are spread as widely as those of a queue; and the less said of few.
	chance := 1/calls + 1/others
	return max(0, excess-doubt*math.Sqrt(chance)-chance)
}
