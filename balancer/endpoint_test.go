package balancer

import (
	"testing"
	"unsafe"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// TestSubConn: what is sent on is that of the connection which there is now, whatever there was before, and a change of
// the phase does not touch it.
func TestSubConn(t *testing.T) {
	first, second := &lbtest.SubConn{Addr: "first"}, &lbtest.SubConn{Addr: "second"}
	conn := func(sc gbalancer.SubConn) func(*Endpoint) {
		return func(e *Endpoint) { e.connect(&connection{sc: sc}) }
	}
	lose := func(e *Endpoint) { e.connect(nil) }
	to := func(p phase) func(*Endpoint) { return func(e *Endpoint) { e.setPhase(p) } }
	e := new(Endpoint)
	for i, step := range []struct {
		event func(*Endpoint)
		sc    gbalancer.SubConn
		phase phase
	}{
		{lose, nil, healthy},
		{conn(first), first, healthy},
		{to(ejected), first, ejected},
		{to(probing), first, probing},
		{lose, nil, probing},
		{to(healthy), nil, healthy},
		{conn(second), second, healthy},
		{to(ejected), second, ejected},
		{lose, nil, ejected},
		{conn(first), first, ejected},
		{conn(second), second, ejected}, // without a loss in between
		{to(healthy), second, healthy},
		{lose, nil, healthy},
	} {
		step.event(e)
		if got := e.subConn(); got != step.sc || e.phase() != step.phase {
			t.Errorf("step %d: sends on %v in phase %d, want %v in %d", i, got, e.phase(), step.sc, step.phase)
		}
		if got := e.conn.Load(); (got == nil) != (step.sc == nil) || got != nil && got.sc != step.sc {
			t.Errorf("step %d: the connection is %v, want that of %v", i, got, step.sc)
		}
	}
}

// TestReconnected loses a connection and gets it back: calls stay away at once, and return.
func TestReconnected(t *testing.T) {
	r := newRig(t, Config{Strategy: RoundRobin{}}, fleet(2))
	conn := r.cc.Conn(fleet(2)[1].Addr)
	for range 3 {
		if got := r.calls(4, ask{}); got["i0"] != 2 || got["i1"] != 2 {
			t.Errorf("connected: calls went to %v, want half of them to each", got)
		}
		conn.Move(connectivity.Idle, nil)
		r.cc.Step() // and nothing else: it does not connect again yet, and nothing is published
		r.frozen = true
		if s := r.state("i1").State; s == connectivity.Ready {
			t.Fatal("i1 has not lost its connection")
		}
		if got := r.calls(4, ask{}); got["i0"] != 4 {
			t.Errorf("lost: calls went to %v, want i0 alone", got)
		}
		r.frozen = false
		r.flush()
	}
}

// TestOneLine: what a pick touches fits one cache line (BenchmarkPick in bench, n = 10,000).
func TestOneLine(t *testing.T) {
	var e Endpoint
	if end := unsafe.Offsetof(e.done) + unsafe.Sizeof(e.done); end > 64 {
		t.Errorf("what a pick touches ends at byte %d of an endpoint, want 64 at most", end)
	}
	// An allocation of this size begins with a line. The next larger one does not, and the one after that would take the
	// memory for an endpoint above 1.1 times that of grpc's round_robin (BenchmarkMemory in bench).
	if size := unsafe.Sizeof(e); unsafe.Sizeof(uintptr(0)) == 8 && size != 256 {
		t.Errorf("an endpoint has %d bytes, want 256", size)
	}
}
