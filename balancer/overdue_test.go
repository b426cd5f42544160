package balancer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/internal/probe"
)

// notices is an Answerer that says all that it hears.
type notices chan notice

type notice struct {
	sent, now int64
	rif       int64
	ok        bool
}

func (n notices) Answer(_ *Endpoint, sent, now int64, r load.Report, ok bool) {
	n <- notice{sent, now, r.RIF, ok}
}

// pass moves the clock, and runs what is due on the way.
func (c *fakeClock) pass(d time.Duration) {
	limit := c.Now() + int64(d)
	for timer := c.take(limit); timer != nil; timer = c.take(limit) {
		timer.f()
	}
	c.set(limit)
}

// slowServer answers each probe with its number, when it is let.
type slowServer struct {
	entered, left chan struct{} // a probe is there; its caller has gone
	let           chan int64
}

func newSlowServer() *slowServer {
	return &slowServer{entered: make(chan struct{}, 1000), left: make(chan struct{}, 1000), let: make(chan int64)}
}

// probedSlowly is such a server, an endpoint of it, and a prober with its clock, which the test's end closes.
func probedSlowly(t *testing.T) (*slowServer, *Endpoint, *prober, *fakeClock) {
	t.Helper()
	s := newSlowServer()
	_, _, e := dial(t, loadServer(t, s.answer))
	clock := &fakeClock{now: start}
	q := &prober{p: &policy{clock: clock}}
	t.Cleanup(q.close)
	return s, e, q, clock
}

func (s *slowServer) answer(ctx context.Context) (*orcapb.OrcaLoadReport, error) {
	s.entered <- struct{}{}
	select {
	case n := <-s.let:
		return &orcapb.OrcaLoadReport{NamedMetrics: map[string]float64{probe.RIF: float64(n)}}, nil
	case <-ctx.Done():
		s.left <- struct{}{}
		return nil, ctx.Err()
	}
}

// TestProbeOverdue: an answer that is not there in time is said to be missing, and taken when it comes, within a second.
// The endpoint can be asked again meanwhile, but only one overdue answer of it is waited for.
func TestProbeOverdue(t *testing.T) {
	leak.Check(t)
	s, e, q, clock := probedSlowly(t)
	heard := make(notices, 10)
	ask := func() {
		t.Helper()
		if !q.probe(e, 0, 20*time.Millisecond, heard) {
			t.Fatal("no probe was sent")
		}
		<-s.entered
	}
	next := func(what string, want notice) {
		t.Helper()
		if got := <-heard; got != want {
			t.Errorf("%s: heard %+v, want %+v", what, got, want)
		}
	}
	at := func(ms int64) int64 { return start + ms*1e6 }

	ask()
	if q.probe(e, 0, time.Second, heard) {
		t.Error("a second probe was sent before the first was overdue")
	}
	clock.pass(20 * time.Millisecond)
	next("after the timeout", notice{at(0), at(20), 0, false})
	ask()
	clock.pass(10 * time.Millisecond)
	// One of the two is answered, it does not matter which, and then the other.
	s.let <- 7
	first := <-heard
	s.let <- 8
	second := <-heard
	if first.sent > second.sent {
		first, second = second, first
	}
	if !first.ok || !second.ok || first.rif+second.rif != 15 || first.sent != at(0) || second.sent != at(20) || second.now != at(30) {
		t.Errorf("heard %+v and %+v, want both answers at 30 ms", first, second)
	}

	ask()
	clock.pass(20 * time.Millisecond)
	next("the third", notice{at(30), at(50), 0, false})
	ask()
	clock.pass(20 * time.Millisecond) // the third is being waited for
	next("the fourth", notice{at(50), at(70), -1, false})
	<-s.left
	if n := len(s.left); n > 0 {
		t.Errorf("%d more probes were cancelled, want one that goes on", n)
	}
	clock.pass(time.Second - 40*time.Millisecond)
	<-s.left // a second after it was asked
	q.close()
	if len(heard) > 0 {
		t.Errorf("heard %+v besides", <-heard)
	}
	if a, u := e.tally().answered.Load(), e.tally().unanswered.Load(); a != 2 || u != 3 {
		t.Errorf("%d answers and %d missing were counted, want 2 and 3", a, u)
	}
	if n := clock.pending(); n > 0 {
		t.Errorf("%d timers are left", n)
	}
}

// TestOverdueProbesAreBounded: servers that hang keep no worker from others beyond the timeout, but a bounded number of
// goroutines.
func TestOverdueProbesAreBounded(t *testing.T) {
	leak.Check(t)
	s, e, q, clock := probedSlowly(t)
	heard := make(notices, maxOverdue+maxProbers)
	for sent := 0; sent < maxOverdue+maxProbers; {
		for range maxProbers {
			if !q.probe(twinOf(e), 0, time.Millisecond, heard) {
				t.Fatalf("probe %d was not sent", sent)
			}
			<-s.entered
			sent++
		}
		clock.pass(time.Millisecond)
		for range maxProbers {
			if n := <-heard; n.ok {
				t.Fatal("a server that hangs has answered")
			}
		}
	}
	for range maxProbers { // the last of them
		<-s.left
	}
	if n := q.late.Load(); n != maxOverdue {
		t.Errorf("%d overdue answers are waited for, want %d", n, maxOverdue)
	}
}

// twinOf is another endpoint on the connection of e.
func twinOf(e *Endpoint) *Endpoint {
	twin := &Endpoint{child: e.child}
	twin.conn.Store(e.conn.Load())
	return twin
}

// soon receives what has to come, whatever the machine is busy with.
func soon[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing came: %s", what)
	}
	return v
}

// TestFarServersKeepNoPlace: while many servers have long to answer, since they usually take long, others are asked and
// heard at once; those that answer within their time are not missing, and those that do not are, at their timeout.
func TestFarServersKeepNoPlace(t *testing.T) {
	leak.Check(t)
	s := newSlowServer()
	_, _, far := dial(t, loadServer(t, s.answer))
	_, _, near := dial(t, loadServer(t, func(context.Context) (*orcapb.OrcaLoadReport, error) {
		return &orcapb.OrcaLoadReport{NamedMetrics: map[string]float64{probe.RIF: 1}}, nil
	}))
	clock := &fakeClock{now: start}
	q := &prober{p: &policy{clock: clock}}
	defer q.close()
	const batches, n = 4, 4 * maxProbers
	heard, prompt := make(notices, 2*n), make(notices, 1)
	for range batches {
		for range maxProbers {
			if !q.probe(twinOf(far), 0, 400*time.Millisecond, heard) {
				t.Fatal("a probe was not sent")
			}
			soon(t, s.entered, "a probe of a far server")
		}
		clock.pass(placeTime)
		if !q.probe(near, 0, placeTime, prompt) {
			t.Fatal("the near server was not probed")
		}
		if got := soon(t, prompt, "the answer of a near server"); !got.ok || got.sent != got.now {
			t.Errorf("heard %+v of the near server, want an answer at once", got)
		}
	}
	if len(heard) > 0 {
		t.Fatalf("heard %+v of a far server within its time", <-heard)
	}
	for i := range n / 2 {
		s.let <- int64(i)
		if got := soon(t, heard, "the answer of a far server"); !got.ok || got.now-got.sent > int64(batches*placeTime) {
			t.Errorf("heard %+v of a far server, want its answer", got)
		}
	}
	clock.pass(400 * time.Millisecond)
	for range n / 2 {
		if got := soon(t, heard, "that an answer is missing"); got.ok || got.now-got.sent != 400e6 {
			t.Errorf("heard %+v of a server that hangs, want that it is missing after 400 ms", got)
		}
	}
	if aside, late := q.aside.Load(), q.late.Load(); aside != 0 || late != n/2 {
		t.Errorf("%d answers in time and %d overdue ones are waited for, want none and %d", aside, late, n/2)
	}
	q.close()
	if late, left := q.late.Load(), clock.pending(); late != 0 || left != 0 {
		t.Errorf("%d goroutines and %d timers are left", late, left)
	}
}

// forgetful is an application's credentials, which cannot be had once.
type forgetful struct{ asked atomic.Int32 }

func (f *forgetful) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if f.asked.Add(1) == 1 {
		return nil, errors.New("the token service is away")
	}
	return map[string]string{"authorization": "token"}, nil
}

func (*forgetful) RequireTransportSecurity() bool { return false }

// TestProbeWithoutTokenOnce: a moment without a valid token, seen by the client or by the server, silences probes for a
// minute and not for as long as the connection lasts, which it does with a server that does not know of probes.
func TestProbeWithoutTokenOnce(t *testing.T) {
	leak.Check(t)
	figures := &orcapb.OrcaLoadReport{NamedMetrics: map[string]float64{probe.RIF: 3}}
	once := func(code codes.Code) func(context.Context) (*orcapb.OrcaLoadReport, error) {
		var asked atomic.Int32
		return func(context.Context) (*orcapb.OrcaLoadReport, error) {
			if asked.Add(1) == 1 {
				return nil, fails(code)
			}
			return figures, nil
		}
	}
	well := func(context.Context) (*orcapb.OrcaLoadReport, error) { return figures, nil }
	for name, tt := range map[string]struct {
		server func(context.Context) (*orcapb.OrcaLoadReport, error)
		opts   []grpc.DialOption
		back   bool
	}{
		"no token to be had": {well, []grpc.DialOption{grpc.WithPerRPCCredentials(new(forgetful))}, true},
		"a token expired":    {once(codes.Unauthenticated), nil, true},
		"a role was missing": {once(codes.PermissionDenied), nil, true},
		"no such service":    {once(codes.Unimplemented), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, e := dial(t, loadServer(t, tt.server), tt.opts...)
			clock := &fakeClock{now: start}
			q := &prober{p: &policy{clock: clock}}
			defer q.close()
			heard := make(notices, 1)
			ask := func() bool { return q.probe(e, clock.Now(), time.Second, heard) }
			if !ask() {
				t.Fatal("no probe was sent")
			}
			if got := soon(t, heard, "the end of the first probe"); got.ok {
				t.Fatalf("heard %+v, want no answer", got)
			}
			clock.pass(time.Minute - 1)
			if !e.mute(clock.Now()) || ask() {
				t.Error("it was asked again within a minute")
			}
			clock.pass(1)
			if e.mute(clock.Now()) == tt.back || ask() != tt.back {
				t.Fatalf("after a minute it is mute: %v, want %v", e.mute(clock.Now()), !tt.back)
			}
			for again := 0; tt.back && again < 2; again++ {
				if got := soon(t, heard, "an answer"); !got.ok || got.rif != 3 {
					t.Errorf("heard %+v after a minute, want 3 requests in flight", got)
				}
				if again == 0 && !ask() {
					t.Error("it was not asked a third time")
				}
			}
		})
	}
}

// TestProbeTurnedAway: who turns probes away is not asked again at once, and the log says so once; who fails otherwise is.
func TestProbeTurnedAway(t *testing.T) {
	leak.Check(t)
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	for code, mute := range map[codes.Code]bool{
		codes.Unauthenticated: true, codes.PermissionDenied: true, codes.Unavailable: false, codes.ResourceExhausted: false,
	} {
		log.Reset()
		_, p, e := dial(t, loadServer(t, func(context.Context) (*orcapb.OrcaLoadReport, error) { return nil, fails(code) }))
		heard := make(answers, 1)
		for again := range 2 {
			if sent := p.prober.probe(e, 0, time.Minute, heard); sent != (again == 0 || !mute) {
				t.Errorf("%v: probe %d was sent: %v", code, again+1, sent)
			} else if sent {
				if r := <-heard; r.RIF != -2 {
					t.Errorf("%v: the answer is %+v, want none", code, r)
				}
			}
		}
		st := p.describe().Endpoints[0]
		if st.Mute != mute || st.Probes != 0 || st.Unanswered == 0 {
			t.Errorf("%v: Channels says %+v, want mute %v and unanswered probes", code, st, mute)
		}
		said := log.String()
		if mute != strings.Contains(said, probe.Method) || mute && !strings.Contains(said, code.String()) {
			t.Errorf("%v: the log says %q", code, said)
		}
		if mute { // after a reconnect
			e.conn.Load().muteUntil.Store(0)
			log.Reset()
			if !p.prober.probe(e, 0, time.Minute, heard) {
				t.Error("the next process is not asked")
			}
			if <-heard; log.Len() > 0 {
				t.Errorf("%v: the log says it again: %q", code, &log)
			}
		}
	}
}

// late answers probes of a strategy after a time for each member, the way [prober] does: with false at the timeout first.
type late struct {
	now    int64
	after  []time.Duration // by member; 0 means never
	load   []load.Report
	at     map[*Endpoint]int
	events []lateEvent
}

type lateEvent struct {
	at int64
	do func()
}

func (l *late) probe(e *Endpoint, now int64, timeout time.Duration, to Answerer) bool {
	if e.probes.Or(underWay)&underWay != 0 {
		return false
	}
	took := l.after[l.at[e]]
	answer := func() { to.Answer(e, now, l.now, l.load[l.at[e]], true) }
	if took > 0 && took <= timeout {
		l.in(took, func() { e.probes.And(^underWay); answer() })
		return true
	}
	l.in(timeout, func() {
		e.probes.And(^underWay)
		if took > 0 && e.probes.Or(overdue)&overdue == 0 {
			l.in(took-timeout, func() { e.probes.And(^overdue); answer() })
		}
		to.Answer(e, now, l.now, load.Report{}, false)
	})
	return true
}

func (l *late) in(d time.Duration, do func()) {
	l.events = append(l.events, lateEvent{l.now + int64(d), do})
}

// pass lets answers come.
func (l *late) pass(d time.Duration) {
	end := l.now + int64(d)
	for {
		first := -1
		for k, ev := range l.events {
			if ev.at <= end && (first < 0 || ev.at < l.events[first].at) {
				first = k
			}
		}
		if first < 0 {
			l.now = end
			return
		}
		ev := l.events[first]
		l.events = append(l.events[:first], l.events[first+1:]...)
		l.now = ev.at
		ev.do()
	}
}

// TestFarInstance: one of three whose answers take longer than the timeout, since it is far away or since its machine is
// busy, gets calls when the others have more to do; one that does not answer at all gets next to none from keel.
func TestFarInstance(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Keel{}} {
		for name, far := range map[string]time.Duration{"30 ms": 30 * time.Millisecond, "200 ms": 200 * time.Millisecond, "hangs": 0} {
			ms := members(same(3, 1)...)
			l := &late{now: start, after: []time.Duration{time.Millisecond, time.Millisecond, far}, at: make(map[*Endpoint]int)}
			for i, m := range ms {
				l.at[m] = i
				l.load = append(l.load, load.Report{RIF: 30, Latency: 100e6})
			}
			l.load[2] = load.Report{RIF: 3, Latency: 10e6}
			c := s.Build(Env{Members: ms, Rand: seeded(5), Probe: l.probe})
			got := make([]int, len(ms))
			for k := range 2000 {
				i := c.Choose(Call{Now: l.now})
				if k >= 500 {
					got[i]++
				}
				ms[i].started.Add(1)
				l.pass(2 * time.Millisecond)
				ms[i].ended.Add(1)
			}
			_, keel := s.(Keel)
			if got[2] < 500 && far > 0 || got[2] > 15 && far == 0 && keel {
				t.Errorf("%s, %s: calls went to %v", s.Name(), name, got)
			}
		}
	}
}
