// Package testconsul runs a real Consul server for a test, and kills, freezes and restarts it on demand.
//
// The server is the pinned one that "make tools" builds into tools/bin at the repository's root (or the one that
// EVENKEEL_CONSUL names). It runs as a single development server: everything is in memory, every port is a free
// one on 127.0.0.1, and its log is in the file consul.log of its directory, so that servers do not disturb each
// other or the terminal. Starting takes about a second; [Start] returns once the server is its own leader
// and its agent has sent its state to the catalog, which is when queries and registrations begin to work.
//
// What a test does to it is what happens to a real one:
//
//   - [Server.Kill] is a crash (SIGKILL). Connections break, and the port refuses new ones.
//   - [Server.StartAgain] brings it back on the same ports, with nothing in it: no services, no checks. Indexes
//     of blocking queries start again from 1.
//   - [Server.Pause] freezes it (SIGSTOP): connections stay open and are even accepted, and nobody answers.
//     [Server.Continue] thaws it; TTL checks that ran out meanwhile are critical then.
//
// Ports are taken from below the range that the kernel gives to outgoing connections. With one of those, a client
// that keeps dialling a killed server's port on loopback sooner or later connects to itself and holds the port.
//
// Tests call Start, which ends the server with the test; a program or a TestMain calls [StartProcess] and
// [Server.Stop]. On Linux the kernel ends the server also when the process that started it dies.
package testconsul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	// startTime is how long one attempt to start may take on a busy machine.
	startTime = 45 * time.Second
	// attempts is how many sets of ports are tried before giving up.
	attempts = 5
)

// errMissing is the one line that a developer sees who has not built the server yet.
var errMissing = errors.New(`consul server not built: run "make tools" in the repository's root`)

// Option changes how a server is started.
type Option func(*options)

type options struct {
	token             string
	ca, cert, certKey string
}

// WithACL switches ACLs on, with everything denied by default, and makes token, a UUID, the management token.
func WithACL(token string) Option { return func(o *options) { o.token = token } }

// WithTLS opens an HTTPS port beside the HTTP one. The arguments are paths of PEM files: the authority that
// clients' certificates are checked against, and the server's certificate and key. Clients need a certificate.
func WithTLS(ca, cert, key string) Option {
	return func(o *options) { o.ca, o.cert, o.certKey = ca, cert, key }
}

// Server is a running Consul server. It is safe for concurrent use.
type Server struct {
	bin, dir string
	opts     options
	ports    ports

	mu   sync.Mutex // guards proc, and orders what is done to the process
	proc *process   // nil once killed
}

// Start runs a server that ends with the test. Options are [WithACL] and [WithTLS]. A server that cannot be
// started, or is not built, fails the test.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := StartProcess(tb.TempDir(), opts...)
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

// StartProcess runs a server whose files are in dir, an existing directory. The caller calls [Server.Stop].
func StartProcess(dir string, opts ...Option) (*Server, error) {
	bin, err := binary()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir}
	for _, opt := range opts {
		opt(&s.opts)
	}
	for range attempts {
		if s.ports, err = freePorts(s.opts.cert != ""); err != nil {
			return nil, err
		}
		err = s.StartAgain()
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Addr is the host:port of the HTTP API. It stays the same when the server is started again.
func (s *Server) Addr() string { return addr(s.ports.HTTP) }

// HTTPSAddr is the host:port of the HTTPS API of a server that was started [WithTLS].
func (s *Server) HTTPSAddr() string { return addr(s.ports.HTTPS) }

// Client returns an API client with the management token, if there is one.
func (s *Server) Client() *api.Client {
	// A client that is configured this plainly is never refused.
	c, err := api.NewClient(&api.Config{Address: s.Addr(), Scheme: "http", Token: s.opts.token})
	if err != nil {
		panic(err)
	}
	return c
}

// Kill ends the server at once (SIGKILL) and waits until it has gone. Killing a killed server does nothing.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.killLocked()
}

// Stop is Kill; it is what an owner calls last.
func (s *Server) Stop() error { return s.Kill() }

// Pause freezes the server (SIGSTOP) until [Server.Continue]. On Linux it returns once the last thread has stopped,
// so that nothing is answered after it; elsewhere a request or two may still be.
func (s *Server) Pause() error { return s.signal(sigStop) }

// Continue thaws a frozen server (SIGCONT).
func (s *Server) Continue() error { return s.signal(sigCont) }

// StartAgain starts a server that was killed, on the same ports and empty, and waits until it is ready. A server
// that still runs is killed first.
func (s *Server) StartAgain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.killLocked(); err != nil {
		return err
	}
	file := filepath.Join(s.dir, "consul.json")
	if err := s.writeConfig(file); err != nil {
		return err
	}
	p, err := run(exec.Command(s.bin, "agent", "-dev", "-config-file="+file), filepath.Join(s.dir, "consul.log"))
	if err != nil {
		return fmt.Errorf("testconsul: start %s: %w", s.bin, err)
	}
	s.proc = p
	if err := s.waitReady(p); err != nil {
		return errors.Join(err, s.killLocked())
	}
	return nil
}

func (s *Server) killLocked() error {
	p := s.proc
	s.proc = nil
	if p == nil {
		return nil
	}
	return p.kill()
}

func (s *Server) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return fmt.Errorf("testconsul: %v: the server is not running", sig)
	}
	if err := s.proc.cmd.Process.Signal(sig); err != nil || sig != sigStop {
		return err
	}
	return waitFrozen(s.proc.cmd.Process.Pid)
}

// writeConfig writes what -dev leaves open.
func (s *Server) writeConfig(file string) error {
	config := map[string]any{
		"node_name":            "test",
		"bind_addr":            loopback,
		"advertise_addr":       loopback,
		"client_addr":          loopback,
		"ports":                s.ports,
		"log_level":            "info",
		"disable_update_check": true,
		// The default limit is 200 connections an address, and a test's clients all come from one.
		"limits": map[string]any{"http_max_conns_per_client": 5000},
	}
	if s.opts.token != "" {
		config["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny",
			"tokens": map[string]any{"initial_management": s.opts.token, "agent": s.opts.token},
		}
	}
	if s.opts.cert != "" {
		config["tls"] = map[string]any{"https": map[string]any{
			"ca_file": s.opts.ca, "cert_file": s.opts.cert, "key_file": s.opts.certKey, "verify_incoming": true,
		}}
	}
	b, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// waitReady polls until the server answers with the whole truth: its election is won, and its agent has sent its
// first full state to the catalog (which is where the node's tagged addresses come from). Before the election every
// query fails. Before the full state nothing that is registered arrives in the catalog; and if a registration is
// under way at the moment when it is to be sent, the agent tries again only after 15 to 30 seconds.
func (s *Server) waitReady(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	client := s.Client()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		q := (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
		found, _, err := client.Health().Service("consul", "", true, q)
		if err == nil && len(found) == 1 && len(found[0].Node.TaggedAddresses) > 0 {
			return nil
		}
		select {
		case <-p.ended:
			log := p.logTail()
			if strings.Contains(log, "address already in use") {
				return fmt.Errorf("testconsul: %w:\n%s", errPortTaken, log)
			}
			return fmt.Errorf("testconsul: the server ended while starting: %w:\n%s", p.err, log)
		case <-ctx.Done():
			return fmt.Errorf("testconsul: the server is not ready after %v:\n%s", startTime, p.logTail())
		case <-tick.C:
		}
	}
}

// binary finds the server: the one that EVENKEEL_CONSUL names, else tools/bin/consul of the nearest directory above
// the working directory that has one.
func binary() (string, error) {
	if bin := os.Getenv("EVENKEEL_CONSUL"); bin != "" {
		if _, err := os.Stat(bin); err != nil {
			return "", fmt.Errorf("testconsul: EVENKEEL_CONSUL = %q, want the path of a consul server: %w", bin, err)
		}
		return bin, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	name := "consul"
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
