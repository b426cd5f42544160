package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// Five servers are replaced one by one under load. Without package server's order of shutdown calls are lost.
func TestRollInProcess(t *testing.T) {
	for _, row := range []struct {
		name  string
		drain time.Duration
		end   func(*local) error
		calls int
	}{
		{"drained", 300 * time.Millisecond, (*local).stop, 20_000},
		{"switched off", -1, (*local).cut, 5_000},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			reg := memory.New()
			work := takes(time.Millisecond)
			ls := fleet(t, reg, 5, func(int) spec { return spec{drain: row.drain, work: work} })
			conn := dial(t, reg, balancer.Config{})
			ready(t, conn, ls)
			l := (&load{conn: conn, timeout: 10 * time.Second}).begin(t, 8)
			// A cut loses what is in flight there, which once in a while is nothing: then they are all cut again.
			for round := 0; round == 0 || row.drain < 0 && round < 4 && len(l.failures()) == 0; round++ {
				for i, old := range ls {
					id := fmt.Sprintf("orders-%d-%d", i, round+1)
					ls[i] = startLocal(t, reg, spec{Instance: registry.Instance{ID: id}, drain: row.drain, work: work})
					eventually(t, 20*time.Second, func() error { return servedAny(l, id) })
					if err := row.end(old); err != nil {
						t.Fatal(err)
					}
				}
			}
			eventually(t, 3*time.Minute, func() error { return moreThan(l, row.calls) })
			l.end()
			t.Log(l.report())
			switch failed := len(l.failures()); {
			case row.drain > 0 && failed > 0:
				t.Errorf("%d calls failed, want 0", failed)
			case row.drain < 0 && failed == 0:
				t.Error("no call failed without draining: this test proves nothing")
			}
		})
	}
}

// tracks starts nine stable instances and one canary, and is connected to all.
func tracks(t *testing.T, c balancer.Config) (reg *memory.Registry, stable []*local, canary *local, conn *grpc.ClientConn) {
	t.Helper()
	reg = memory.New()
	ls := fleet(t, reg, 10, func(i int) spec {
		if i == 9 {
			return canarySpec("canary")
		}
		return spec{Instance: registry.Instance{
			ID: fmt.Sprintf("stable-%d", i), Version: fmt.Sprintf("1.4.%d", i), Labels: map[string]string{"track": "stable"},
		}}
	})
	conn = dial(t, reg, c)
	warm(t, conn, ls)
	return reg, ls[:9], ls[9], conn
}

func canarySpec(id string) spec {
	return spec{
		Instance: registry.Instance{ID: id, Version: "1.5.0-rc.1", Labels: map[string]string{"track": "canary"}},
		drain:    200 * time.Millisecond,
	}
}

var toCanary = filters.Label("track", "canary")

// Calls with a filter go to exactly the instances that match it, and to those evenly; without one they go to all.
func TestFilters(t *testing.T) {
	t.Parallel()
	_, stable, canary, conn := tracks(t, balancer.Config{})
	stables, all := idsOf(stable), append(idsOf(stable), canary.id)
	only := []string{canary.id}
	for _, row := range []struct {
		name string
		f    filters.Filter
		want []string
	}{
		{"label", filters.Label("track", "stable"), stables},
		{"label of the canary", toCanary, only},
		{"version line", filters.Version("1.4.x"), stables},
		{"version range", filters.Version(">=1.5.0-rc.1 <1.5.0"), only},
		{"part of a range", filters.Version(">=1.4.3 <=1.4.5"), stables[3:6]},
		{"prefer", filters.Prefer(toCanary), only},
		{"prefer what nobody is", filters.Prefer(filters.Zone("nowhere"), toCanary), only},
		{"every instance", filters.Filter{}, all},
	} {
		call(filters.NewContext(t.Context(), row.f, "orders"), conn, 1) // whoever is first, the turn begins there
		c := call(filters.NewContext(t.Context(), row.f, "orders"), conn, 90*len(row.want))
		c.share(t, row.name, 0, row.want...)
		t.Log(row.name, c)
	}
	c := call(t.Context(), conn, 900)
	c.share(t, "no filter", 0, all...)
	t.Log("no filter", c)
}

// Chance spreads filtered calls evenly as well.
func TestFilterRandom(t *testing.T) {
	t.Parallel()
	_, stable, _, conn := tracks(t, balancer.Config{Strategy: balancer.Random{}})
	c := call(filters.NewContext(t.Context(), filters.Version("1.4.x"), "orders"), conn, 1800)
	counts := make([]int, len(stable))
	for i, l := range stable {
		counts[i] = c.by[l.id]
	}
	even(t, "random", counts)
	if len(c.errs) > 0 || len(c.by) != len(stable) {
		t.Errorf("%v, want all calls answered by the stable ones", c)
	}
	t.Log(c)
}

// Calls that prefer the canary fall back while it drains, and when it is gone, and return with it, without a failed
// call. Calls that insist on it fail when it is gone.
func TestPreferFallsBack(t *testing.T) {
	for _, row := range []struct {
		name string
		f    filters.Filter
	}{{"prefer", filters.Prefer(toCanary)}, {"switched off", toCanary}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			prefers := len(row.f.Tiers()) > 1
			reg, stable, canary, conn := tracks(t, balancer.Config{})
			l := &load{conn: conn, timeout: 10 * time.Second, pause: time.Millisecond}
			l.ctx = func(ctx context.Context) context.Context { return filters.NewContext(ctx, row.f, "orders") }
			l.begin(t, 4)
			eventually(t, 20*time.Second, func() error { return moreThan(l, 100) })
			if got := l.served(canary.id); got < 100 {
				t.Errorf("the canary got %d calls, want all of them", got)
			}
			if prefers {
				canary.change(t, func(in *registry.Instance) { in.Draining = true })
				fallsBack(t, l, stable, canary)
				canary.change(t, func(in *registry.Instance) { in.Draining = false })
				returnsTo(t, l, stable, canary)
			}
			if err := canary.stop(); err != nil {
				t.Fatal(err)
			}
			if prefers {
				fallsBack(t, l, stable, canary)
			} else {
				eventually(t, 20*time.Second, func() error { return moreThan(l, l.served(canary.id)+100) })
			}
			next := startLocal(t, reg, canarySpec("canary-next"))
			returnsTo(t, l, stable, next)
			l.end()
			t.Log(l.report())
			switch failed := len(l.failures()); {
			case prefers && failed > 0:
				t.Errorf("%d calls failed, want 0", failed)
			case !prefers && failed == 0:
				t.Error("no call failed without prefer: this test proves nothing")
			}
		})
	}
}

// fallsBack waits until the calls go to the stable instances, all of them, and not to the canary.
func fallsBack(t *testing.T, l *load, stable []*local, canary *local) {
	t.Helper()
	for _, s := range stable {
		before := l.served(s.id)
		eventually(t, 20*time.Second, func() error { return moreServed(l, s.id, before) })
	}
	spares(t, l, canary)
}

// returnsTo waits until the calls go to the canary, and to nobody else.
func returnsTo(t *testing.T, l *load, stable []*local, canary *local) {
	t.Helper()
	before := l.served(canary.id)
	eventually(t, 20*time.Second, func() error { return moreServed(l, canary.id, before) })
	spares(t, l, stable...)
}

// spares waits for a hundred calls of which none reaches any of ls; some may have been on their way there.
func spares(t *testing.T, l *load, ls ...*local) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		was, at := callsOf(ls), l.count()
		eventually(t, 20*time.Second, func() error { return moreThan(l, at+100) })
		if n := callsOf(ls) - was; n > 0 {
			return fmt.Errorf("%d calls still reached %v", n, idsOf(ls))
		}
		return nil
	})
}

func moreServed(l *load, id string, than int) error {
	if n := l.served(id); n <= than {
		return fmt.Errorf("%s answered %d calls, want more than %d", id, n, than)
	}
	return nil
}

func callsOf(ls []*local) (n int64) {
	for _, l := range ls {
		n += l.calls.Load()
	}
	return n
}

// Labels, version and weight change where the calls go, and no connection is opened or closed for it.
func TestChangesNeedNoConnection(t *testing.T) {
	t.Parallel()
	reg := memory.New()
	ls := fleet(t, reg, 4, nil)
	conn := dial(t, reg, balancer.Config{Strategy: balancer.Weighted{}})
	ready(t, conn, ls)
	follows := func(what string, f filters.Filter, want ...int) {
		t.Helper()
		ctx := filters.NewContext(t.Context(), f, "orders")
		var c tally
		eventually(t, 20*time.Second, func() error {
			const each = 100
			total := 0
			for _, w := range want {
				total += w
			}
			c = call(ctx, conn, each*total)
			for i, w := range want {
				if d := c.by[ls[i].id] - each*w; d < -4 || d > 4 { // what the strategy promises
					return fmt.Errorf("%s: %v, want %v", what, c, want)
				}
			}
			return nil
		})
		t.Log(what, c)
	}
	follows("as it began", filters.Filter{}, 1, 1, 1, 1)
	ls[1].change(t, func(in *registry.Instance) { in.Labels = map[string]string{"track": "canary"} })
	follows("label", toCanary, 0, 1, 0, 0)
	ls[1].change(t, func(in *registry.Instance) { in.Labels = nil })
	ls[2].change(t, func(in *registry.Instance) { in.Labels = map[string]string{"track": "canary"} })
	follows("label moved", toCanary, 0, 0, 1, 0)
	for i, v := range []string{"1.4.0", "1.5.0", "1.4.2", ""} {
		ls[i].change(t, func(in *registry.Instance) { in.Version = v })
	}
	follows("version", filters.Version("1.4.x"), 1, 0, 1, 0)
	ls[3].change(t, func(in *registry.Instance) { in.Weight = 5 })
	follows("weight", filters.Filter{}, 1, 1, 1, 5)
	for _, l := range ls {
		if o, c := l.conns.opened.Load(), l.conns.closed.Load(); o != 1 || c != 0 {
			t.Errorf("%s: %d connections opened, %d closed, want the first one only", l.id, o, c)
		}
	}
	// The meter does see what costs a connection: another address.
	moved := startLocal(t, reg, spec{Instance: registry.Instance{ID: "orders-moved"}})
	if err := ls[0].stop(); err != nil {
		t.Fatal(err)
	}
	ready(t, conn, append(ls[1:], moved))
	if o, c := moved.conns.opened.Load(), ls[0].conns.closed.Load(); o != 1 || c != 1 {
		t.Errorf("moved to another address: %d connections opened, %d closed, want one of each", o, c)
	}
}
