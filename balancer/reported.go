package balancer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// weightedJSON is a Weighted as it stands in JSON, where durations are texts such as "10s".
type weightedJSON struct {
	Load         string              `json:"load,omitempty"`
	Blackout     strictjson.Duration `json:"blackout,omitzero"`
	Expiration   strictjson.Duration `json:"expiration,omitzero"`
	Update       strictjson.Duration `json:"update,omitzero"`
	ErrorPenalty float64             `json:"errorPenalty,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (s Weighted) MarshalJSON() ([]byte, error) {
	return json.Marshal(weightedJSON{s.Load, strictjson.Duration(s.Blackout), strictjson.Duration(s.Expiration),
		strictjson.Duration(s.Update), s.ErrorPenalty})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (s *Weighted) UnmarshalJSON(js []byte) error {
	var j weightedJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	*s = Weighted{j.Load, time.Duration(j.Blackout), time.Duration(j.Expiration), time.Duration(j.Update), j.ErrorPenalty}
	return nil
}

// leastUpdate is the shortest period between two updates of the weights (gRFC A58).
const leastUpdate = 100 * time.Millisecond

func (s Weighted) validate() error {
	for _, f := range []struct {
		name  string
		d     time.Duration
		least time.Duration
	}{{"blackout", s.Blackout, 0}, {"expiration", s.Expiration, 0}, {"update", s.Update, leastUpdate}} {
		if f.d != 0 && f.d < f.least || f.d < 0 || f.d > maxEjectionTime {
			return fmt.Errorf("%s = %v, want %v to %v", f.name, f.d, max(f.least, 1), maxEjectionTime)
		}
	}
	switch {
	case s.Load != "" && s.Load != "orca":
		return fmt.Errorf(`load = %q, want "orca" or none`, s.Load)
	case !(s.ErrorPenalty >= 0 && s.ErrorPenalty <= 1000):
		return fmt.Errorf("errorPenalty = %v, want 0 to 1000", s.ErrorPenalty)
	case s.Load == "" && s != (Weighted{}):
		return fmt.Errorf(`load = "" with other fields set, want "orca"`)
	}
	return nil
}

// parseWeighted makes the strategy that measures only where it has to: what measures costs each call a record.
func parseWeighted(js json.RawMessage) (Strategy, error) {
	s, err := parseSettings[Weighted](js)
	if w, ok := s.(Weighted); ok && w.Load != "" {
		return reported{w}, nil
	}
	return s, err
}

// reported is Weighted with weights from load reports.
type reported struct{ Weighted }

var _ relayer = reported{}

// report is what is known about one endpoint from its reports: the endpoint's slot. It is written by many goroutines at
// once, each word on its own, since a report is as good as the one before it.
type report struct {
	weight atomic.Uint64 // the bits of a float64: of the last report that says something
	last   atomic.Int64  // when that came
	first  atomic.Int64  // since when they come; 0 if none counts
	conn   atomic.Pointer[connection]
}

// mostWeight is more than any server handles, so that sums and products of weights stay finite.
const mostWeight = 1e100

type reportKey struct{}

func newReport() any { return new(report) }

// Record implements [Measurer] by gRFC A58: the weight is the calls that the endpoint handles for each unit of its
// utilization, where errors count as utilization.
func (s reported) Record(e *Endpoint, sample load.Sample) {
	said := &sample.Report
	if !sample.Reported || said.Utilization <= 0 || said.QPS <= 0 {
		return
	}
	weight := said.QPS / (said.Utilization + said.EPS/said.QPS*cmp.Or(s.ErrorPenalty, 1))
	if !(weight > 0 && weight < mostWeight) {
		return
	}
	r := e.Slot(reportKey{}, newReport).(*report)
	r.weight.Store(math.Float64bits(weight))
	r.last.Store(sample.Now)
	if conn := e.conn.Load(); conn != r.conn.Load() { // it reconnected: what it says at first may be the start's (A58)
		r.conn.Store(conn)
		r.first.Store(sample.Now)
	} else if r.first.Load() == 0 {
		r.first.Store(sample.Now)
	}
}

// weigh is the weight of e by its reports at now, 0 if it is not known.
func (s reported) weigh(e *Endpoint, now int64) float64 {
	v, ok := e.lookup(reportKey{})
	if !ok {
		return 0
	}
	r := v.(*report)
	first := r.first.Load()
	switch {
	case first == 0:
		return 0
	case now-r.last.Load() >= int64(cmp.Or(s.Expiration, 3*time.Minute)):
		r.first.CompareAndSwap(first, 0) // the blackout begins anew with the next report
		return 0
	case now-first < int64(cmp.Or(s.Blackout, 10*time.Second)):
		return 0
	}
	return math.Float64frombits(r.weight.Load())
}

// Load is the figure that [Channels] reports: the weight by the endpoint's reports, 0 if it is not known.
func (s reported) Load(e *Endpoint, now int64) float64 { return s.weigh(e, now) }

// Build implements [Strategy].
func (s reported) Build(env Env) Chooser {
	c := &reportedChooser{strategy: s, members: env.Members, calls: new(turns)}
	switch prev := env.Previous.(type) {
	case *reportedChooser:
		c.calls = prev.calls
	case *weightedChooser:
		c.calls = prev.calls
	default:
		c.calls.last.Store(env.Rand())
	}
	now := int64(0)
	if env.now != nil {
		now = env.now()
	}
	c.layAt(now)
	return c
}

func (s reported) relayEvery() time.Duration { return cmp.Or(s.Update, time.Second) }

// reportedChooser is a layout that is replaced while it is in use.
type reportedChooser struct {
	strategy reported
	members  []*Endpoint
	calls    *turns
	shares   atomic.Pointer[weightedChooser]
	seen     uint64 // calls, when it was laid; relay alone uses it
}

func (c *reportedChooser) Choose(call Call) int { return c.shares.Load().Choose(call) }

// relay implements relayed. Where nobody has called since, nobody has reported.
func (c *reportedChooser) relay(now int64) {
	if n := c.calls.last.Load(); n != c.seen {
		c.seen = n
		c.layAt(now)
	}
}

func (c *reportedChooser) layAt(now int64) {
	weights := make([]float64, len(c.members))
	for i, m := range c.members {
		weights[i] = c.strategy.weigh(m, now)
	}
	c.shares.Store(layOut(c.calls, blend(weights, c.members)))
}

// How far an instance's weight by reports may be from what the registry's weight would make of it, as a factor (gRPC's
// C-core has these bounds around the mean): reports are noisy, and whoever gets hardly a call can hardly report that it
// is better again.
const (
	leastOfUsual = 0.01
	mostOfUsual  = 10
)

// blend makes weights of those that are known by reports, 0 for those that are not, and the registry's. What is usual for
// a unit of the registry's weight is the median over those that are known, and not the mean, which one instance with a
// bug in its reports could move to anywhere. It stands in where reports are missing. Where fewer than two are known
// there is nothing to compare (A58), and the registry's weights stand alone.
func blend(weights []float64, members []*Endpoint) []uint64 {
	var ratios []float64
	for i, w := range weights {
		if w > 0 {
			ratios = append(ratios, w/float64(members[i].Weight()))
		}
	}
	out := make([]uint64, len(weights))
	if len(ratios) < 2 {
		for i, m := range members {
			out[i] = uint64(m.Weight())
		}
		return out
	}
	slices.Sort(ratios)
	usual := ratios[len(ratios)/2]/2 + ratios[(len(ratios)-1)/2]/2
	largest := 0.0
	for i, w := range weights {
		by := usual * float64(members[i].Weight())
		if w <= 0 {
			w = by
		}
		weights[i] = min(max(w, leastOfUsual*by), mostOfUsual*by)
		largest = max(largest, weights[i])
	}
	for i, w := range weights {
		out[i] = max(1, uint64(w/largest*(1<<32)))
	}
	return out
}
