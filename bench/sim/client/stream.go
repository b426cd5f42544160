package client

import (
	"math"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// Streams are calls that last: a server is chosen for each once, and then messages come for as long as it lasts. Each
// message is work like a call's, and while it is worked on it is a request in flight, as the stream is all the time. A stream has no deadline. It ends early if its server refuses or fails a message.
type Streams struct {
	// Part of the calls that are streams; 0 means none.
	Part float64
	// Lasts is how long, on average, and Every the mean time between two messages; both are exponential.
	Lasts, Every time.Duration
}

// stream is one stream. Its messages go one after the other or side by side, as they come.
type stream struct {
	client *Client
	pick   lb.Call
	server int
	began  int64
	luck   uint64
	over   bool
	last   engine.Timer // its end
	next   engine.Timer // the next message
}

const (
	message uint8 = iota
	finish
)

// openStream begins a stream. Everything about it is drawn now but the times and the work of messages, which nobody
// but the stream itself draws.
func (c *Client) openStream() {
	now := c.sim.Now()
	s := &stream{client: c, began: now, luck: c.kinds.Uint64(), pick: lb.Call{Stream: true}}
	lasts := int64(c.kinds.ExpFloat64() * float64(c.cfg.Streams.Lasts))
	at, err := c.balancer.Pick(&s.pick)
	if err != nil {
		return
	}
	s.server = at
	srv, _ := c.servers.Server(at)
	srv.Hold(1)
	c.recorder.Sent(c, at, "")
	s.last = c.sim.At(now+lasts, s, finish, uint64(at))
	s.schedule()
}

func (s *stream) draw() float64 {
	s.luck = engine.Mix(s.luck)
	return engine.Unit(s.luck)
}

func exponential(u float64) float64 { return -math.Log(1 - u) }

// schedule plans the next message.
func (s *stream) schedule() {
	gap := int64(exponential(s.draw()) * float64(s.client.cfg.Streams.Every))
	s.next = s.client.sim.At(s.client.sim.Now()+gap, s, message, uint64(s.server))
}

// Handle implements [engine.Handler].
func (s *stream) Handle(kind uint8, _ uint64) {
	if kind == finish {
		s.end(nil)
		return
	}
	srv, _ := s.client.servers.Server(s.server)
	s.schedule()
	srv.Start(&server.Request{Work: s.client.cfg.Work(engine.NewStream(s.luck, "message", 0)), Luck: s.draw(), Owner: s})
}

// Answered implements [server.Owner]: a message was worked on.
func (s *stream) Answered(_ *server.Request, st server.Status) {
	if st != server.OK {
		s.end(errFailed)
	}
}

// end ends it once. Messages under way are not called back; they are a few, and short.
func (s *stream) end(err error) {
	if s.over {
		return
	}
	s.over = true
	c := s.client
	c.sim.Stop(s.next)
	c.sim.Stop(s.last)
	srv, _ := c.servers.Server(s.server)
	srv.Hold(-1)
	var load *lb.Load
	if !srv.Down() {
		l := srv.Load()
		load = &l
	}
	c.balancer.Done(&s.pick, s.server, lb.Result{Latency: c.sim.Now() - s.began, Err: err, Load: load})
	code := codes.OK
	if err != nil {
		code = codes.Unavailable
	}
	c.recorder.Streamed(s.server, code)
}
