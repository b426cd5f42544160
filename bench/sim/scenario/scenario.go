// Package scenario says what happens to a simulated fleet, and runs it under a policy.
//
// A [Scenario] is a value: groups of servers, a number of clients, the work of a call, and [Step]s with a load each that
// follow each other without a break. Within a step things can be done to the fleet at given times ([Event]): crash a
// quarter of it, slow one server down, replace a server every second. A step is measured after it has settled, and is a
// row of the result.
//
//	crash := scenario.Scenario{
//		Name:    "crash",
//		Servers: []scenario.Group{{Name: "all", Count: 20, Server: server.Config{Cores: 4}}},
//		Clients: 20,
//		Work:    scenario.Exponential(10 * time.Millisecond),
//		Steps: []scenario.Step{{Name: "a quarter dies", Load: 0.5, Settle: 5 * time.Second, Measure: 10 * time.Second,
//			Events: []scenario.Event{{At: time.Second, Do: scenario.Crash(0.25)}}}},
//	}
//	result, err := scenario.Run(crash, baseline.Random(), 1)
//
// [Run] does one simulation: one scenario, one policy, one seed, one goroutine. Under one seed all policies meet the
// same arrivals, work, antagonists and faults, so results of two policies are compared seed by seed. [All] runs many side
// by side, and package report makes a table of their results; the example of All is a program to begin with. A scenario
// that stands in [Catalogue] can be run by the command, go run ./bench/sim, as well.
//
// A latency counts from the call's arrival. A call that failed counts as if it had taken until its deadline, since its
// caller has waited in vain, and a policy must not look fast by failing. Calls belong to the step in which they
// arrived; those that arrive while a step settles belong to none.
//
// The scenarios S1 to S15 that the project is judged by are in [Catalogue]. What makes them like the published testbed
// is in calibration.go, and nowhere else.
package scenario

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/client"
	"github.com/evenkeel/evenkeel/bench/sim/network"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// Scenario is a fleet and what happens to it.
type Scenario struct {
	// Name is what tables, files and the command line call it.
	Name string
	// Title says in a few words what it is, and Question what it is to find out.
	Title, Question string
	// Servers are the groups that there are at the start.
	Servers []Group
	// Clients is how many there are, and Zones where they are, in turn; none means all in the zone "". A zone that
	// stands there twice has twice as many.
	Clients int
	Zones   []string
	// Work is that of a call.
	Work Work
	// Deadline of a call; 0 means 5 s. Attempts that it has; 0 means 1.
	Deadline time.Duration
	Attempts int
	// Keys is how many keys calls have, each call one; 0 means that they have none. Step.Zipf says how popular they are.
	Keys int
	// Streams are a part of the calls; zero is none. A step's load does not count them.
	Streams client.Streams
	// Chain makes the groups layers: clients call the first, and a server calls one of the next group before it answers,
	// through a balancer of its own. The servers of a chain stay the same.
	Chain bool
	// Show are further figures of the tables, by the names that package report knows.
	Show []string
	// Network is the delays; zero is one data centre.
	Network network.Config
	// Discovery is how long it takes until clients know of a change of the set; 0 means 100 ms.
	Discovery time.Duration
	// Steps follow each other.
	Steps []Step
}

// Group is servers that are alike.
type Group struct {
	// Name is what results call it.
	Name string
	// Count is how many there are.
	Count int
	// Zone and Weight are in the registry's record.
	Zone   string
	Weight uint32
	// Server is each of them.
	Server server.Config
	// Antagonist shares their machines, if not nil.
	Antagonist *server.Antagonist
}

// Step is a time with one load.
type Step struct {
	// Name is what results call it.
	Name string
	// Load is the part of their allocations that the servers of the start would use on average if each got as many
	// calls. Rate, if not 0, is the calls a second of all clients instead.
	Load, Rate float64
	// Zipf is the exponent of the popularity of keys: the nth has a part of the calls that is proportional to 1/n^Zipf.
	// 0 means that all are as popular.
	Zipf float64
	// Surge is how many times its rate the clients of a zone have, in this step; 1 if the zone is not in it.
	Surge map[string]float64
	// Settle is how long nothing is measured; then it is, for Measure.
	Settle, Measure time.Duration
	// Events happen in it.
	Events []Event
}

// Event is something done to the fleet.
type Event struct {
	// At is when, from when the measurement of the step begins; it may be negative, within Settle.
	At time.Duration
	// Do is what.
	Do Action
}

// Action does something to a fleet.
type Action func(*Fleet)

// Work is how much processor time a call needs.
type Work struct {
	// Mean of it.
	Mean time.Duration
	// Draw one, in nanoseconds.
	Draw func(*rand.Rand) float64
}

// Exponential work has no memory.
func Exponential(mean time.Duration) Work {
	return Work{mean, func(r *rand.Rand) float64 { return r.ExpFloat64() * float64(mean) }}
}

// Fixed work is always the same.
func Fixed(mean time.Duration) Work {
	return Work{mean, func(*rand.Rand) float64 { return float64(mean) }}
}

// ClampedNormal work is max(0, N(mu, sigma = mu)), as in the testbed of the Prequal paper. Its mean is 1.0833 mu.
func ClampedNormal(mu time.Duration) Work {
	return Work{time.Duration(float64(mu) * 1.08331547), func(r *rand.Rand) float64 {
		return max(0, float64(mu)*(1+r.NormFloat64()))
	}}
}

// SlicedNormal is ClampedNormal on cores that are handed out a slice at a time: no request needs less than a slice. While
// there are cores to spare that is as good as nothing; where there are not, a request with hardly any work waits for its
// turn like all others, instead of being answered at once by a server that is stuck.
func SlicedNormal(mu, slice time.Duration) Work {
	m, least := float64(mu), float64(slice)
	z := least/m - 1
	below := math.Erfc(-z/math.Sqrt2) / 2 // the part that has a slice
	mean := least*below + m*(1-below) + m*math.Exp(-z*z/2)/math.Sqrt(2*math.Pi)
	return Work{time.Duration(mean), func(r *rand.Rand) float64 { return max(least, m*(1+r.NormFloat64())) }}
}

// Scaled returns the scenario with so many times its servers and clients, at least one server in a group, and one
// client. Loads are parts of what the servers can do and stay, and so do rates for each client.
func (s Scenario) Scaled(size float64) Scenario {
	scale := func(n int) int { return max(1, int(math.Round(float64(n)*size))) }
	groups := make([]Group, len(s.Servers))
	for i, g := range s.Servers {
		if g.Count > 0 {
			g.Count = scale(g.Count)
		}
		groups[i] = g
	}
	steps := make([]Step, len(s.Steps))
	for i, st := range s.Steps {
		st.Rate *= float64(scale(s.Clients)) / float64(s.Clients)
		steps[i] = st
	}
	s.Servers, s.Clients, s.Steps = groups, scale(s.Clients), steps
	return s
}

// Stretched returns the scenario with measurements so many times as long. What settles keeps its time, and so do events:
// a scenario with one late in a step becomes invalid if that is made too short for it.
func (s Scenario) Stretched(times float64) Scenario {
	steps := make([]Step, len(s.Steps))
	for i, st := range s.Steps {
		st.Measure = time.Duration(float64(st.Measure) * times)
		steps[i] = st
	}
	s.Steps = steps
	return s
}

// Validate reports everything that makes no sense. What an [Action] does is checked when it is done.
func (s Scenario) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("scenario %q: "+format, append([]any{s.Name}, args...)...))
	}
	if s.Name == "" {
		bad("no name")
	}
	s.validateServers(bad)
	s.validateCalls(bad)
	if len(s.Steps) == 0 {
		bad("no steps, want 1 or more")
	}
	for i, st := range s.Steps {
		st.validate(s.zones(), func(format string, args ...any) { bad("steps[%d]: "+format, append([]any{i}, args...)...) })
	}
	if err := s.Network.Validate(); err != nil {
		bad("%w", err)
	}
	return errors.Join(errs...)
}

// zones are those that have clients.
func (s Scenario) zones() []string {
	if len(s.Zones) == 0 {
		return []string{""}
	}
	return s.Zones[:max(0, min(s.Clients, len(s.Zones)))]
}

func (s Scenario) validateServers(bad func(string, ...any)) {
	total := 0
	names := make(map[string]bool)
	for i, g := range s.Servers {
		if g.Count < 0 {
			bad("servers[%d].count = %d, want 0 or more", i, g.Count)
		}
		if err := g.Server.Validate(); err != nil {
			bad("servers[%d].server.%w", i, err)
		}
		if names[g.Name] {
			bad("servers[%d].name = %q, want one that no other group has", i, g.Name)
		}
		names[g.Name] = true
		total += g.Count
	}
	if total < 1 {
		bad("%d servers, want 1 or more", total)
	}
	if s.Chain && slices.ContainsFunc(s.Servers, func(g Group) bool { return g.Count == 0 }) {
		bad("a chain with a group without servers")
	}
}

func (s Scenario) validateCalls(bad func(string, ...any)) {
	if s.Clients < 1 {
		bad("clients = %d, want 1 or more", s.Clients)
	}
	if s.Work.Draw == nil || s.Work.Mean <= 0 {
		bad("work has a mean of %v, want more than 0, and a way to draw it", s.Work.Mean)
	}
	if s.Deadline < 0 {
		bad("deadline = %v, want more than 0, or 0 for 5s", s.Deadline)
	}
	if s.Attempts < 0 {
		bad("attempts = %d, want 1 or more, or 0 for 1", s.Attempts)
	}
	if s.Discovery < 0 {
		bad("discovery = %v, want more than 0, or 0 for 100ms", s.Discovery)
	}
	if s.Keys < 0 {
		bad("keys = %d, want 0 or more", s.Keys)
	}
	if st := s.Streams; !(st.Part >= 0 && st.Part <= 1) || st.Part > 0 && (st.Lasts <= 0 || st.Every <= 0) {
		bad("streams = %+v, want a part from 0 to 1, and times above 0", st)
	}
}

// validate reports what makes no sense in a step where these zones have clients.
func (st Step) validate(zones []string, bad func(string, ...any)) {
	not := func(v float64) bool { return !(v >= 0) || math.IsInf(v, 0) }
	if not(st.Load) || not(st.Rate) || st.Load == 0 && st.Rate == 0 {
		bad("load = %v, rate = %v, want one of them above 0", st.Load, st.Rate)
	}
	if st.Settle < 0 || st.Measure <= 0 {
		bad("settle = %v, measure = %v, want 0 or more and above 0", st.Settle, st.Measure)
	}
	if not(st.Zipf) {
		bad("zipf = %v, want 0 or more", st.Zipf)
	}
	for _, zone := range slices.Sorted(maps.Keys(st.Surge)) {
		if not(st.Surge[zone]) {
			bad("surge[%q] = %v, want 0 or more", zone, st.Surge[zone])
		}
		if !slices.Contains(zones, zone) {
			bad("surge[%q]: nobody calls from there, want one of %q", zone, zones)
		}
	}
	for j, e := range st.Events {
		if e.Do == nil || e.At < -st.Settle {
			bad("events[%d]: at = %v, want %v or more, and something to do", j, e.At, -st.Settle)
		}
		if e.At >= st.Measure {
			bad("events[%d]: at = %v, want less than %v, when the step ends", j, e.At, st.Measure)
		}
	}
}
