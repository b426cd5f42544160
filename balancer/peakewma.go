package balancer

import (
	"fmt"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
)

func init() { RegisterStrategy("peak_ewma", parseSettings[PeakEWMA]) }

// PeakEWMA draws a few distinct instances at random and chooses the one where the call is expected to end first:
// the latency estimate times the calls in flight there, counting this one, relative to its weight (Finagle's
// peak-EWMA). The estimate jumps to a peak at once and forgets it over Decay. A failure counts as an answer that
// took Penalty, so that an instance that fails fast attracts nothing. An instance that was never used gets one call
// to find out, and no second one before the first has ended.
type PeakEWMA struct {
	// Choices is how many instances are drawn, from 2 to 10; 0 means 2.
	Choices int `json:"choices,omitempty"`
	// Decay is the mean lifetime of a latency sample; 0 means 10 s.
	Decay Duration `json:"decay,omitzero"`
	// Penalty is the latency that a failure counts as; 0 means 5 s.
	Penalty Duration `json:"penalty,omitzero"`
}

// Name returns "peak_ewma".
func (PeakEWMA) Name() string { return "peak_ewma" }

func (s PeakEWMA) validate() error {
	if err := validateChoices(s.Choices); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		d    Duration
	}{{"decay", s.Decay}, {"penalty", s.Penalty}} {
		if f.d < 0 {
			return fmt.Errorf("%s = %v, want a positive duration", f.name, time.Duration(f.d))
		}
	}
	return nil
}

func (s PeakEWMA) decay() float64   { return float64(cmpOr(time.Duration(s.Decay), load.DefaultDecay)) }
func (s PeakEWMA) penalty() float64 { return float64(cmpOr(time.Duration(s.Penalty), load.DefaultPenalty)) }

// NewMeter implements [Measurer].
func (s PeakEWMA) NewMeter() Meter {
	return &ewmaMeter{decay: s.decay(), penalty: s.penalty()}
}

type ewmaMeter struct {
	ewma           load.PeakEWMA
	decay, penalty float64
}

func (m *ewmaMeter) Record(s load.Sample) { m.ewma.Record(s, m.decay, m.penalty) }

// Load implements the optional method by which [Channels] reports a strategy's own figure: nanoseconds expected.
func (m *ewmaMeter) Load(now int64) float64 { return m.ewma.Estimate(now, m.decay) }

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

func (c *peakEWMAChooser) Choose(call Call) int {
	d := newDraw(c.rand, len(c.members))
	best := d.next()
	least := c.cost(best, call.Now)
	for range c.choices - 1 {
		i := d.next()
		if cost := c.cost(i, call.Now); cost < least {
			best, least = i, cost
		}
	}
	return best
}

// unmeasured is the cost of an instance whose first call is under way: more than any latency, less than a second
// call there (Finagle's penalty for the same case).
const unmeasured = 1e15

func (c *peakEWMAChooser) cost(i int, now int64) float64 {
	m := c.members[i]
	inFlight := float64(m.InFlight())
	meter := m.Meter().(*ewmaMeter)
	if !meter.ewma.Seen() {
		return unmeasured * inFlight
	}
	return meter.ewma.Estimate(now, c.decay) * (inFlight + 1) / float64(m.Weight())
}
