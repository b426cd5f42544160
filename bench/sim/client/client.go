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
// tried again at once, up to [Config.Attempts]; or [Config.Retry] decides what is tried again and when, and whether a
// slow attempt gets a rival (a hedge). The first attempt that succeeds ends the call, and the others are cancelled.
//
// A server may have to call others before it can answer ([Config.Next]): then it has done its own work, waits, and
// passes their failure on as its own. Some calls may be streams ([Config.Streams]).
//
// The times of arrival, the work of each call, its key and its luck (does an injected fault hit it, how long do its
// messages take) come from streams of the seed and the client's number. No policy can change them.
package client

import (
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"

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
	// Retry, if not nil, makes what decides about attempts instead.
	Retry func(client int) lb.Retry
	// Next, if not nil, is who calls on behalf of a server before it answers; nil for one that answers by itself.
	Next func(server int) *Client
	// Streams are a part of the calls; zero is none.
	Streams Streams
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
	// Sent is an attempt that leaves for a server, with its key if it has one.
	Sent(c *Client, server int, key string)
	// Ended is a call.
	Ended(End)
	// Streamed is a stream that has ended.
	Streamed(server int, code codes.Code)
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
	keys     *rand.Rand
	kinds    *rand.Rand              // is it a stream, and how long
	key      func(*rand.Rand) string // nil for calls without one
	retry    lb.Retry                // nil for Config.Attempts
	next     engine.Timer
	calls    []*call    // to use again
	attempts []*attempt // likewise
	probes   []*probe   // likewise
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
	c := &Client{sim: sim, cfg: cfg, id: id, zone: zone, servers: servers, recorder: rec, lost: make(map[int]bool),
		arrivals: engine.NewStream(seed, "arrivals", id), work: engine.NewStream(seed, "work", id),
		keys: engine.NewStream(seed, "keys", id), kinds: engine.NewStream(seed, "streams", id),
		salt: engine.NewStream(seed, "probes", id).Uint64()}
	if cfg.Retry != nil {
		c.retry = cfg.Retry(id)
	}
	return c
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

// SetKeys says how the keys of calls are drawn from now on; nil means that they have none.
func (c *Client) SetKeys(draw func(*rand.Rand) string) { c.key = draw }

// Open is how many calls have arrived and not ended, streams aside.
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
