// Package testjaeger runs a real Jaeger for a test or an example, and reads traces back from it.
//
// The server is the pinned one that "make tools" builds into tools/bin at the repository's root (or the one that
// EVENKEEL_JAEGER names): collector, storage in memory and query service in one process. Every port is a free one on
// 127.0.0.1, and its log is in the file jaeger.log of its directory, so that servers disturb neither each other nor the
// terminal. It is ready in well under a second.
//
// Spans go in by OTLP over gRPC, at [Server.OTLP]. They come out of the query API at [Server.URL], the one that Jaeger's
// pages are made from, by [Query.Trace]. What was sent last is not there at once: [Query.Wait] asks until it is.
//
// The binary has no pages of its own, since Jaeger's build takes them from another repository; the API has all that they
// show, as JSON.
//
// Tests call [Start], which ends the server with the test; a program calls [StartProcess] and [Server.Stop]. On Linux the
// kernel ends the server also when the process that started it dies.
package testjaeger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	loopback = "127.0.0.1"
	// Ports outside the ranges that systems use for outgoing connections.
	firstPort, lastPort = 20000, 32000
	// startTime is how long one attempt to start may take on a busy machine.
	startTime = 30 * time.Second
	// attempts is how many sets of ports are tried before giving up.
	attempts = 5
)

var (
	// errMissing is the one line that a developer sees who has not built the server yet.
	errMissing   = errors.New(`jaeger not built: run "make tools" in the repository's root`)
	errPortTaken = errors.New("a port was taken meanwhile")
)

// Server is a running Jaeger. Its methods may be called from any goroutine.
type Server struct {
	Query
	otlp  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error // how the process ended, once ended is closed
}

// Start runs a server that ends with the test. One that cannot be started, or is not built, fails the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s, err := StartProcess(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// StartProcess runs a server whose log is in dir, an existing directory. The caller calls [Server.Stop].
func StartProcess(dir string) (s *Server, err error) {
	bin, err := binary()
	if err != nil {
		return nil, err
	}
	for range attempts {
		if s, err = start(bin, dir); !errors.Is(err, errPortTaken) {
			break
		}
	}
	return s, err
}

// OTLP is the host:port that takes spans by OTLP over gRPC, without TLS.
func (s *Server) OTLP() string { return s.otlp }

// Stop ends the server at once and waits until it has gone. Stopping twice does nothing.
func (s *Server) Stop() error {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("testjaeger: kill: %w", err)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("testjaeger: process %d did not end within 10 s of being killed", s.cmd.Process.Pid)
	}
}

func start(bin, dir string) (*Server, error) {
	query, err := freePort()
	if err != nil {
		return nil, err
	}
	otlp, err := freePort()
	if err != nil {
		return nil, err
	}
	agent, err := freePort()
	if err != nil {
		return nil, err
	}
	const unused = loopback + ":0" // it cannot be switched off
	s := &Server{Query: Query{URL: "http://" + query}, otlp: otlp, log: filepath.Join(dir, "jaeger.log"), ended: make(chan struct{})}
	s.cmd = exec.Command(bin,
		"--query.http-server.host-port="+query, "--collector.otlp.grpc.host-port="+otlp,
		"--collector.grpc-server.host-port="+agent, // its own agent connects there
		"--query.grpc-server.host-port="+unused, "--collector.http-server.host-port="+unused, "--admin.http.host-port="+unused,
		"--collector.otlp.http.host-port="+unused, "--http-server.host-port="+unused,
		"--processor.jaeger-binary.server-host-port="+unused, "--processor.jaeger-compact.server-host-port="+unused,
		"--processor.zipkin-compact.server-host-port="+unused)
	s.cmd.Env = append(os.Environ(), "SPAN_STORAGE_TYPE=memory", "OTEL_TRACES_SAMPLER=always_off") // no traces of its own
	s.cmd.SysProcAttr = sysProcAttr()
	if err := s.run(); err != nil {
		return nil, fmt.Errorf("testjaeger: start %s: %w", bin, err)
	}
	if err := s.waitReady(); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// run starts the process. A goroutine of its own starts it, waits for it and closes ended.
func (s *Server) run() error {
	out, err := os.Create(s.log)
	if err != nil {
		return err
	}
	s.cmd.Stdout, s.cmd.Stderr = out, out
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the thread that started the child ends, so that thread stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.ended)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.err = s.cmd.Wait()
		}
		_ = out.Close()
	}()
	if err := <-started; err != nil {
		<-s.ended
		return err
	}
	return nil
}

// waitReady waits until both ports that are used answer.
func (s *Server) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.answers(ctx) {
			return nil
		}
		select {
		case <-s.ended:
			log := s.logTail()
			if strings.Contains(log, "address already in use") {
				return fmt.Errorf("testjaeger: %w:\n%s", errPortTaken, log)
			}
			return fmt.Errorf("testjaeger: the server ended while starting: %w:\n%s", s.err, log)
		case <-ctx.Done():
			return fmt.Errorf("testjaeger: the server is not ready after %v:\n%s", startTime, s.logTail())
		case <-tick.C:
		}
	}
}

func (s *Server) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/services", nil)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.otlp)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return res.StatusCode == http.StatusOK
}

func (s *Server) logTail() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	const most = 4 << 10
	return string(bytes.TrimSpace(b[max(0, len(b)-most):]))
}

func freePort() (string, error) {
	for range 1000 {
		addr := net.JoinHostPort(loopback, strconv.Itoa(firstPort+rand.IntN(lastPort-firstPort)))
		if l, err := net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", fmt.Errorf("testjaeger: no free port from %d to %d in 1000 tries", firstPort, lastPort)
}

// binary finds the server from the working directory up.
func binary() (string, error) {
	if bin := os.Getenv("EVENKEEL_JAEGER"); bin != "" {
		if _, err := os.Stat(bin); err != nil {
			return "", fmt.Errorf("testjaeger: EVENKEEL_JAEGER = %q, want the path of a jaeger all-in-one: %w", bin, err)
		}
		return bin, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	name := "jaeger"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	for {
		bin := filepath.Join(dir, "tools", "bin", name)
		if info, err := os.Stat(bin); err == nil && !info.IsDir() {
			return bin, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errMissing
		}
		dir = parent
	}
}
