// Package client is a simulated client: calls arrive whether or not earlier ones have ended, each is sent where the
// client's balancer says, and each has a deadline.
//
// Arrivals are open-loop: a Poisson process whose rate the scenario sets. That is how users behave, and a closed loop
// would hide the very thing that is measured, since a slow answer would hold back the calls that suffer from it. A
// latency counts from the moment at which the call arrived, through all its attempts. One that fails or runs out of
// time is reported with its code, and it is for the recorder to count it at its deadline.
//
// A call is an event at its arrival, one when the request reaches the server, those of the server's work, and one when
// the answer is back. At its deadline the client gives up and the server stops working on it at once, as gRPC does by
// sending the deadline with the call. A failed attempt that the server cannot have begun (it refused the connection) is
// tried again at once, up to [Config.Attempts].
//
// The times of arrival, the work of each call and its luck (does an injected fault hit it, how long do its messages
// take) come from streams of the seed and the client's number. No policy can change them.
package client

import (
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/network"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// Config is what all clients of a scenario share.
type Config struct {
	// Deadline is how long a call may take; 0 means 5 s.
	Deadline time.Duration
	// Attempts is how many a call has, the first included; 0 means 1.
	Attempts int
	// Work draws a call's work in nanoseconds on a core of its own.
	Work func(*rand.Rand) float64
	// Network is the delays.
	Network network.Config
}

// Servers is where the client finds them.
type Servers interface {
	// Server returns the server with this index, and its zone.
	Server(index int) (*server.Server, string)
}

// End is a call that has ended.
type End struct {
	// Arrived is when the call came.
	Arrived int64
	// Latency is how long it took from then.
	Latency int64
	// Code is OK or the error of the last attempt.
	Code codes.Code
	// Server is the one of the last attempt; -1 if it had none.
	Server int
	// Attempts is how many there were.
	Attempts int
}

// Recorder hears what happens. Calls that arrived and have not ended are still to come.
type Recorder interface {
	// Sent is an attempt that leaves for a server.
	Sent(server int, now int64)
	// Ended is a call.
	Ended(End)
	// Probed is a probe that leaves for a server.
	Probed(server int, now int64)
}

// Client is one client. Use [New].
type Client struct {
	sim      *engine.Sim
	cfg      Config
	id       int
	zone     string
	servers  Servers
	recorder Recorder
	balancer lb.Balancer
	shown    []lb.Server  // by the registry
	lost     map[int]bool // of those, the ones without a connection; never iterated over

	rate     float64 // calls in a nanosecond
	arrivals *rand.Rand
	work     *rand.Rand
	next     engine.Timer
	calls    []*call  // to use again
	probes   []*probe // likewise
	probed   uint64
	salt     uint64
	open     int
}

// New returns a client that is at rest until [Client.SetRate], without a balancer until [Client.Use].
func New(sim *engine.Sim, cfg Config, id int, zone string, seed uint64, servers Servers, rec Recorder) *Client {
	if cfg.Deadline == 0 {
		cfg.Deadline = 5 * time.Second
	}
	cfg.Attempts = max(cfg.Attempts, 1)
	return &Client{sim: sim, cfg: cfg, id: id, zone: zone, servers: servers, recorder: rec, lost: make(map[int]bool),
		arrivals: engine.NewStream(seed, "arrivals", id), work: engine.NewStream(seed, "work", id),
		salt: engine.NewStream(seed, "probes", id).Uint64()}
}

// Use gives it its balancer, which was made with these servers.
func (c *Client) Use(b lb.Balancer, shown []lb.Server) { c.balancer, c.shown = b, shown }

// Show tells it of a new set of servers.
func (c *Client) Show(servers []lb.Server) {
	c.shown = servers
	c.update()
}

// Lost tells it that its connection to a server broke, since the process is gone.
func (c *Client) Lost(server int) {
	if b, ok := c.balancer.(lb.Connections); ok {
		b.Lost(server)
		return
	}
	c.lost[server] = true
	c.update()
}

// Ready tells it that a server that was lost is back.
func (c *Client) Ready(server int) {
	if b, ok := c.balancer.(lb.Connections); ok {
		b.Ready(server)
		return
	}
	delete(c.lost, server)
	c.update()
}

func (c *Client) update() {
	if len(c.lost) == 0 {
		c.balancer.Update(c.shown)
		return
	}
	var connected []lb.Server
	for _, s := range c.shown {
		if !c.lost[s.Index] {
			connected = append(connected, s)
		}
	}
	c.balancer.Update(connected)
}

// Zone is where it is.
func (c *Client) Zone() string { return c.zone }

// Open is how many calls have arrived and not ended.
func (c *Client) Open() int { return c.open }

// SetRate has so many calls a second arrive from now on; 0 stops them.
func (c *Client) SetRate(perSecond float64) {
	c.rate = perSecond / 1e9
	c.sim.Stop(c.next)
	c.schedule()
}

func (c *Client) schedule() {
	if c.rate > 0 {
		c.next = c.sim.At(c.sim.Now()+int64(c.arrivals.ExpFloat64()/c.rate), c, 0, uint64(c.id))
	}
}

// Handle implements [engine.Handler]: a call arrives.
func (c *Client) Handle(uint8, uint64) {
	c.schedule()
	c.arrive()
}

// arrive begins a call.
func (c *Client) arrive() {
	var k *call
	if n := len(c.calls); n > 0 {
		k, c.calls = c.calls[n-1], c.calls[:n-1]
	} else {
		k = &call{client: c}
	}
	now := c.sim.Now()
	k.began, k.attempts, k.server, k.code = now, 0, -1, codes.OK
	k.request = server.Request{Work: c.cfg.Work(c.work), Owner: k}
	k.luck = c.work.Uint64()
	k.request.Luck = engine.Unit(engine.Mix(k.luck))
	k.attempt = lb.Call{Deadline: now + int64(c.cfg.Deadline), Tried: k.attempt.Tried[:0]}
	k.deadline = c.sim.At(k.attempt.Deadline, k, expire, uint64(c.id))
	c.open++
	k.try()
}

// call is one call. It is used again for others.
type call struct {
	client   *Client
	attempt  lb.Call
	request  server.Request
	load     lb.Load
	began    int64
	tried    int64 // when the attempt began
	luck     uint64
	deadline engine.Timer
	leg      engine.Timer // the message under way
	server   int
	attempts int
	code     codes.Code
	refused  bool // the attempt never reached the application
}

// The kinds of events of a call.
const (
	reach  uint8 = iota // the request is at the server
	reply               // the answer is at the client
	expire              // the deadline
)

// Errors of attempts.
var (
	errDeadline = status.Error(codes.DeadlineExceeded, "simulated: the deadline ran out")
	errRefused  = status.Error(codes.Unavailable, "simulated: connection refused")
	errRejected = status.Error(codes.ResourceExhausted, "simulated: the queue is full")
	errFailed   = status.Error(codes.Unavailable, "simulated: the application failed")
)

// try begins an attempt.
func (k *call) try() {
	c := k.client
	k.tried = c.sim.Now()
	s, err := c.balancer.Pick(&k.attempt)
	if err != nil {
		k.server, k.code = -1, status.Code(err)
		k.end()
		return
	}
	k.server = s
	k.attempts++
	c.recorder.Sent(s, k.tried)
	k.leg = c.sim.At(k.tried+k.delay(), k, reach, uint64(s))
}

// delay is that of the call's next message.
func (k *call) delay() int64 {
	_, zone := k.client.servers.Server(k.server)
	k.luck = engine.Mix(k.luck)
	return k.client.cfg.Network.Delay(k.client.zone, zone, k.luck)
}

// Handle implements [engine.Handler].
func (k *call) Handle(kind uint8, _ uint64) {
	s, _ := k.client.servers.Server(max(k.server, 0))
	switch kind {
	case reach:
		s.Start(&k.request)
	case expire:
		k.client.sim.Stop(k.leg)
		s.Cancel(&k.request)
		k.code = codes.DeadlineExceeded
		k.done(errDeadline, nil)
		k.end()
	case reply:
		k.replied()
	}
}

// Answered implements [server.Owner].
func (k *call) Answered(_ *server.Request, st server.Status) {
	s, _ := k.client.servers.Server(k.server)
	k.code = codes.OK
	switch st {
	case server.OK:
		k.load = s.Load()
	case server.Failed:
		k.load, k.code = s.Load(), codes.Unavailable
	case server.Rejected:
		k.load, k.code = s.Load(), codes.ResourceExhausted
	case server.Refused:
		k.code = codes.Unavailable
	}
	now := k.client.sim.Now()
	k.leg = k.client.sim.At(now+k.delay(), k, reply, uint64(k.server)<<8|uint64(st))
	k.refused = st == server.Refused
}

// replied ends an attempt, and the call if there is no other.
func (k *call) replied() {
	switch {
	case k.code == codes.OK:
		k.done(nil, &k.load)
	case k.refused:
		k.done(errRefused, nil)
		if k.attempts < k.client.cfg.Attempts {
			k.attempt = lb.Call{Key: k.attempt.Key, HasKey: k.attempt.HasKey, Deadline: k.attempt.Deadline,
				Tried: append(k.attempt.Tried, k.server)}
			k.try()
			return
		}
	case k.code == codes.ResourceExhausted:
		k.done(errRejected, &k.load)
	default:
		k.done(errFailed, &k.load)
	}
	k.end()
}

// done tells the balancer.
func (k *call) done(err error, load *lb.Load) {
	k.client.balancer.Done(&k.attempt, k.server,
		lb.Result{Latency: k.client.sim.Now() - k.tried, Err: err, Load: load})
}

// end reports the call and gives its memory back. Its deadline has passed or is stopped.
func (k *call) end() {
	c := k.client
	c.sim.Stop(k.deadline)
	c.recorder.Ended(End{Arrived: k.began, Latency: c.sim.Now() - k.began, Code: k.code, Server: k.server,
		Attempts: k.attempts})
	c.open--
	c.calls = append(c.calls, k)
}
