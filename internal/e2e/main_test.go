package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/consul"
	"github.com/evenkeel/evenkeel/server"
)

// TestMain runs the tests, or, in a process that a test started, one instance of the service.
func TestMain(m *testing.M) {
	if text := os.Getenv("EVENKEEL_E2E_INSTANCE"); text != "" {
		var o orders
		err := json.Unmarshal([]byte(text), &o)
		if err == nil {
			err = o.run(context.Background())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// orders is one instance of the service "orders".
type orders struct {
	ID         string
	Consul     string // its address
	Addr       string // to listen on; empty means any port
	Labels     map[string]string
	DrainDelay time.Duration
	Abrupt     bool          // exits at the first SIGTERM, as a server without package server does
	Delay      time.Duration // of every answer
	Code       codes.Code
	TTL        time.Duration
}

// run serves until a signal comes, and prints its address once it is announced.
func (o *orders) run(ctx context.Context) error {
	reg, err := consul.New(consul.Config{Address: o.Consul, Check: consul.Check{TTL: o.TTL}})
	if err != nil {
		return err
	}
	defer reg.Close()
	lis, err := net.Listen("tcp", addrOr(o.Addr))
	if err != nil {
		return err
	}
	if o.Abrupt {
		context.AfterFunc(signalContext(ctx), func() { os.Exit(0) })
	}
	return server.Serve(ctx, o.server(), lis, server.Config{
		Registrar:  reg,
		Service:    "orders",
		Instance:   registry.Instance{ID: o.ID, Labels: o.Labels},
		DrainDelay: o.DrainDelay,
		NoSignals:  o.Abrupt,
		Announced:  func(*server.Announcement) { fmt.Println("announced", lis.Addr()) },
	})
}

func (o *orders) server() *grpc.Server {
	s := grpc.NewServer()
	greeter.Register(s, greeter.HelloFunc(func(ctx context.Context, _ string) (string, error) {
		if o.Delay > 0 {
			select {
			case <-time.After(o.Delay): // it is working
			case <-ctx.Done():
			}
		}
		if o.Code != codes.OK {
			return "", status.Error(o.Code, "told to fail")
		}
		return o.ID, nil
	}))
	return s
}

func addrOr(addr string) string {
	if addr == "" {
		return "127.0.0.1:0"
	}
	return addr
}

// process is an instance in a process of its own.
type process struct {
	orders
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	addr  string
}

// start runs an instance and waits until it is announced.
func start(t *testing.T, o orders) *process {
	t.Helper()
	p, err := launch(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func launch(t *testing.T, o orders) (*process, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	p := &process{orders: o, cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "EVENKEEL_E2E_INSTANCE="+string(text))
	p.cmd.Stderr = os.Stderr
	if testing.Verbose() {
		p.cmd.Stderr = &prefixed{prefix: o.ID + ": ", t: t}
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	announced := make(chan string, 1)
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if addr, ok := strings.CutPrefix(lines.Text(), "announced "); ok {
				announced <- addr
			}
		}
		_ = p.cmd.Wait() // its exit status is judged by whoever ends it
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	select {
	case p.addr = <-announced:
		return p, nil
	case <-p.ended:
		return nil, fmt.Errorf("instance %s ended before it was announced", o.ID)
	case <-time.After(60 * time.Second):
		return nil, fmt.Errorf("instance %s was not announced within 60 s", o.ID)
	}
}

// prefixed passes a process's log on to the test's.
type prefixed struct {
	prefix string
	t      *testing.T
	mu     sync.Mutex
	over   bool
}

func (w *prefixed) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		fmt.Fprint(os.Stderr, w.prefix, string(b))
	}
	return len(b), nil
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%s: %v: %v", p.ID, s, err)
	}
}

// wait waits for the process to end.
func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(60 * time.Second):
		t.Fatalf("%s has not ended within 60 s", p.ID)
	}
}

var errStillThere = errors.New("not yet")

// eventually polls until cond returns nil; real processes and real networks have no other clock.
func eventually(t *testing.T, within time.Duration, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		<-tick.C
	}
}

// elapse lets real time go by, while something outside of this process is as it is.
func elapse(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
