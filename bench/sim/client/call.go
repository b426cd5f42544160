package client

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// call is one call, from its arrival to its end. It is used again for others.
type call struct {
	client   *Client
	began    int64
	ends     int64 // its deadline
	work     float64
	luck     uint64
	key      string
	hasKey   bool
	chained  bool        // it is part of answering somebody's retry
	stops    bool        // its failure is not for those further up to repeat
	rule     lb.Attempts // nil for Config.Attempts
	deadline engine.Timer
	timer    engine.Timer // of the next attempt, a retry or a hedge
	open     []*attempt   // under way
	tried    []int
	attempts int
	server   int      // of the last attempt
	origin   *attempt // on whose behalf it is made; nil for a user's
}

// The kinds of events of a call and of an attempt.
const (
	reach  uint8 = iota // the request is at the server
	reply               // the answer is at the client
	expire              // the deadline
	again               // the wait before a retry is over
	hedge               // the attempt is slow
)

// Errors of attempts.
var (
	errDeadline = status.Error(codes.DeadlineExceeded, "simulated: the deadline ran out")
	errRefused  = status.Error(codes.Unavailable, "simulated: connection refused")
	errRejected = status.Error(codes.ResourceExhausted, "simulated: no place")
	errFailed   = status.Error(codes.Unavailable, "simulated: the application failed")
	errCanceled = status.Error(codes.Canceled, "simulated: another attempt was faster")
)

// arrive begins a user's call.
func (c *Client) arrive() {
	now := c.sim.Now()
	if c.cfg.Streams.Part > 0 && c.kinds.Float64() < c.cfg.Streams.Part {
		c.openStream()
		return
	}
	c.open++
	c.begin(now+int64(c.cfg.Deadline), nil)
}

// begin begins a call that ends at the time ends, on behalf of an attempt of somebody else's or of nobody's.
func (c *Client) begin(ends int64, origin *attempt) *call {
	var k *call
	if n := len(c.calls); n > 0 {
		k, c.calls = c.calls[n-1], c.calls[:n-1]
	} else {
		k = &call{client: c}
	}
	now := c.sim.Now()
	*k = call{client: c, began: now, ends: ends, origin: origin, server: -1, open: k.open[:0], tried: k.tried[:0]}
	k.work = c.cfg.Work(c.work)
	k.luck = c.work.Uint64()
	if c.key != nil {
		k.key, k.hasKey = c.key(c.keys), true
	}
	if origin != nil {
		k.chained = origin.retries()
	}
	if c.retry != nil {
		k.rule = c.retry.Begin(ends, k.chained)
	}
	k.deadline = c.sim.At(ends, k, expire, uint64(c.id))
	k.try()
	return k
}

// Handle implements [engine.Handler].
func (k *call) Handle(kind uint8, _ uint64) {
	switch kind {
	case expire:
		k.end(codes.DeadlineExceeded)
	case again:
		k.try()
	case hedge:
		if k.rule.Hedge() {
			k.try()
		}
	}
}

// try begins an attempt.
func (k *call) try() {
	c := k.client
	var a *attempt
	if n := len(c.attempts); n > 0 {
		a, c.attempts = c.attempts[n-1], c.attempts[:n-1]
	} else {
		a = new(attempt)
	}
	avoid := k.tried
	for _, rival := range k.open {
		avoid = append(avoid, rival.server)
	}
	*a = attempt{call: k, began: c.sim.Now(), pick: lb.Call{Key: k.key, HasKey: k.hasKey, Deadline: k.ends, Tried: avoid}}
	slow := int64(0)
	if k.rule != nil {
		slow = k.rule.Began()
	}
	s, err := c.balancer.Pick(&a.pick)
	if err != nil {
		c.attempts = append(c.attempts, a)
		if len(k.open) == 0 {
			k.server = -1
		}
		k.failed(lb.Failure{Code: status.Code(err), Unsent: true})
		return
	}
	// A message's luck is its own, and that of an attempt is not that of the one before.
	a.luck = k.luck
	if k.attempts > 0 {
		a.luck = engine.Mix(k.luck + uint64(k.attempts)<<32)
	}
	a.request = server.Request{Work: k.work, Deadline: k.ends, Owner: a, Luck: engine.Unit(engine.Mix(a.luck))}
	a.server, k.server = s, s
	k.attempts++
	a.number = k.attempts
	k.open = append(k.open, a)
	c.recorder.Sent(c, s, k.key)
	a.leg = c.sim.At(a.began+a.delay(), a, reach, uint64(s))
	if slow > 0 {
		c.sim.Stop(k.timer)
		k.timer = c.sim.At(a.began+slow, k, hedge, uint64(s))
	}
}

// failed decides what follows a failure.
func (k *call) failed(f lb.Failure) {
	c := k.client
	if k.rule == nil {
		if f.Unsent && f.Code == codes.Unavailable && k.server >= 0 && k.attempts < c.cfg.Attempts {
			k.try()
			return
		}
		k.end(f.Code)
		return
	}
	if len(k.open) > 0 {
		return // a rival may succeed
	}
	c.sim.Stop(k.timer)
	wait, retry := k.rule.Failed(f)
	if !retry {
		k.stops = k.rule.Stops()
		k.end(f.Code)
		return
	}
	k.timer = c.sim.At(c.sim.Now()+wait, k, again, uint64(c.id))
}

// end ends the call and whatever is still done for it, tells whom it concerns, and gives its memory back.
func (k *call) end(code codes.Code) {
	c := k.client
	k.stop(code)
	if k.origin != nil {
		k.origin.calledOn(code, k.stops)
	} else {
		c.recorder.Ended(End{Arrived: k.began, Latency: c.sim.Now() - k.began, Code: code, Server: k.server,
			Attempts: k.attempts})
		c.open--
	}
	c.calls = append(c.calls, k)
}

// stop cancels everything that is under way for the call.
func (k *call) stop(code codes.Code) {
	c := k.client
	c.sim.Stop(k.deadline)
	c.sim.Stop(k.timer)
	err := errCanceled
	if code == codes.DeadlineExceeded {
		err = errDeadline
	}
	for _, a := range k.open {
		a.cancel(err)
	}
	k.open = k.open[:0]
}

// abandon ends a call whose origin is gone; nobody is told.
func (k *call) abandon() {
	k.stop(codes.Canceled)
	k.client.calls = append(k.client.calls, k)
}

// attempt is one attempt of a call. It is used again for others.
type attempt struct {
	call    *call
	pick    lb.Call
	request server.Request
	load    lb.Load
	began   int64
	luck    uint64
	leg     engine.Timer // the message under way
	server  int
	number  int // from 1
	code    codes.Code
	refused bool  // it never reached the application
	stop    bool  // the server wants no retry
	onward  *call // what the server waits for before it answers
}

// retries says whether it is a retry, or part of one.
func (a *attempt) retries() bool { return a.number > 1 || a.call.chained }

// delay is that of the attempt's next message.
func (a *attempt) delay() int64 {
	c := a.call.client
	_, zone := c.servers.Server(a.server)
	a.luck = engine.Mix(a.luck)
	return c.cfg.Network.Delay(c.zone, zone, a.luck)
}

// Handle implements [engine.Handler].
func (a *attempt) Handle(kind uint8, _ uint64) {
	switch kind {
	case reach:
		s, _ := a.call.client.servers.Server(a.server)
		s.Start(&a.request)
	case reply:
		a.replied()
	}
}

// Answered implements [server.Owner].
func (a *attempt) Answered(_ *server.Request, st server.Status) {
	s, _ := a.call.client.servers.Server(a.server)
	a.code = codes.OK
	switch st {
	case server.OK:
		if next := a.call.client.cfg.Next; next != nil {
			if c := next(a.server); c != nil {
				s.Hold(1)
				a.onward = c.begin(a.call.ends, a)
				return
			}
		}
	case server.Failed:
		a.code = codes.Unavailable
	case server.Rejected:
		a.code = codes.ResourceExhausted
	case server.Refused:
		a.code, a.refused = codes.Unavailable, true
	}
	if st != server.Refused {
		a.load = s.Load()
	}
	a.answer(st)
}

// calledOn is the end of the call that the server waited for, and that it answers as. stop says that nobody further up
// is to repeat it.
func (a *attempt) calledOn(code codes.Code, stop bool) {
	s, _ := a.call.client.servers.Server(a.server)
	s.Hold(-1)
	a.onward, a.code, a.stop, a.load = nil, code, stop, s.Load()
	switch {
	case s.Down(): // the process died while it waited
		a.code, a.refused, a.stop = codes.Unavailable, true, false
		a.answer(server.Refused)
	case code != codes.OK:
		a.answer(server.Failed)
	default:
		a.answer(server.OK)
	}
}

// answer sends the answer on its way.
func (a *attempt) answer(st server.Status) {
	sim := a.call.client.sim
	a.leg = sim.At(sim.Now()+a.delay(), a, reply, uint64(a.server)<<8|uint64(st))
}

// replied ends an attempt, and the call if it succeeded or there is no other.
func (a *attempt) replied() {
	k := a.call
	k.open = slices.DeleteFunc(k.open, func(o *attempt) bool { return o == a })
	k.tried = append(k.tried, a.server)
	k.server = a.server
	f := lb.Failure{Code: a.code, Unsent: a.refused, Stop: a.stop}
	switch {
	case f.Code == codes.OK:
		a.done(nil, &a.load)
		if k.rule != nil {
			k.rule.Succeeded(k.client.sim.Now()-a.began, a.number)
		}
		k.end(codes.OK)
		return
	case a.refused:
		a.done(errRefused, nil)
	case f.Code == codes.ResourceExhausted:
		a.done(errRejected, &a.load)
	case f.Code == codes.DeadlineExceeded:
		a.done(errDeadline, &a.load)
	default:
		a.done(errFailed, &a.load)
	}
	k.failed(f)
}

// cancel ends an attempt before its answer is there.
func (a *attempt) cancel(err error) {
	c := a.call.client
	c.sim.Stop(a.leg)
	s, _ := c.servers.Server(a.server)
	if a.onward != nil {
		a.onward.abandon()
		s.Hold(-1)
	}
	s.Cancel(&a.request)
	a.done(err, nil)
}

// done tells the balancer, and gives the attempt's memory back.
func (a *attempt) done(err error, load *lb.Load) {
	c := a.call.client
	c.balancer.Done(&a.pick, a.server, lb.Result{Latency: c.sim.Now() - a.began, Err: err, Load: load})
	c.attempts = append(c.attempts, a)
}
