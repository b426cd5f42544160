package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/consul"
	"github.com/evenkeel/evenkeel/resolver"
)

// outage is how long a registry is away: longer than the TTL of its records.
const outage = 30 * time.Second

// gullible is a watcher as others write it: it takes an outage of the registry for an empty service, and goes on.
type gullible struct{ registry.Watcher }

func (w gullible) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := w.Watcher.Watch(ctx, service, update)
		if ctx.Err() != nil {
			return err
		}
		update(nil)
		<-tick.C
	}
}

// Each row does something to Consul while the instances serve on, once with the library as it is and once without
// its two precautions: that an outage changes nothing, and that a collapse is distrusted (WithHold of -1 switches that
// off). Eight callers go on all the time.
func TestConsulOutage(t *testing.T) {
	for _, row := range []struct {
		name    string
		trouble func(*testing.T, *testconsul.Server, []*process)
		after   time.Duration // how long to go on then
	}{
		{"killed, restarted empty", killAndRestart, 15 * time.Second},
		{"frozen", freezeAndContinue, 20 * time.Second},
		{"all checks critical", allCritical, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			c, ps := five(t, orders{})
			loads := make(map[string]*load)
			for name, conn := range map[string]*grpc.ClientConn{
				"hold":         dial(t, watcher(t, consul.Config{Address: c.Addr()}), balancer.Config{}),
				"switched off": dial(t, gullible{watcher(t, consul.Config{Address: c.Addr(), WaitTime: time.Second})}, balancer.Config{}, resolver.WithHold(-1)),
			} {
				reaches(t, conn, 5)
				loads[name] = (&load{conn: conn, timeout: 5 * time.Second, pause: 10 * time.Millisecond}).begin(t, 8)
			}
			row.trouble(t, c, ps)
			elapse(t, row.after)
			with, without := loads["hold"], loads["switched off"]
			followsChanges(t, c, with)
			with.end()
			without.end()
			t.Log("hold:", with.report())
			t.Log("switched off:", without.report())
			if n := len(with.failures()); n > 0 {
				t.Errorf("%d calls failed, want 0", n)
			}
			if len(without.failures()) == 0 {
				t.Error("no call failed without Hold: this test proves nothing")
			}
		})
	}
}

// killAndRestart kills Consul, and starts it again with no data: every server is there again within 10 s.
func killAndRestart(t *testing.T, c *testconsul.Server, ps []*process) {
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	elapse(t, outage)
	if err := c.StartAgain(); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	eventually(t, 10*time.Second, func() error { return passing(c, len(ps)) })
	t.Logf("all %d are registered again %v after Consul was back", len(ps), time.Since(back).Round(time.Millisecond))
}

func freezeAndContinue(t *testing.T, c *testconsul.Server, ps []*process) {
	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	elapse(t, outage)
	if err := c.Continue(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error { return passing(c, len(ps)) })
}

// allCritical fails every instance's check while the instances serve.
func allCritical(t *testing.T, c *testconsul.Server, ps []*process) {
	agent := c.Client().Agent()
	services, err := agent.Services()
	if err != nil {
		t.Fatal(err)
	}
	for id := range services {
		if err := agent.EnableServiceMaintenance(id, "a test"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, func() error { return passing(c, 0) })
	elapse(t, 15*time.Second) // well within Hold
	for id := range services {
		if err := agent.DisableServiceMaintenance(id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, func() error { return passing(c, len(ps)) })
}

// passing reports nil once Consul says that n instances are healthy.
func passing(c *testconsul.Server, n int) error {
	entries, _, err := c.Client().Health().Service("orders", "", true, nil)
	if err != nil {
		return err
	}
	if len(entries) != n {
		return fmt.Errorf("%d instances are passing, want %d", len(entries), n)
	}
	return nil
}

// followsChanges starts another instance and waits until it gets calls.
func followsChanges(t *testing.T, c *testconsul.Server, l *load) {
	t.Helper()
	start(t, orders{ID: "orders-late", Consul: c.Addr()})
	eventually(t, 20*time.Second, func() error { return servedAny(l, "orders-late") })
}

// An app that starts while Consul is down gets a reason, and a call that waits for ready succeeds when Consul is up.
func TestStartWhileConsulIsDown(t *testing.T) {
	t.Parallel()
	c := testconsul.Start(t)
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	conn := dial(t, watcher(t, consul.Config{Address: c.Addr()}), balancer.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := greeter.Hello(ctx, conn, "you")
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "orders") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("without waiting: %v, want UNAVAILABLE with the service and the reason", err)
	}
	t.Log("without waiting:", err)
	waited := make(chan error, 1)
	go func() {
		_, err := greeter.Hello(ctx, conn, "you", grpc.WaitForReady(true))
		waited <- err
	}()
	if err := c.StartAgain(); err != nil {
		t.Fatal(err)
	}
	start(t, orders{ID: "orders-0", Consul: c.Addr()})
	if err := <-waited; err != nil {
		t.Errorf("a call that waits for ready: %v, want success once Consul is up", err)
	}
}
