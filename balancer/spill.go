package balancer

import "math"

// spill decides which part of the calls leaves the client's zone. It is a closed loop: it is stepped by what was measured
// at the instances in the zone (near) and at those elsewhere (far), and knows nothing about their number or size. It is
// guarded by the policy's mutex. ADR-0021.
type spill struct {
	fraction  float64 // of the calls, 0 to 1
	level     float64 // what it is about, in the long run
	lean      float64 // and how far it is from that at the moment
	near, far tide
}

const (
	// spillPeriod is the time between two steps, in nanoseconds. What is controlled is a queue, which grows as long as
	// too much comes: with four steps a second instead of ten the zones of S9 (bench/sim) take turns in overflowing.
	spillPeriod = 100e6
	// What changes the fraction is the excess, the logarithm of how many times slower near is than it may be: the
	// level by gain of it in each step, not more than mostChange, and the lean is so many times it. A level alone would
	// swing, since it goes on rising until the queue is gone and not only until it shrinks; a lean alone would leave
	// near as slow as it takes to keep so many calls away.
	gain, lean, mostChange = 0.03, 0.3, 0.1
	// mostSpill leaves a part of the calls in the zone, or nobody would know when it is well again.
	mostSpill = 0.95
	// unsureSpill is the part that leaves while too little is known about the others to compare with.
	unsureSpill = 0.1
	// fewest is how many calls there have to be to know anything about a side.
	fewest = 4
	// overprovision is how many times what it needs a zone is taken to have: so much may be missing before the others
	// are asked to step in (Envoy's overprovisioning factor).
	overprovision = 1.4
)

// tide is the mean latency of one side, over the last fifth of a second or the last twenty calls, whichever is longer,
// but not over more than a minute or so.
type tide struct {
	calls, nanos float64
	silent       float64 // for how long calls have been under way at least, and none has ended, in nanoseconds
	open         bool    // calls were under way at the last look
}

const (
	tideTime   = 0.2e9
	tideCalls  = 20
	tideOldest = 60e9
)

// flow takes in what was measured within a period.
func (t *tide) flow(period float64, r reading) {
	calls := float64(r.calls)
	keep := max(math.Exp(-period/tideTime), 1-calls/tideCalls)
	keep = min(keep, math.Exp(-period/tideOldest))
	t.calls = t.calls*keep + calls
	t.nanos = t.nanos*keep + float64(r.nanos)
	t.silent += period
	if r.calls > 0 || !t.open {
		t.silent = 0 // what is under way now may have begun a moment ago
	}
	t.open = r.open > 0
}

// latency is how long a call takes there, and by how many calls that is known. Who does not answer at all is at least
// that slow.
func (t *tide) latency() (nanos, calls float64) {
	if t.calls < fewest {
		return 0, 0
	}
	return max(t.nanos/t.calls, t.silent), t.calls
}

// reading is what was measured at one side within a period.
type reading struct {
	calls, nanos uint64 // that ended, and how long they took together
	open         int64  // calls that are under way
}

// step takes what was measured in the last period of so many nanoseconds. tolerance is how much slower near may be.
func (s *spill) step(period float64, near, far reading, tolerance float64) {
	s.near.flow(period, near)
	s.far.flow(period, far)
	excess := s.excess(tolerance)
	s.level += min(max(gain*excess, -mostChange), mostChange)
	s.lean = lean * excess
}

// bound keeps the fraction in its limits. least is the part of the calls that leaves in any case, to know how the others
// are, and missing the part of the zone's instances that cannot be used.
func (s *spill) bound(least, missing float64) {
	if s.far.calls < fewest {
		least = max(least, unsureSpill)
	}
	s.level = min(max(s.level, least), mostSpill)
	s.fraction = min(max(s.level+s.lean, least, 1-overprovision*(1-missing)), mostSpill)
}

// excess is by how much near is too slow: the logarithm of the factor, 0 if that may be chance, and negative if it is faster
// than it may be.
func (s *spill) excess(tolerance float64) float64 {
	near, calls := s.near.latency()
	far, others := s.far.latency()
	if calls == 0 || others == 0 || near <= 0 || far <= 0 {
		return 0
	}
	excess := math.Log(near / (far * (1 + tolerance)))
	if excess <= 0 {
		return excess
	}
	// A standard error of the ratio, if latencies are spread as widely as those of a queue, may be chance, which is no
	// reason to leave.
	return max(0, excess-math.Sqrt(1/calls+1/others))
}
