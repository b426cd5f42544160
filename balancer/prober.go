package balancer

import (
	"context"
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
	// Answer is called once for every probe that was sent, from any goroutine and never within Probe, unless the policy
	// is closed before. ok is false if no answer came in time, or none that says anything. now is the time of the
	// receipt, as [Call.Now] tells it. It must not block.
	Answer(e *Endpoint, now int64, r load.Report, ok bool)
}

// Prober is a sub-connection that knows how probes are answered, as those of a simulation do, which have no network.
// One of gRPC's is none: there a probe is a call on the connection itself, to the service that package server offers
// (server.Load).
type Prober interface {
	// Probe asks. answer is called once, later, with false if nothing came within the timeout.
	Probe(timeout time.Duration, answer func(load.Report, bool))
}

const (
	// maxProbers is how many goroutines of a policy wait for answers to probes. In a data center one of them gets some
	// thousand answers a second, so all together send more than the calls of one channel ask for; servers that hang
	// keep one each from its work, for a timeout.
	maxProbers = 16
	// maxQueued is how many probes wait for a goroutine. One more is not sent: what it would say is old by the time.
	maxQueued = 256
)

// inquiry is a probe to be sent.
type inquiry struct {
	e       *Endpoint
	conn    *connection
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
	hired  atomic.Int32 // workers

	mu      sync.Mutex // orders hire and close
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
func (q *prober) probe(e *Endpoint, timeout time.Duration, to Answerer) bool {
	conn := e.conn.Load()
	if conn == nil || conn.mute.Load() || e.asked.Load() || !e.asked.CompareAndSwap(false, true) {
		return false
	}
	if sc, ok := conn.sc.(Prober); ok {
		f := newFlight()
		f.q, f.in = q, inquiry{e: e, conn: conn, timeout: timeout, to: to}
		sc.Probe(timeout, f.answer)
		return true
	}
	q.once.Do(q.open)
	select {
	case q.queue <- inquiry{e: e, conn: conn, timeout: timeout, to: to}: // by value: a pick allocates nothing
	default:
		e.asked.Store(false)
		return false
	}
	if int(q.idle.Load()) < len(q.queue) && q.hired.Load() < maxProbers {
		q.hire()
	}
	return true
}

// flight is an inquiry that a [Prober] has, from a pool; its callback is bound once.
type flight struct {
	q      *prober
	in     inquiry
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
	f.q, f.in = nil, inquiry{}
	flights.Put(f)
	q.answered(&in, r, ok)
}

func (q *prober) hire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.hired.Load() >= maxProbers {
		return
	}
	q.hired.Add(1)
	q.workers.Go(q.work)
}

// work sends probes until close.
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
			r, ok := q.send(&in)
			q.answered(&in, r, ok)
		}
	}
}

// send probes and waits.
func (q *prober) send(in *inquiry) (load.Report, bool) {
	ctx, cancel := context.WithCancel(q.ctx)
	defer cancel()
	defer q.p.clock.AfterFunc(in.timeout, cancel).Stop()
	reply := new(orcapb.OrcaLoadReport)
	err := in.conn.line().Invoke(ctx, probe.Method, new(emptypb.Empty), reply)
	r, ok := reportOf(reply)
	ok = ok && err == nil && r.RIF >= 0
	if err == nil && !ok || outcome.Code(err) == codes.Unimplemented {
		in.conn.mute.Store(true) // until there is another process, which comes with another connection
	}
	return r, ok
}

// answered lets the endpoint be probed again, and hands over what it said.
func (q *prober) answered(in *inquiry, r load.Report, ok bool) {
	in.e.asked.Store(false)
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if !closed {
		in.to.Answer(in.e, q.p.clock.Now(), r, ok)
	}
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
