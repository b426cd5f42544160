package conformance

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // the compressor of the table
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/test/bufconn"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the balancer tells of its ejections
	os.Exit(m.Run())
}

// policies are the load balancing policies that everything is shown with.
const (
	ours       = "evenkeel"
	roundRobin = "round_robin"
)

var policies = []string{ours, roundRobin}

func serviceConfig(policy string, c balancer.Config) string {
	if policy == ours {
		return balancer.ServiceConfig(c)
	}
	return `{"loadBalancingConfig":[{"` + policy + `":{}}]}`
}

// chain is which wrappers are on, on one side. A nil one is off.
type chain struct {
	trace     *trace.Config
	ratelimit *ratelimit.Config
	retry     *retry.Config
	breaker   *breaker.Config
}

// wrappers are the wrappers of a chain, in the documented order.
type wrappers struct {
	tracer   *mocktracer.MockTracer
	trace    *trace.Tracing
	limiter  *ratelimit.Limiter
	retrier  *retry.Retrier
	breakers *breaker.Breakers
}

// wrapper is what all four have.
type wrapper interface {
	UnaryClientInterceptor() grpc.UnaryClientInterceptor
	StreamClientInterceptor() grpc.StreamClientInterceptor
	UnaryServerInterceptor() grpc.UnaryServerInterceptor
	StreamServerInterceptor() grpc.StreamServerInterceptor
}

// make makes the wrappers that are on, and returns them outermost first too.
func (c chain) make(t *testing.T) (w wrappers, order []wrapper) {
	t.Helper()
	var err error
	check := func() {
		if err != nil {
			t.Fatal(err)
		}
	}
	if c.trace != nil {
		w.tracer = mocktracer.New()
		config := *c.trace
		config.Tracer = w.tracer
		w.trace, err = trace.New(config)
		check()
		order = append(order, w.trace)
	}
	if c.ratelimit != nil {
		w.limiter, err = ratelimit.New(*c.ratelimit)
		check()
		order = append(order, w.limiter)
	}
	if c.retry != nil {
		w.retrier, err = retry.New(*c.retry)
		check()
		order = append(order, w.retrier)
	}
	if c.breaker != nil {
		w.breakers, err = breaker.New(*c.breaker)
		check()
		order = append(order, w.breakers)
	}
	return w, order
}

// setup says what a rig is to be. Its zero value is one server and a client under evenkeel's policy, without wrappers.
type setup struct {
	policy         string // empty means ours
	balancer       balancer.Config
	servers        int // 0 means 1
	client, server chain
	dial           []grpc.DialOption
	// notReady lets calls begin before there is a connection.
	notReady bool
}

// rig is some real servers and a real client over connections in memory. It lives in a synctest bubble.
type rig struct {
	t       *testing.T
	conn    *grpc.ClientConn
	client  wrappers
	server  wrappers
	calls   []atomic.Int64 // what reached the handler of each server
	serve   atomic.Pointer[serve]
	cleanup []func()
}

// serve is a handler that knows the number of its server.
type serve func(i int, k kind, s grpc.ServerStream) error

func (r *rig) does(f serve) { r.serve.Store(&f) }

// handled is how many calls reached a handler.
func (r *rig) handled() (n int) {
	for i := range r.calls {
		n += int(r.calls[i].Load())
	}
	return n
}

// newRig starts it, and waits until all servers are connected to. Close it at the end of the bubble.
func newRig(t *testing.T, s setup) *rig {
	t.Helper()
	n := max(s.servers, 1)
	r := &rig{t: t, calls: make([]atomic.Int64, n)}
	client, outer := s.client.make(t)
	server, inner := s.server.make(t)
	r.client, r.server = client, server
	reg := memory.New()
	listeners := make(map[string]*bufconn.Listener)
	for i := range n {
		addr := fmt.Sprintf("10.0.0.%d:1", i+1)
		listeners[addr] = r.listen(i, inner)
		record, err := reg.Register(t.Context(), "orders", registry.Instance{ID: fmt.Sprintf("i%d", i), Addr: addr})
		if err != nil {
			t.Fatal(err)
		}
		r.cleanup = append(r.cleanup, func() { _ = record.Close(context.Background()) })
	}
	opts := append([]grpc.DialOption{
		grpc.WithResolvers(resolver.NewBuilder(reg,
			resolver.WithServiceConfig(serviceConfig(orElse(s.policy, ours), s.balancer)))),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithStatsHandler(watchClient{}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := listeners[addr].DialContext(ctx)
			if err != nil {
				return nil, err
			}
			return named{conn, name(addr)}, nil
		})}, s.dial...)
	for _, w := range outer {
		opts = append(opts, grpc.WithChainUnaryInterceptor(w.UnaryClientInterceptor()),
			grpc.WithChainStreamInterceptor(w.StreamClientInterceptor()))
	}
	var err error
	if r.conn, err = grpc.NewClient("lb:///orders", opts...); err != nil {
		t.Fatal(err)
	}
	if r.conn.Connect(); !s.notReady {
		pause(time.Second) // of virtual time: the connections, and their publication
	}
	return r
}

// listen starts server i.
func (r *rig) listen(i int, chain []wrapper) *bufconn.Listener {
	opts := []grpc.ServerOption{grpc.StatsHandler(watchServer{})}
	for _, w := range chain {
		opts = append(opts, grpc.ChainUnaryInterceptor(w.UnaryServerInterceptor()),
			grpc.ChainStreamInterceptor(w.StreamServerInterceptor()))
	}
	s := grpc.NewServer(opts...)
	register(s, func(k kind, ss grpc.ServerStream) error {
		r.calls[i].Add(1)
		return (*r.serve.Load())(i, k, ss)
	})
	lis := bufconn.Listen(1 << 18)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(lis) }()
	r.cleanup = append(r.cleanup, func() {
		s.Stop()
		if err := <-ended; err != nil {
			r.t.Errorf("Serve: %v", err)
		}
	})
	return lis
}

// close ends everything, waits, and looks into the wrappers' books.
func (r *rig) close() {
	r.conn.Close()
	for i := len(r.cleanup) - 1; i >= 0; i-- {
		r.cleanup[i]()
	}
	synctest.Wait()
	for side, w := range map[string]wrappers{"client": r.client, "server": r.server} {
		if w.trace != nil {
			if s := w.trace.State(); s.Client.Open != 0 || s.Server.Open != 0 || s.Lost != 0 {
				r.t.Errorf("%s: trace has %+v at the end, want nothing open and nothing lost", side, s)
			}
		}
		if w.breakers != nil {
			for _, b := range w.breakers.State().Breakers {
				if b.InFlight != 0 {
					r.t.Errorf("%s: breaker %s has %d calls in flight at the end, want 0", side, b.Name, b.InFlight)
				}
			}
		}
	}
}

// named gives a connection in memory the address of its server.
type named struct {
	net.Conn
	addr name
}

func (n named) RemoteAddr() net.Addr { return n.addr }

type name string

func (name) Network() string  { return "bufconn" }
func (n name) String() string { return string(n) }

// observation is what gRPC's own statistics tell of one call's compression. The test puts it into the context of the
// call, and the server's half into that of the handler.
type observation struct{ request, reply atomic.Pointer[string] }

type observationKey struct{}

func observe(ctx context.Context, o *observation) context.Context {
	return context.WithValue(ctx, observationKey{}, o)
}

// watchClient notes how replies were compressed.
type watchClient struct{}

func (watchClient) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (watchClient) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (watchClient) HandleConn(context.Context, stats.ConnStats)                       {}
func (watchClient) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if h, ok := s.(*stats.InHeader); ok {
		if o, _ := ctx.Value(observationKey{}).(*observation); o != nil {
			o.reply.Store(&h.Compression)
		}
	}
}

// watchServer notes how requests were compressed.
type watchServer struct{ watchClient }

func (watchServer) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return observe(ctx, new(observation))
}

func (watchServer) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if h, ok := s.(*stats.InHeader); ok {
		ctx.Value(observationKey{}).(*observation).request.Store(&h.Compression)
	}
}

// pause lets d of the bubble's time pass.
func pause(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	<-ctx.Done()
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// bubble runs f in a bubble of virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// join is for names of tests.
func join(parts []string) string {
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, "+")
}
