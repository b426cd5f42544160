package balancer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

func init() { RegisterStrategy("peak_ewma", parseSettings[PeakEWMA]) }

// PeakEWMA draws a few distinct instances at random and chooses the one where the call is expected to end first:
// the latency estimate times the calls in flight there, counting this one, relative to its weight (the signals of
// Finagle's peak-EWMA). The estimate is a mean over Decay. A failure counts as an answer that took Penalty, at
// once, so that an instance that fails fast attracts nothing.
//
// One bad answer is not believed like many. While others of its kind are called, one of 1 s where others take 5 ms
// keeps an instance without calls for less than Decay, or a little more if it is the first of all, where it is
// 53 s by the published rule; hardly any does for more than one and a half times Decay. A failure does for about
// that long; the next in a row for longer. ADR-0027 has the reasons. An instance that was never used gets one call
// to find out, and no second one before the first has ended.
type PeakEWMA struct {
	// Choices is how many instances are drawn, from 2 to 10; 0 means 2.
	Choices int
	// Decay is the mean lifetime of a latency sample, and of the distrust in an instance that is not called; 0 means
	// 10 s.
	Decay time.Duration
	// Penalty is the latency that a failure counts as; 0 means 5 s.
	Penalty time.Duration
}

// peakEWMAJSON is a PeakEWMA as it stands in JSON, where durations are texts such as "10s".
type peakEWMAJSON struct {
	Choices int                 `json:"choices,omitempty"`
	Decay   strictjson.Duration `json:"decay,omitzero"`
	Penalty strictjson.Duration `json:"penalty,omitzero"`
}

// MarshalJSON implements [json.Marshaler].
func (s PeakEWMA) MarshalJSON() ([]byte, error) {
	return json.Marshal(peakEWMAJSON{s.Choices, strictjson.Duration(s.Decay), strictjson.Duration(s.Penalty)})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (s *PeakEWMA) UnmarshalJSON(js []byte) error {
	var j peakEWMAJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	*s = PeakEWMA{j.Choices, time.Duration(j.Decay), time.Duration(j.Penalty)}
	return nil
}

// Name returns "peak_ewma".
func (PeakEWMA) Name() string { return "peak_ewma" }

func (s PeakEWMA) validate() error {
	if err := validateChoices(s.Choices); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"decay", s.Decay}, {"penalty", s.Penalty}} {
		if f.d < 0 {
			return fmt.Errorf("%s = %v, want a positive duration", f.name, f.d)
		}
	}
	return nil
}

func (s PeakEWMA) decay() float64   { return float64(cmp.Or(s.Decay, load.DefaultDecay)) }
func (s PeakEWMA) penalty() float64 { return float64(cmp.Or(s.Penalty, load.DefaultPenalty)) }

// Record implements [Measurer].
func (s PeakEWMA) Record(e *Endpoint, sample load.Sample) {
	e.ewma.Record(sample, s.decay(), s.penalty())
}

// Load is the figure that [Channels] reports: the latency to expect, in nanoseconds.
func (PeakEWMA) Load(e *Endpoint, _ int64) float64 { return e.ewma.Estimate() }

// Build implements [Strategy].
func (s PeakEWMA) Build(env Env) Chooser {
	return &peakEWMAChooser{
		members: env.Members, rand: env.Rand,
		choices: choicesOf(s.Choices, len(env.Members)), decay: s.decay(),
	}
}

type peakEWMAChooser struct {
	members []*Endpoint
	rand    func() uint64
	choices int
	decay   float64
}

func (c *peakEWMAChooser) Choose(Call) int {
	if c.choices == 2 {
		best, other := pair(c.rand(), len(c.members))
		if sooner(c.members[other], c.members[best], c.decay) {
			best = other
		}
		return best
	}
	d := newDraw(c.rand, len(c.members))
	best := d.next()
	for range c.choices - 1 {
		if i := d.next(); sooner(c.members[i], c.members[best], c.decay) {
			best = i
		}
	}
	return best
}

// unmeasured is the cost of an instance whose first call is under way: more than any latency, less than a second
// call there (Finagle's penalty for the same case).
const unmeasured = 1e15

// sooner reports whether a call can be expected to end sooner at m than at o, by what this client has seen.
func sooner(m, o *Endpoint, decay float64) bool {
	x, y := load.Compare(&m.ewma, &o.ewma, decay)
	return m.cost(x) < o.cost(y)
}

// cost is when a call ends at e, for its weight, if one call takes latency there; 0 means that this is not known.
func (e *Endpoint) cost(latency float64) float64 {
	inFlight := float64(e.InFlight())
	if latency == 0 {
		return unmeasured * inFlight
	}
	return latency * (inFlight + 1) / float64(e.Weight())
}
