// Package network is how long a message takes from one zone to another in the simulator.
//
// A message takes the base delay of its two zones and a jitter that is exponential, so that some messages overtake
// others. The jitter is a function of a number that belongs to the message, not a draw from a stream: a policy that
// sends more messages changes the delay of nobody else's. Messages are not lost; what a loss does to a call over TCP,
// a delay or a deadline that runs out, is done by the server's faults.
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
}

// Validate reports what makes no sense.
func (c Config) Validate() error {
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
	jitter := float64(c.Jitter)
	switch {
	case c.Jitter < 0:
		return int64(base)
	case c.Jitter == 0:
		jitter = float64(base) / 5
	}
	return int64(base) + int64(-jitter*math.Log(1-engine.Unit(engine.Mix(luck))))
}
