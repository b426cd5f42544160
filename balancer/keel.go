package balancer

import (
	"cmp"
	"encoding/json"
	"math"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

func init() { RegisterStrategy("keel", parseSettings[Keel]) }

// Keel chooses by what servers say of themselves: how many requests they have in flight, and how long one takes that
// arrives now (Prequal's signals, NSDI 2024). It hears that with the answers to calls, and from about one small probe a
// call, at random instances; both need server.Load on the server. It takes, of the two dozen instances heard of last, the one
// where a call is expected to end first. ADR-0023 says how it differs from [Prequal], and docs/strategies.md what that
// is worth.
//
// An instance where a fifth of the calls fail, beyond what fails at the others, is taken only if there is no other, however
// fast it fails; where all shed load alike none is avoided for it. One that does not answer a probe in time is unknown until
// it is heard again. While no probe was answered for MaxAge, because calls are rare or no server knows of them, Keel chooses
// as [PeakEWMA] does; and so it does for as large a part of the calls as instances do not know of probes, so that these get
// their share in a fleet that is being changed over.
//
// A pick takes no lock and allocates nothing.
type Keel struct {
	// ProbeRate is how many probes are sent for each call, on average, up to 10; 0 means 1.
	ProbeRate float64
	// RIFQuantile is the part of the instances, by requests in flight, of which one may be chosen for its latency, above 0
	// and below 1; one with more in flight is taken only for having less than others like it. 0 means 0.9.
	RIFQuantile float64
	// MaxAge is how long what a server said counts; 0 means 1 s.
	MaxAge time.Duration
	// ProbeTimeout is how long a server may take to answer a probe before it counts as one of which nothing is known, at
	// least 1 ms; 0 means 20 ms. One that usually takes longer, since it is far away, has twice its usual time, up to
	// MaxAge. A late answer counts when it comes, within a second.
	ProbeTimeout time.Duration
}

// keelJSON is a Keel as it stands in JSON, where durations are texts such as "1s".
type keelJSON struct {
	ProbeRate    float64             `json:"probeRate,omitempty"`
	RIFQuantile  float64             `json:"rifQuantile,omitempty"`
	MaxAge       strictjson.Duration `json:"maxAge,omitzero"`
	ProbeTimeout strictjson.Duration `json:"probeTimeout,omitzero"`
}

// MarshalJSON implements [json.Marshaler].
func (s Keel) MarshalJSON() ([]byte, error) {
	return json.Marshal(keelJSON{s.ProbeRate, s.RIFQuantile, strictjson.Duration(s.MaxAge), strictjson.Duration(s.ProbeTimeout)})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (s *Keel) UnmarshalJSON(js []byte) error {
	var j keelJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	*s = Keel{j.ProbeRate, j.RIFQuantile, time.Duration(j.MaxAge), time.Duration(j.ProbeTimeout)}
	return nil
}

// Name returns "keel".
func (Keel) Name() string { return "keel" }

func (s Keel) validate() error {
	return validateAll(
		between("probeRate", s.ProbeRate, 0, maxChoices), inside("rifQuantile", s.RIFQuantile),
		notBelow("maxAge", s.MaxAge, 10*time.Millisecond), notBelow("probeTimeout", s.ProbeTimeout, time.Millisecond))
}

// Record implements [Measurer].
func (s Keel) Record(e *Endpoint, sample load.Sample) {
	hear(e, sample, true)
	e.ewma.Record(sample, float64(load.DefaultDecay), float64(load.DefaultPenalty))
}

// Load is the figure that [Channels] reports: the requests in flight at the server, as far as they are known.
func (s Keel) Load(e *Endpoint, now int64) float64 { return knownRIF(e, now) }

// Build implements [Strategy].
func (s Keel) Build(env Env) Chooser {
	n := len(env.Members)
	c := &keelChooser{
		members: env.Members, known: make([]keelMember, n),
		rand: env.Rand, probe: env.Probe, rate: cmp.Or(s.ProbeRate, 1),
		maxAge: int64(cmp.Or(s.MaxAge, time.Second)), timeout: cmp.Or(s.ProbeTimeout, 20*time.Millisecond),
		fleet: &keelFleet{quantile: cmp.Or(s.RIFQuantile, 0.9)},
	}
	total := 0.0
	for _, m := range env.Members {
		total += float64(m.Weight())
	}
	for i, m := range env.Members {
		c.known[i] = keelMember{m, gaugeOf(m), float32(total / float64(n) / float64(m.Weight()))}
	}
	if p, ok := env.Previous.(*keelChooser); ok {
		c.follow(p)
	}
	return c
}

const (
	// recalled is how many instances are remembered as heard of last: those that calls and probes went to. More of them
	// are a better choice among older news.
	recalled = 24
	// staleness is how much of its age is added to a latency: news about a server that was fast and idle is worth less
	// every moment, since every client heard it. 0.1 to 0.2 are best where servers differ and where they stumble (bench/sim).
	staleness = 0.1
	// unmeasuredFactor is how many times the usual latency one counts as of which none is known: a cold server would get
	// the calls of all clients at once otherwise.
	unmeasuredFactor = 2
)

// keelFleet is what is known about all members together. It passes from a chooser to the one that follows it. An update
// that another one overtakes is lost, which an estimate can bear.
type keelFleet struct {
	quantile float64
	limit    atomic.Uint64 // float64: the quantile of RIF, from which on a server is hot
	latency  atomic.Uint64 // float64: the usual latency, in nanoseconds
	heard    atomic.Int64  // when a probe was answered last
	sent     atomic.Uint64 // calls, for the rate of probes
	aversion aversion      // by the parts that fail
}

func loadFloat(w *atomic.Uint64) float64     { return math.Float64frombits(w.Load()) }
func storeFloat(w *atomic.Uint64, v float64) { w.Store(math.Float64bits(v)) }

// hear takes the answer of a random instance into account: the quantile is followed in steps that balance where it is.
func (f *keelFleet) hear(now int64, rif, latency float64) {
	f.heard.Store(now)
	limit := loadFloat(&f.limit)
	step := 0.05 * (limit + 1)
	if rif < limit {
		limit -= step * (1 - f.quantile)
	} else {
		limit += step * f.quantile
	}
	storeFloat(&f.limit, max(limit, 0.5)) // below one request nobody is hot
	if latency > 0 {
		usual := loadFloat(&f.latency)
		if usual == 0 {
			usual = latency
		}
		storeFloat(&f.latency, usual+0.05*(latency-usual))
	}
}

// keelMember is what is looked at to judge a member, side by side: two dozen of them are looked at for each call.
type keelMember struct {
	e     *Endpoint
	gauge *load.Gauge
	scale float32 // 1 over its weight, where those of all are 1 on average
}

type keelChooser struct {
	members []*Endpoint
	known   []keelMember // the same
	rand    func() uint64
	probe   func(*Endpoint, int64, time.Duration, Answerer) bool
	rate    float64
	maxAge  int64
	timeout time.Duration
	fleet   *keelFleet

	at     atomic.Uint32           // how many were noted
	recent [recalled]atomic.Uint32 // members + 1
}

// follow takes over what p has learnt.
func (c *keelChooser) follow(p *keelChooser) {
	if p.fleet.quantile == c.fleet.quantile {
		c.fleet = p.fleet
	}
	where := make(map[*Endpoint]int, recalled)
	var recent [recalled]*Endpoint // p is still in use, and goes on noting
	for i := range p.recent {
		if at := p.recent[i].Load(); at > 0 {
			recent[i] = p.members[at-1]
			where[recent[i]] = -1
		}
	}
	for i, m := range c.members {
		if _, ok := where[m]; ok {
			where[m] = i
		}
	}
	for i, m := range recent {
		if m != nil && where[m] >= 0 {
			c.recent[i].Store(uint32(where[m] + 1))
		}
	}
	c.at.Store(p.at.Load())
}

// Choose implements [Chooser].
func (c *keelChooser) Choose(call Call) int {
	if len(c.members) == 1 {
		return 0
	}
	any := below(c.rand(), len(c.members))
	best := -1
	if call.Attempt == 0 {
		c.explore(any, call.Now)
		switch {
		case c.members[any].mute(call.Now) || c.fleet.heard.Load() <= call.Now-c.maxAge:
		case c.fresh(any, call.Now) && c.rand()%4 == 0:
			best = any
		default:
			best = c.best(call.Now)
		}
	}
	if best < 0 {
		best = c.pair()
	}
	c.note(best)
	return best
}

// fresh reports whether a member, drawn at random, has nothing to do and has never had: then it gets one call in four of
// its share, so that its latency is known. It could wait for ever otherwise where the others have little to do; and with
// its whole share a fleet that has been doubled with cold servers suffers (S8 of bench/sim).
func (c *keelChooser) fresh(i int, now int64) bool {
	g := c.known[i].gauge
	rif, age := g.RIF(now, c.members[i].InFlight())
	return rif == 0 && age >= 0 && age <= c.maxAge && g.Latency() == 0 && g.Failing(now) <= c.fleet.aversion.limit()
}

// explore sends the probes that this call owes, the first of them to a member that was drawn before.
func (c *keelChooser) explore(i int, now int64) {
	if c.probe == nil {
		return
	}
	n := c.fleet.sent.Add(1)
	for k := int(float64(n)*c.rate) - int(float64(n-1)*c.rate); k > 0; k-- {
		if c.probe(c.members[i], now, c.known[i].gauge.Patience(c.timeout, time.Duration(c.maxAge)), c) {
			c.note(i)
		}
		if k > 1 {
			i = below(c.rand(), len(c.members))
		}
	}
}

// note remembers a member that a report is about to come from.
func (c *keelChooser) note(i int) { c.recent[c.at.Add(1)%recalled].Store(uint32(i) + 1) }

// Answer implements [Answerer].
func (c *keelChooser) Answer(e *Endpoint, sent, now int64, r load.Report, ok bool) {
	g := gaugeOf(e)
	if !ok || r.RIF < 0 {
		g.Lost(sent)
		return
	}
	g.Heard(now, r, e.InFlight())
	g.Answered(now - sent)
	c.fleet.aversion.hear(g.Failing(now))
	c.fleet.hear(now, float64(r.RIF)/float64(e.Weight())*c.meanWeight(), float64(r.Latency))
}

// meanWeight is the mean weight of the members.
func (c *keelChooser) meanWeight() float64 {
	return float64(c.known[0].scale) * float64(c.members[0].Weight())
}

// prospect is what a call can expect of a member.
type prospect struct {
	averse, hot bool
	rif         float64 // for its weight
	cost        float64
}

// before says which of two is to be taken, p or o: not the one that fails; not the one with more to do than the others
// have; then the one with less to do if both have too much, or else the faster one (hot-cold lexicographic, Prequal
// section 4, but for the cost, which counts the load of cold ones as well).
func (p *prospect) before(o *prospect) bool {
	switch {
	case p.averse != o.averse:
		return o.averse
	case p.hot != o.hot:
		return o.hot
	case p.hot:
		return p.rif < o.rif
	}
	return p.cost < o.cost
}

// best is the best of the members heard of lately; -1 if there are no two of whom something is known.
func (c *keelChooser) best(now int64) int {
	limit, usual, bad := loadFloat(&c.fleet.limit), loadFloat(&c.fleet.latency), c.fleet.aversion.limit()
	var least prospect
	best, more := -1, false
	for k := range c.recent {
		i := int(c.recent[k].Load()) - 1
		if i < 0 || i == best {
			continue
		}
		p, ok := c.look(i, now, limit, usual, bad)
		if !ok {
			continue
		}
		more = more || best >= 0
		if best < 0 || p.before(&least) {
			best, least = i, p
		}
	}
	if !more {
		return -1
	}
	return best
}

// look judges a member; false if nothing is known that is young enough.
func (c *keelChooser) look(i int, now int64, limit, usual, bad float64) (prospect, bool) {
	m := &c.known[i]
	g := m.gauge
	rif, age := g.RIF(now, m.e.InFlight())
	if age < 0 || age > c.maxAge {
		return prospect{}, false
	}
	latency := g.Latency()
	if latency == 0 {
		latency = unmeasuredFactor * usual
	}
	p := prospect{averse: g.Failing(now) > bad, rif: float64(rif) * float64(m.scale)}
	p.hot = p.rif >= limit
	// The latency is that of the load there is, and every call adds to it: little where many are the rule.
	p.cost = (latency + staleness*float64(age)) * (p.rif + limit)
	return p, true
}

// pair is the choice by what this client has seen itself, as [PeakEWMA] makes it.
func (c *keelChooser) pair() int {
	best, other := pair(c.rand(), len(c.members))
	if sooner(c.members[other], c.members[best], float64(load.DefaultDecay)) {
		best = other
	}
	return best
}
