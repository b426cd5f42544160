package scenario

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/client"
	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/server"
	"github.com/evenkeel/evenkeel/registry"
)

// Fleet is the servers of a running simulation, as an [Action] sees them.
type Fleet struct {
	// Sim is its clock.
	Sim *engine.Sim
	// Rand is the randomness of actions, the same under every policy.
	Rand *rand.Rand

	scenario *Scenario
	seed     uint64
	samples  int       // lb.Maker.Samples
	members  []*Member // by index, those that have left included
	shown    []lb.Server
	clients  []*client.Client
	sees     []*Group // by client: the servers that it calls; nil for all
}

// misuse is how [Fleet.Fail] leaves the event that it is called in.
type misuse struct{ error }

// Fail ends the simulation, for an [Action] that makes no sense: [Run] returns the error. Fail does not return.
func (f *Fleet) Fail(format string, args ...any) {
	panic(misuse{fmt.Errorf("scenario %q: "+format, append([]any{f.scenario.Name}, args...)...)})
}

// visible are those of the servers shown that are of a group, or all for nil.
func visible(shown []lb.Server, g *Group, members []*Member) []lb.Server {
	if g == nil {
		return shown
	}
	var out []lb.Server
	for _, s := range shown {
		if members[s.Index].Group == g {
			out = append(out, s)
		}
	}
	return out
}

// Member is one server of a fleet.
type Member struct {
	*server.Server
	// Index and Instance are what clients know it by.
	Index    int
	Instance *registry.Instance
	// Group is what it is one of.
	Group *Group
}

// Server implements [client.Servers].
func (f *Fleet) Server(index int) (*server.Server, string) {
	m := f.members[index]
	return m.Server, m.Instance.Zone
}

// Members are the servers that the registry shows, in its order. The slice is the caller's.
func (f *Fleet) Members() []*Member {
	out := make([]*Member, len(f.shown))
	for i, s := range f.shown {
		out[i] = f.members[s.Index]
	}
	return out
}

// Add starts a server of the group with this name and registers it.
func (f *Fleet) Add(group string) *Member {
	m := f.add(f.group(group))
	f.publish()
	return m
}

// Remove deregisters a server. It goes on working, and clients go on calling it until they hear of it.
func (f *Fleet) Remove(m *Member) {
	f.shown = slices.DeleteFunc(slices.Clone(f.shown), func(s lb.Server) bool { return s.Index == m.Index })
	f.publish()
}

func (f *Fleet) group(name string) *Group {
	for i := range f.scenario.Servers {
		if f.scenario.Servers[i].Name == name {
			return &f.scenario.Servers[i]
		}
	}
	f.Fail("group %q is not there", name)
	return nil
}

func (f *Fleet) add(g *Group) *Member {
	i, cfg := len(f.members), g.Server
	if cfg.Samples == 0 {
		cfg.Samples = f.samples
	}
	m := &Member{Server: server.New(f.Sim, cfg), Index: i, Group: g, Instance: &registry.Instance{
		ID: fmt.Sprintf("s%d", i), Addr: fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255), Zone: g.Zone,
		Weight: g.Weight, Labels: map[string]string{"group": g.Name},
	}}
	if g.Antagonist != nil {
		server.Afflict(m.Server, *g.Antagonist, engine.NewStream(f.seed, "antagonist", i))
	}
	f.members = append(f.members, m)
	f.shown = append(slices.Clip(f.shown), lb.Server{Index: i, Instance: m.Instance})
	return m
}

// publish tells all clients of the set, each a little later than the one before, as watches do.
func (f *Fleet) publish() {
	delay := f.scenario.Discovery
	if delay == 0 {
		delay = 100 * time.Millisecond
	}
	for i, c := range f.clients {
		set := visible(f.shown, f.sees[i], f.members)
		f.Sim.After(int64(delay)+int64(i)*int64(delay)/int64(len(f.clients)), func() { c.Show(set) })
	}
}

// Crash ends a server's process. Clients lose their connections to it a moment later; the registry goes on showing it.
func (f *Fleet) Crash(m *Member) {
	m.Crash()
	f.tell(m, 0, func(c *client.Client) { c.Lost(m.Index) })
}

// Restart ends a server's crash or hang. Clients can connect again after a second.
func (f *Fleet) Restart(m *Member) {
	if m.Down() {
		f.tell(m, time.Second, func(c *client.Client) { c.Ready(m.Index) })
	}
	m.Restart()
}

// tell has clients notice something of a server.
func (f *Fleet) tell(m *Member, after time.Duration, what func(*client.Client)) {
	for i, c := range f.clients {
		way := f.scenario.Network.Delay(m.Instance.Zone, c.Zone(), engine.Mix(f.seed^uint64(m.Index)<<32^uint64(i)))
		f.Sim.After(int64(after)+way, func() { what(c) })
	}
}

// some are a part of the fleet that is drawn once in a run: at least one server, and the same ones each time the
// same part is asked for.
func (f *Fleet) some(part float64) []*Member {
	members := f.Members()
	r := engine.NewStream(f.seed, "victims", 0)
	r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return members[:min(len(members), max(1, int(part*float64(len(members))+0.5)))]
}

// on does something to each of a part of the fleet. what is its name.
func on(what string, part float64, do func(f *Fleet, m *Member)) Action {
	return func(f *Fleet) {
		if !(part > 0 && part <= 1) {
			f.Fail("%s: part = %v, want more than 0, up to 1 for all", what, part)
		}
		for _, m := range f.some(part) {
			do(f, m)
		}
	}
}

// Crash ends the processes of a part of the fleet, 1 is all of it; the registry goes on showing them.
func Crash(part float64) Action { return on("Crash", part, (*Fleet).Crash) }

// Hang has a part of the fleet take calls and answer nothing.
func Hang(part float64) Action { return on("Hang", part, func(_ *Fleet, m *Member) { m.Hang(true) }) }

// Restart ends Crash and Hang of the same part.
func Restart(part float64) Action { return on("Restart", part, (*Fleet).Restart) }

// Speed makes a part of the fleet so many times as fast as it was.
func Speed(part, times float64) Action {
	return on("Speed", part, func(f *Fleet, m *Member) { m.SetSpeed(f.speed("Speed: times", times)) })
}

// speed is v, which has to be one.
func (f *Fleet) speed(what string, v float64) float64 {
	if !(v > 0) || math.IsInf(v, 0) {
		f.Fail("%s = %v, want more than 0", what, v)
	}
	return v
}

// SpeedIn makes a part of the servers of a zone so many times as fast as they were, and all for the part 1.
func SpeedIn(zone string, part, times float64) Action {
	return func(f *Fleet) {
		times := f.speed("SpeedIn: times", times)
		if !(part > 0 && part <= 1) {
			f.Fail("SpeedIn: part = %v, want more than 0, up to 1 for all", part)
		}
		left, found := 0.0, false
		for _, m := range f.Members() {
			if m.Instance.Zone != zone {
				continue
			}
			found = true
			if left += part; left >= 1-1e-9 { // evenly: the last of each 1/part
				left--
				m.SetSpeed(times)
			}
		}
		if !found {
			f.Fail("SpeedIn: zone %q has no servers", zone)
		}
	}
}

// In does something to each server of a group.
func In(group string, do func(*Fleet, *Member)) Action {
	return func(f *Fleet) {
		f.group(group)
		for _, m := range f.Members() {
			if m.Group.Name == group {
				do(f, m)
			}
		}
	}
}

// Faults gives a part of the fleet these faults.
func Faults(part float64, faults server.Faults) Action {
	return on("Faults", part, func(f *Fleet, m *Member) {
		if err := faults.Validate(); err != nil {
			f.Fail("Faults: %w", err)
		}
		m.SetFaults(faults)
	})
}

// Pauses stops each of a part of the fleet for length, again and again, period after period, not all at once.
func Pauses(part float64, period, length time.Duration) Action {
	return on("Pauses", part, func(f *Fleet, m *Member) {
		if period <= 0 || length < 0 {
			f.Fail("Pauses: period = %v, length = %v, want more than 0, and 0 or more", period, length)
		}
		var again func()
		again = func() {
			m.Pause(length)
			f.Sim.After(int64(period), again)
		}
		f.Sim.After(int64(f.Rand.Float64()*float64(period)), again)
	})
}

// Replace takes the oldest server away and adds a cold one of its group, times over, one in each period. A server that
// leaves is deregistered at once and stops after the grace, when clients have had time to hear of it. The new one is
// cold: it begins at the speed cold and reaches full speed after warm.
func Replace(period, grace time.Duration, cold float64, warm time.Duration, times int) Action {
	return func(f *Fleet) {
		if period < 0 || grace < 0 {
			f.Fail("Replace: period = %v, grace = %v, want 0 or more", period, grace)
		}
		for i := range times {
			f.Sim.After(int64(i)*int64(period), func() {
				old := f.Members()[0]
				f.Remove(old)
				f.Sim.After(int64(grace), func() { f.Crash(old) })
				Warm(f, f.Add(old.Group.Name), cold, warm)
			})
		}
	}
}

// Grow adds cold servers to a group, so many for each that it began with.
func Grow(group string, each int, cold float64, warm time.Duration) Action {
	return func(f *Fleet) {
		for range each * f.group(group).Count {
			Warm(f, f.Add(group), cold, warm)
		}
	}
}

// Warm has a server begin at the speed cold and get faster in ten steps until warm has passed.
func Warm(f *Fleet, m *Member, cold float64, warm time.Duration) {
	const steps = 10
	f.speed("Warm: cold", cold)
	if warm < 0 {
		f.Fail("Warm: warm = %v, want 0 or more", warm)
	}
	for i := range steps {
		f.Sim.After(int64(warm)*int64(i)/steps, func() { m.SetSpeed(cold + (1-cold)*float64(i)/steps) })
	}
	f.Sim.After(int64(warm), func() { m.SetSpeed(1) })
}
