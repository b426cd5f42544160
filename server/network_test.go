package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/registry"
)

// onNetwork serves on a real listener until the test ends.
func onNetwork(t *testing.T, lis net.Listener, opts ...grpc.ServerOption) (u *under, announced registry.Instance) {
	t.Helper()
	u = newUnder()
	u.s = grpc.NewServer(opts...)
	testgrpc.RegisterTestServiceServer(u.s, u.echo)
	if lis.Addr().Network() != "unix" {
		u.cfg.Instance.Addr = ""
	}
	u.cfg.DrainDelay, u.cfg.StopTimeout = time.Millisecond, 200*time.Millisecond
	got := make(chan registry.Instance, 1)
	u.cfg.Announced = func(a *Announcement) { got <- a.Instance() }
	ctx, cancel := context.WithCancel(context.Background())
	u.cancel = cancel
	t.Cleanup(cancel)
	go func() { u.result <- serve(ctx, u.s, lis, u.cfg, nil) }()
	select {
	case announced = <-got:
	case err := <-u.result:
		t.Fatalf("Serve = %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("not announced after 10 s")
	}
	return u, announced
}

func callOnce(t *testing.T, target string, creds credentials.TransportCredentials) {
	t.Helper()
	cc, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := testgrpc.NewTestServiceClient(cc).EmptyCall(ctx, &testgrpc.Empty{}); err != nil {
		t.Errorf("call to %s: %v", target, err)
	}
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	lis, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return lis
}

func TestAnnouncedAddressIsReached(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			u, in := onNetwork(t, listen(t, "tcp", addr))
			for _, addr := range append([]string{in.Addr}, in.AltAddrs...) {
				callOnce(t, addr, insecure.NewCredentials())
			}
			u.cancel()
			if err := <-u.result; err != nil {
				t.Errorf("Serve = %v, want nil", err)
			}
		})
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	u, _ := onNetwork(t, listen(t, "unix", path))
	callOnce(t, "unix:"+path, insecure.NewCredentials())
	u.cancel()
	if err := <-u.result; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"orders"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	u, in := onNetwork(t, listen(t, "tcp", "127.0.0.1:0"), grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	callOnce(t, in.Addr, credentials.NewClientTLSFromCert(roots, "orders"))
	u.cancel()
	if err := <-u.result; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
}

// A peer that connects and says nothing holds up grpc's GracefulStop and Stop for two minutes, and with them every
// stream: Stop waits for handshakes before it closes anything.
func TestSilentPeerDoesNotHoldUpTheStop(t *testing.T) {
	u, in := onNetwork(t, listen(t, "tcp", "127.0.0.1:0"))
	cc, err := grpc.NewClient(in.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := testgrpc.NewTestServiceClient(cc).FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("tcp", in.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	callOnce(t, in.Addr, insecure.NewCredentials()) // connects later: by then the silent one has been accepted

	begin := time.Now()
	u.cancel()
	if err := <-u.result; !errors.Is(err, ErrNotGraceful) {
		t.Errorf("Serve = %v, want ErrNotGraceful", err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("Serve took %v to stop, want about its StopTimeout of %v", d, u.cfg.StopTimeout)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v, want it cut", err)
	}
	_ = silent.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, silent); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the silent connection is open, want it closed")
	}
}

func TestListenerForgetsClosedConnections(t *testing.T) {
	base := listen(t, "tcp", "127.0.0.1:0")
	l := &listener{Listener: base, accepting: func() {}, closed: func() {}}
	defer l.Close()
	for range 1000 {
		c, err := net.Dial("tcp", base.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = s.Close()
		if len(l.conns) >= l.sweep {
			runtime.GC() // so that the next sweep finds the closed ones gone
		}
	}
	if n := len(l.conns); n > 200 {
		t.Errorf("%d connections remembered, want those of the last sweeps only", n)
	}
	l.cutAll()
	c, err := net.Dial("tcp", base.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read from a connection accepted after cutAll: %v, want it closed", err)
	}
}
