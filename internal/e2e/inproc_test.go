package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/server"
)

// The tests in the inproc files need no process of their own: their servers are real grpc servers on loopback
// sockets, run by server.Serve, and the registry is registry/memory.

// spec says how an instance in this process is to be. The zero value is a proper instance without labels.
type spec struct {
	registry.Instance               // an empty ID is "orders-" and its place in the fleet
	service           string        // empty means "orders"
	listen            string        // empty means any port of 127.0.0.1
	work              workFunc      // what a call does before it is answered; nil means nothing
	drain             time.Duration // server.Config.DrainDelay; 0 means none here
	creds             credentials.TransportCredentials
	health            *health.Server
	load              *server.Load // its interceptors are for options
	options           []grpc.ServerOption
}

// workFunc is the part of a handler that a test is about; its error is the answer.
type workFunc func(ctx context.Context, name string) error

// local is a running instance.
type local struct {
	id, addr string
	calls    atomic.Int64 // that reached the handler
	work     atomic.Pointer[workFunc]
	conns    *meter
	s        *grpc.Server
	ann      *server.Announcement
	quit     context.CancelFunc
	ended    chan struct{}
	err      error // of server.Serve, once ended is closed
}

// Hello implements greeter.Server.
func (l *local) Hello(ctx context.Context, name string) (string, error) {
	l.calls.Add(1)
	if err := (*l.work.Load())(ctx, name); err != nil {
		return "", err
	}
	return l.id, nil
}

// Tell implements greeter.Server: it answers once before the work and once after it.
func (l *local) Tell(ctx context.Context, name string, send func(string) error) error {
	l.calls.Add(1)
	if err := send(l.id); err != nil {
		return err
	}
	if err := (*l.work.Load())(ctx, name); err != nil {
		return err
	}
	return send(l.id)
}

// does replaces what calls do from now on.
func (l *local) does(w workFunc) { l.work.Store(&w) }

// startLocal runs an instance and waits until it is announced.
func startLocal(t *testing.T, reg registry.Registrar, s spec) *local {
	t.Helper()
	listen := s.listen
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	lis, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	l := &local{id: s.ID, addr: lis.Addr().String(), conns: &meter{Listener: lis}, ended: make(chan struct{})}
	l.does(orNothing(s.work))
	opts := s.options
	if s.creds != nil {
		opts = append(opts, grpc.Creds(s.creds))
	}
	l.s = grpc.NewServer(opts...)
	greeter.Register(l.s, l)
	if s.load != nil {
		s.load.Register(l.s)
	}
	if s.health != nil {
		healthpb.RegisterHealthServer(l.s, s.health)
	}
	ctx, quit := context.WithCancel(context.Background()) // it outlives the test's own context, and ends in cleanup
	l.quit = quit
	announced := make(chan *server.Announcement, 1)
	cfg := server.Config{
		Registrar: reg, Service: or(s.service, "orders"), Instance: s.Instance, Health: s.health, NoSignals: true,
		DrainDelay: or(s.drain, -1), Logger: slog.New(slog.DiscardHandler),
		Announced: func(a *server.Announcement) { announced <- a },
	}
	go func() {
		defer close(l.ended)
		l.err = server.Serve(ctx, l.s, l.conns, cfg)
	}()
	t.Cleanup(func() {
		if err := l.stop(); err != nil {
			t.Errorf("instance %s: %v, want an orderly end", l.id, err)
		}
	})
	select {
	case l.ann = <-announced:
	case <-l.ended:
		t.Fatalf("instance %s: %v, want it to serve", l.id, l.err)
	}
	return l
}

// stop shuts the instance down as a signal would, and waits.
func (l *local) stop() error {
	l.quit()
	<-l.ended
	return l.err
}

// cut ends the instance as an app without package server would: with whatever is in flight.
func (l *local) cut() error {
	l.s.Stop()
	<-l.ended
	return l.err
}

// change changes the record of a running instance.
func (l *local) change(t *testing.T, f func(*registry.Instance)) {
	t.Helper()
	in := l.ann.Instance()
	f(&in)
	if err := l.ann.Update(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

func orNothing(w workFunc) workFunc {
	if w == nil {
		return func(context.Context, string) error { return nil }
	}
	return w
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// takes is work of a given length.
func takes(d time.Duration) workFunc {
	return func(ctx context.Context, _ string) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fails is work that comes to nothing at once.
func fails(err error) workFunc {
	return func(context.Context, string) error { return err }
}

// fleet starts n instances, each as f says; nil means plain ones.
func fleet(t *testing.T, reg registry.Registrar, n int, f func(i int) spec) []*local {
	t.Helper()
	ls := make([]*local, n)
	for i := range ls {
		var s spec
		if f != nil {
			s = f(i)
		}
		s.ID = or(s.ID, fmt.Sprintf("orders-%d", i))
		ls[i] = startLocal(t, reg, s)
	}
	return ls
}

// meter counts the connections of a listener.
type meter struct {
	net.Listener
	opened, closed atomic.Int64
}

// Accept implements net.Listener.
func (m *meter) Accept() (net.Conn, error) {
	c, err := m.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m.opened.Add(1)
	return &metered{Conn: c, closed: sync.OnceFunc(func() { m.closed.Add(1) })}, nil
}

type metered struct {
	net.Conn
	closed func()
}

// Close implements net.Conn.
func (c *metered) Close() error {
	c.closed()
	return c.Conn.Close()
}

// connect is dial for those who bring a builder and options of gRPC's; calls are not retried.
func connect(t *testing.T, target string, b gresolver.Builder, more ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	all := append([]grpc.DialOption{
		grpc.WithResolvers(b),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(),
	}, more...)
	conn, err := grpc.NewClient(target, all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// balanced is the option that selects the policy.
func balanced(c balancer.Config) resolver.Option {
	return resolver.WithServiceConfig(balancer.ServiceConfig(c))
}

var errNoChannel = errors.New("no live policy knows the instance")

// channelOf is the live policy that knows the instance l; a test has one at a time for an instance.
func channelOf(l *local) (balancer.ChannelState, error) {
	for _, c := range balancer.Channels() {
		for _, e := range c.Endpoints {
			if e.Instance.ID == l.id && e.Instance.Addr == l.addr {
				return c, nil
			}
		}
	}
	return balancer.ChannelState{}, fmt.Errorf("%s at %s: %w", l.id, l.addr, errNoChannel)
}

// ejections is how often the policy that knows l has ejected anybody.
func ejections(t *testing.T, l *local) int {
	t.Helper()
	c, err := channelOf(l)
	if err != nil {
		t.Fatal(err)
	}
	return int(c.Counters.Ejections)
}

// ready waits until conn is connected to all of ls and nobody else, without a call.
func ready(t *testing.T, conn *grpc.ClientConn, ls []*local) {
	t.Helper()
	conn.Connect()
	want := make([]string, len(ls))
	for i, l := range ls {
		want[i] = l.addr
	}
	slices.Sort(want)
	eventually(t, 30*time.Second, func() error {
		c, err := channelOf(ls[0])
		if err != nil {
			return err
		}
		var got []string
		for _, e := range c.Endpoints {
			if e.State == connectivity.Ready {
				got = append(got, e.Instance.Addr)
			}
		}
		slices.Sort(got)
		if len(c.Endpoints) != len(ls) || !slices.Equal(got, want) {
			return fmt.Errorf("%d known, connected to %q, want %q", len(c.Endpoints), got, want)
		}
		return nil
	})
}

// warm is ready and then calls until each of ls has got one, so that the picker in force has them all: it may be some
// milliseconds behind the connections.
func warm(t *testing.T, conn *grpc.ClientConn, ls []*local) {
	t.Helper()
	ready(t, conn, ls)
	was := make([]int64, len(ls))
	for i, l := range ls {
		was[i] = l.calls.Load()
	}
	eventually(t, 30*time.Second, func() error {
		call(t.Context(), conn, 2*len(ls))
		for i, l := range ls {
			if l.calls.Load() == was[i] {
				return fmt.Errorf("%s has got no call", l.id)
			}
		}
		return nil
	})
}

// tally is what came of a number of calls, one after the other.
type tally struct {
	by   map[string]int // by the instance that answered
	errs []error
}

func (c tally) String() string {
	if len(c.errs) == 0 {
		return fmt.Sprintf("%v, 0 failed", c.by)
	}
	return fmt.Sprintf("%v, %d failed, the last with: %v", c.by, len(c.errs), c.errs[len(c.errs)-1])
}

// call makes n calls.
func call(ctx context.Context, conn *grpc.ClientConn, n int) tally {
	c := tally{by: make(map[string]int)}
	for range n {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		who, err := greeter.Hello(ctx, conn, "you")
		cancel()
		if err != nil {
			c.errs = append(c.errs, err)
			continue
		}
		c.by[who]++
	}
	return c
}

// share fails the test unless ids, and nobody else, answered all calls, each the same number but for slack.
func (c tally) share(t *testing.T, what string, slack int, ids ...string) {
	t.Helper()
	total := len(c.errs)
	for _, n := range c.by {
		total += n
	}
	if len(c.errs) > 0 || len(c.by) != len(ids) {
		t.Errorf("%s: %v, want all calls answered by %v", what, c, ids)
		return
	}
	for _, id := range ids {
		if d := c.by[id] - total/len(ids); d < -slack || d > slack {
			t.Errorf("%s: %v, want %d for each of %v", what, c, total/len(ids), ids)
			return
		}
	}
}

// even fails the test unless counts look as if drawn with equal chances: Pearson's chi-square at the one in 100,000
// level, with the quantile by Wilson and Hilferty.
func even(t *testing.T, what string, counts []int) {
	t.Helper()
	total := 0
	for _, n := range counts {
		total += n
	}
	want := float64(total) / float64(len(counts))
	chi := 0.0
	for _, n := range counts {
		chi += (float64(n) - want) * (float64(n) - want) / want
	}
	df := float64(len(counts) - 1)
	const z = 4.265 // of the normal distribution, upper 1e-5
	h := 2 / (9 * df)
	if limit := df * math.Pow(1-h+z*math.Sqrt(h), 3); chi > limit {
		t.Errorf("%s: %v: chi-square is %.1f, want at most %.1f", what, counts, chi, limit)
	}
}

func idsOf(ls []*local) []string {
	ids := make([]string, len(ls))
	for i, l := range ls {
		ids[i] = l.id
	}
	return ids
}
