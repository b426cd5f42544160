package bench

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// Channel is what a measured policy sees as its channel: a [lbtest.ClientConn] that also notes when each picker
// arrived. UpdateState, NewSubConn and Answer may be called from any goroutine, and probes sent; everything else belongs to
// the goroutine that drives.
type Channel struct {
	*lbtest.ClientConn
	// eager has the connections of earlier endpoints become READY while the policy is still being told about later
	// ones. Policies that publish at every change then publish once, so that a fixture over 10,000 endpoints of a
	// quadratic policy takes milliseconds. It is for fixtures only, never for what is timed.
	eager bool
	round uint32               // of Covers
	asked atomic.Pointer[Conn] // those that wait for the answer to a probe, a stack

	mu     sync.Mutex // guards conns and latest
	conns  []*Conn
	latest publication
	news   chan struct{} // has room for one note that latest changed
}

// publication is a picker that a policy published.
type publication struct {
	seq    int
	at     time.Time
	picker gbalancer.Picker
}

func newChannel(eager bool) *Channel {
	return &Channel{ClientConn: lbtest.New(), eager: eager, news: make(chan struct{}, 1)}
}

// UpdateState implements gbalancer.ClientConn.
func (c *Channel) UpdateState(s gbalancer.State) {
	c.ClientConn.UpdateState(s)
	c.mu.Lock()
	c.latest = publication{seq: c.latest.seq + 1, at: time.Now(), picker: s.Picker}
	c.mu.Unlock()
	select {
	case c.news <- struct{}{}:
	default:
	}
}

func (c *Channel) current() publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest
}

// patience is how long a publication may take before the benchmark is given up.
const patience = time.Minute

var errNoPublication = errors.New("bench: the policy published nothing more within a minute")

// await returns the first publication after number seq that is good.
func (c *Channel) await(seq int, good func(publication) bool) (publication, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		if p := c.current(); p.seq > seq && good(p) {
			return p, nil
		}
		select {
		case <-c.news:
		case <-late.C:
			return publication{}, errNoPublication
		}
	}
}

// NewSubConn implements gbalancer.ClientConn.
func (c *Channel) NewSubConn(addrs []gresolver.Address, o gbalancer.NewSubConnOptions) (gbalancer.SubConn, error) {
	sc, err := c.ClientConn.NewSubConn(addrs, o)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := &Conn{SubConn: sc, c: c, index: len(c.conns), addr: addrs[0].Addr}
	c.conns = append(c.conns, conn)
	return conn, nil
}

// Conn is a sub-connection of a [Channel].
type Conn struct {
	gbalancer.SubConn
	c      *Channel
	index  int // in the order in which they were made
	addr   string
	round  uint32 // of the last Covers that saw it
	health func(gbalancer.SubConnState)
	answer func(load.Report, bool) // to the probe that is under way
	below  *Conn                   // the one below it on the stack of those
}

// Probe implements balancer.Prober: the answer comes with the next [Channel.Answer]. It costs as little as a place to put
// the question can.
func (s *Conn) Probe(_ time.Duration, answer func(load.Report, bool)) {
	s.answer = answer
	for {
		s.below = s.c.asked.Load()
		if s.c.asked.CompareAndSwap(s.below, s) {
			return
		}
	}
}

// Answer answers the probes that were sent since it was called last.
func (c *Channel) Answer() {
	if c.asked.Load() == nil {
		return
	}
	for s := c.asked.Swap(nil); s != nil; {
		below, answer := s.below, s.answer
		s.below, s.answer = nil, nil // once it is answered, it may be asked again
		answer(answerOf(s.index), true)
		s = below
	}
}

// Connect implements gbalancer.SubConn.
func (s *Conn) Connect() {
	if s.c.eager {
		s.c.Settle()
	}
	s.SubConn.Connect()
}

// RegisterHealthListener implements gbalancer.SubConn.
func (s *Conn) RegisterHealthListener(f func(gbalancer.SubConnState)) {
	s.health = f
	s.SubConn.RegisterHealthListener(f)
}

// picksEach bounds how many picks for each endpoint Covers spends. A policy that takes turns needs one; one that
// draws at random leaves an endpoint out with probability exp(-60).
const picksEach = 60

// Covers reports whether the picker p hands out n different connections. Every policy is asked in the same way, by
// picking and discarding the pick, so it cannot be told what somebody would like to hear. It allocates nothing of
// its own.
func (c *Channel) Covers(p gbalancer.Picker, n int) bool {
	if p == nil {
		return false
	}
	c.round++
	seen := 0
	for range picksEach * n {
		res, err := p.Pick(gbalancer.PickInfo{Ctx: context.Background(), FullMethodName: method})
		if err != nil {
			return false
		}
		if res.Done != nil {
			res.Done(gbalancer.DoneInfo{}) // nothing was sent: a discarded pick
		}
		if s := res.SubConn.(*Conn); s.round != c.round {
			s.round = c.round
			if seen++; seen == n {
				return true
			}
		}
	}
	return false
}
