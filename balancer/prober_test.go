package balancer

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/internal/probe"
)

// replies collects answers.
type replies struct {
	ids     []string
	reports []load.Report
	failed  int
	now     int64
}

func (h *replies) Answer(e *Endpoint, _, now int64, r load.Report, ok bool) {
	h.now = now
	if !ok {
		h.failed++
		return
	}
	h.ids = append(h.ids, e.Instance().ID)
	h.reports = append(h.reports, r)
}

// TestProbeOfLoad: a probe's answer comes later, one is under way at an endpoint at a time, and none where nobody answers.
func TestProbeOfLoad(t *testing.T) {
	cc := lbtest.New()
	busy := map[string]int64{"10.0.0.1:80": 3, "10.0.0.2:80": 5}
	cc.Load = func(addr string) (load.Report, bool) {
		n, ok := busy[addr]
		return load.Report{RIF: n}, ok
	}
	cc.Refuse = func(addr string) error {
		if addr == "10.0.0.4:80" {
			return errRefused
		}
		return nil
	}
	r := bareRig(t, cc)
	r.update(Config{}, fleet(4))
	probe, h := r.p.prober.probe, new(replies)
	for i, want := range []bool{true, true, true, false} { // the last has no connection
		if got := probe(r.p.known[i], r.clock.Now(), time.Second, h); got != want {
			t.Errorf("a probe of endpoint %d was sent: %v, want %v", i, got, want)
		}
	}
	if probe(r.p.known[0], r.clock.Now(), time.Second, h) {
		t.Error("a second probe was sent while the first was under way")
	}
	if len(h.ids)+h.failed > 0 {
		t.Error("Probe delivered an answer before it returned")
	}
	r.settle()
	if want := []string{"i0", "i1"}; !slices.Equal(h.ids, want) || h.reports[0].RIF != 3 || h.reports[1].RIF != 5 {
		t.Errorf("heard %v: %v, want %v with 3 and 5 requests in flight", h.ids, h.reports, want)
	}
	if h.failed != 1 || h.now != r.clock.Now() {
		t.Errorf("%d probes failed, want 1; it was %d, want %d", h.failed, h.now, r.clock.Now())
	}
	if !probe(r.p.known[0], r.clock.Now(), time.Second, h) {
		t.Error("no probe was sent after the first was answered")
	}
	r.p.Close()
	r.settle()
	if len(h.ids) != 2 {
		t.Errorf("%d answers were delivered, want the 2 from before the policy was closed", len(h.ids))
	}
}

// loadServer answers probes the way server.Load does, or as told.
func loadServer(t testing.TB, answer func(context.Context) (*orcapb.OrcaLoadReport, error)) string {
	t.Helper()
	s := grpc.NewServer()
	if answer != nil {
		s.RegisterService(&grpc.ServiceDesc{ServiceName: probe.Service, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
			MethodName: probe.Name,
			Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if err := dec(new(emptypb.Empty)); err != nil {
					return nil, err
				}
				return answer(ctx)
			},
		}}}, struct{}{})
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(lis); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	return lis.Addr().String()
}

// answers makes a channel of what an Answerer hears.
type answers chan load.Report

func (a answers) Answer(_ *Endpoint, _, _ int64, r load.Report, ok bool) {
	if !ok {
		r.RIF = -2
	}
	a <- r
}

// dial is a real channel of this policy to one address, connected, and its only endpoint.
func dial(t testing.TB, addr string, opts ...grpc.DialOption) (*grpc.ClientConn, *policy, *Endpoint) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithDefaultServiceConfig(ServiceConfig(Config{})),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.Connect()
	for s := conn.GetState(); s.String() != "READY"; s = conn.GetState() {
		if !conn.WaitForStateChange(t.Context(), s) {
			t.Fatalf("the channel is %v, want READY", s)
		}
	}
	for _, p := range live.list() {
		if p.service == addr {
			p.mu.Lock()
			defer p.mu.Unlock()
			return conn, p, p.known[0]
		}
	}
	t.Fatal("there is no policy for the channel")
	return nil, nil, nil
}

// TestProbeOverTheConnection: probes are calls on the connection itself, and they leave nothing behind.
func TestProbeOverTheConnection(t *testing.T) {
	leak.Check(t)
	var hang atomic.Bool
	entered := make(chan struct{}, 1)
	addr := loadServer(t, func(ctx context.Context) (*orcapb.OrcaLoadReport, error) {
		if hang.Load() {
			entered <- struct{}{}
			<-ctx.Done()
		}
		return &orcapb.OrcaLoadReport{NamedMetrics: map[string]float64{probe.RIF: 7, probe.Latency: 5e6}, RpsFractional: 2}, nil
	})
	conn, p, e := dial(t, addr)
	heard := make(answers, 1)
	for range 3 {
		if !p.prober.probe(e, 0, time.Minute, heard) {
			t.Fatal("no probe was sent")
		}
		if r := <-heard; r.RIF != 7 || r.Latency != 5e6 || r.QPS != 2 {
			t.Errorf("the answer is %+v, want 7 in flight, 5 ms and 2 a second", r)
		}
	}
	hang.Store(true)
	if !p.prober.probe(e, 0, time.Millisecond, heard) {
		t.Fatal("no probe was sent")
	}
	if r := <-heard; r.RIF != -2 {
		t.Errorf("a server that hangs answered %+v, want the timeout", r)
	}
	select { // the timeout may have been over before the probe was there
	case <-entered:
	default:
	}
	if !p.prober.probe(e, 0, time.Hour, heard) {
		t.Fatal("no probe was sent after one that timed out")
	}
	<-entered
	conn.Close() // ends it at once, and nobody hears of it
	if len(heard) > 0 {
		t.Errorf("an answer was delivered after Close: %+v", <-heard)
	}
}

// TestProbeOfAServerWithoutIt: whoever does not know the service, or does not say how much is in flight, is not asked
// again over that connection.
func TestProbeOfAServerWithoutIt(t *testing.T) {
	leak.Check(t)
	for name, answer := range map[string]func(context.Context) (*orcapb.OrcaLoadReport, error){
		"no service": nil,
		"no figures": func(context.Context) (*orcapb.OrcaLoadReport, error) {
			return &orcapb.OrcaLoadReport{CpuUtilization: 1}, nil
		},
	} {
		_, p, e := dial(t, loadServer(t, answer))
		heard := make(answers, 1)
		if !p.prober.probe(e, 0, time.Minute, heard) {
			t.Fatal("no probe was sent")
		}
		if r := <-heard; r.RIF != -2 {
			t.Errorf("%s: the answer is %+v, want none", name, r)
		}
		if p.prober.probe(e, 0, time.Minute, heard) {
			t.Errorf("%s: a second probe was sent", name)
		}
	}
}

// TestProbesAreBounded: servers that hang keep a bounded number of goroutines, however long they have, and probes that
// would wait for one for too long are not sent.
func TestProbesAreBounded(t *testing.T) {
	leak.Check(t)
	s, e, q, clock := probedSlowly(t)
	flood := func() (sent int) {
		for range 2 * (maxProbers + maxQueued) {
			if q.probe(twinOf(e), 0, time.Hour, make(notices, 1)) {
				sent++
			}
		}
		return sent
	}
	if sent, most := flood(), maxProbers+maxQueued; sent < maxQueued || sent > most {
		t.Errorf("%d probes were sent, want %d to %d", sent, maxQueued, most)
	}
	entered := 0
	for range maxAside/maxProbers + 3 { // the last ones cannot stand aside
		flood() // so that somebody waits
		for ; entered < maxProbers+int(q.aside.Load()); entered++ {
			soon(t, s.entered, "a probe that has a place")
		}
		clock.pass(placeTime)
	}
	if hired, aside := q.hired.Load(), q.aside.Load(); hired != maxProbers || aside != maxAside || entered != maxProbers+maxAside {
		t.Errorf("%d goroutines wait in a place and %d without, for %d probes; want %d and %d", hired, aside, entered, maxProbers, maxAside)
	}
	if n := len(s.entered); n > 0 {
		t.Errorf("%d probes more are under way", n)
	}
}

// TestProbeAllocsNothing: to send a probe is part of a pick. What its worker does later is a call's work.
func TestProbeAllocsNothing(t *testing.T) {
	for name, sc := range map[string]gbalancer.SubConn{"over the network": unprobed{}, "in a simulation": prompt{}} {
		q := &prober{p: &policy{clock: &fakeClock{now: start}}}
		q.hired.Store(maxProbers) // nobody takes from the queue
		endpoints := make([]*Endpoint, 0, 102)
		for range cap(endpoints) {
			e := new(Endpoint)
			e.conn.Store(&connection{sc: sc})
			e.tally() // which the first answer makes
			endpoints = append(endpoints, e)
		}
		h, sent := make(notices, cap(endpoints)), 0
		n := testing.AllocsPerRun(len(endpoints)-2, func() {
			if q.probe(endpoints[sent], 0, time.Second, h) {
				sent++
			}
		})
		if sent != len(endpoints)-1 { // with the run that warms up
			t.Errorf("%s: %d probes were sent, want %d", name, sent, len(endpoints)-1)
		}
		if n > 0 && !raceEnabled {
			t.Errorf("%s: %v allocations for a probe, want none", name, n)
		}
	}
}

// unprobed is a connection that is no [Prober].
type unprobed struct{ gbalancer.SubConn }

// prompt is one whose probes are answered at once, which a real Prober does later.
type prompt struct{ gbalancer.SubConn }

func (prompt) Probe(_ time.Duration, answer func(load.Report, bool)) { answer(load.Report{}, true) }

// BenchmarkProbe is a probe over loopback, both sides of it, one after another: what a pick that sends one asks for.
func BenchmarkProbe(b *testing.B) {
	said := &orcapb.OrcaLoadReport{NamedMetrics: map[string]float64{probe.RIF: 7, probe.Latency: 5e6}}
	addr := loadServer(b, func(context.Context) (*orcapb.OrcaLoadReport, error) { return said, nil })
	_, p, e := dial(b, addr)
	heard := make(answers, 1)
	b.ReportAllocs()
	for range b.N {
		if !p.prober.probe(e, p.clock.Now(), time.Minute, heard) {
			b.Fatal("no probe was sent")
		}
		<-heard
	}
}
