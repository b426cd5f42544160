package resolver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/beacon"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// These tests run real clients against real servers on loopback.

const roundRobin = `{"loadBalancingConfig":[{"round_robin":{}}]}`

// serveN starts n servers and returns their addresses.
func serveN(t *testing.T, n int, opts ...grpc.ServerOption) []string {
	t.Helper()
	var addrs []string
	for range n {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer(opts...)
		healthpb.RegisterHealthServer(srv, health.NewServer())
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(lis) })
		t.Cleanup(func() {
			srv.Stop()
			wg.Wait()
		})
		addrs = append(addrs, lis.Addr().String())
	}
	return addrs
}

// announce registers the addresses under "orders" and returns how to take each out again.
func announce(t *testing.T, reg *memory.Registry, addrs []string) []registry.Registration {
	t.Helper()
	var all []registry.Registration
	for i, addr := range addrs {
		r, err := reg.Register(t.Context(), "orders", registry.Instance{ID: fmt.Sprint("orders-", i), Addr: addr})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func dial(t *testing.T, w registry.Watcher, opts []Option, dialOpts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	dialOpts = append([]grpc.DialOption{grpc.WithResolvers(NewBuilder(w, opts...)),
		grpc.WithTransportCredentials(insecure.NewCredentials())}, dialOpts...)
	conn, err := grpc.NewClient("lb:///orders", dialOpts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// call returns who answered.
func call(t *testing.T, conn *grpc.ClientConn, opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var p peer.Peer
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, append(opts, grpc.Peer(&p))...)
	if err != nil {
		return "", err
	}
	return p.Addr.String(), nil
}

// spread waits until just want servers answer, in 60 calls.
func spread(t *testing.T, conn *grpc.ClientConn, want int) {
	t.Helper()
	waitUntil(t, fmt.Sprint("calls spread over ", want), func() bool {
		seen := make(map[string]bool)
		for range 60 {
			who, err := call(t, conn)
			if err != nil {
				t.Fatal(err)
			}
			seen[who] = true
		}
		return len(seen) == want
	})
}

func quiet() (Option, *journal) {
	j := new(journal)
	return WithLogger(slog.New(j)), j
}

// traffic is calls from 4 goroutines, counted.
type traffic struct {
	made, failed atomic.Int64
	last         atomic.Value // the last error
	done         chan struct{}
	wg           sync.WaitGroup
}

func load(t *testing.T, conn *grpc.ClientConn) *traffic {
	tr := &traffic{done: make(chan struct{})}
	for range 4 {
		tr.wg.Go(func() {
			for {
				select {
				case <-tr.done:
					return
				default:
				}
				if _, err := call(t, conn); err != nil {
					tr.failed.Add(1)
					tr.last.Store(err)
				}
				tr.made.Add(1)
			}
		})
	}
	return tr
}

// more waits for n further calls.
func (tr *traffic) more(t *testing.T, n int64) {
	t.Helper()
	goal := tr.made.Load() + n
	waitUntil(t, fmt.Sprint(n, " more calls"), func() bool { return tr.made.Load() >= goal })
}

func (tr *traffic) stop() {
	close(tr.done)
	tr.wg.Wait()
}

func TestCallsFollowTheRegistry(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	regs := announce(t, reg, serveN(t, 3))
	opt, _ := quiet()
	conn := dial(t, reg, []Option{opt, WithServiceConfig(roundRobin)})
	spread(t, conn, 3)
	if err := regs[0].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spread(t, conn, 2)
}

// With the feature no call fails; with the feature off calls do, or the test would show nothing.
func TestCallsThroughACollapse(t *testing.T) {
	leak.Check(t)
	for _, tc := range []struct {
		name  string
		hold  time.Duration
		fails bool
	}{{"held", 0, false}, {"believed", -1, true}} {
		t.Run(tc.name, func(t *testing.T) {
			w := new(script)
			for i, addr := range serveN(t, 5) {
				w.set = append(w.set, registry.Instance{ID: fmt.Sprint(i), Addr: addr})
			}
			all := w.set
			w.known = true
			opt, j := quiet()
			conn := dial(t, w, []Option{opt, WithHold(tc.hold), WithServiceConfig(roundRobin)})
			spread(t, conn, 5)
			tr := load(t, conn)
			for range 5 {
				for _, n := range []int{0, 1, 2, 3, 5} { // as a restarted registry reports while its servers come back
					w.mu.Lock()
					w.set = all[:n]
					w.signalLocked()
					w.mu.Unlock()
					tr.more(t, 50)
				}
			}
			tr.stop()
			made, failed := tr.made.Load(), tr.failed.Load()
			t.Logf("%d calls, %d failed, last with %v", made, failed, tr.last.Load())
			if (failed > 0) != tc.fails {
				t.Errorf("%d of %d calls failed (%v), want failures: %v", failed, made, tr.last.Load(), tc.fails)
			}
			if noted := j.count("WARN", msgCollapse) > 0; noted == tc.fails {
				t.Errorf("the log tells of a collapse: %v, want %v", noted, !tc.fails)
			}
			spread(t, conn, 5)
		})
	}
}

func TestCallsThroughAnOutage(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	addrs := serveN(t, 4)
	announce(t, reg, addrs[:3])
	opt, j := quiet()
	conn := dial(t, reg, []Option{opt, WithServiceConfig(roundRobin)})
	spread(t, conn, 3)
	tr := load(t, conn)
	reg.Fail(nil)
	waitUntil(t, "the outage in the log", func() bool { return j.count(msgOutage) == 1 })
	spread(t, conn, 3)
	reg.Restart()
	reg.Recover()
	waitUntil(t, "the return in the log", func() bool { return j.count(msgBack) == 1 })
	tr.more(t, 100)
	tr.stop()
	if failed := tr.failed.Load(); failed != 0 {
		t.Errorf("%d of %d calls failed: %v", failed, tr.made.Load(), tr.last.Load())
	}
	if _, err := reg.Register(t.Context(), "orders", registry.Instance{ID: "new", Addr: addrs[3]}); err != nil {
		t.Fatal(err)
	}
	spread(t, conn, 4)
}

func TestAnAppStartsWhileTheRegistryIsDown(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	// The reason is a status, of a code that would end wait-for-ready calls if gRPC saw it.
	reg.Fail(status.Error(codes.Unavailable, "connection refused"))
	announce(t, reg, serveN(t, 1))
	opt, _ := quiet()
	conn := dial(t, reg, []Option{opt})
	_, err := call(t, conn)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), `"orders"`) {
		t.Errorf("got %v, want UNAVAILABLE with the service and the reason", err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := call(t, conn, grpc.WaitForReady(true))
		got <- err
	}()
	reg.Recover()
	if err := <-got; err != nil {
		t.Errorf("a wait-for-ready call failed: %v", err)
	}
}

func TestAnIdleClientWakesWhileTheRegistryIsDown(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	announce(t, reg, serveN(t, 2))
	opt, _ := quiet()
	conn := dial(t, reg, []Option{opt, WithServiceConfig(roundRobin)}, grpc.WithIdleTimeout(50*time.Millisecond))
	for round := range 3 {
		if _, err := call(t, conn); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		waitUntil(t, "the client idle", func() bool { return conn.GetState() == connectivity.Idle })
		noGoroutines(t) // the watch has ended with the resolver
		reg.Fail(nil)
	}
}

func TestTheAppsOwnConfigStays(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	announce(t, reg, serveN(t, 3))
	opt, _ := quiet()
	conn := dial(t, reg, []Option{opt}, grpc.WithDefaultServiceConfig(roundRobin))
	spread(t, conn, 3)
}

func TestGRPCsDefaultIsWarnedAbout(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	announce(t, reg, serveN(t, 3))
	opt, j := quiet()
	conn := dial(t, reg, []Option{opt})
	spread(t, conn, 1)
	waitUntil(t, "the warning", func() bool { return j.count("WARN", "pick_first", "resolver.WithServiceConfig(") == 1 })
}

// lit stands for the policy evenkeel: round_robin that lights the beacon.
type lit struct{ gbalancer.Builder }

func (lit) Name() string { return "lit" }

func (l lit) Build(cc gbalancer.ClientConn, opts gbalancer.BuildOptions) gbalancer.Balancer {
	return litBalancer{l.Builder.Build(cc, opts)}
}

type litBalancer struct{ gbalancer.Balancer }

func (l litBalancer) UpdateClientConnState(s gbalancer.ClientConnState) error {
	beacon.Light(s.ResolverState.Attributes)
	return l.Balancer.UpdateClientConnState(s)
}

func init() { gbalancer.Register(lit{gbalancer.Get("round_robin")}) }

// gRPC delivers a state before UpdateState returns, which is what the warning rests on.
func TestAPolicyThatLightsTheBeaconIsNotWarnedAbout(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	announce(t, reg, serveN(t, 2))
	opt, j := quiet()
	b := NewBuilder(reg, opt, WithServiceConfig(`{"loadBalancingConfig":[{"lit":{}}]}`)).(*builder)
	side := &capture{Builder: b}
	conn, err := grpc.NewClient("lb:///orders", grpc.WithResolvers(side), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	spread(t, conn, 2)
	if n := len(j.lines); n != 0 {
		t.Errorf("want nothing in the log, got\n%s", j)
	}
	for range 100 {
		c := &connection{cc: side.cc, config: side.cc.ParseServiceConfig(*b.opts.serviceConfig), s: b.services["orders"]}
		if lamp := c.send(c.s.current()); !lamp.Lit() {
			t.Fatal("the beacon was dark when UpdateState returned")
		}
	}
}

// capture keeps gRPC's side of the resolver.
type capture struct {
	gresolver.Builder
	cc gresolver.ClientConn
}

func (c *capture) Build(tgt gresolver.Target, cc gresolver.ClientConn, opts gresolver.BuildOptions) (gresolver.Resolver, error) {
	c.cc = cc
	return c.Builder.Build(tgt, cc, opts)
}

func TestMistakesFailWaitForReadyCallsToo(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	announce(t, reg, serveN(t, 1))
	for name, tc := range map[string]struct {
		opt  Option
		want string
	}{
		"policy not imported": {WithServiceConfig(`{"loadBalancingConfig":[{"nowhere":{}}]}`), "WithServiceConfig"},
		"not JSON":            {WithServiceConfig(`{`), "WithServiceConfig"},
		"scheme":              {WithScheme(""), "WithScheme"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, reg, []Option{tc.opt})
			for _, wait := range []bool{false, true} {
				_, err := call(t, conn, grpc.WaitForReady(wait))
				if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("wait-for-ready %v: got %v, want UNAVAILABLE that names %s", wait, err, tc.want)
				}
			}
		})
	}
}

// certificate makes one for name, signed by itself.
func certificate(t *testing.T, name string) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, cert
}

func TestTLSNames(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	pool := x509.NewCertPool()
	for i := range 2 {
		name := fmt.Sprintf("orders-%d.example", i)
		cert, parsed := certificate(t, name)
		pool.AddCert(parsed)
		addr := serveN(t, 1, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))[0]
		if _, err := reg.Register(t.Context(), "orders", registry.Instance{ID: fmt.Sprintf("orders-%d", i), Addr: addr}); err != nil {
			t.Fatal(err)
		}
	}
	opt, _ := quiet()
	creds := grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool}))
	named := WithServerName(func(in registry.Instance) string { return in.ID + ".example" })
	spread(t, dial(t, reg, []Option{opt, named, WithServiceConfig(roundRobin)}, creds), 2)

	_, err := call(t, dial(t, reg, []Option{opt}, creds))
	if err == nil || !strings.Contains(err.Error(), "not orders") {
		t.Errorf("without WithServerName: got %v, want an error that names the expected \"orders\"", err)
	}
}

func TestAThousandComeAndLeave(t *testing.T) {
	leak.Check(t)
	w := new(script)
	addrs := serveN(t, 1)
	keep := registry.Instance{ID: "keep", Addr: addrs[0]}
	w.set, w.known = []registry.Instance{keep}, true
	for i := range 999 {
		w.set = append(w.set, registry.Instance{ID: fmt.Sprint(i), Addr: fmt.Sprintf("127.%d.%d.1:1", 1+i/250, i%250)})
	}
	opt, _ := quiet()
	b := NewBuilder(w, opt, WithHold(100*time.Millisecond)).(*builder)
	cc := &fakeConn{lights: true}
	r := build(t, b, cc)
	waitUntil(t, "all 1,000", func() bool { return cc.total() == 1 })
	w.mu.Lock()
	w.set = []registry.Instance{keep}
	w.signalLocked()
	w.mu.Unlock()
	waitUntil(t, "one left", func() bool {
		st, _ := cc.last()
		return len(st.Endpoints) == 1
	})
	cc.close(r)
	if got := len(b.services["orders"].core.served); got != 1 {
		t.Errorf("%d remembered, want 1", got)
	}
}

// A registry that fails with what looks like a canceled context has failed all the same.
func TestACanceledErrorIsAnOutageWhileTheConnectionLives(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	reg.Fail(fmt.Errorf("the agent said: %w", context.Canceled))
	opt, j := quiet()
	conn := dial(t, reg, []Option{opt})
	if _, err := call(t, conn); !strings.Contains(fmt.Sprint(err), "the agent said") {
		t.Errorf("got %v, want the registry's reason", err)
	}
	waitUntil(t, "the outage in the log", func() bool { return j.count(msgNothing) == 1 })
}
