package balancer

import (
	"cmp"
	"encoding/json"
	"math"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

func init() { RegisterStrategy("prequal", parseSettings[Prequal]) }

// Prequal is the asynchronous mode of "Load is not what you should balance" (Wydrowski, Kleinberg, Rumble, Archer, NSDI
// 2024), section 4, with the parameters that were published as defaults. Each call sends probes to random instances,
// which need server.Load; the answers join a pool, from which they go by age, by use, when it is full, and the oldest and
// the worst by turns with each call. A call goes where the hot-cold lexicographic rule says: to the one with the least
// latency among those that are cold, or if none is to the one with the fewest requests in flight. Hot is who has as many
// in flight as the RIFQuantile of the answers, or more. With fewer than two probes in the pool it goes anywhere.
//
// Beyond the paper: instances where a fifth of the calls fail, beyond what fails at the others, are taken last, however fast
// they fail, which the paper leaves out; and where the pool would hold more than a third of the instances, a probe is used no more often
// than if it were a third, since the paper's formula makes no sense there. [Keel] is better by most measures, for a third
// of the probes (docs/strategies.md).
//
// A pick allocates nothing. It holds a lock while it looks through the pool, some hundred nanoseconds; a pick that meets
// another one there does not wait, and goes to a random instance.
type Prequal struct {
	// PoolSize is how many probes are kept at most (m), from 2 to 64; 0 means 16.
	PoolSize int
	// ProbeRate is how many are sent for each call on average (r_probe), up to 10; 0 means 3.
	ProbeRate float64
	// RemoveRate is how many are removed for each call on average (r_remove), up to 10; 0 means 1, and a small number
	// hardly any.
	RemoveRate float64
	// Delta is by how many the pool is to grow with each call (δ), up to 10; 0 means 1.
	Delta float64
	// MaxAge is how long a probe counts; 0 means 1 s.
	MaxAge time.Duration
	// RIFQuantile is from which quantile of requests in flight on an instance is hot (Q_RIF), up to 1, at which none is;
	// 0 means 0.84, and a small number that all are.
	RIFQuantile float64
	// ProbeTimeout is how long the answer to a probe is waited for, at least 1 ms; 0 means 3 ms, YouTube's. An answer that
	// is later counts when it comes, within a second.
	ProbeTimeout time.Duration
	// Reports says that what servers say of themselves with the answers to calls joins the pool as well.
	Reports bool
}

// prequalJSON is a Prequal as it stands in JSON, where durations are texts such as "1s".
type prequalJSON struct {
	PoolSize     int                 `json:"poolSize,omitempty"`
	ProbeRate    float64             `json:"probeRate,omitempty"`
	RemoveRate   float64             `json:"removeRate,omitempty"`
	Delta        float64             `json:"delta,omitempty"`
	MaxAge       strictjson.Duration `json:"maxAge,omitzero"`
	RIFQuantile  float64             `json:"rifQuantile,omitempty"`
	ProbeTimeout strictjson.Duration `json:"probeTimeout,omitzero"`
	Reports      bool                `json:"reports,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (s Prequal) MarshalJSON() ([]byte, error) {
	return json.Marshal(prequalJSON{s.PoolSize, s.ProbeRate, s.RemoveRate, s.Delta, strictjson.Duration(s.MaxAge), s.RIFQuantile,
		strictjson.Duration(s.ProbeTimeout), s.Reports})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (s *Prequal) UnmarshalJSON(js []byte) error {
	var j prequalJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	*s = Prequal{j.PoolSize, j.ProbeRate, j.RemoveRate, j.Delta, time.Duration(j.MaxAge), j.RIFQuantile,
		time.Duration(j.ProbeTimeout), j.Reports}
	return nil
}

// Name returns "prequal".
func (Prequal) Name() string { return "prequal" }

func (s Prequal) validate() error {
	return validateAll(
		between("poolSize", float64(cmp.Or(s.PoolSize, 16)), 2, 64), between("probeRate", s.ProbeRate, 0, maxChoices),
		between("removeRate", s.RemoveRate, 0, maxChoices), between("delta", s.Delta, 0, maxChoices),
		notBelow("maxAge", s.MaxAge, 10*time.Millisecond), between("rifQuantile", s.RIFQuantile, 0, 1),
		notBelow("probeTimeout", s.ProbeTimeout, time.Millisecond))
}

// filled has the defaults in place of zeros.
func (s Prequal) filled() Prequal {
	s.PoolSize = cmp.Or(s.PoolSize, 16)
	s.ProbeRate = cmp.Or(s.ProbeRate, 3)
	s.RemoveRate = cmp.Or(s.RemoveRate, 1)
	s.Delta = cmp.Or(s.Delta, 1)
	s.MaxAge = cmp.Or(s.MaxAge, time.Second)
	s.RIFQuantile = cmp.Or(s.RIFQuantile, math.Pow(2, -0.25))
	s.ProbeTimeout = cmp.Or(s.ProbeTimeout, 3*time.Millisecond)
	return s
}

// Record implements [Measurer].
func (s Prequal) Record(e *Endpoint, sample load.Sample) { hear(e, sample, s.Reports) }

// Load is the figure that [Channels] reports: the requests in flight at the server, as far as they are known.
func (s Prequal) Load(e *Endpoint, now int64) float64 { return knownRIF(e, now) }

// Build implements [Strategy].
func (s Prequal) Build(env Env) Chooser {
	c := &prequalChooser{
		members: env.Members, gauges: gaugesOf(env.Members), targets: make([]prequalTarget, len(env.Members)),
		rand: env.Rand, probe: env.Probe, timeout: s.filled().ProbeTimeout, pool: new(probePool),
	}
	for i := range c.targets {
		c.targets[i] = prequalTarget{c, int32(i)}
	}
	if p, ok := env.Previous.(*prequalChooser); ok {
		c.pool = p.pool
	}
	c.pool.adopt(c, s.filled())
	return c
}

type prequalChooser struct {
	members []*Endpoint
	gauges  []*load.Gauge // of the members
	targets []prequalTarget
	rand    func() uint64
	probe   func(*Endpoint, int64, time.Duration, Answerer) bool
	timeout time.Duration
	pool    *probePool
}

// prequalTarget is a member that is probed.
type prequalTarget struct {
	c *prequalChooser
	i int32
}

// Answer implements [Answerer].
func (t *prequalTarget) Answer(e *Endpoint, _, now int64, r load.Report, ok bool) {
	if !ok || r.RIF < 0 {
		return
	}
	t.c.gauges[t.i].Heard(now, r, e.InFlight())
	p := t.c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	i := t.i
	if p.chooser != t.c {
		if i = p.find(e); i < 0 {
			return // it has left
		}
	}
	p.quantile.add(r.RIF)
	p.aversion.hear(t.c.gauges[t.i].Failing(now))
	p.receive(pooled{i: i, at: now, rif: r.RIF, latency: float64(r.Latency)})
}

// Choose implements [Chooser].
func (c *prequalChooser) Choose(call Call) int {
	if len(c.members) == 1 {
		return 0
	}
	if call.Attempt > 0 || !c.pool.mu.TryLock() {
		return c.any(call.Now)
	}
	if c.pool.chooser != c { // the call has an old snapshot
		c.pool.mu.Unlock()
		return c.any(call.Now)
	}
	best := c.pool.choose(call.Now)
	k := c.pool.owed()
	c.pool.mu.Unlock()
	c.send(k, call.Now)
	return best
}

// send probes k different members.
func (c *prequalChooser) send(k int, now int64) {
	if c.probe == nil || k == 0 {
		return
	}
	d := newDraw(c.rand, len(c.members))
	for range min(k, len(c.members)) {
		i := d.next()
		c.probe(c.members[i], now, c.timeout, &c.targets[i])
	}
}

// any is a random member, but rather not one that fails.
func (c *prequalChooser) any(now int64) int {
	i := below(c.rand(), len(c.members))
	if c.gauges[i].Failing(now) > c.pool.aversion.limit() {
		i = below(c.rand(), len(c.members))
	}
	return i
}

// probePool is the pool, which passes from a chooser to the one that follows it. mu guards all of it but aversion.
type probePool struct {
	mu       sync.Mutex
	chooser  *prequalChooser // whose members the numbers below are of
	cfg      Prequal
	budget   float64 // uses of a probe
	probes   []pooled
	sends    float64 // parts of probes that are owed
	removes  float64
	worst    bool // the next to be removed is the worst, not the oldest
	quantile rifQuantile
	aversion aversion
	called   [16]flown // where calls went last, whose reports are to come
	calls    int
}

// pooled is a probe in the pool; the oldest stands first.
type pooled struct {
	i       int32 // of the member
	left    int32 // uses
	at      int64 // of the receipt: that of the answer would take clocks that agree
	rif     int64 // with what was sent there since
	latency float64
}

// flown is a call that has left for a member.
type flown struct {
	i  int32 // + 1
	at int64
}

// adopt has the pool be that of c's members.
func (p *probePool) adopt(c *prequalChooser, cfg Prequal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, probes, called := p.chooser, p.probes, p.called
	p.chooser, p.cfg, p.probes, p.called = c, cfg, make([]pooled, 0, len(p.probes)), [16]flown{}
	n := len(c.members)
	p.budget = cfg.reuse(n)
	p.quantile.at = cfg.RIFQuantile
	if old == nil {
		return
	}
	where := make(map[*Endpoint]int32, len(probes)+len(called))
	for _, b := range probes {
		where[old.members[b.i]] = -1
	}
	for _, f := range called {
		if f.i > 0 {
			where[old.members[f.i-1]] = -1
		}
	}
	for i, m := range c.members {
		if _, ok := where[m]; ok {
			where[m] = int32(i)
		}
	}
	for _, b := range probes {
		if b.i = where[old.members[b.i]]; b.i >= 0 {
			p.probes = append(p.probes, b)
		}
	}
	for k, f := range called {
		if f.i > 0 && where[old.members[f.i-1]] >= 0 {
			p.called[k] = flown{where[old.members[f.i-1]] + 1, f.at}
		}
	}
}

// reuse is how often a probe may be used with n members, b_reuse of the paper's equation 1:
//
//	max(1, (1+δ) / ((1 - m/n) r_probe - r_remove))
//
// What it divides by is what a call adds to the pool of probes that are new to it, less what it removes. The paper has a
// hundred members and more. Where the pool would hold more than a third of them the formula soars, to 25 uses with 25
// members, and for fewer it makes no sense; but a probe in a small fleet is not worth more, on the contrary: all clients have
// one of the same members. So it is no more there than with a third, and one where nothing is added at all, which also is
// what the formula says if it is read to the letter.
func (s Prequal) reuse(n int) float64 {
	gain := (1-float64(s.PoolSize)/float64(n))*s.ProbeRate - s.RemoveRate
	if gain < 1e-9 {
		return 1
	}
	reuse := max(1, (1+s.Delta)/gain)
	if third := s.ProbeRate*2/3 - s.RemoveRate; 3*s.PoolSize > n && third > 1e-9 {
		reuse = min(reuse, max(1, (1+s.Delta)/third))
	}
	return min(reuse, math.MaxInt32)
}

func (p *probePool) find(e *Endpoint) int32 {
	for i, m := range p.chooser.members {
		if m == e {
			return int32(i)
		}
	}
	return -1
}

// choose is a call's way through the pool: remove, then select, so that bad probes go before they are selected.
func (p *probePool) choose(now int64) int {
	if p.cfg.Reports {
		p.collect(now)
	}
	p.expire(now)
	hot := p.quantile.limit()
	for p.removes += p.cfg.RemoveRate; p.removes >= 1; p.removes-- {
		p.removeOne(now, hot)
	}
	best := p.selected(now, hot)
	if best < 0 {
		best = p.chooser.any(now)
	}
	if p.cfg.Reports {
		p.called[p.calls%len(p.called)] = flown{int32(best) + 1, now}
		p.calls++
	}
	return best
}

// owed is how many probes this call is to send.
func (p *probePool) owed() int {
	p.sends += p.cfg.ProbeRate
	k := int(p.sends)
	p.sends -= float64(k)
	return k
}

// collect puts the reports that came with calls into the pool.
func (p *probePool) collect(now int64) {
	for k, f := range p.called {
		if f.i == 0 {
			continue
		}
		e, g := p.chooser.members[f.i-1], p.chooser.gauges[f.i-1]
		rif, age := g.RIF(now, e.InFlight())
		if age >= 0 && now-age > f.at {
			p.called[k] = flown{}
			p.receive(pooled{i: f.i - 1, at: now - age, rif: rif, latency: g.Latency()})
		}
	}
}

// expire drops what is too old. Reports of calls are put in late, so the pool is in the order of age but for them.
func (p *probePool) expire(now int64) {
	kept := p.probes[:0]
	for _, b := range p.probes {
		if b.at >= now-int64(p.cfg.MaxAge) {
			kept = append(kept, b)
		}
	}
	p.probes = kept
}

func (p *probePool) drop(at int) { p.probes = append(p.probes[:at], p.probes[at+1:]...) }

// removeOne drops the oldest and the worst by turns. hot is from how many requests in flight on a server is.
func (p *probePool) removeOne(now, hot int64) {
	if len(p.probes) == 0 {
		return
	}
	at := 0
	if p.worst {
		worst := p.rate(&p.probes[0], now, hot)
		for k := range p.probes[1:] {
			if r := p.rate(&p.probes[k+1], now, hot); worst.before(&r) {
				at, worst = k+1, r
			}
		}
	}
	p.worst = !p.worst
	p.drop(at)
}

// rate is what the hot-cold lexicographic rule goes by.
func (p *probePool) rate(b *pooled, now, hot int64) prospect {
	return prospect{
		averse: p.chooser.gauges[b.i].Failing(now) > p.aversion.limit(), hot: b.rif >= hot, rif: float64(b.rif), cost: b.latency,
	}
}

// selected chooses among the probes, and notes that one was used; -1 if there are too few. Of two that are as good the
// later one counts.
func (p *probePool) selected(now, hot int64) int {
	if len(p.probes) < 2 {
		return -1
	}
	at := len(p.probes) - 1
	best := p.rate(&p.probes[at], now, hot)
	for k := at - 1; k >= 0; k-- {
		if r := p.rate(&p.probes[k], now, hot); r.before(&best) {
			at, best = k, r
		}
	}
	b := &p.probes[at]
	i := int(b.i)
	b.rif++ // section 4: the client knows of the call that it is about to send
	if b.left--; b.left <= 0 {
		p.drop(at)
	}
	return i
}

// receive puts a probe into the pool in place of an earlier one of the same member, or else of the oldest.
func (p *probePool) receive(b pooled) {
	out := -1
	for k := range p.probes {
		if p.probes[k].i == b.i {
			out = k
		}
	}
	if out < 0 && len(p.probes) >= p.cfg.PoolSize {
		out = 0
	}
	if out >= 0 {
		p.drop(out)
	}
	b.left = p.uses()
	p.probes = append(p.probes, b)
}

// uses is the budget of one probe: rounded up or down at random, so that it is right on average.
func (p *probePool) uses() int32 {
	whole := math.Floor(p.budget)
	if part := p.budget - whole; part > 0 && float64(p.chooser.rand()>>11)/(1<<53) < part {
		whole++
	}
	return int32(whole)
}
