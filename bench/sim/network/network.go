// Package network is how long a message takes from one zone to another in the simulator.
//
// A message takes the base delay of its two zones and a jitter that is exponential, so that some messages overtake
// others. The jitter is a function of a number that belongs to the message, not a draw from a stream: a policy that
// sends more messages changes the delay of nobody else's. A message that is lost ([Config.Loss]) is late, as over TCP: it
// is sent again after 200 ms, and after twice as long each time that it is lost again.
//
// The zero value is one zone in one data centre: 100 µs one way and a jitter of 20 µs on average.
package network

import (
	"fmt"
	"math"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
)

// Config is the delays between zones.
type Config struct {
	// Local is one way within a zone; 0 means 100 µs.
	Local time.Duration
	// Remote is one way from one zone to any other; 0 means 500 µs.
	Remote time.Duration
	// Jitter is the mean of what comes on top; 0 means a fifth of the delay, negative none.
	Jitter time.Duration
	// Loss is the part of the messages that are lost on their way, and of those that are sent again; 0 means none.
	Loss float64
}

// retransmit is the least time after which TCP sends again what was not acknowledged (Linux; RFC 6298 says 1 s).
const retransmit = int64(200 * time.Millisecond)

// Validate reports what makes no sense.
func (c Config) Validate() error {
	if !(c.Loss >= 0 && c.Loss < 1) {
		return fmt.Errorf("network: loss = %v, want 0 or more, and less than 1", c.Loss)
	}
	if c.Local < 0 || c.Remote < 0 {
		return fmt.Errorf("network: local = %v, remote = %v, want 0 or more", c.Local, c.Remote)
	}
	return nil
}

// Delay is how long one message takes, in nanoseconds. luck is any number that belongs to the message.
func (c Config) Delay(from, to string, luck uint64) int64 {
	base := c.Local
	if base == 0 {
		base = 100 * time.Microsecond
	}
	if from != to {
		if base = c.Remote; base == 0 {
			base = 500 * time.Microsecond
		}
	}
	late := int64(0)
	for again, l := retransmit, ^luck; c.Loss > 0; again *= 2 {
		if l = engine.Mix(l); engine.Unit(l) >= c.Loss {
			break
		}
		late += again
	}
	jitter := float64(c.Jitter)
	switch {
	case c.Jitter < 0:
		return late + int64(base)
	case c.Jitter == 0:
		jitter = float64(base) / 5
	}
	return late + int64(base) + int64(-jitter*math.Log(1-engine.Unit(engine.Mix(luck))))
}
