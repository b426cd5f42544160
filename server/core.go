package server

import (
	"math"
	"time"
)

// state is how far the life of a served listener has come. It only ever grows.
type state uint8

const (
	starting state = iota // not known to serve yet; nothing has been announced
	serving               // announced, or trying to be
	marking               // the registry is being told that the instance drains
	waiting               // those who watch have DrainDelay to see it
	leaving               // being deregistered
	stopping              // GracefulStop runs
	killing               // Stop runs
	stopped
)

// event is something that happened to the server.
type event uint8

const (
	accepting    event = iota // grpc asked the listener for its first connection
	ready                     // the health service says SERVING
	broken                    // the listener is gone, or the registry refused the record for good
	ctxEnded                  // the caller's context ended
	signalled                 // SIGINT or SIGTERM
	marked                    // the draining mark is out, or will not be
	deregistered              // the record is gone, or was never there
	drained                   // GracefulStop returned
	killed                    // Stop returned
	tick                      // the deadline may have passed
)

// action is what the shell does next. Each is ordered at most once in a core's life.
type action uint8

const (
	healthUp     action = iota // let the health service say SERVING, and report ready when it does
	announce                   // register, however long it takes
	notServing                 // health NOT_SERVING; end announcing and the user's updates
	mark                       // tell the registry that the instance drains
	deregister                 // close the registration
	gracefulStop               // grpc's GracefulStop
	stop                       // grpc's Stop
)

// ending is why the server stopped without waiting for its calls, if it did.
type ending uint8

const (
	graceful ending = iota // it did wait
	timedOut               // StopTimeout ran out
	forced                 // a second signal came
)

// Bounds on what shutdown waits for besides its two configured times.
const (
	registryTimeout = 3 * time.Second // for the draining mark, and again for deregistering
	killTimeout     = time.Second     // for everything that is left once Stop has been called
)

// core is the order of shutdown (ADR-0006) as a state machine without goroutines, time or grpc. The shell reports
// what happened to step and carries out what it answers; deadline says when the next tick is due.
//
// The zero value with both times set is a server that has just been handed to grpc. A core is not safe for
// concurrent use. Its clock may go backwards: a deadline then comes later, and nothing else changes.
type core struct {
	drainDelay, stopTimeout time.Duration

	state    state
	deadline int64 // in nanoseconds of the shell's clock; 0 means none
	ending   ending
	stuck    bool // GracefulStop or Stop had not returned when the core gave up

	accepted bool
	signals  int
	open     uint8 // bit per started and unfinished deregister, gracefulStop, stop
}

const (
	openDeregister = 1 << iota
	openGraceful
	openStop
)

// step tells the core what happened at now, and returns what to do, in order.
func (c *core) step(now int64, ev event) []action {
	switch ev {
	case accepting:
		if c.state == starting && !c.accepted {
			c.accepted = true
			return []action{healthUp}
		}
	case ready:
		if c.state == starting {
			c.state = serving
			return []action{announce}
		}
	case ctxEnded:
		return c.drain(now)
	case signalled:
		// Signals are counted apart from the context: a program whose context comes from signal.NotifyContext
		// sees both for one SIGTERM, and that must not count as two.
		if c.signals++; c.signals > 1 {
			return c.kill(now, forced)
		}
		return c.drain(now)
	case broken:
		// No delay: whoever is sent here meanwhile cannot connect.
		if c.state < leaving {
			return c.leave(now)
		}
	case marked:
		if c.state == marking {
			return c.wait(now)
		}
	case deregistered, drained, killed:
		return c.finished(now, ev)
	case tick:
		if c.deadline != 0 && now >= c.deadline {
			return c.expired(now)
		}
	}
	return nil
}

// drain begins the orderly way down. A server that never served has nobody to warn.
func (c *core) drain(now int64) []action {
	switch c.state {
	case starting:
		return c.leave(now)
	case serving:
		c.enter(marking, now, registryTimeout)
		return []action{notServing, mark}
	}
	return nil
}

func (c *core) wait(now int64) []action {
	if c.drainDelay <= 0 {
		return c.leave(now)
	}
	c.enter(waiting, now, c.drainDelay)
	return nil
}

func (c *core) leave(now int64) []action {
	acts := c.farewell()
	c.enter(leaving, now, registryTimeout)
	return acts
}

func (c *core) kill(now int64, why ending) []action {
	if c.state >= killing {
		return nil
	}
	var acts []action
	if c.state < leaving {
		acts = c.farewell()
	}
	c.ending = why
	c.open |= openStop
	c.enter(killing, now, killTimeout)
	// Stop comes first: to deregister may take a while, and the operator said now.
	return append([]action{stop}, acts...)
}

// farewell is what has to be done exactly once on every way down, whatever state it starts from.
func (c *core) farewell() []action {
	c.open |= openDeregister
	if c.state < marking {
		return []action{notServing, deregister}
	}
	return []action{deregister}
}

// finished ends one of the things that run on their own.
func (c *core) finished(now int64, ev event) []action {
	switch ev {
	case deregistered:
		c.open &^= openDeregister
	case drained:
		c.open &^= openGraceful
	case killed:
		c.open &^= openStop
	}
	switch {
	case c.state == leaving && c.open&openDeregister == 0:
		return c.stopGracefully(now)
	case c.state == stopping && c.open&openGraceful == 0:
		c.end()
	case c.state == killing && c.open == 0:
		c.end()
	}
	return nil
}

func (c *core) stopGracefully(now int64) []action {
	c.open |= openGraceful
	c.enter(stopping, now, c.stopTimeout)
	return []action{gracefulStop}
}

func (c *core) expired(now int64) []action {
	switch c.state {
	case marking:
		return c.wait(now)
	case waiting:
		return c.leave(now)
	case leaving:
		return c.stopGracefully(now)
	case stopping:
		return c.kill(now, timedOut)
	case killing:
		c.stuck = c.open&(openGraceful|openStop) != 0
		c.end()
	}
	return nil
}

func (c *core) enter(s state, now int64, d time.Duration) {
	c.state = s
	c.deadline = math.MaxInt64 // a delay of centuries must not wrap round into the past
	if now <= 0 || int64(d) < math.MaxInt64-now {
		c.deadline = now + int64(d)
	}
}

func (c *core) end() { c.state, c.deadline = stopped, 0 }
