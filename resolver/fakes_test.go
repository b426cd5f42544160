package resolver

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"

	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/internal/beacon"
	"github.com/evenkeel/evenkeel/registry"
)

// script is a registry that does what a test says. Its zero value accepts watches and says nothing.
type script struct {
	mu      sync.Mutex
	failure error
	set     []registry.Instance
	known   bool
	changed chan struct{} // closed at the next change
	watches int           // begun in all
	running int
}

func (w *script) signalLocked() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

func (w *script) put(set string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set, w.known, w.failure = parse(set), true, nil
	w.signalLocked()
}

func (w *script) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure = err
	w.signalLocked()
}

func (w *script) counts() (watches, running int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.watches, w.running
}

func (w *script) Watch(ctx context.Context, _ string, update func([]registry.Instance)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watches++
	w.running++
	defer func() { w.running-- }()
	for {
		if w.failure != nil {
			return w.failure
		}
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed, set, known := w.changed, w.set, w.known
		w.mu.Unlock()
		if known {
			update(set)
		}
		select {
		case <-ctx.Done():
			w.mu.Lock()
			return ctx.Err()
		case <-changed:
			w.mu.Lock()
		}
	}
}

// fakeConn is gRPC's side of a resolver. It keeps what it was told.
type fakeConn struct {
	gresolver.ClientConn // of which nothing else is called
	lights               bool
	hold                 chan struct{} // if set, UpdateState waits for it

	mu     sync.Mutex
	events []string // a set as show says it, "none", or "error: ..."
	states []gresolver.State
	errs   []error
	closed bool
	late   int // calls after the close
}

func (c *fakeConn) UpdateState(st gresolver.State) error {
	if c.lights {
		beacon.Light(st.Attributes)
	}
	var list []*registry.Instance
	for _, ep := range st.Endpoints {
		list = append(list, registry.FromEndpoint(ep))
	}
	c.add(show(list), st, nil)
	if c.hold != nil {
		<-c.hold
	}
	return nil
}

func (c *fakeConn) ReportError(err error) { c.add("error: "+err.Error(), gresolver.State{}, err) }

func (c *fakeConn) add(event string, st gresolver.State, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if event == "" {
		event = "none"
	}
	c.events, c.states, c.errs = append(c.events, event), append(c.states, st), append(c.errs, err)
	if c.closed {
		c.late++
	}
}

func (c *fakeConn) ParseServiceConfig(json string) *serviceconfig.ParseResult {
	if strings.Contains(json, "bad") {
		return &serviceconfig.ParseResult{Err: errors.New("no supported policies")}
	}
	return &serviceconfig.ParseResult{Config: parsedConfig{json: json}}
}

type parsedConfig struct {
	serviceconfig.Config
	json string
}

// took returns the events since the last call, joined by " | ".
func (c *fakeConn) took() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.Join(c.events, " | ")
	c.events = nil
	return s
}

func (c *fakeConn) last() (gresolver.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.states[len(c.states)-1], c.errs[len(c.errs)-1]
}

func (c *fakeConn) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.states)
}

func (c *fakeConn) close(r gresolver.Resolver) {
	r.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// journal keeps the log.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	return nil
}

// count is how many lines contain all of the words.
func (j *journal) count(words ...string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
next:
	for _, l := range j.lines {
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue next
			}
		}
		n++
	}
	return n
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "\n")
}

func target(t *testing.T, s string) gresolver.Target {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return gresolver.Target{URL: *u}
}

func build(t *testing.T, b gresolver.Builder, cc gresolver.ClientConn) gresolver.Resolver {
	t.Helper()
	r, err := b.Build(target(t, "lb:///orders"), cc, gresolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
