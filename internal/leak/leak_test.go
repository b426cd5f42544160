package leak

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// recorder is a test that check runs in; it keeps what it would fail with.
type recorder struct {
	testing.TB
	cleanups []func()
	failures []string
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// end runs the cleanups, the last one first, as package testing does.
func (r *recorder) end() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func waitForClose(c chan struct{}) { <-c }

func TestCheckReportsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{TB: t}
		stop := make(chan struct{})
		defer close(stop)
		check(r, patience)
		go waitForClose(stop)

		start := time.Now()
		r.end()
		if len(r.failures) != 1 {
			t.Fatalf("%d failures, want 1: %q", len(r.failures), r.failures)
		}
		for _, want := range []string{"1 goroutines are left", "leak.waitForClose"} {
			if !strings.Contains(r.failures[0], want) {
				t.Errorf("failure %q, want %q in it", r.failures[0], want)
			}
		}
		if got := time.Since(start); got < patience || got > patience+time.Second {
			t.Errorf("gave up after %v, want %v", got, patience)
		}
	})
}

func TestCheckWaitsForLateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{TB: t}
		check(r, patience)
		stop := make(chan struct{})
		go waitForClose(stop)
		time.AfterFunc(patience/2, func() { close(stop) })

		start := time.Now()
		r.end()
		if len(r.failures) != 0 {
			t.Errorf("failures %q, want none", r.failures)
		}
		if got := time.Since(start); got > patience/2+time.Second {
			t.Errorf("waited %v, want it to stop when the goroutine does, after %v", got, patience/2)
		}
	})
}

func TestCheckIgnores(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	go waitForClose(stop) // there before

	r := &recorder{TB: t}
	check(r, 0)
	r.end()
	if len(r.failures) != 0 {
		t.Errorf("failures %q, want none for what was there before", r.failures)
	}
}

func TestCounts(t *testing.T) {
	const head = "goroutine 7 [chan receive, 2 minutes]:\n"
	for name, c := range map[string]struct {
		stack string
		want  bool
	}{
		"a function of this module": {head + "github.com/evenkeel/evenkeel/resolver.(*watch).run(0xc0)\n\t/x/w.go:1\n", true},
		"started by this module": {head + "net.(*conn).Read()\n\t/x/n.go:1\n" +
			"created by github.com/evenkeel/evenkeel/server.Serve in goroutine 1\n\t/x/s.go:1\n", true},
		"grpc":                 {head + "google.golang.org/grpc.(*ClientConn).run()\n\t/x/c.go:1\n", true},
		"below grpc":           {head + "google.golang.org/grpc/internal/transport.(*loopyWriter).run()\n\t/x/t.go:1\n", true},
		"another module":       {head + "google.golang.org/grpcother.run()\n\t/x/o.go:1\n", false},
		"an argument, a place": {head + "main.run(...)\n\t/src/github.com/evenkeel/evenkeel/x.go:1\n", false},
		"an HTTP pool":         {head + "net/http.(*persistConn).readLoop()\n\t/x/h.go:1\n", false},
	} {
		if got := (goroutine{stack: c.stack}).counts(); got != c.want {
			t.Errorf("%s: counts() = %v, want %v", name, got, c.want)
		}
	}
}

// TestCheckGRPC is the real thing: a server and a client that connected, left running and then stopped.
func TestCheckGRPC(t *testing.T) {
	during, after := &recorder{TB: t}, &recorder{TB: t}
	check(during, 0)
	check(after, patience)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	conn.Connect()

	during.end()
	if len(during.failures) != 1 {
		t.Errorf("%d failures with a server and a client running, want 1: %q", len(during.failures), during.failures)
	}
	_ = conn.Close()
	s.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	after.end()
	if len(after.failures) != 0 {
		t.Errorf("failures %q when both are stopped, want none", after.failures)
	}
}

// TestParallelIsRefused runs itself in a process of its own, where Check and Parallel meet.
func TestParallelIsRefused(t *testing.T) {
	const env = "EVENKEEL_LEAK_PARALLEL"
	if os.Getenv(env) != "" {
		Check(t)
		t.Parallel()
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestParallelIsRefused$")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "can not use t.Parallel") {
		t.Errorf("a parallel test with Check ended with %v, want a panic of package testing:\n%s", err, out)
	}
}
