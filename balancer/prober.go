package balancer

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/probe"
	"github.com/evenkeel/evenkeel/outcome"
)

// Answerer hears what becomes of the probes that a [Strategy] sends with [Env.Probe].
type Answerer interface {
	// Answer is called for every probe that was sent, from any goroutine and never within Probe, unless the policy is
	// closed before. ok is false if no answer came in time, or none that says anything. If the answer comes later, but
	// within a second of the question, Answer is called once more, with what it says. sent and now are the times of the
	// question and of the receipt, as [Call.Now] tells them. It must not block.
	Answer(e *Endpoint, sent, now int64, r load.Report, ok bool)
}

// Prober is a sub-connection that knows how probes are answered, as those of a simulation do, which have no network.
// One of gRPC's is none: there a probe is a call on the connection itself, to the service that package server offers
// (server.Load).
type Prober interface {
	// Probe asks. answer is called once, later, with false if nothing came within the timeout; it may be called once more
	// if something comes after that.
	Probe(timeout time.Duration, answer func(load.Report, bool))
}

const (
	// maxProbers is how many places there are for goroutines of a policy that send probes and wait for the answers. In a
	// data center one of them gets some thousand answers a second, so all together send more than the calls of one channel
	// ask for; servers that are far away or hang keep one each from its work, for placeTime.
	maxProbers = 16
	// placeTime is how long a goroutine keeps its place; then it waits on beside the others, and another may send.
	placeTime = 20 * time.Millisecond
	// maxAside is how many do that whose answers are still in time. One more keeps its place until its timeout. The overdue
	// ones are counted apart, so that servers that hang leave room for those that are far away.
	maxAside = 256
	// maxQueued is how many probes wait for a goroutine. One more is not sent: what it would say is old by the time.
	maxQueued = 256
	// patience is how long after the question an answer is still taken.
	patience = time.Second
	// maxOverdue is how many probes of a policy may be waited for beyond their timeout, one for each endpoint, with a
	// goroutine each. One more is cancelled at its timeout.
	maxOverdue = 256
	// turnedAway is how long a server that turns probes away for lack of credentials is not asked: it, or gRPC on its
	// behalf, says so too when a token has just expired or could not be had.
	turnedAway = time.Minute
)

// What Endpoint.probes says.
const (
	underWay = uint32(1) << iota // a probe is, and not yet overdue
	overdue                      // one is that should have been answered by now
)

// inquiry is a probe to be sent.
type inquiry struct {
	e       *Endpoint
	conn    *connection
	sent    int64
	timeout time.Duration
	to      Answerer
}

// prober sends the probes of one policy. Its zero value is ready, and costs nothing until the first of them.
type prober struct {
	p      *policy
	once   sync.Once
	queue  chan inquiry
	ctx    context.Context
	cancel context.CancelFunc
	idle   atomic.Int32 // workers that wait for a probe
	hired  atomic.Int32 // workers that have a place
	aside  atomic.Int32 // those that have none and wait for an answer that may yet be in time
	late   atomic.Int32 // those that wait for an overdue one
	refuse sync.Once    // the log says once that probes are turned away

	mu      sync.Mutex // orders hire, enter and close
	closed  bool
	workers sync.WaitGroup
}

func (q *prober) open() {
	q.queue = make(chan inquiry, maxQueued)
	q.mu.Lock()
	q.ctx, q.cancel = context.WithCancel(context.Background())
	q.mu.Unlock()
}

// probe implements [Env.Probe]. It is on the path of a pick: it takes no lock, but to hire one of the first workers.
func (q *prober) probe(e *Endpoint, now int64, timeout time.Duration, to Answerer) bool {
	conn := e.conn.Load()
	if conn == nil || conn.muteAt(now) || e.probes.Load()&underWay != 0 || e.probes.Or(underWay)&underWay != 0 {
		return false
	}
	if sc, ok := conn.sc.(Prober); ok {
		f := newFlight()
		f.q, f.in = q, inquiry{e: e, conn: conn, sent: now, timeout: timeout, to: to}
		sc.Probe(timeout, f.answer)
		return true
	}
	q.once.Do(q.open)
	select {
	case q.queue <- inquiry{e: e, conn: conn, timeout: timeout, to: to}: // by value: a pick allocates nothing
	default:
		e.probes.And(^underWay)
		return false
	}
	if int(q.idle.Load()) < len(q.queue) {
		q.hire()
	}
	return true
}

// flight is an inquiry that a [Prober] has, from a pool; its callback is bound once.
type flight struct {
	q      *prober
	in     inquiry
	missed bool // it was told that nothing came in time
	answer func(load.Report, bool)
}

var flights sync.Pool // of *flight

func newFlight() *flight {
	if f, ok := flights.Get().(*flight); ok {
		return f
	}
	f := new(flight)
	f.answer = f.land
	return f
}

func (f *flight) land(r load.Report, ok bool) {
	q, in := f.q, f.in
	switch {
	case f.missed:
		if ok {
			q.tell(&in, r, true)
		}
		return
	case !ok:
		f.missed = true // it is not used again, since somebody may still come with its answer
	default:
		f.q, f.in = nil, inquiry{}
		flights.Put(f)
	}
	q.answered(&in, r, ok)
}

// hire starts a worker, if there may be one more.
func (q *prober) hire() {
	if q.hired.Load() >= maxProbers {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.placeLocked() {
		q.workers.Go(q.work)
	}
}

// placeLocked takes a worker's place, if one is free.
func (q *prober) placeLocked() bool {
	if q.closed || q.hired.Load() >= maxProbers {
		return false
	}
	q.hired.Add(1)
	return true
}

// rehired reports whether a worker whose place was given away has one again.
func (q *prober) rehired() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.placeLocked()
}

// work sends probes until close, or until it has lost its place.
func (q *prober) work() {
	for {
		q.idle.Add(1)
		select {
		case <-q.ctx.Done():
			return
		case in := <-q.queue:
			q.idle.Add(-1)
			if q.ctx.Err() != nil {
				return
			}
			if kept := q.send(in); !kept && !q.rehired() {
				return
			}
		}
	}
}

// errand is a probe on its way. Its end, the loss of its worker's place and its timeout race to move it on; who does that
// counts the worker where it belongs now.
type errand struct {
	in    inquiry
	stage atomic.Uint32
}

// The stages of an errand, some of which it may skip.
const (
	inPlace     = uint32(iota) // its worker has a place
	stoodAside                 // it has none any more
	saidMissing                // the answer was said to be missing
	settled                    // it ended
)

// send probes and waits. It is false if the worker has waited for so long that its place was given away.
func (q *prober) send(in inquiry) (kept bool) {
	ctx, cancel := context.WithCancel(q.ctx)
	defer cancel()
	in.sent = q.p.clock.Now()
	a := &errand{in: in}
	if in.timeout > placeTime {
		defer q.p.clock.AfterFunc(placeTime, func() { q.standAside(a) }).Stop()
	}
	defer q.p.clock.AfterFunc(in.timeout, func() {
		if !q.postpone(a) {
			cancel()
		}
	}).Stop()
	defer q.p.clock.AfterFunc(max(patience, in.timeout), cancel).Stop()
	reply := new(orcapb.OrcaLoadReport)
	err := in.conn.line().Invoke(ctx, probe.Method, new(emptypb.Empty), reply)
	r, ok := reportOf(reply)
	ok = ok && err == nil && r.RIF >= 0
	if !ok {
		q.heed(&in, err)
	}
	switch a.stage.Swap(settled) {
	case inPlace:
		q.answered(&in, r, ok)
		return true
	case stoodAside:
		q.aside.Add(-1)
		q.answered(&in, r, ok)
		return false
	}
	in.e.probes.And(^overdue)
	q.late.Add(-1)
	if ok {
		q.tell(&in, r, true)
	}
	return false
}

// heed has a server that will not answer probes left in peace. One that does not know of them, or answers without
// figures, gets none until there is another process, which comes with another connection. One that lets nobody ask who
// does not say who it is, which a probe does not do where the application says it by an interceptor, gets none for a while.
func (q *prober) heed(in *inquiry, err error) {
	code := outcome.Code(err)
	switch code {
	case codes.OK, codes.Unimplemented:
		in.conn.muteUntil.Store(math.MaxInt64)
	case codes.Unauthenticated, codes.PermissionDenied:
		in.conn.muteUntil.Store(q.p.clock.Now() + int64(turnedAway))
		q.refuse.Do(func() {
			i := in.e.Instance()
			slog.Warn("evenkeel: an instance turns probes of its load away, and gets none for a minute: let "+
				probe.Method+" pass where calls are authenticated", "service", q.p.service, "instance", i.ID, "addr", i.Addr,
				"code", code, "err", err)
		})
	}
}

// standAside gives the place of a worker to another, while its answer is still in time.
func (q *prober) standAside(a *errand) {
	if !q.enter() {
		return
	}
	defer q.workers.Done()
	if q.aside.Add(1) <= maxAside && a.stage.CompareAndSwap(inPlace, stoodAside) {
		q.vacate()
		return
	}
	q.aside.Add(-1)
}

// vacate gives a place away.
func (q *prober) vacate() {
	q.hired.Add(-1)
	if len(q.queue) > 0 {
		q.hire()
	}
}

// postpone says that the answer has not come in time, and lets its worker wait on, without a place. It is false if too
// many do already.
func (q *prober) postpone(a *errand) bool {
	if !q.enter() {
		return false
	}
	defer q.workers.Done()
	switch {
	case a.in.timeout >= patience:
		return false
	case a.in.e.probes.Or(overdue)&overdue != 0: // it has been waiting for an answer from there for longer
		return false
	}
	if q.late.Add(1) <= maxOverdue {
		switch a.stage.Swap(saidMissing) {
		case inPlace:
			q.vacate()
			q.answered(&a.in, load.Report{}, false)
			return true
		case stoodAside:
			q.aside.Add(-1)
			q.answered(&a.in, load.Report{}, false)
			return true
		}
	}
	q.late.Add(-1)
	a.in.e.probes.And(^overdue)
	return false
}

// enter has close wait for the caller, until it says Done; false if the prober is closed.
func (q *prober) enter() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.workers.Add(1)
	}
	return !q.closed
}

// answered lets the endpoint be probed again, and hands over what it said.
func (q *prober) answered(in *inquiry, r load.Report, ok bool) {
	in.e.probes.And(^underWay)
	q.tell(in, r, ok)
}

// tell hands over what an endpoint said, or that it did not.
func (q *prober) tell(in *inquiry, r load.Report, ok bool) {
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		return
	}
	if t := in.e.tally(); ok {
		t.answered.Add(1)
	} else {
		t.unanswered.Add(1)
	}
	in.to.Answer(in.e, in.sent, q.p.clock.Now(), r, ok)
}

// close ends the probes under way. When it returns no goroutine is left, and no answer is delivered any more.
func (q *prober) close() {
	q.mu.Lock()
	q.closed = true
	if q.cancel != nil {
		q.cancel()
	}
	q.mu.Unlock()
	q.workers.Wait()
}

// line is the way to make calls on the connection itself. It is made at the first use.
func (c *connection) line() grpc.ClientConnInterface {
	if way := c.way.Load(); way != nil {
		return *way
	}
	// It is not given back: gRPC takes it when the connection is lost, and there is nothing to it. Whoever comes at the
	// same time gets the same.
	p, _ := c.sc.GetOrBuildProducer(lines)
	way := p.(grpc.ClientConnInterface)
	c.way.Store(&way)
	return way
}

// lines is the way to ask gRPC for a [connection.line]: a producer that has no state and starts nothing, so it has
// nothing to end when it is closed. Who makes calls on it is a prober, which waits for them.
var lines = &lineBuilder{name: "evenkeel probes"}

type lineBuilder struct{ name string }

// Build implements [gbalancer.ProducerBuilder].
func (*lineBuilder) Build(cc any) (gbalancer.Producer, func()) { return cc, func() {} }
