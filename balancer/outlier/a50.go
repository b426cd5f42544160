package outlier

import (
	"cmp"
	"fmt"
	"math"
	"time"
)

// A50 configures a [Standard]: gRFC A50 (gRPC outlier detection), with its names and its defaults. Its zero value
// ejects nobody, because neither algorithm is chosen.
type A50 struct {
	// Interval is the time between two sweeps; 0 means 10 s.
	Interval time.Duration
	// BaseEjectionTime is how long an endpoint is ejected for, times its multiplier, which grows by one with each ejection
	// and shrinks by one with each sweep in service; 0 means 30 s.
	BaseEjectionTime time.Duration
	// MaxEjectionTime bounds that; 0 means 300 s, or BaseEjectionTime if it is longer.
	MaxEjectionTime time.Duration
	// MaxEjectionPercent is from what part of all endpoints being out nobody else is ejected, from 1 to 100; 0 means 10.
	// It is asked before each ejection, so that one may always go out.
	MaxEjectionPercent int
	// SuccessRateEjection ejects who succeeds less often than the mean by so many standard deviations; nil is off.
	SuccessRateEjection *SuccessRateEjection
	// FailurePercentageEjection ejects whose calls fail more often than a fixed part; nil is off.
	FailurePercentageEjection *FailurePercentageEjection
}

// SuccessRateEjection are the settings of A50's success-rate algorithm. Its zero value has A50's defaults.
type SuccessRateEjection struct {
	// StdevFactor is by how many thousandths of a standard deviation below the mean; 0 means 1900.
	StdevFactor int
	// EnforcementPercentage is the chance that who is found is ejected, from 1 to 100; 0 means 100.
	EnforcementPercentage int
	// MinimumHosts is how many endpoints must have RequestVolume; 0 means 5.
	MinimumHosts int
	// RequestVolume is how many calls an endpoint must have ended in the interval to be judged; 0 means 100.
	RequestVolume int
}

// FailurePercentageEjection are the settings of A50's failure-percentage algorithm. Its zero value has A50's defaults.
type FailurePercentageEjection struct {
	// Threshold is the percentage of failures above which an endpoint is ejected, from 1 to 100; 0 means 85.
	Threshold int
	// EnforcementPercentage is the chance that who is found is ejected, from 1 to 100; 0 means 100 (gRFC A50; grpc-go's
	// xDS and Envoy have 0, which only counts).
	EnforcementPercentage int
	// MinimumHosts is how many endpoints must have RequestVolume; 0 means 5.
	MinimumHosts int
	// RequestVolume is how many calls an endpoint must have ended in the interval to be judged; 0 means 50.
	RequestVolume int
}

// resolved returns a with its defaults filled in, or which field is wrong.
func (a A50) resolved() (A50, error) {
	a.Interval = cmp.Or(a.Interval, 10*time.Second)
	a.BaseEjectionTime = cmp.Or(a.BaseEjectionTime, 30*time.Second)
	a.MaxEjectionTime = cmp.Or(a.MaxEjectionTime, max(300*time.Second, a.BaseEjectionTime))
	a.MaxEjectionPercent = cmp.Or(a.MaxEjectionPercent, 10)
	for _, f := range []struct {
		name string
		d    time.Duration
		min  time.Duration
	}{{"interval", a.Interval, time.Millisecond}, {"baseEjectionTime", a.BaseEjectionTime, 1},
		{"maxEjectionTime", a.MaxEjectionTime, 1}} {
		if f.d < f.min || f.d > maxTime {
			return a, fmt.Errorf("%s = %v, want %v to %v", f.name, f.d, f.min, maxTime)
		}
	}
	if err := between("maxEjectionPercent", a.MaxEjectionPercent, 100); err != nil {
		return a, err
	}
	if a.SuccessRateEjection == nil && a.FailurePercentageEjection == nil {
		return a, fmt.Errorf("successRateEjection and failurePercentageEjection are both missing, want at least one")
	}
	if a.SuccessRateEjection != nil {
		s := *a.SuccessRateEjection
		s = SuccessRateEjection{cmp.Or(s.StdevFactor, 1900), cmp.Or(s.EnforcementPercentage, 100),
			cmp.Or(s.MinimumHosts, 5), cmp.Or(s.RequestVolume, 100)}
		a.SuccessRateEjection = &s
		if err := cmp.Or(between("stdevFactor", s.StdevFactor, math.MaxInt32), common(s.EnforcementPercentage,
			s.MinimumHosts, s.RequestVolume)); err != nil {
			return a, fmt.Errorf("successRateEjection.%w", err)
		}
	}
	if a.FailurePercentageEjection != nil {
		f := *a.FailurePercentageEjection
		f = FailurePercentageEjection{cmp.Or(f.Threshold, 85), cmp.Or(f.EnforcementPercentage, 100),
			cmp.Or(f.MinimumHosts, 5), cmp.Or(f.RequestVolume, 50)}
		a.FailurePercentageEjection = &f
		if err := cmp.Or(between("threshold", f.Threshold, 100), common(f.EnforcementPercentage,
			f.MinimumHosts, f.RequestVolume)); err != nil {
			return a, fmt.Errorf("failurePercentageEjection.%w", err)
		}
	}
	return a, nil
}

// maxTime bounds durations, so that their products do not overflow.
const maxTime = 365 * 24 * time.Hour

func between(name string, v, most int) error {
	if v < 1 || v > most {
		return fmt.Errorf("%s = %d, want 1 to %d", name, v, most)
	}
	return nil
}

func common(enforcement, hosts, volume int) error {
	return cmp.Or(between("enforcementPercentage", enforcement, 100), between("minimumHosts", hosts, math.MaxInt32),
		between("requestVolume", volume, math.MaxInt32))
}

// sentence is what A50 keeps for an endpoint.
type sentence struct {
	seen       bool
	bucket     count // when the interval began
	ejected    bool
	at         int64 // when
	multiplier int
}

// Standard is gRFC A50. Use [NewA50]. It is not safe for concurrent use.
//
// It differs from the text in one point, in which grpc-go's implementation leaves the text: an endpoint that the
// success rate has ejected in a sweep is not ejected a second time by the failure percentage, which would double its
// time. Endpoints are gone through in random order, where the text does not say. An endpoint's first interval begins with
// the first sweep that sees it.
type Standard struct {
	c    A50
	rand func() uint64

	// Of the sweep under way; kept for their memory.
	order    []int
	judged   []int
	since    []count // what ended in the interval
	out      int     // how many are out of service
	verdicts []Verdict
}

// NewA50 returns a Standard that draws from rand. The error names the field, what was got and what is wanted.
func NewA50(a A50, rand func() uint64) (*Standard, error) {
	a, err := a.resolved()
	if err != nil {
		return nil, fmt.Errorf("outlier: a50.%w", err)
	}
	return &Standard{c: a, rand: rand}, nil
}

// Interval implements [Judge].
func (s *Standard) Interval() time.Duration { return s.c.Interval }

// Step implements [Judge]: it is one sweep. Endpoints that are ejected stay so until a later sweep returns them, whatever
// Host.Out says; those that are out for another reason count as ejected and are not judged.
func (s *Standard) Step(now int64, hosts []*Host) []Verdict {
	s.verdicts = s.verdicts[:0]
	s.shuffle(len(hosts))
	s.since, s.out = s.since[:0], 0
	for _, h := range hosts {
		if !h.a50.seen {
			h.a50.seen, h.a50.bucket = true, h.count()
		}
		s.since = append(s.since, h.count().since(h.a50.bucket))
		h.a50.bucket = h.count()
		if h.Out || h.a50.ejected {
			s.out++
		}
	}
	if s.c.SuccessRateEjection != nil {
		s.bySuccessRate(now, hosts, s.c.SuccessRateEjection)
	}
	if s.c.FailurePercentageEjection != nil {
		s.byFailures(now, hosts, s.c.FailurePercentageEjection)
	}
	for i, h := range hosts {
		switch t := &h.a50; {
		case !t.ejected && t.multiplier > 0:
			t.multiplier--
		case t.ejected && now > t.at+int64(s.ejectionTime(t.multiplier)):
			t.ejected = false
			s.verdicts = append(s.verdicts, Verdict{Host: i, Return: true, Reason: "its ejection time is over"})
		}
	}
	return s.verdicts
}

// ejectionTime is min(base * multiplier, max(base, max)).
func (s *Standard) ejectionTime(multiplier int) time.Duration {
	longest := max(s.c.BaseEjectionTime, s.c.MaxEjectionTime)
	if int64(multiplier) > int64(longest/s.c.BaseEjectionTime) { // the product could overflow
		return longest
	}
	return s.c.BaseEjectionTime * time.Duration(multiplier)
}

func (s *Standard) shuffle(n int) {
	s.order = s.order[:0]
	for i := range n {
		s.order = append(s.order, i)
		j := int((s.rand() >> 32) * uint64(i+1) >> 32)
		s.order[i], s.order[j] = s.order[j], s.order[i]
	}
}

// withVolume lists who can be judged, nobody if they are too few.
func (s *Standard) withVolume(hosts []*Host, volume, minimum int) []int {
	s.judged = s.judged[:0]
	for _, i := range s.order {
		if !hosts[i].a50.ejected && !hosts[i].Out && s.since[i].calls >= uint64(volume) {
			s.judged = append(s.judged, i)
		}
	}
	if len(s.judged) < minimum {
		return nil
	}
	return s.judged
}

func (s *Standard) bySuccessRate(now int64, hosts []*Host, c *SuccessRateEjection) {
	judged := s.withVolume(hosts, c.RequestVolume, c.MinimumHosts)
	if len(judged) == 0 {
		return
	}
	rate := func(i int) float64 { return 1 - float64(s.since[i].failures)/float64(s.since[i].calls) }
	mean, variance := 0.0, 0.0
	for _, i := range judged {
		mean += rate(i) / float64(len(judged))
	}
	for _, i := range judged {
		variance += (rate(i) - mean) * (rate(i) - mean) / float64(len(judged))
	}
	limit := mean - math.Sqrt(variance)*float64(c.StdevFactor)/1000
	for _, i := range judged {
		if s.full(len(hosts)) {
			return
		}
		if r := rate(i); r < limit {
			s.eject(now, hosts, i, c.EnforcementPercentage, fmt.Sprintf(
				"success rate of %.4g %% over %d calls, below %.4g %% (gRFC A50)", 100*r, s.since[i].calls, 100*limit))
		}
	}
}

func (s *Standard) byFailures(now int64, hosts []*Host, c *FailurePercentageEjection) {
	for _, i := range s.withVolume(hosts, c.RequestVolume, c.MinimumHosts) {
		if s.full(len(hosts)) {
			return
		}
		if n := s.since[i]; 100*n.failures > uint64(c.Threshold)*n.calls {
			s.eject(now, hosts, i, c.EnforcementPercentage, fmt.Sprintf(
				"%d of %d calls failed, more than %d %% (gRFC A50)", n.failures, n.calls, c.Threshold))
		}
	}
}

// full reports whether as many of n are out as may be.
func (s *Standard) full(n int) bool { return 100*s.out >= s.c.MaxEjectionPercent*n }

func (s *Standard) eject(now int64, hosts []*Host, i, enforcement int, reason string) {
	t := &hosts[i].a50
	if int((s.rand()>>32)*100>>32) >= enforcement {
		return
	}
	t.ejected, t.at = true, now
	t.multiplier++
	s.out++
	s.verdicts = append(s.verdicts, Verdict{Host: i, For: s.ejectionTime(t.multiplier), Reason: reason})
}
