//go:build unix

package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"github.com/evenkeel/evenkeel/registry"
)

// These tests run servers as processes: this test binary again, which TestMain turns into a server when the
// environment says so. The server's registry is its standard output, a line per call; the parent reads it.

const childEnv = "EVENKEEL_SERVER_TEST_DRAIN_DELAY"

func TestMain(m *testing.M) {
	if delay := os.Getenv(childEnv); delay != "" {
		childMain(delay)
	}
	os.Exit(m.Run())
}

func childMain(delay string) {
	d, err := time.ParseDuration(delay)
	if err != nil {
		panic(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, &echo{})
	err = Serve(context.Background(), s, lis, Config{
		Registrar: stdoutRegistry{}, Service: "orders", DrainDelay: d,
		Announced: func(a *Announcement) { fmt.Println("announced", a.Instance().Addr) },
	})
	fmt.Println("returned", err)
	if err != nil {
		os.Exit(3)
	}
	os.Exit(0)
}

type stdoutRegistry struct{}

func (stdoutRegistry) Register(_ context.Context, _ string, in registry.Instance) (registry.Registration, error) {
	fmt.Println("register", in.Addr)
	return stdoutRegistry{}, nil
}

func (stdoutRegistry) Update(_ context.Context, in registry.Instance) error {
	fmt.Println("update", in.Draining)
	return nil
}

func (stdoutRegistry) Close(context.Context) error { fmt.Println("close"); return nil }

// child is one server process and what it has said.
type child struct {
	cmd   *exec.Cmd
	addr  string
	lines chan string // what it says after "announced"; closed when it has ended
	err   error       // of the process; set before lines is closed
}

func startChild(t *testing.T, drainDelay string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0]), lines: make(chan string, 100)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+drainDelay)
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			c.lines <- in.Text()
		}
		_, _ = io.Copy(io.Discard, out)
		c.err = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		for range c.lines { // until it has ended
		}
	})
	c.addr = strings.TrimPrefix(c.next(t), "register ")
	if line := c.next(t); line != "announced "+c.addr { // not before: a signal then finds nothing to mark
		t.Fatalf("the server process says %q, want it announced at %q", line, c.addr)
	}
	return c
}

// next is the next line, or "" if the process has ended.
func (c *child) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-c.lines:
		return line
	case <-time.After(30 * time.Second):
		t.Fatal("the server process said nothing for 30 s")
		return ""
	}
}

func (c *child) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (c *child) client(t *testing.T) testgrpc.TestServiceClient {
	t.Helper()
	cc, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return testgrpc.NewTestServiceClient(cc)
}

// TestRealSignal stops one of two real servers under load, by callers who learn of its draining 300 ms late, as
// one does through a registry. With a delay that covers that no call fails; without it, calls do.
func TestRealSignal(t *testing.T) {
	for _, tc := range []struct {
		drainDelay string
		sig        os.Signal
		lossless   bool
	}{
		{"1s", syscall.SIGTERM, true},
		{"1s", os.Interrupt, true},
		{"-1ns", syscall.SIGTERM, false},
	} {
		t.Run(tc.drainDelay+" "+tc.sig.String(), func(t *testing.T) {
			calls, failed := rollUnderLoad(t, tc.drainDelay, tc.sig)
			t.Logf("DrainDelay %s: %d of %d calls failed", tc.drainDelay, failed, calls)
			if tc.lossless != (failed == 0) || calls < 100 {
				t.Errorf("%d of %d calls failed, want none: %v", failed, calls, tc.lossless)
			}
		})
	}
}

func rollUnderLoad(t *testing.T, drainDelay string, sig os.Signal) (calls, failed int64) {
	leaving, staying := startChild(t, drainDelay), startChild(t, drainDelay)
	clients := []testgrpc.TestServiceClient{leaving.client(t), staying.client(t)}
	var useStaying, stop atomic.Bool
	var ok, bad atomic.Int64
	var callers sync.WaitGroup
	for n := range 4 {
		callers.Go(func() {
			for i := n; !stop.Load(); i++ {
				client := clients[i%2]
				if useStaying.Load() {
					client = clients[1]
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				if _, err := client.EmptyCall(ctx, &testgrpc.Empty{}); err != nil {
					bad.Add(1)
				} else {
					ok.Add(1)
				}
				cancel()
			}
		})
	}
	for deadline := time.Now().Add(30 * time.Second); ok.Load() < 50; { // the load runs
		if time.Now().After(deadline) {
			t.Fatal("no load after 30 s")
		}
		<-time.After(time.Millisecond)
	}
	leaving.signal(t, sig)
	if line := leaving.next(t); line != "update true" {
		t.Errorf("first thing after the signal: %q, want the draining mark", line)
	}
	time.AfterFunc(300*time.Millisecond, func() { useStaying.Store(true) })
	for _, want := range []string{"close", "returned <nil>", ""} {
		if line := leaving.next(t); line != want {
			t.Errorf("the process says %q, want %q", line, want)
		}
	}
	if leaving.err != nil {
		t.Errorf("the process ended with %v, want status 0", leaving.err)
	}
	for deadline := time.Now().Add(30 * time.Second); !useStaying.Load() && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	stop.Store(true)
	callers.Wait()
	return ok.Load() + bad.Load(), bad.Load()
}

func TestRealSecondSignal(t *testing.T) {
	c := startChild(t, "10m")
	stream, err := c.client(t).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	c.signal(t, syscall.SIGTERM)
	if line := c.next(t); line != "update true" {
		t.Errorf("after the first signal: %q, want the draining mark", line)
	}
	begin := time.Now()
	c.signal(t, syscall.SIGTERM)
	if line := c.next(t); line != "close" {
		t.Errorf("after the second signal: %q, want it deregistered", line)
	}
	if line := c.next(t); !strings.Contains(line, "second signal") {
		t.Errorf("Serve %s, want an error that names the second signal", line)
	}
	c.next(t)
	var exit *exec.ExitError
	if !errors.As(c.err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("the process ended with %v, want status 3", c.err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("stopped %v after the second signal, want at once", d)
	}
}

// Signals that reach this very process: Serve hears them, and with NoSignals it does not.
func TestSignalsInProcess(t *testing.T) {
	keep := make(chan os.Signal, 4) // keeps the signals from ending the test
	signal.Notify(keep, syscall.SIGTERM)
	defer signal.Stop(keep)
	kill := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-keep
	}
	for _, noSignals := range []bool{false, true} {
		u := newUnder()
		u.cfg.NoSignals = noSignals
		u.cfg.DrainDelay = -1
		release := make(chan struct{}) // until then shutdown does not get past its first step
		u.reg.update = func(context.Context, registry.Instance) error { <-release; return nil }
		announced := make(chan struct{})
		u.cfg.Announced = func(*Announcement) { close(announced) }
		ctx, cancel := context.WithCancel(context.Background())
		go func() { u.result <- Serve(ctx, u.s, u.lis, u.cfg) }()
		<-announced
		kill()
		kill()
		if noSignals {
			cancel()
			close(release)
		}
		if err := <-u.result; errors.Is(err, ErrNotGraceful) == noSignals {
			t.Errorf("NoSignals %v: Serve = %v after two signals, want ErrNotGraceful: %v", noSignals, err, !noSignals)
		}
		cancel()
		if !noSignals {
			close(release)
		}
	}
}
