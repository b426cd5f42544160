// Package server is a simulated server: it takes requests, works on them as fast as its machine lets it, and says how
// busy it is.
//
// Left alone it is a process on a machine with several cores: every request runs on a core of its own until there are
// more requests than cores, and then all of them share the cores equally (processor sharing). With [Config.Workers] it
// is a queue with so many workers instead, in order of arrival. How many cores there are changes while it runs, since a
// process is guaranteed some of its machine and gets what the neighbours leave of the rest: see [Antagonist].
//
// The sharing is exact, not stepped. All requests in service advance at one rate, so there is one number for how much
// service each of them has had since some moment, and a request is complete when that number reaches the one that it
// had on arrival plus its work. A request, an end or a change of capacity moves one event; nothing else is touched. The
// cost is O(log n) for n requests in service.
//
// What goes wrong in production can be done to it: [Server.SetSpeed] (a slow machine, a cold cache), [Server.Pause]
// (garbage collection), [Server.Hang] (it holds on to what it gets and never answers), [Server.Crash] (it refuses at
// once), [Server.SetFaults] (some requests fail fast: the sink-hole; or take several times as long: the gray failure).
//
// What it says about itself is what a real one can know: requests in flight, the median latency of recent requests
// that arrived when about as many were in flight, the use of its allocation over a window, requests and failures per
// second. Answering a probe costs it processor time.
//
// A Server belongs to one simulation and is not safe for concurrent use. Times and durations are nanoseconds.
package server

import (
	"math"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/internal/estimate"
)

// Status is how a request ended.
type Status uint8

// The ways in which a request can end. One that is cancelled ends for its caller, who is not told.
const (
	OK       Status = iota
	Failed          // by the application
	Refused         // no process: the connection was refused, or reset
	Rejected        // the queue was full, or it was not admitted
)

// Request is one request while a server has it. The caller sets the exported fields and owns the memory, which must
// stay until the request has ended.
type Request struct {
	// Work is the processor time that it needs at speed 1.
	Work float64
	// Luck is in [0,1) and decides whether an injected fault hits this request. It belongs to the request, so that it
	// is as lucky under every policy.
	Luck float64
	// Deadline is when its caller gives up, 0 for never. The server does not act on it; its admission may.
	Deadline int64
	// Owner is told of the end.
	Owner Owner

	server  *Server
	arrived int64
	rif     int32   // in flight at arrival, itself not counted
	pos     int32   // in running, or waiting, or failing
	target  float64 // what Server.attained is when it is complete
	next    *Request
	prev    *Request
	timer   engine.Timer // of a fault
	place   any          // of the admission
	inside  bool         // admitted
}

// Places of a request that is not in Server.running.
const (
	nowhere int32 = -1 - iota
	waiting
	failing
)

// Owner is told when a request has ended, unless it cancelled it.
type Owner interface {
	Answered(*Request, Status)
}

// Server is one server. Use [New].
type Server struct {
	sim *engine.Sim
	cfg Config

	shares  float64      // the cores that it could use now, guaranteed or not
	cores   float64      // the same, or less under a throttle
	over    engine.Timer // wants more since Throttle.After before this
	checked bool         // by the throttle
	health  float64      // of SetSpeed
	shared  float64      // what neighbours leave of a core's speed
	speed   float64      // the product of both and of the Config's
	faults  Faults
	down    bool
	hung    bool
	paused  int64 // until

	last     int64   // when attained and used were right
	attained float64 // service of each request in running since there was none
	rate     float64 // at which attained grows
	running  []*Request
	head     *Request // waiting
	tail     *Request
	queued   int
	failing  int
	held     int          // by Hold
	next     engine.Timer // the first completion

	used         float64 // core nanoseconds, ever
	done, failed uint64  // requests, ever
	report       estimate.Estimator
	window       window
	admission    lb.Admission // nil for none
}

// New returns a server that is up and idle. A Config that makes no sense ([Config.Validate]) panics.
func New(sim *engine.Sim, cfg Config) *Server {
	if err := cfg.Validate(); err != nil {
		panic("server: " + err.Error())
	}
	if cfg.Cores == 0 {
		cfg.Cores = float64(max(cfg.Workers, 1))
	}
	if cfg.Speed == 0 {
		cfg.Speed = 1
	}
	if cfg.Window == 0 {
		cfg.Window = 10 * time.Second
	}
	if cfg.Throttle.To == 0 {
		cfg.Throttle.To = 1
	}
	switch {
	case cfg.ProbeCost == 0:
		cfg.ProbeCost = 50 * time.Microsecond
	case cfg.ProbeCost < 0:
		cfg.ProbeCost = 0
	}
	s := &Server{sim: sim, cfg: cfg, shares: cfg.Cores, cores: cfg.Cores, health: 1, shared: 1, last: sim.Now()}
	s.speed, s.report.Samples = cfg.Speed, cfg.Samples
	s.window.init(int64(cfg.Window), sim.Now())
	return s
}

// The kinds of events of a Server.
const (
	complete uint8 = iota
	resume
	throttle
)

// Handle implements [engine.Handler].
func (s *Server) Handle(kind uint8, _ uint64) {
	s.advance()
	switch kind {
	case throttle:
		s.checked = true
	case complete:
		// The event is at most a nanosecond late, and never early but for rounding.
		s.attained = max(s.attained, s.running[0].target)
		for len(s.running) > 0 && s.running[0].target <= s.attained {
			r := s.running[0]
			s.removeRunning(0)
			s.end(r, OK)
		}
	}
	s.settle()
}

// Start takes a request. Its end may be told before Start returns.
func (s *Server) Start(r *Request) {
	r.server, r.arrived, r.rif, r.pos = s, s.sim.Now(), int32(s.RIF()), nowhere
	if s.down {
		r.Owner.Answered(r, Refused)
		return
	}
	s.advance()
	if !s.admit(r) {
		s.done++
		s.failed++
		r.Owner.Answered(r, Rejected)
		return
	}
	work := r.Work
	switch f := s.faults; {
	case r.Luck < f.Fail:
		r.pos = failing
		s.failing++
		r.timer = s.sim.At(s.sim.Now()+int64(f.FailAfter), (*fault)(r), 0, 0)
		return
	case r.Luck-f.Fail < f.Slow*(1-f.Fail):
		work *= f.SlowBy
	}
	r.target = work // until it is in service
	switch {
	case s.cfg.Workers == 0 || len(s.running) < s.cfg.Workers:
		s.serve(r)
		s.settle()
	case s.cfg.Queue > 0 && s.queued >= s.cfg.Queue:
		s.leave(r, lb.Vain)
		s.done++
		s.failed++
		r.Owner.Answered(r, Rejected)
	default:
		s.enqueue(r)
	}
}

// fault is a request that an injected fault hits.
type fault Request

// Handle implements [engine.Handler].
func (f *fault) Handle(uint8, uint64) {
	r := (*Request)(f)
	r.server.failing--
	r.server.advance()
	r.server.end(r, Failed)
}

// Cancel ends a request that its caller has given up: its work stops, and nobody is told. Nothing happens to one that
// has ended.
func (s *Server) Cancel(r *Request) {
	switch {
	case r.server != s || r.pos == nowhere:
		return
	case r.pos == failing:
		s.failing--
		s.sim.Stop(r.timer)
	case r.pos == waiting:
		s.unqueue(r)
	default:
		s.advance()
		s.removeRunning(r.pos)
	}
	r.pos = nowhere
	if r.Deadline != 0 && s.sim.Now() >= r.Deadline {
		s.leave(r, lb.TimedOut)
	} else {
		s.leave(r, lb.Vain)
	}
	s.done++
	s.failed++
	s.settle()
}

// end counts a request that is in no list any more, and tells its owner.
func (s *Server) end(r *Request, status Status) {
	r.pos = nowhere
	s.done++
	if status == OK {
		s.leave(r, lb.Served)
		s.report.Record(int(r.rif), s.sim.Now()-r.arrived, s.sim.Now())
	} else {
		s.leave(r, lb.Vain)
		s.failed++
	}
	r.Owner.Answered(r, status)
}

func (s *Server) serve(r *Request) {
	r.target += s.attained
	s.pushRunning(r)
}

// advance brings attained and used up to now, at the rate of the time since they were.
func (s *Server) advance() {
	now := s.sim.Now()
	if dt := float64(now - s.last); dt > 0 {
		s.attained += s.rate * dt
		s.used += s.busy() * dt
	}
	s.last = now
	s.window.roll(now, s.used, s.done, s.failed)
}

// busy is how many cores are working.
func (s *Server) busy() float64 {
	if s.rate == 0 {
		return 0
	}
	return min(float64(len(s.running)), s.cores)
}

// settle fills free workers, and works out the rate and the first completion anew. advance has been called.
func (s *Server) settle() {
	for s.head != nil && len(s.running) < s.cfg.Workers {
		r := s.head
		s.unqueue(r)
		s.serve(r)
	}
	n := float64(len(s.running))
	s.limit(n)
	switch {
	case s.hung || s.down || s.paused > s.sim.Now():
		s.rate = 0
	case n > s.cores:
		s.rate = s.speed * s.cores / n
	default:
		s.rate = s.speed
	}
	if len(s.running) == 0 {
		s.attained = 0 // so that it never grows large enough to lose digits
	}
	if len(s.running) == 0 || s.rate == 0 {
		s.sim.Stop(s.next)
		return
	}
	at := s.last + int64(math.Ceil(max(0, s.running[0].target-s.attained)/s.rate))
	if !s.sim.Move(s.next, at) {
		s.next = s.sim.At(at, s, complete, 0)
	}
}

// limit works out how many cores there are for n requests, with the throttle.
func (s *Server) limit(n float64) {
	s.cores = s.shares
	if s.cfg.Throttle.After == 0 {
		return
	}
	if least := min(s.shares, s.cfg.Throttle.To*s.cfg.Cores); s.checked && n > least {
		s.cores = least
		return
	}
	s.checked = false
	switch pending := s.sim.Pends(s.over); {
	case n <= s.shares:
		s.sim.Stop(s.over)
	case !pending:
		s.over = s.sim.At(s.last+int64(s.cfg.Throttle.After), s, throttle, 0)
	}
}

// change applies a change of what the machine can do.
func (s *Server) change(f func()) {
	s.advance()
	f()
	s.settle()
}

// SetSpeed makes a core so many times as fast as the Config says, from now on.
func (s *Server) SetSpeed(times float64) {
	s.health = max(times, 1e-6)
	s.SetShare(s.shares, s.shared)
}

// SetShare says how many cores it can use from now on, and how much of their speed neighbours leave it.
func (s *Server) SetShare(cores, speed float64) {
	s.advance()
	s.shares, s.shared = max(cores, 1e-6), max(speed, 1e-6)
	s.speed = s.cfg.Speed * s.health * s.shared
	s.settle()
}

// SetFaults replaces the faults, for requests that come from now on.
func (s *Server) SetFaults(f Faults) { s.faults = f }

// Pause stops all work for d, as a garbage collector does.
func (s *Server) Pause(d time.Duration) {
	s.change(func() { s.paused = max(s.paused, s.sim.Now()+int64(d)) })
	s.sim.At(s.paused, s, resume, 0)
}

// Hang stops all work, or lets it go on. A server that hangs accepts requests and answers neither them nor probes.
func (s *Server) Hang(on bool) { s.change(func() { s.hung = on }) }

// Crash ends the process: all requests that it has are refused, and so are new ones until [Server.Restart].
func (s *Server) Crash() {
	s.advance()
	s.down = true
	var lost []*Request
	lost = append(lost, s.running...)
	for r := s.head; r != nil; r = r.next {
		lost = append(lost, r)
	}
	for _, r := range s.running {
		r.pos = nowhere
	}
	s.running, s.head, s.tail, s.queued = s.running[:0], nil, nil, 0
	for _, r := range lost {
		r.next, r.prev = nil, nil
		s.end(r, Refused)
	}
	s.settle()
}

// Restart ends a crash, a hang or a pause. What the server knew about itself is forgotten.
func (s *Server) Restart() {
	s.change(func() {
		s.down, s.hung, s.paused, s.report = false, false, 0, estimate.Estimator{Samples: s.cfg.Samples}
	})
}

// RIF is how many requests it has in flight.
func (s *Server) RIF() int { return len(s.running) + s.queued + s.failing + s.held }

// Used is the processor time that it has used, ever, in core nanoseconds.
func (s *Server) Used() float64 {
	s.advance()
	return s.used
}

// Allocation is how many cores it is guaranteed.
func (s *Server) Allocation() float64 { return s.cfg.Cores }

// Guaranteed is the work that its allocation does at its own speed: core seconds in a second.
func (s *Server) Guaranteed() float64 { return s.cfg.Cores * s.cfg.Speed }

// Answers reports whether it would answer a probe now.
func (s *Server) Answers() bool { return !s.down && !s.hung && s.paused <= s.sim.Now() }

// Available is the work that its machine leaves it now, before any throttle: core seconds in a second.
func (s *Server) Available() float64 { return s.shares * s.speed }

// Down reports whether it has crashed.
func (s *Server) Down() bool { return s.down }

// Load is what it says about itself.
func (s *Server) Load() lb.Load {
	s.advance()
	now, rif := s.sim.Now(), s.RIF()
	cores, qps, eps := s.window.rates(now, s.used, s.done, s.failed)
	return lb.Load{RIF: rif, Latency: s.report.Median(rif, now), Utilization: cores / s.cfg.Cores, QPS: qps, EPS: eps}
}

// Probe answers a probe, which costs it processor time; ok is false if it does not answer.
//
// The cost is taken from a core if there is one to spare, else from all requests alike, as their sharing would do,
// without an event of its own.
func (s *Server) Probe() (load lb.Load, ok bool) {
	if !s.Answers() {
		return lb.Load{}, false
	}
	load = s.Load()
	cost := float64(s.cfg.ProbeCost)
	s.used += cost
	if n := float64(len(s.running)); cost > 0 && n > 0 && n >= s.cores {
		for _, r := range s.running {
			r.target += cost * s.speed / n
		}
		s.settle()
	}
	return load, true
}
