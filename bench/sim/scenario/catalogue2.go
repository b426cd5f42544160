package scenario

import (
	"fmt"
	"strconv"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/client"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// The scenarios about something else than a choice among servers that differ.

// overload has queues with workers and without an end, so what a server takes too much of waits.
func overload() Scenario {
	s := Scenario{
		Name: "S7", Title: "overload",
		Question: "How much is still answered when more is asked than there are servers for, and how fast?",
		Servers:  []Group{{Name: "servers", Count: 20, Server: server.Config{Workers: 8}}},
		Clients:  20, Work: Exponential(20 * time.Millisecond), Deadline: time.Second,
		Show: []string{"goodput", "accepted", "settled"},
	}
	for _, load := range []float64{0.5, 0.7, 0.9, 1, 1.5, 2, 3} {
		s.Steps = append(s.Steps, Step{Name: strconv.FormatFloat(load, 'g', -1, 64) + " x", Load: load,
			Settle: 10 * time.Second, Measure: 10 * time.Second})
	}
	s.Steps = append(s.Steps,
		Step{Name: "0.8 x and then half the capacity", Load: 0.8, Settle: 10 * time.Second, Measure: 20 * time.Second,
			Events: []Event{{At: 0, Do: Speed(1, 0.5)}}},
		Step{Name: "and all of it again", Load: 0.8, Settle: 0, Measure: 20 * time.Second,
			Events: []Event{{At: 0, Do: Speed(1, 1)}}})
	return s
}

// zones are three: callers are 40, 40 and 20 % in them, servers 25, 50 and 25 %.
func zones() Scenario {
	cores := server.Config{Cores: 4}
	all := []Group{{Name: "a", Count: 25, Zone: "a", Server: cores}, {Name: "b", Count: 50, Zone: "b", Server: cores},
		{Name: "c", Count: 25, Zone: "c", Server: cores}}
	return Scenario{
		Name: "S9", Title: "zones",
		Question: "How much leaves its zone, and what does it cost to stay when a zone gets too much or works slowly?",
		Servers:  all, Clients: 100, Zones: ZonesOfCallers, Work: Exponential(20 * time.Millisecond),
		Deadline: time.Second, Show: []string{"cross", "busiest"},
		Steps: []Step{
			{Name: "steady", Load: 0.5, Settle: 15 * time.Second, Measure: 15 * time.Second},
			{Name: "zone a calls three times as often", Load: 0.5, Surge: map[string]float64{"a": 3},
				Settle: 5 * time.Second, Measure: 15 * time.Second},
			{Name: "half of zone b at a tenth", Load: 0.5, Settle: 10 * time.Second, Measure: 15 * time.Second,
				Events: []Event{{At: 0, Do: SpeedIn("b", 0.5, 0.1)}}},
			{Name: "well again", Load: 0.5, Settle: 5 * time.Second, Measure: 15 * time.Second,
				Events: []Event{{At: -5 * time.Second, Do: SpeedIn("b", 1, 1)}}},
		},
	}
}

// ZonesOfCallers is where the clients of S9 are, in turn.
var ZonesOfCallers = []string{"a", "b", "a", "b", "c"}

// storm is a chain of four layers, the last of which fails for half a minute, in three ways.
func storm() Scenario {
	const outage = 30 * time.Second
	s := Scenario{
		Name: "S11", Title: "retry storm",
		Question: "Each of four layers may try again: how often is the last one asked when it fails, and when is all well again?",
		Clients:  20, Work: Exponential(5 * time.Millisecond), Deadline: time.Second, Chain: true,
		Show: []string{"amplified", "failures"},
	}
	for _, name := range []string{"front", "middle", "back", "store"} {
		s.Servers = append(s.Servers, Group{Name: name, Count: 10, Server: server.Config{Cores: 4}})
	}
	const rate = 10 * 4 / 0.005 * 0.4
	broken := func(_ *Fleet, m *Member) { m.SetFaults(server.Faults{Fail: 1, FailAfter: time.Millisecond}) }
	slow := func(_ *Fleet, m *Member) { m.SetSpeed(0.2) }
	rare := func(_ *Fleet, m *Member) { m.SetFaults(server.Faults{Fail: 0.05, FailAfter: time.Millisecond}) }
	well := func(_ *Fleet, m *Member) {
		m.SetFaults(server.Faults{})
		m.SetSpeed(1)
	}
	for _, c := range []struct {
		name string
		do   func(*Fleet, *Member)
	}{{"the last layer fails at once", broken}, {"it has half of what it needs", slow}, {"one call in 20 fails there", rare}} {
		s.Steps = append(s.Steps,
			Step{Name: c.name, Rate: rate, Settle: 15 * time.Second, Measure: outage,
				Events: []Event{{At: 0, Do: In("store", c.do)}}},
			Step{Name: "after: " + c.name, Rate: rate, Measure: 15 * time.Second, Events: []Event{{At: 0, Do: In("store", well)}}})
	}
	return s
}

// canary is a twentieth of the fleet with a new version, which is worse.
func canary() Scenario {
	cores := server.Config{Cores: 4}
	s := Scenario{
		Name: "S12", Title: "canary",
		Question: "How many calls does a bad canary spoil, if nobody but the balancer minds it?",
		Servers:  []Group{{Name: "stable", Count: 95, Server: cores}, {Name: "canary", Count: 5, Server: cores}},
		Clients:  100, Work: Exponential(20 * time.Millisecond), Deadline: time.Second, Show: []string{"failures"},
	}
	for _, c := range []struct {
		name string
		do   func(*Fleet, *Member)
	}{
		{"as good", func(*Fleet, *Member) {}},
		{"one call in five fails", func(_ *Fleet, m *Member) {
			m.SetFaults(server.Faults{Fail: 0.2, FailAfter: 5 * time.Millisecond})
		}},
		{"half as long again", func(_ *Fleet, m *Member) { m.SetSpeed(1 / 1.5) }},
	} {
		s.Steps = append(s.Steps, Step{Name: c.name, Load: 0.5, Settle: 40 * time.Second, Measure: 30 * time.Second,
			Events: []Event{{At: -40 * time.Second, Do: In("canary", func(_ *Fleet, m *Member) {
				m.SetFaults(server.Faults{})
				m.SetSpeed(1)
			})}, {At: 0, Do: In("canary", c.do)}}})
	}
	return s
}

// hotKeys are ten thousand of which a few are asked for most of the time.
func hotKeys() Scenario {
	s := Scenario{
		Name: "S13", Title: "hot keys",
		Question: "Calls with one key want one server. What if everybody wants the same key?",
		Servers:  []Group{{Name: "servers", Count: 100, Server: server.Config{Cores: 4}}},
		Clients:  100, Keys: 10_000, Work: Exponential(20 * time.Millisecond), Deadline: time.Second,
		Show: []string{"max/mean", "affinity"},
	}
	for _, z := range []float64{0, 0.9, 1.1, 1.3} {
		s.Steps = append(s.Steps, Step{Name: fmt.Sprint("Zipf ", z), Zipf: z, Load: 0.5, Settle: 10 * time.Second,
			Measure: 20 * time.Second})
	}
	return s
}

// streams are one arrival in a thousand and last ten minutes, so that in the end they are half of the work.
func streams() Scenario {
	return Scenario{
		Name: "S15", Title: "streams that last among calls that do not",
		Question: "A stream stays where it was put: are the servers busy alike, and what do short calls feel of it?",
		Servers:  []Group{{Name: "servers", Count: 50, Server: server.Config{Cores: 4}}},
		Clients:  50, Work: Exponential(20 * time.Millisecond), Deadline: time.Second,
		Streams: client.Streams{Part: 0.001, Lasts: 10 * time.Minute, Every: 250 * time.Millisecond},
		Show:    []string{"held", "max/mean"},
		Steps: []Step{
			{Name: "calm", Load: 0.4, Settle: 300 * time.Second, Measure: 30 * time.Second},
			{Name: "ten servers more", Load: 0.4, Settle: 60 * time.Second, Measure: 30 * time.Second,
				Events: []Event{{At: -60 * time.Second, Do: func(f *Fleet) {
					for range f.group("servers").Count / 5 {
						f.Add("servers")
					}
				}}}},
		},
	}
}
