package consul

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/registrytest"
	"github.com/hashicorp/consul/api"
)

// shared is a server for the tests that do not harm it. It starts with the first of them.
var shared = sync.OnceValues(func() (*testconsul.Server, error) {
	dir, err := os.MkdirTemp("", "evenkeel-consul-*")
	if err != nil {
		return nil, err
	}
	atEnd(func() { _ = os.RemoveAll(dir) })
	s, err := testconsul.StartProcess(dir)
	if err == nil {
		atEnd(func() { _ = s.Stop() })
	}
	return s, err
})

var ends struct {
	sync.Mutex
	funcs []func()
}

func atEnd(f func()) {
	ends.Lock()
	defer ends.Unlock()
	ends.funcs = append([]func(){f}, ends.funcs...)
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range ends.funcs {
		f()
	}
	os.Exit(code)
}

func sharedServer(t *testing.T) *testconsul.Server {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// logs collects what is logged. It is safe for concurrent use.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// newRegistry returns a registry that ends with the test, and logs to the terminal nothing.
func newRegistry(t *testing.T, cfg Config) *Registry {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() }) // where Close must work, the test calls it
	return r
}

// background is a context for calls that no test waits for longer.
func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func register(t *testing.T, r *Registry, service string, in registry.Instance) registry.Registration {
	t.Helper()
	g, err := r.Register(background(t), service, in)
	if err != nil {
		t.Fatalf("Register(%q, %+v) = %v", service, in, err)
	}
	return g
}

func follow(t *testing.T, r *Registry, service string) *registrytest.Recorder {
	t.Helper()
	return registrytest.Record(t, r, service, 20*time.Second)
}

// eventually polls a condition of a real process.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", within, what)
		case <-tick.C:
		}
	}
}

// ids are the IDs of a set, in its order.
func ids(ins []registry.Instance) []string {
	out := make([]string, 0, len(ins))
	for _, in := range ins {
		out = append(out, in.ID)
	}
	return out
}

// haveIDs is a condition for a Recorder.
func haveIDs(want ...string) func([]registry.Instance) bool {
	return func(ins []registry.Instance) bool { return fmt.Sprint(ids(ins)) == fmt.Sprint(want) }
}

// put registers a foreign record until the end of the test.
func put(t *testing.T, s *testconsul.Server, reg *api.AgentServiceRegistration) {
	t.Helper()
	if err := s.Client().Agent().ServiceRegister(reg); err != nil {
		t.Fatal(err)
	}
	// The conformance suite restarts its server, empty.
	t.Cleanup(func() { _ = s.Client().Agent().ServiceDeregister(cmp.Or(reg.ID, reg.Name)) })
}
