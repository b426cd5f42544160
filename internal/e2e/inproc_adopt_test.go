package e2e

import (
	"bytes"
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
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
)

// authority signs certificates for the instances of one test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

// server is what an instance called name presents.
func (a *authority) server(t *testing.T, name string) credentials.TransportCredentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

// client trusts the authority.
func (a *authority) client() grpc.DialOption {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(pool, ""))
}

// Every instance has a certificate of its own. With WithServerName each is checked against its own name; without
// it against the service's, which none of them has, and the error says so.
func TestServerNames(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	name := func(in registry.Instance) string { return in.ID + ".internal" }
	reg := memory.New()
	ls := fleet(t, reg, 3, func(i int) spec {
		return spec{creds: ca.server(t, fmt.Sprintf("orders-%d.internal", i))}
	})
	conn := connect(t, "lb:///orders", resolver.NewBuilder(reg, balanced(balancer.Config{}), resolver.WithServerName(name)), ca.client())
	warm(t, conn, ls)
	c := call(t.Context(), conn, 300)
	c.share(t, "with names", 0, idsOf(ls)...)
	t.Log("with names:", c)

	conn = connect(t, "lb:///orders", resolver.NewBuilder(reg, balanced(balancer.Config{})), ca.client())
	c = call(t.Context(), conn, 10)
	t.Log("switched off:", c)
	if len(c.errs) != 10 {
		t.Fatalf("%v, want all calls to fail", c)
	}
	for _, err := range c.errs {
		// x509 names what the certificate has and what was wanted.
		if text := err.Error(); status.Code(err) != codes.Unavailable || !strings.Contains(text, ".internal, not orders") {
			t.Errorf("%v, want UNAVAILABLE with the name that the certificate has and the one expected", err)
		}
	}
}

// logged is a log that a test reads.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// lines returns the lines that contain text.
func (l *logged) lines(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// An app adds the resolver and nothing else: gRPC's silent default sends all calls to one instance, and the log says
// so once, and which option mends it. With the option it says nothing.
func TestResolverAlone(t *testing.T) {
	t.Parallel()
	reg := memory.New()
	ls := fleet(t, reg, 3, nil)
	const complaint = "all calls go to one instance"

	var alone, mended logged
	builder := resolver.NewBuilder(reg, resolver.WithLogger(alone.logger()))
	conn := connect(t, "lb:///orders", builder)
	c := call(t.Context(), conn, 90)
	t.Log("resolver alone:", c)
	if len(c.by) != 1 {
		t.Errorf("%v, want all calls at one instance: this test proves nothing", c)
	}
	with := connect(t, "lb:///orders", resolver.NewBuilder(reg, balanced(balancer.Config{}), resolver.WithLogger(mended.logger())))
	warm(t, with, ls)
	c = call(t.Context(), with, 90)
	c.share(t, "with the option", 0, idsOf(ls)...)
	t.Log("with the option:", c)

	eventually(t, 10*time.Second, func() error {
		if len(alone.lines(complaint)) == 0 {
			return fmt.Errorf("no line says that %s", complaint)
		}
		return nil
	})
	// What could make it say so again: an update, another connection of the same builder, time.
	call(t.Context(), connect(t, "lb:///orders", builder), 1)
	for i := range 3 {
		ls[i].change(t, func(in *registry.Instance) { in.Weight = 7 })
	}
	elapse(t, 1500*time.Millisecond)
	got := alone.lines(complaint)
	if len(got) != 1 || !strings.Contains(got[0], "resolver.WithServiceConfig(balancer.ServiceConfig(") {
		t.Errorf("the log says %q, want one line that names the option", got)
	}
	t.Log(got)
	if got := mended.lines(""); len(got) > 0 {
		t.Errorf("with the option the log says %q, want nothing", got)
	}
}

// A malformed record among the others changes nothing for them, whether the registry leaves it out or passes it on.
func TestMalformedRecord(t *testing.T) {
	t.Parallel()
	bad := registry.Instance{ID: "bad", Addr: "127.0.0.1", Labels: map[string]string{"a b": "c"}}
	reg := memory.New()
	ls := fleet(t, reg, 3, nil)
	for _, row := range []struct {
		name string
		w    registry.Watcher
		spy  bool
	}{{"left out", reg, false}, {"passed on", careless{reg, bad}, true}} {
		var log logged
		remove := reg.PutForeign("orders", bad)
		conn := connect(t, "lb:///orders", resolver.NewBuilder(row.w, balanced(balancer.Config{}), resolver.WithLogger(log.logger())))
		warm(t, conn, ls)
		c := call(t.Context(), conn, 90)
		c.share(t, row.name, 0, idsOf(ls)...)
		if lines := log.lines("malformed"); row.spy && (len(lines) != 1 || !strings.Contains(lines[0], "bad")) {
			t.Errorf("%s: the log says %q, want one line that names the record", row.name, lines)
		}
		t.Log(row.name, c, log.lines("malformed"))
		remove()
		_ = conn.Close()
	}
}

// careless is a watcher of a registry that checks nothing.
type careless struct {
	registry.Watcher
	bad registry.Instance
}

// Watch implements registry.Watcher.
func (w careless) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	return w.Watcher.Watch(ctx, service, func(set []registry.Instance) {
		update(append([]registry.Instance{w.bad.Clone()}, set...))
	})
}

// A call that nobody can serve yet waits if it says so, and fails at once with all the facts if it does not.
func TestNobodyMatches(t *testing.T) {
	t.Parallel()
	reg := memory.New()
	ls := fleet(t, reg, 3, nil)
	conn := dial(t, reg, balancer.Config{})
	ready(t, conn, ls)
	ls[0].does(fails(status.Error(codes.Unavailable, "told to fail")))
	eventually(t, 20*time.Second, func() error {
		call(t.Context(), conn, 3)
		return ejectedAt(ls[0].addr)
	})

	ctx, cancel := context.WithTimeout(filters.NewContext(t.Context(), toCanary, "orders"), time.Minute)
	defer cancel()
	type answer struct {
		who string
		err error
	}
	waited := make(chan answer, 1)
	go func() {
		who, err := greeter.Hello(ctx, conn, "you", grpc.WaitForReady(true))
		waited <- answer{who, err}
	}()
	_, err := greeter.Hello(ctx, conn, "you")
	t.Log("without waiting:", err)
	const want = `evenkeel: service "orders": no instance matches: filter "track=canary": 3 known, 3 connected, 0 match, 1 blacklisted`
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
		t.Errorf("without waiting: %v, want UNAVAILABLE and %s", err, want)
	}
	elapse(t, 100*time.Millisecond)
	select {
	case a := <-waited:
		t.Fatalf("the call that waits ended before there was a match: %v", a)
	default:
	}
	canary := startLocal(t, reg, canarySpec("canary"))
	if a := <-waited; a.err != nil || a.who != canary.id {
		t.Errorf("the call that waits: %v, want the canary's answer", a)
	}
}

// The app's service config asks for gRPC's own health checking, beside the policy: an instance that says NOT_SERVING
// gets no calls, and gets them again when it says SERVING.
func TestClientSideHealthChecking(t *testing.T) {
	const policy = `"loadBalancingConfig":[{"evenkeel":{}}]`
	for _, row := range []struct {
		name, config string
	}{
		{"asked for", `{"healthCheckConfig":{"serviceName":""},` + policy + `}`},
		{"switched off", `{` + policy + `}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			checked := strings.Contains(row.config, "health")
			reg := memory.New()
			h := health.NewServer()
			ls := fleet(t, reg, 3, func(i int) spec {
				if i == 0 {
					return spec{health: h}
				}
				return spec{}
			})
			// The app's own config, and a resolver that brings none.
			conn := connect(t, "lb:///orders", resolver.NewBuilder(reg), grpc.WithDefaultServiceConfig(row.config))
			warm(t, conn, ls)
			call(t.Context(), conn, 90).share(t, "SERVING", 0, idsOf(ls)...)

			h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
			if checked {
				eventually(t, 20*time.Second, func() error { return inState(ls[0], connectivity.TransientFailure) })
			} else {
				elapse(t, 300*time.Millisecond)
			}
			c := call(t.Context(), conn, 90)
			t.Log("NOT_SERVING:", c)
			if checked {
				c.share(t, "NOT_SERVING", 15, idsOf(ls[1:])...) // the turn may not know yet that one is missing
			} else if c.by[ls[0].id] == 0 {
				t.Error("it got no calls though nobody checks: this test proves nothing")
			}

			h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			warm(t, conn, ls)
			c = call(t.Context(), conn, 90)
			t.Log("SERVING again:", c)
			c.share(t, "SERVING again", 0, idsOf(ls)...)
			if n := ls[0].conns.opened.Load(); n != 1 {
				t.Errorf("%d connections opened, want 1: health is no reason to reconnect", n)
			}
		})
	}
}

// inState reports nil once the instance's endpoint is in state s.
func inState(l *local, s connectivity.State) error {
	c, err := channelOf(l)
	if err != nil {
		return err
	}
	for _, e := range c.Endpoints {
		if e.Instance.ID == l.id && e.State != s {
			return fmt.Errorf("%s is %v, want %v", l.id, e.State, s)
		}
	}
	return nil
}

// nobody is an address of this machine at which nobody listens: the port is the TCP multiplexer's, long forgotten.
const nobody = "127.0.0.1:1"

// Instances may have IPv6 addresses, and several addresses: one that refuses does not matter while another answers,
// and does without.
func TestAddresses(t *testing.T) {
	t.Parallel()
	reg := memory.New()
	plain := startLocal(t, reg, spec{Instance: registry.Instance{ID: "plain"}})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := lis.Addr().String()
	_ = lis.Close()
	alt := startLocal(t, reg, spec{
		Instance: registry.Instance{ID: "alternate", Addr: nobody, AltAddrs: []string{other}}, listen: other,
	})
	alt.addr = nobody // what it is known by
	ls := []*local{plain, alt}
	if lis, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = lis.Close()
		v6 := startLocal(t, reg, spec{Instance: registry.Instance{ID: "v6"}, listen: "[::1]:0"})
		if !strings.HasPrefix(v6.ann.Instance().Addr, "[::1]:") {
			t.Errorf("announced %q, want the IPv6 address", v6.ann.Instance().Addr)
		}
		ls = append(ls, v6)
	} else {
		t.Log("this machine has no IPv6, so that part is left out:", err)
	}
	conn := dial(t, reg, balancer.Config{})
	warm(t, conn, ls)
	c := call(t.Context(), conn, 30*len(ls))
	c.share(t, "all", 0, idsOf(ls)...)
	t.Log(c)

	// The same without the alternate address.
	reg = memory.New()
	reg.PutForeign("orders", registry.Instance{ID: "alternate", Addr: nobody})
	conn = dial(t, reg, balancer.Config{})
	c = call(t.Context(), conn, 1)
	t.Log("switched off:", c)
	if len(c.errs) != 1 || !strings.Contains(c.errs[0].Error(), nobody) {
		t.Errorf("%v, want a failure that names %s", c, nobody)
	}
}
