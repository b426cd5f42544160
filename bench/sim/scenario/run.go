package scenario

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/bench/sim/client"
	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/metrics"
)

// Result is what one simulation gave.
type Result struct {
	// Scenario, Policy and Seed are what was run.
	Scenario, Policy string
	Seed             uint64
	// Steps are in the order of the scenario's.
	Steps []StepResult
	// Events is how many there were, and Hash covers them all, in order.
	Events, Hash uint64
}

// StepResult is what one step gave.
type StepResult struct {
	// Name is the step's.
	Name string
	// Latency is that of all calls; one that failed counts as its deadline.
	Latency metrics.Histogram
	// Codes is how many calls ended with each code.
	Codes [17]uint64
	// Attempts and Probes were sent while it was measured.
	Attempts, Probes uint64
	// RIF is of all servers, at moments 100 ms apart.
	RIF metrics.Histogram
	// Shares is the part of the attempts that each group got, in the order of the scenario's groups.
	Shares []float64
	// Jain is the fairness of the use of processors, each server's as a part of its allocation, and CoV its
	// variation; of the servers that were there throughout.
	Jain, CoV float64
	// Accepted is the latency of the calls that succeeded.
	Accepted metrics.Histogram
	// Sent is how many attempts each group got.
	Sent []uint64
	// Cross is the part of the attempts that left the zone of their client, Busiest the use of its allocation by the zone
	// that used most of it.
	Cross, Busiest float64
	// MaxMean is how many attempts the server with the most got, as a multiple of the mean; of the servers that were
	// there throughout.
	MaxMean float64
	// Affinity is the part of the calls with a key that went to the server to which most calls with that key went.
	Affinity float64
	// Streams and Broken are how many streams ended, and ended early; HeldMaxMean is how many requests the server with the
	// most had in flight on average, as a multiple of the mean of all.
	Streams, Broken uint64
	HeldMaxMean     float64
	// Capacity is how many calls a second the servers could do on average, Lasted how long it was measured.
	Capacity float64
	Lasted   time.Duration
	// Series is the calls in each tenth of a second, by arrival, from the beginning of the measurement.
	Series []Bin
}

// Bin is a tenth of a second.
type Bin struct {
	Calls, Failed uint32
	Slowest       int64
}

const binWidth = 100 * time.Millisecond

// Calls is how many there were.
func (r *StepResult) Calls() uint64 { return r.Latency.Count() }

// Errors is the part of the calls that failed.
func (r *StepResult) Errors() float64 {
	if r.Calls() == 0 {
		return 0
	}
	return 1 - float64(r.Codes[codes.OK])/float64(r.Calls())
}

// Clean is how long it took, from the beginning of the measurement, until the last call that failed had arrived.
func (r *StepResult) Clean() time.Duration {
	for i := len(r.Series) - 1; i >= 0; i-- {
		if r.Series[i].Failed > 0 {
			return time.Duration(i+1) * binWidth
		}
	}
	return 0
}

// Goodput is how many calls were answered, as a part of those that could have been: of all that came, or of what the
// servers could do if that is less.
func (r *StepResult) Goodput() float64 {
	possible := min(float64(r.Calls()), r.Capacity*r.Lasted.Seconds())
	if possible == 0 {
		return 1
	}
	return float64(r.Accepted.Count()) / possible
}

// Settled is how long it took, from the beginning of the measurement, until no second followed in which less than
// nine tenths were answered of what could have been.
func (r *StepResult) Settled() time.Duration {
	const second = int(time.Second / binWidth)
	for from := len(r.Series) / second * second; from > 0; from -= second {
		calls, answered := 0.0, 0.0
		for _, b := range r.Series[from-second : from] {
			calls += float64(b.Calls)
			answered += float64(b.Calls - b.Failed)
		}
		if answered < 0.9*min(calls, r.Capacity) {
			return time.Duration(from) * binWidth
		}
	}
	return 0
}

// run is a simulation under way.
type run struct {
	sim      *engine.Sim
	scenario *Scenario
	fleet    *Fleet
	clients  []*client.Client
	callers  map[int]*client.Client // by the server on whose behalf they call; never iterated over
	result   *Result
	phases   []phase
	current  int // the phase whose measurement began last; -1 before
}

// phase is the measurement of a step.
type phase struct {
	from, to int64
	used     []float64 // of each member, at from
	sent     []uint64  // to each member, while it was measured
	crossed  uint64    // of those
	keys     map[string]map[int]uint32
	held     []uint64 // requests in flight of each member, over all samples
	could    float64  // core seconds in a second, over all samples
	samples  int
}

// Run simulates one scenario under one policy with one seed. An error says what in the scenario makes no sense; of an
// [Action] that shows when it is done.
func Run(s Scenario, m lb.Maker, seed uint64) (result *Result, err error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	defer func() {
		switch v := recover().(type) {
		case nil:
		case misuse:
			result, err = nil, v.error
		default:
			panic(v) // a mistake of ours, and none of the scenario's
		}
	}()
	r := &run{sim: engine.New(), scenario: &s, current: -1, callers: make(map[int]*client.Client),
		result: &Result{Scenario: s.Name, Policy: m.Name, Seed: seed}}
	r.fleet = &Fleet{Sim: r.sim, Rand: engine.NewStream(seed, "actions", 0), scenario: &s, seed: seed, samples: m.Samples}
	for i := range s.Servers {
		for range s.Servers[i].Count {
			r.fleet.add(&s.Servers[i])
		}
	}
	if m.Admission != nil {
		for _, member := range r.fleet.members {
			a, err := m.Admission(engine.NewStream(seed, "admission", member.Index).Uint64)
			if err != nil {
				return nil, fmt.Errorf("scenario %q: policy %q: %w", s.Name, m.Name, err)
			}
			member.Admit(a)
		}
	}
	if err := r.addClients(m, seed); err != nil {
		return nil, err
	}
	end := r.schedule()
	r.sim.Run(end)
	r.drain()
	for i := range r.result.Steps {
		r.finish(i)
	}
	r.result.Events, r.result.Hash = r.sim.Events(), r.sim.Hash()
	return r.result, nil
}

// addClients makes the clients of the scenario, and in a chain those of its servers behind them.
func (r *run) addClients(m lb.Maker, seed uint64) error {
	s := r.scenario
	var first *Group
	if s.Chain {
		first = &s.Servers[0]
	}
	for i := range s.Clients {
		zone := ""
		if len(s.Zones) > 0 {
			zone = s.Zones[i%len(s.Zones)]
		}
		c, err := r.addClient(m, seed, i, zone, first)
		if err != nil {
			return err
		}
		r.clients = append(r.clients, c)
	}
	for layer := 0; s.Chain && layer+1 < len(s.Servers); layer++ {
		for _, member := range r.fleet.members {
			if member.Group != &s.Servers[layer] {
				continue
			}
			c, err := r.addClient(m, seed, s.Clients+member.Index, member.Instance.Zone, &s.Servers[layer+1])
			if err != nil {
				return err
			}
			r.callers[member.Index] = c
		}
	}
	return nil
}

// addClient makes one client, which calls the servers of a group, or all of them.
func (r *run) addClient(m lb.Maker, seed uint64, id int, zone string, g *Group) (*client.Client, error) {
	s, own, failed := r.scenario, engine.NewStream(seed, "policy", id), error(nil)
	cfg := client.Config{Deadline: s.Deadline, Attempts: s.Attempts, Work: s.Work.Draw, Network: s.Network,
		Streams: s.Streams}
	if s.Chain {
		cfg.Next = func(server int) *client.Client { return r.callers[server] }
	}
	if m.Retry != nil {
		cfg.Retry = func(int) (rule lb.Retry) {
			rule, failed = m.Retry(r.sim.Now, engine.NewStream(seed, "retry", id).Uint64)
			return rule
		}
	}
	shown := visible(r.fleet.shown, g, r.fleet.members)
	c := client.New(r.sim, cfg, id, zone, seed, r.fleet, r)
	if failed != nil {
		return nil, fmt.Errorf("scenario %q: policy %q: %w", s.Name, m.Name, failed)
	}
	b, err := m.New(lb.Env{
		Client: id, Clients: s.Clients, Zone: zone, Servers: shown,
		Now:   r.sim.Now,
		After: r.sim.After,
		Rand:  own.Uint64,
		Probe: c.Probe,
		Peek:  func(server int) lb.Truth { return r.fleet.members[server].Truth(float64(s.Work.Mean)) },
	})
	if err != nil {
		return nil, fmt.Errorf("scenario %q: policy %q: %w", s.Name, m.Name, err)
	}
	c.Use(b, shown)
	r.fleet.clients, r.fleet.sees = append(r.fleet.clients, c), append(r.fleet.sees, g)
	return c, nil
}

// schedule puts the steps and their events into the queue and returns when the last step ends.
func (r *run) schedule() int64 {
	at := r.sim.Now()
	allocated, calls := 0.0, 0.0 // cores, and core seconds that a call of average work needs on each of the servers
	for _, m := range r.fleet.members {
		allocated += m.Allocation()
		calls += r.scenario.Work.Mean.Seconds() * m.Allocation() / m.Guaranteed()
	}
	for i, st := range r.scenario.Steps {
		rate := st.Rate
		if rate == 0 {
			rate = st.Load * allocated / (calls / float64(len(r.fleet.members)))
		}
		begin := at
		r.sim.After(begin-r.sim.Now(), func() {
			keys := r.scenario.keys(st.Zipf)
			for _, c := range r.clients {
				times, surges := st.Surge[c.Zone()]
				if !surges {
					times = 1
				}
				c.SetKeys(keys)
				c.SetRate(times * rate / float64(len(r.clients)))
			}
		})
		from := begin + int64(st.Settle)
		to := from + int64(st.Measure)
		r.phases = append(r.phases, phase{from: from, to: to})
		r.result.Steps = append(r.result.Steps, StepResult{Name: st.Name, Lasted: st.Measure,
			Series: make([]Bin, (st.Measure+binWidth-1)/binWidth)})
		r.sim.After(from-r.sim.Now(), func() { r.begin(i) })
		for _, e := range st.Events {
			r.sim.After(from+int64(e.At)-r.sim.Now(), func() { e.Do(r.fleet) })
		}
		r.sim.After(to-r.sim.Now(), func() { r.close(i) })
		at = to
	}
	return at
}

// drain lets the calls that are under way come to their end; none arrive any more.
func (r *run) drain() {
	for _, c := range r.clients {
		c.SetRate(0)
	}
	for _, c := range r.clients {
		for c.Open() > 0 && r.sim.Step() {
		}
	}
}

// begin is the beginning of a measurement.
func (r *run) begin(i int) {
	r.current = i
	p := &r.phases[i]
	p.sent = make([]uint64, len(r.fleet.members))
	for _, m := range r.fleet.members {
		p.used = append(p.used, m.Used())
	}
	r.sample(i)
}

// sample looks at all servers, every tenth of a second.
func (r *run) sample(i int) {
	if r.sim.Now() >= r.phases[i].to {
		return
	}
	p := &r.phases[i]
	p.samples++
	for _, s := range r.fleet.shown {
		m := r.fleet.members[s.Index]
		r.result.Steps[i].RIF.Record(int64(m.RIF()))
		for len(p.held) <= s.Index {
			p.held = append(p.held, 0)
		}
		p.held[s.Index] += uint64(m.RIF())
		if m.Answers() {
			p.could += m.Available()
		}
	}
	r.sim.After(int64(binWidth), func() { r.sample(i) })
}

// close is the end of a measurement.
func (r *run) close(i int) {
	p, res := &r.phases[i], &r.result.Steps[i]
	var use, sent, held []float64
	used, allocated := make(map[string]float64), make(map[string]float64)
	for _, s := range r.fleet.shown {
		if s.Index >= len(p.used) {
			continue
		}
		m := r.fleet.members[s.Index]
		did := m.Used() - p.used[s.Index]
		use = append(use, did/m.Allocation())
		sent, held = append(sent, float64(p.sent[s.Index])), append(held, float64(p.held[s.Index]))
		zone := m.Instance.Zone
		used[zone] += did
		allocated[zone] += m.Allocation()
	}
	for zone := range used { // a maximum does not depend on the order
		res.Busiest = max(res.Busiest, used[zone]/allocated[zone]/float64(p.to-p.from))
	}
	res.Jain, res.CoV = metrics.Jain(use), metrics.CoV(use)
	res.MaxMean, res.HeldMaxMean = metrics.MaxMean(sent), metrics.MaxMean(held)
	if p.samples > 0 {
		res.Capacity = p.could / float64(p.samples) / r.scenario.Work.Mean.Seconds()
	}
}

// finish works out what needs all of a step's calls.
func (r *run) finish(i int) {
	p, res := &r.phases[i], &r.result.Steps[i]
	total, byGroup := uint64(0), make(map[*Group]uint64)
	for k, n := range p.sent {
		byGroup[r.fleet.members[k].Group] += n
		total += n
	}
	for g := range r.scenario.Servers {
		n := byGroup[&r.scenario.Servers[g]]
		res.Sent = append(res.Sent, n)
		res.Shares = append(res.Shares, part(n, total))
	}
	res.Cross = part(p.crossed, total)
	home, keyed := uint64(0), uint64(0)
	for _, servers := range p.keys { // sums do not depend on the order
		most := uint32(0)
		for _, n := range servers {
			most = max(most, n)
			keyed += uint64(n)
		}
		home += uint64(most)
	}
	res.Affinity = part(home, keyed)
}

// part is n of all, and none of nothing.
func part(n, all uint64) float64 {
	if all == 0 {
		return 0
	}
	return float64(n) / float64(all)
}

// measured is the phase, and its result, that covers the time t, if one does.
func (r *run) measured(t int64) (*phase, *StepResult) {
	i := r.current
	for i >= 0 && r.phases[i].from > t {
		i--
	}
	if i < 0 || t >= r.phases[i].to {
		return nil, nil
	}
	return &r.phases[i], &r.result.Steps[i]
}

// Sent implements [client.Recorder].
func (r *run) Sent(c *client.Client, server int, key string) {
	p, res := r.measured(r.sim.Now())
	if res == nil {
		return
	}
	res.Attempts++
	for len(p.sent) <= server {
		p.sent = append(p.sent, 0)
	}
	p.sent[server]++
	if r.fleet.members[server].Instance.Zone != c.Zone() {
		p.crossed++
	}
	if key == "" {
		return
	}
	if p.keys == nil {
		p.keys = make(map[string]map[int]uint32)
	}
	if p.keys[key] == nil {
		p.keys[key] = make(map[int]uint32)
	}
	p.keys[key][server]++
}

// Streamed implements [client.Recorder].
func (r *run) Streamed(_ int, code codes.Code) {
	if _, res := r.measured(r.sim.Now()); res != nil {
		res.Streams++
		if code != codes.OK {
			res.Broken++
		}
	}
}

// Probed implements [client.Recorder].
func (r *run) Probed(_ int, now int64) {
	if _, res := r.measured(now); res != nil {
		res.Probes++
	}
}

// Ended implements [client.Recorder].
func (r *run) Ended(e client.End) {
	p, res := r.measured(e.Arrived)
	if res == nil {
		return
	}
	latency := e.Latency
	bin := &res.Series[min(int((e.Arrived-p.from)/int64(binWidth)), len(res.Series)-1)]
	bin.Calls++
	if e.Code != codes.OK {
		latency = int64(r.deadline())
		bin.Failed++
	}
	if e.Code == codes.OK {
		res.Accepted.Record(latency)
	}
	bin.Slowest = max(bin.Slowest, latency)
	res.Latency.Record(latency)
	res.Codes[min(int(e.Code), len(res.Codes)-1)]++
}

func (r *run) deadline() time.Duration {
	if r.scenario.Deadline == 0 {
		return 5 * time.Second
	}
	return r.scenario.Deadline
}
