package balancer

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
)

// What the strategies that go by the reports of servers have in common.

type gaugeKey struct{}

// gaugeOf is what e is known to be busy with. It belongs to the endpoint, so every strategy and every candidate set
// knows what one of them has heard.
func gaugeOf(e *Endpoint) *load.Gauge {
	return e.Slot(gaugeKey{}, func() any { return new(load.Gauge) }).(*load.Gauge)
}

func gaugesOf(members []*Endpoint) []*load.Gauge {
	gauges := make([]*load.Gauge, len(members))
	for i, m := range members {
		gauges[i] = gaugeOf(m)
	}
	return gauges
}

// hear records the end of a call: whether it failed, and what the server said with it, if that counts.
func hear(e *Endpoint, sample load.Sample, reports bool) {
	g := gaugeOf(e)
	if !sample.Cancelled {
		g.Ended(sample.Now, sample.Failed)
	}
	if reports && sample.Reported {
		g.Heard(sample.Now, sample.Report, e.InFlight())
	}
}

// aversion says from which part of failures on a member is to be avoided: by how many more than usual fail there. A
// member that sheds load as all do is no worse than they are, and if each that sheds were left by everybody, the others
// would have to shed the more, by turns (S7 of bench/sim; Prequal, section 4, has such a rule and does not say which).
// Its zero value knows that usually nothing fails. It is safe for concurrent use; an update that another one overtakes is
// lost, which an estimate can bear.
type aversion struct{ usual atomic.Uint64 } // float64: the part that fails at the usual member

const (
	// moreThanUsual is how much more than usual may fail. A client's own count is of a dozen calls, and twice as far off
	// where half of them fail as where a twentieth does.
	moreThanUsual = 0.2
	// usualRank is which member is the usual one, from the best: the median, but for a fleet of which one half is well.
	usualRank = 0.4
	// usualStep is how far one answer moves it.
	usualStep = 0.02
)

// hear takes into account which part fails at a random member: the quantile is followed in steps that balance where it is.
func (a *aversion) hear(part float64) {
	usual := loadFloat(&a.usual)
	switch {
	case part > usual:
		storeFloat(&a.usual, min(usual+usualStep*usualRank, part))
	case part < usual:
		storeFloat(&a.usual, max(usual-usualStep*(1-usualRank), part))
	}
}

// limit is the part of failures above which a member is to be avoided. Where most calls fail everywhere it is half of what
// usually succeeds, so that there still is one.
func (a *aversion) limit() float64 {
	usual := loadFloat(&a.usual)
	return usual + min(moreThanUsual, (1-usual)/2)
}

// knownRIF is how many requests e has in flight, as far as it is known: this client's at least.
func knownRIF(e *Endpoint, now int64) float64 {
	own := e.InFlight()
	rif, _ := gaugeOf(e).RIF(now, own)
	return float64(max(rif, own))
}

// mute reports whether e cannot be probed just now, since its server does not know of probes or turns them away.
func (e *Endpoint) mute(now int64) bool {
	conn := e.conn.Load()
	return conn != nil && conn.muteAt(now)
}

// validateAll returns the first error.
func validateAll(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func between(name string, v, low, high float64) error {
	if !(v >= low && v <= high) {
		return fmt.Errorf("%s = %v, want %v to %v", name, v, low, high)
	}
	return nil
}

// inside is for a part of a whole, of which 0 means the default.
func inside(name string, v float64) error {
	if !(v >= 0 && v < 1) {
		return fmt.Errorf("%s = %v, want above 0 and below 1", name, v)
	}
	return nil
}

func notBelow(name string, d, least time.Duration) error {
	if d != 0 && d < least {
		return fmt.Errorf("%s = %v, want %v or more", name, d, least)
	}
	return nil
}
