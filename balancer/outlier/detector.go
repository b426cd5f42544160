package outlier

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// Config configures a [Detector]. Its zero value has the defaults.
type Config struct {
	// Margin is by how much an endpoint's failure rate must exceed that of the others, from 0.001 to 1; 0 means
	// 0.05, which is five failures more in a hundred calls.
	Margin float64
	// OddsRatio is by how much its odds of failing must exceed theirs, from 1 to 1000; 0 means 3. It is what counts
	// when everybody fails: with the others at 30 % the bar is at 56 %.
	OddsRatio float64
	// Confidence is how sure it must be, from 0.9 to less than 1; 0 means 0.999.
	Confidence float64
	// MaxEjectedPercent is how many endpoints may be out at once, from 1 to 100; 0 means 50. It is rounded down, and
	// one endpoint always stays in.
	MaxEjectedPercent int
	// Slow is from how many times the others' median latency on an endpoint gets a smaller share, from 1.5 to 1000; 0
	// means that latency is not looked at. At twice that latency its share is a half, and never less than a tenth.
	Slow float64
}

// resolved returns c with its defaults filled in, or which field is wrong.
func (c Config) resolved() (Config, error) {
	c.Margin = cmp.Or(c.Margin, 0.05)
	c.OddsRatio = cmp.Or(c.OddsRatio, 3)
	c.Confidence = cmp.Or(c.Confidence, 0.999)
	c.MaxEjectedPercent = cmp.Or(c.MaxEjectedPercent, 50)
	switch { // written so that NaN is refused
	case !(c.Margin >= 0.001 && c.Margin <= 1):
		return c, fmt.Errorf("margin = %v, want 0.001 to 1", c.Margin)
	case !(c.OddsRatio >= 1 && c.OddsRatio <= 1000):
		return c, fmt.Errorf("oddsRatio = %v, want 1 to 1000", c.OddsRatio)
	case !(c.Confidence >= 0.9 && c.Confidence < 1):
		return c, fmt.Errorf("confidence = %v, want 0.9 to less than 1", c.Confidence)
	case c.MaxEjectedPercent < 1 || c.MaxEjectedPercent > 100:
		return c, fmt.Errorf("maxEjectedPercent = %d, want 1 to 100", c.MaxEjectedPercent)
	case c.Slow != 0 && !(c.Slow >= 1.5 && c.Slow <= 1000):
		return c, fmt.Errorf("slow = %v, want 1.5 to 1000, or 0 for not looking at latency", c.Slow)
	}
	return c, nil
}

// interval is the time between two steps, and the length of level 0.
const interval = 500 * time.Millisecond

// levels is over how many spans each endpoint is judged: that of level k is between interval<<k and twice that long. A
// short one finds what has just begun, which a long one would dilute with the good calls before; a long one finds what
// is rare, or where calls are.
const levels = 7

// Span is how far a [Detector] looks back at most.
const Span = interval << levels

// leastFailures is how many failures a verdict needs whatever the figures say: two may be one incident.
const leastFailures = 3

// Detector finds endpoints that fail more often than the others, and endpoints that are slower. Use [New]. It is not
// safe for concurrent use.
type Detector struct {
	c       Config
	ages    [levels]age
	slowAge age
	last    int64 // when it was stepped last

	// Of the step under way; kept for their memory.
	suspects []suspect
	sick     []count // of those with failures in a level
	means    []float64
	verdicts []Verdict
}

// age is when a level's current span began, and the one before: what is looked at begins with that one.
type age struct {
	begun         bool
	since, before int64
}

// suspect is an endpoint of which one level looks bad.
type suspect struct {
	host, level int
	count
	before       count // what everybody else did in the longest span
	others, tail float64
}

// New returns a Detector. The error names the field, what was got and what is wanted.
func New(c Config) (*Detector, error) {
	c, err := c.resolved()
	if err != nil {
		return nil, fmt.Errorf("outlier: %w", err)
	}
	return &Detector{c: c}, nil
}

// Interval implements [Judge]. A Detector that is stepped more often, or less, looks at shorter, or longer spans.
func (d *Detector) Interval() time.Duration { return interval }

// Step implements [Judge]: it returns who is to be ejected, the worst first. For of a verdict is 0: how long an ejection
// lasts is for the caller to say.
func (d *Detector) Step(now int64, hosts []*Host) []Verdict {
	// After a pause, and after a clock that went backwards, nothing is known about when what was counted happened.
	anew := d.last > now || now-d.last > int64(Span)
	if anew {
		d.ages, d.slowAge = [levels]age{}, age{}
	}
	d.last = now
	for _, h := range hosts {
		if h.Out || !h.seen || anew {
			h.begin()
		}
	}
	d.suspects = d.suspects[:0]
	if room := d.room(hosts); room > 0 {
		for level := range levels {
			d.examine(level, room, hosts)
		}
		d.convict(now, room)
	} else {
		d.verdicts = d.verdicts[:0]
	}
	if d.c.Slow > 0 {
		d.weigh(hosts)
	}
	d.turn(now, hosts)
	return d.verdicts
}

// begin starts the endpoint's record anew.
func (h *Host) begin() {
	h.seen = true
	for i := range h.past {
		h.past[i] = h.count()
	}
	h.slow = [2]timing{{h.Timed, h.Latency}, {h.Timed, h.Latency}}
}

// room is how many more endpoints may be ejected.
func (d *Detector) room(hosts []*Host) int {
	n, out := len(hosts), 0
	for _, h := range hosts {
		if h.Out {
			out++
		}
	}
	return min(n*d.c.MaxEjectedPercent/100, n-1) - out
}

// span is what the endpoint did in a level.
func (h *Host) span(level int) count { return h.count().since(h.past[2*level+1]) }

// examine adds those to d.suspects against whom a level's evidence is strong enough.
func (d *Detector) examine(level, room int, hosts []*Host) {
	first := len(d.suspects)
	for i, h := range hosts {
		if h.Out || h.Failures-h.past[2*level+1].failures < leastFailures {
			continue // nearly always: what follows costs a thousand times as much
		}
		if c := h.span(level); c.failures >= leastFailures && c.rate() > d.c.Margin {
			d.suspects = append(d.suspects, suspect{host: i, level: level, count: c})
		}
	}
	if len(d.suspects) == first {
		return
	}
	all, longest := d.total(level, hosts), d.total(levels-1, hosts)
	for i := range d.suspects[first:] {
		s := &d.suspects[first+i]
		s.before = longest.without(hosts[s.host].span(levels - 1))
	}
	d.suspects = d.suspects[:first+d.worseThanAll(d.suspects[first:], all, len(hosts))]
	if len(d.suspects) > first {
		worst := d.worst(level, room, hosts)
		d.suspects = d.suspects[:first+d.worseThanRest(d.suspects[first:], all, all.without(worst))]
	}
}

// worseThanAll moves those to the front that are worse than the mean of everybody else, the bad included, and returns
// how many they are. It is what protects a fleet in which everybody fails alike: there that mean is right, while any
// choice of whom to compare with is too good. With n endpoints there are n chances of being wrong, hence the division.
func (d *Detector) worseThanAll(suspects []suspect, all count, n int) int {
	kept := suspects[:0]
	for _, s := range suspects {
		mean := expect(all.without(s.count), s.before)
		if !s.stands(mean) { // or the posterior would be asked about everybody when everybody fails
			continue
		}
		if below(mean, mean, s.count) < (1-d.c.Confidence)/float64(n) {
			kept = append(kept, s)
		}
	}
	return len(kept)
}

// stands reports whether c stands out from a failure rate by two standard errors, which says little but costs little.
func (c count) stands(rate float64) bool {
	return c.rate() > rate+2*math.Sqrt(rate*(1-rate)/float64(c.calls))
}

// worseThanRest moves those to the front that exceed the bar, and returns how many they are.
//
// The bar depends on who is bad. So it begins with the rate of the others without the worst of them, as many as may
// still be ejected, which is too low if few are bad. Whom that does not convict stays among the others from then on,
// which can only raise it, until everybody who is left is convicted by the rate of everybody else.
func (d *Detector) worseThanRest(suspects []suspect, all, others count) int {
	for {
		rest := all
		kept := suspects[:0]
		for _, s := range suspects {
			s.others = expect(others, s.before)
			bar := d.bar(s.others)
			if !s.stands(bar) {
				continue
			}
			if s.tail = below(bar, s.others, s.count); s.tail < 1-d.c.Confidence {
				kept = append(kept, s)
				rest = rest.without(s.count)
			}
		}
		if len(kept) == len(suspects) && rest == others {
			return len(kept)
		}
		if len(kept) == 0 {
			return 0
		}
		suspects, others = kept, rest
	}
}

// bar is the failure rate that nobody may exceed when the others have this one.
func (d *Detector) bar(others float64) float64 {
	odds := d.c.OddsRatio * others / (1 + (d.c.OddsRatio-1)*others)
	return min(max(others+d.c.Margin, odds), 1)
}

// expect is the failure rate that somebody may well have who did this in a span, and that in the longest one. A few
// calls prove little, so the longest span counts for up to ten more, and a standard error is added.
func expect(c, longest count) float64 {
	more := min(float64(longest.calls), 10)
	before := (float64(longest.failures) + 0.5) / (float64(longest.calls) + 1)
	n := float64(c.calls) + more
	if n == 0 {
		return 1
	}
	rate := (float64(c.failures) + more*before) / n
	return min(1, rate+math.Sqrt(rate*(1-rate)/n))
}

// total is what everybody who is in service did in a level.
func (d *Detector) total(level int, hosts []*Host) count {
	var all count
	for _, h := range hosts {
		if !h.Out {
			c := h.span(level)
			all.calls += c.calls
			all.failures += c.failures
		}
	}
	return all
}

// worst is what those with the highest failure rates did in a level, room of them.
func (d *Detector) worst(level, room int, hosts []*Host) count {
	d.sick = d.sick[:0]
	for _, h := range hosts {
		if c := h.span(level); c.failures > 0 && !h.Out {
			d.sick = append(d.sick, c)
		}
	}
	slices.SortFunc(d.sick, func(a, b count) int {
		return cmp.Or(cmp.Compare(b.rate(), a.rate()), cmp.Compare(b.calls, a.calls))
	})
	var worst count
	for _, c := range d.sick[:min(room, len(d.sick))] {
		worst.calls += c.calls
		worst.failures += c.failures
	}
	return worst
}

// convict makes verdicts of the suspects, the surest first, as many as there is room for.
func (d *Detector) convict(now int64, room int) {
	d.verdicts = d.verdicts[:0]
	slices.SortStableFunc(d.suspects, func(a, b suspect) int { return cmp.Compare(a.tail, b.tail) })
	for _, s := range d.suspects {
		if len(d.verdicts) == room {
			break
		}
		if slices.ContainsFunc(d.verdicts, func(v Verdict) bool { return v.Host == s.host }) {
			continue // found at another level already
		}
		span := time.Duration(max(0, now-d.ages[s.level].before)).Round(100 * time.Millisecond)
		d.verdicts = append(d.verdicts, Verdict{Host: s.host, Reason: fmt.Sprintf(
			"%d of %d calls failed in the last %v, of the others' at most %.2g %% or so", s.failures, s.calls, span,
			100*s.others)})
	}
}

// turn begins new spans at the levels whose time has come.
func (d *Detector) turn(now int64, hosts []*Host) {
	for level := range d.ages {
		if !d.ages[level].over(now, int64(interval)<<level) {
			continue
		}
		for _, h := range hosts {
			h.past[2*level+1], h.past[2*level] = h.past[2*level], h.count()
		}
	}
	if d.slowAge.over(now, int64(slowSpan)) {
		for _, h := range hosts {
			h.slow[1], h.slow[0] = h.slow[0], timing{h.Timed, h.Latency}
		}
	}
}

// slack is by how much a step may come early and still begin a new span, since timers are not exact.
const slack = int64(interval / 10)

// over reports whether the current span has lasted for long enough, and begins the next one if so.
func (a *age) over(now, length int64) bool {
	if a.begun && now-a.since < length-slack {
		return false
	}
	a.before, a.since = a.since, now
	if !a.begun {
		a.begun, a.before = true, now
	}
	return true
}
