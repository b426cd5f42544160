// Package e2e has the end-to-end tests: real server processes, a real Consul, real signals, and every failed call
// counted, once with a feature and once without it.
package e2e

import (
	"fmt"
	"math"
	"runtime"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry/consul"
)

// five starts five instances that are announced at a Consul of their own.
func five(t *testing.T, o orders) (*testconsul.Server, []*process) {
	t.Helper()
	c := testconsul.Start(t)
	return c, fiveAt(t, c, o)
}

func fiveAt(t *testing.T, c *testconsul.Server, o orders) []*process {
	t.Helper()
	o.Consul = c.Addr()
	ps := make([]*process, 5)
	errs := make(chan error, len(ps))
	for i := range ps {
		o.ID = fmt.Sprintf("orders-%d", i)
		go func(o orders) {
			var err error
			ps[i], err = launch(t, o)
			errs <- err
		}(o)
	}
	for range ps {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return ps
}

// Five servers are replaced one by one under load. Without package server's order of shutdown calls are lost.
func TestRollProcessesOnConsul(t *testing.T) {
	for _, row := range []struct {
		name   string
		abrupt bool
	}{{"drained", false}, {"switched off", true}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			c, ps := five(t, orders{DrainDelay: time.Second, Abrupt: row.abrupt})
			conn := dial(t, watcher(t, consul.Config{Address: c.Addr()}), balancer.Config{})
			reaches(t, conn, 5)
			l := (&load{conn: conn, timeout: 10 * time.Second, pause: 2 * time.Millisecond}).begin(t, 8)
			for i, p := range ps {
				o := p.orders
				o.ID = fmt.Sprintf("orders-%d-new", i)
				start(t, o)
				eventually(t, 20*time.Second, func() error { return servedAny(l, o.ID) })
				p.signal(t, syscall.SIGTERM)
				p.wait(t)
			}
			eventually(t, 60*time.Second, func() error {
				if n := l.count(); n < 20_000 {
					return fmt.Errorf("%d calls", n)
				}
				return nil
			})
			l.end()
			t.Log(l.report())
			switch failed := len(l.failures()); {
			case !row.abrupt && failed > 0:
				t.Errorf("%d calls failed, want 0", failed)
			case row.abrupt && failed == 0:
				t.Error("no call failed without draining: this test proves nothing")
			}
		})
	}
}

func servedAny(l *load, id string) error {
	if l.served(id) == 0 {
		return fmt.Errorf("%s: %w", id, errStillThere)
	}
	return nil
}

// One of five is killed under load: what was in flight there is lost, and nothing after. A client that was given
// that one's address, without evenkeel, goes on failing.
func TestKillOneOfFive(t *testing.T) {
	t.Parallel()
	c, ps := five(t, orders{Delay: 5 * time.Millisecond})
	conn := dial(t, watcher(t, consul.Config{Address: c.Addr()}), balancer.Config{})
	reaches(t, conn, 5)
	const callers = 8
	l := (&load{conn: conn, timeout: 5 * time.Second}).begin(t, callers)
	eventually(t, 30*time.Second, func() error { return moreThan(l, 1000) })
	without := (&load{conn: dialOne(t, ps[2].addr), timeout: 5 * time.Second, pause: 10 * time.Millisecond}).begin(t, 1)
	eventually(t, 30*time.Second, func() error { return moreThan(without, 20) })
	killed := time.Now()
	ps[2].signal(t, syscall.SIGKILL)
	ps[2].wait(t)
	before := l.count()
	eventually(t, 30*time.Second, func() error { return moreThan(l, before+2000) })
	elapse(t, 2*time.Second)
	l.end()
	without.end()
	t.Log("with evenkeel:", l.report())
	t.Log("switched off:", without.report())
	if n := len(l.failures()); n > callers {
		t.Errorf("%d calls failed, want at most the %d that were in flight", n, callers)
	}
	for _, f := range l.failures() {
		if f.began.After(killed.Add(time.Second)) {
			t.Errorf("a call that began %v after the kill failed: %v", f.began.Sub(killed), f.err)
		}
	}
	if len(without.failures()) <= callers {
		t.Error("the client of the killed instance did not suffer: this test proves nothing")
	}
}

// One of three is killed and started again under its ID at its port: it gets its calls little by little, and the others
// all of theirs. (TestSlowStartAfterRestart in balancer has when it does not.)
func TestRestartWarmsUp(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("between the two lives only an address of its own keeps other tests off the port")
	}
	c := testconsul.Start(t)
	ps := make([]*process, 3)
	for i := range ps {
		ps[i] = start(t, orders{ID: fmt.Sprintf("orders-%d", i), Consul: c.Addr(), Addr: "127.77.0.1:0"})
	}
	eventually(t, 20*time.Second, func() error { return passing(c, len(ps)) }) // else the last may come as a newcomer
	conn := dial(t, watcher(t, consul.Config{Address: c.Addr()}), balancer.Config{
		SlowStart: balancer.SlowStart{Window: time.Hour}, // so that no wait of this test shows in the share
		Blacklist: balancer.Blacklist{Disabled: true},    // coming back from it is a slow start too
	})
	reaches(t, conn, len(ps))
	for _, p := range ps {
		if e, err := endpointAt(p.addr); err != nil || e.Share != 1 {
			t.Fatalf("%s has the share %v (%v) at first, want 1", p.ID, e.Share, err)
		}
	}
	ps[1].signal(t, syscall.SIGKILL)
	ps[1].wait(t)
	in := func(s connectivity.State) func() error {
		return func() error {
			if e, err := endpointAt(ps[1].addr); err != nil || e.State != s {
				return fmt.Errorf("%s is %v (%v), want %v", ps[1].ID, e.State, err, s)
			}
			return nil
		}
	}
	eventually(t, 20*time.Second, in(connectivity.TransientFailure))
	o := ps[1].orders
	o.Addr = ps[1].addr
	ps[1] = start(t, o)
	eventually(t, 60*time.Second, in(connectivity.Ready))
	for i, p := range ps {
		want := 1.0
		if i == 1 {
			want = 0.1
		}
		if e, err := endpointAt(p.addr); err != nil || math.Abs(e.Share-want) > 0.02 {
			t.Errorf("%s has the share %v (%v), want %v", p.ID, e.Share, err, want)
		}
	}
	l := (&load{conn: conn, timeout: 10 * time.Second}).begin(t, 1)
	eventually(t, 60*time.Second, func() error { return moreThan(l, 600) })
	l.end()
	if n, all := l.served(ps[1].ID), l.count(); n > all/8 || len(l.failures()) > 0 {
		t.Errorf("%d of %d calls went to %s, want about %d: %s", n, all, ps[1].ID, all/21, l.report())
	}
}

// endpointAt is what a live policy knows about the instance at addr.
func endpointAt(addr string) (balancer.EndpointState, error) {
	for _, c := range balancer.Channels() {
		for _, e := range c.Endpoints {
			if e.Instance.Addr == addr {
				return e, nil
			}
		}
	}
	return balancer.EndpointState{}, fmt.Errorf("%s: %w", addr, errNoChannel)
}

func moreThan(l *load, n int) error {
	if got := l.count(); got <= n {
		return fmt.Errorf("%d calls, want more than %d", got, n)
	}
	return nil
}

// One of five is frozen: its calls run into their deadlines until it is out, and it is back after it was thawed.
func TestFreezeOneOfFive(t *testing.T) {
	for _, row := range []struct {
		name      string
		blacklist balancer.Blacklist
	}{
		{"blacklist", balancer.Blacklist{BaseEjection: 2 * time.Second}},
		{"switched off", balancer.Blacklist{Disabled: true}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			// The record stays: it is the blacklist that is to notice, not the registry.
			c, ps := five(t, orders{TTL: 10 * time.Minute})
			conn := dial(t, watcher(t, consul.Config{Address: c.Addr()}), balancer.Config{Blacklist: row.blacklist})
			reaches(t, conn, 5)
			l := (&load{conn: conn, timeout: 200 * time.Millisecond, pause: 5 * time.Millisecond}).begin(t, 1)
			eventually(t, 20*time.Second, func() error { return moreThan(l, 200) })
			if n := len(l.failures()); n > 0 {
				t.Fatalf("%d calls failed before anything happened:\n%s", n, l.report())
			}
			frozen := ps[1]
			frozen.signal(t, syscall.SIGSTOP)
			if row.blacklist.Disabled {
				elapse(t, 5*time.Second)
				frozen.signal(t, syscall.SIGCONT)
				l.end()
				t.Log(l.report())
				if n := len(l.failures()); n <= 4 {
					t.Errorf("%d calls failed without a blacklist: this test proves nothing", n)
				}
				return
			}
			eventually(t, 20*time.Second, func() error { return ejectedAt(frozen.addr) })
			if n := len(l.failures()); n != 3 {
				t.Errorf("%d calls failed before the ejection, want 3:\n%s", n, l.report())
			}
			eventually(t, 20*time.Second, func() error { // one probing call fails, and it is out again
				if n := len(l.failures()); n < 4 {
					return fmt.Errorf("%d failures", n)
				}
				return nil
			})
			frozen.signal(t, syscall.SIGCONT)
			served := l.served(frozen.ID)
			eventually(t, 30*time.Second, func() error {
				if n := l.served(frozen.ID); n < served+20 {
					return fmt.Errorf("%s answered %d calls since", frozen.ID, n-served)
				}
				return nil
			})
			l.end()
			t.Log(l.report())
			if n := len(l.failures()); n > 5 {
				t.Errorf("%d calls failed in all, want 3 and one for each return: 5 at the most", n)
			}
		})
	}
}

// ejectedAt reports nil once a live channel has the endpoint at addr out.
func ejectedAt(addr string) error {
	for _, c := range balancer.Channels() {
		for _, e := range c.Endpoints {
			if e.Instance.Addr == addr && e.Ejected {
				return nil
			}
		}
	}
	return fmt.Errorf("%s: not ejected", addr)
}
