package real

import (
	"errors"
	"math"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// channel is the policy's ClientConn.
type channel struct {
	*lbtest.ClientConn
	b      *Balancer
	picker gbalancer.Picker // the one published last
}

func newChannel(b *Balancer) *channel {
	c := &channel{ClientConn: lbtest.New(), b: b}
	c.Refuse = func(addr string) error {
		if p := b.byAddr[addr]; p == nil || p.down {
			return errRefused
		}
		return nil
	}
	return c
}

var errRefused = errors.New("real: connection refused")

// UpdateState implements gbalancer.ClientConn.
func (c *channel) UpdateState(s gbalancer.State) { c.picker = s.Picker }

// NewSubConn implements gbalancer.ClientConn.
func (c *channel) NewSubConn(addrs []gresolver.Address, o gbalancer.NewSubConnOptions) (gbalancer.SubConn, error) {
	sc, err := c.ClientConn.NewSubConn(addrs, o)
	if err != nil {
		return nil, err
	}
	p := c.b.byAddr[addrs[0].Addr]
	p.conn = &conn{SubConn: sc.(*lbtest.SubConn), c: c, peer: p}
	return p.conn, nil
}

// conn is a connection to a server.
type conn struct {
	*lbtest.SubConn
	c        *channel
	peer     *peer
	up       bool
	failures int // attempts to connect since the last that succeeded
}

// Probe implements balancer.Prober, in the simulation's time and over its network.
func (s *conn) Probe(timeout time.Duration, answer func(load.Report, bool)) {
	s.c.b.env.Probe(s.peer.server, int64(timeout), func(l lb.Load, ok bool) { answer(reportOf(l), ok) })
}

// reportOf is what a server says, as the policy knows it.
func reportOf(l lb.Load) load.Report {
	return load.Report{RIF: int64(l.RIF), Latency: l.Latency, Utilization: l.Utilization, QPS: l.QPS, EPS: l.EPS}
}

// gRPC's defaults for the time between two attempts to connect (doc/connection-backoff.md).
const (
	backoffBase   = float64(time.Second)
	backoffFactor = 1.6
	backoffMax    = float64(120 * time.Second)
	backoffJitter = 0.2
)

// Connect implements gbalancer.SubConn.
func (s *conn) Connect() {
	s.SubConn.Connect()
	if s.up = !s.peer.down; s.up {
		s.failures = 0
		return
	}
	wait := min(backoffBase*math.Pow(backoffFactor, float64(s.failures)), backoffMax)
	wait *= 1 + backoffJitter*(2*float64(s.c.b.env.Rand()>>11)/(1<<53)-1)
	s.failures++
	s.c.b.env.After(int64(wait), func() {
		s.Move(connectivity.Idle, nil)
		s.c.Settle()
	})
}

// broken ends the connection, as the reset of a process that has died does.
func (s *conn) broken() {
	if s.up {
		s.up = false
		s.Move(connectivity.Idle, nil)
	}
}

// simClock is the simulation's time.
type simClock struct {
	now   func() int64
	after func(d int64, f func()) (stop func())
	then  func() // runs after each callback
	held  []*simTimer
	holds bool
}

// epoch is the time of day at the virtual time 0.
var epoch = time.Unix(0, 0).UTC()

// Now implements clock.Clock.
func (c *simClock) Now() int64 { return c.now() }

// Until implements clock.Clock.
func (c *simClock) Until(t time.Time) time.Duration { return t.Sub(epoch) - time.Duration(c.now()) }

// AfterFunc implements clock.Clock.
func (c *simClock) AfterFunc(d time.Duration, f func()) clock.Timer {
	t := &simTimer{c: c, d: int64(d), f: f, waits: true}
	if c.holds {
		c.held = append(c.held, t)
		return t
	}
	t.start()
	return t
}

// hold keeps callbacks back until release, which runs those that are due within so many nanoseconds at once, and what
// they call for, and starts the others.
func (c *simClock) hold() { c.holds = true }

func (c *simClock) release(within int64) {
	var later []*simTimer
	for len(c.held) > 0 {
		t := c.held[0]
		c.held = c.held[1:]
		switch {
		case !t.waits:
		case t.d <= within:
			t.run()
		default:
			later = append(later, t)
		}
	}
	c.holds = false
	for _, t := range later {
		if t.waits {
			t.start()
		}
	}
}

// simTimer is a callback to come.
type simTimer struct {
	c     *simClock
	d     int64
	f     func()
	waits bool
	stop  func()
}

func (t *simTimer) start() { t.stop = t.c.after(t.d, t.run) }

func (t *simTimer) run() {
	t.waits = false
	t.f()
	t.c.then()
}

// Stop implements clock.Timer.
func (t *simTimer) Stop() bool {
	if !t.waits {
		return false
	}
	t.waits = false
	if t.stop != nil {
		t.stop()
	}
	return true
}

// deadline is the context of a call: a deadline in virtual time and nothing else. Nobody waits for its end, since the
// simulation ends the call.
type deadline struct{ at int64 }

// Deadline implements context.Context.
func (d *deadline) Deadline() (time.Time, bool) {
	if d.at == 0 {
		return time.Time{}, false
	}
	return epoch.Add(time.Duration(d.at)), true
}

// Done implements context.Context.
func (*deadline) Done() <-chan struct{} { return nil }

// Err implements context.Context.
func (*deadline) Err() error { return nil }

// Value implements context.Context.
func (*deadline) Value(any) any { return nil }
