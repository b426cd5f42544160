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

// run is a simulation under way.
type run struct {
	sim      *engine.Sim
	scenario *Scenario
	fleet    *Fleet
	clients  []*client.Client
	result   *Result
	phases   []phase
	current  int // the phase whose measurement began last; -1 before
}

// phase is the measurement of a step.
type phase struct {
	from, to int64
	used     []float64 // of each member, at from
	sent     []uint64  // to each member, while it was measured
}

// Run simulates one scenario under one policy with one seed.
func Run(s Scenario, m lb.Maker, seed uint64) (*Result, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	r := &run{sim: engine.New(), scenario: &s, current: -1,
		result: &Result{Scenario: s.Name, Policy: m.Name, Seed: seed}}
	r.fleet = &Fleet{Sim: r.sim, Rand: engine.NewStream(seed, "actions", 0), scenario: &s, seed: seed}
	for i := range s.Servers {
		for range s.Servers[i].Count {
			r.fleet.add(&s.Servers[i])
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

func (r *run) addClients(m lb.Maker, seed uint64) error {
	s := r.scenario
	cfg := client.Config{Deadline: s.Deadline, Attempts: s.Attempts, Work: s.Work.Draw, Network: s.Network}
	for i := range s.Clients {
		zone := ""
		if len(s.Zones) > 0 {
			zone = s.Zones[i%len(s.Zones)]
		}
		c := client.New(r.sim, cfg, i, zone, seed, r.fleet, r)
		own := engine.NewStream(seed, "policy", i)
		b, err := m.New(lb.Env{
			Client: i, Clients: s.Clients, Servers: r.fleet.shown,
			Now:   r.sim.Now,
			After: r.sim.After,
			Rand:  own.Uint64,
			Probe: c.Probe,
			Peek:  func(server int) lb.Truth { return r.fleet.members[server].Truth(float64(s.Work.Mean)) },
		})
		if err != nil {
			return fmt.Errorf("scenario %q: policy %q: %w", s.Name, m.Name, err)
		}
		c.Use(b, r.fleet.shown)
		r.clients = append(r.clients, c)
	}
	r.fleet.clients = r.clients
	return nil
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
			for _, c := range r.clients {
				c.SetRate(rate / float64(len(r.clients)))
			}
		})
		from := begin + int64(st.Settle)
		to := from + int64(st.Measure)
		r.phases = append(r.phases, phase{from: from, to: to})
		r.result.Steps = append(r.result.Steps, StepResult{Name: st.Name,
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
	for _, s := range r.fleet.shown {
		r.result.Steps[i].RIF.Record(int64(r.fleet.members[s.Index].RIF()))
	}
	r.sim.After(int64(binWidth), func() { r.sample(i) })
}

// close is the end of a measurement.
func (r *run) close(i int) {
	p, res := &r.phases[i], &r.result.Steps[i]
	var use []float64
	for _, s := range r.fleet.shown {
		if s.Index < len(p.used) {
			m := r.fleet.members[s.Index]
			use = append(use, (m.Used()-p.used[s.Index])/m.Allocation())
		}
	}
	res.Jain, res.CoV = metrics.Jain(use), metrics.CoV(use)
}

// finish works out what needs all of a step's calls.
func (r *run) finish(i int) {
	p, res := &r.phases[i], &r.result.Steps[i]
	total, byGroup := 0.0, make(map[*Group]float64)
	for k, n := range p.sent {
		byGroup[r.fleet.members[k].Group] += float64(n)
		total += float64(n)
	}
	for g := range r.scenario.Servers {
		share := 0.0
		if total > 0 {
			share = byGroup[&r.scenario.Servers[g]] / total
		}
		res.Shares = append(res.Shares, share)
	}
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
func (r *run) Sent(server int, now int64) {
	p, res := r.measured(now)
	if res == nil {
		return
	}
	res.Attempts++
	for len(p.sent) <= server {
		p.sent = append(p.sent, 0)
	}
	p.sent[server]++
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
