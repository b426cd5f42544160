package testconsul

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// TestLife takes one server through everything a test may do to it.
func TestLife(t *testing.T) {
	s := Start(t)
	agent := s.Client().Agent()
	if err := agent.ServiceRegister(&api.AgentServiceRegistration{ID: "a", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	impatient := &http.Client{Timeout: 300 * time.Millisecond}
	if resp, err := impatient.Get("http://" + s.Addr() + "/v1/status/leader"); err == nil {
		_ = resp.Body.Close()
		t.Error("a frozen server answers")
	}
	if err := s.Continue(); err != nil {
		t.Fatal(err)
	}
	if services, err := agent.Services(); err != nil || len(services) != 1 {
		t.Errorf("after Continue: services = %v, %v, want the one", services, err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		_ = c.Close()
		t.Error("a killed server accepts connections")
	}
	if err := s.Pause(); err == nil {
		t.Error("Pause of a killed server = nil, want an error")
	}
	if err := s.Kill(); err != nil {
		t.Errorf("second Kill = %v, want nil", err)
	}
	before := s.Addr()
	if err := s.StartAgain(); err != nil {
		t.Fatal(err)
	}
	if services, err := agent.Services(); err != nil || len(services) != 0 || s.Addr() != before {
		t.Errorf("after StartAgain: services = %v, %v at %s, want none at %s", services, err, s.Addr(), before)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Errorf("Kill of a frozen server = %v, want nil", err)
	}
}

func TestACL(t *testing.T) {
	t.Parallel()
	const token = "5a1ad7f0-2c9e-4f0b-9d0e-7a1f3d9f6c11"
	s := Start(t, WithACL(token))
	if _, err := s.Client().Agent().Self(); err != nil {
		t.Errorf("with the token: %v", err)
	}
	anonymous, err := api.NewClient(&api.Config{Address: s.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := anonymous.Agent().Self(); err == nil {
		t.Error("without a token: nil, want a refusal")
	}
}

// TestPortTaken holds a port of the set, so that the server finds it taken at its start.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr(0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s := &Server{bin: bin, dir: t.TempDir()}
	if s.ports, err = freePorts(false); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if s.ports.Server, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(); !errors.Is(err, errPortTaken) {
		t.Errorf("StartAgain on a port in use = %v, want %v", err, errPortTaken)
	}
	if s.proc != nil {
		t.Error("a server that did not start is still there")
	}
}

func TestBinary(t *testing.T) {
	t.Setenv("EVENKEEL_CONSUL", "")
	t.Chdir(t.TempDir())
	if _, err := StartProcess(t.TempDir()); !errors.Is(err, errMissing) || strings.Contains(err.Error(), "\n") {
		t.Errorf("without a server: %v, want one line: %v", err, errMissing)
	}
	root := t.TempDir()
	bin := filepath.Join(root, "tools", "bin", "consul")
	deep := filepath.Join(root, "x", "y")
	if err := errors.Join(os.MkdirAll(filepath.Dir(bin), 0o755), os.MkdirAll(deep, 0o755),
		os.WriteFile(bin, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(deep)
	if got, err := binary(); err != nil || !sameFile(t, got, bin) {
		t.Errorf("binary() = %q, %v, want %q", got, err, bin)
	}
	t.Setenv("EVENKEEL_CONSUL", filepath.Join(root, "nowhere"))
	if _, err := binary(); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("EVENKEEL_CONSUL names no file: %v, want an error that names it", err)
	}
	t.Setenv("EVENKEEL_CONSUL", bin)
	if got, err := binary(); err != nil || got != bin {
		t.Errorf("binary() = %q, %v, want EVENKEEL_CONSUL's", got, err)
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	ia, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	ib, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(ia, ib)
}

// TestOrphan kills a process that started a server, and sees the server end too. The process is this test binary,
// told by the environment to be the parent.
func TestOrphan(t *testing.T) {
	if dir := os.Getenv("TESTCONSUL_PARENT"); dir != "" {
		s, err := StartProcess(dir)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(os.Stdout, "ready "+s.Addr()+"\n")
		select {}
	}
	if sysProcAttr() == nil {
		t.Skip("this system has no parent-death signal")
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOrphan$")
	cmd.Env = append(os.Environ(), "TESTCONSUL_PARENT="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	line := make([]byte, 200)
	n, err := out.Read(line)
	at, ok := strings.CutPrefix(strings.TrimSpace(string(line[:n])), "ready ")
	if err != nil || !ok {
		t.Fatalf("the parent said %q, %v, want ready", line[:n], err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.DialTimeout("tcp", at, time.Second)
		if err != nil {
			return
		}
		_ = c.Close()
		if time.Now().After(deadline) {
			t.Fatal("the server outlives the process that started it")
		}
	}
}
