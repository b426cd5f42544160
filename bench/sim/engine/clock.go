package engine

import (
	"time"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// Epoch is the time of day at the virtual time 0. A deadline of a context that is made for code under simulation is
// Epoch plus its virtual time.
var Epoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// Clock is the simulation's time as the library's shells read it. Its callbacks are events of the simulation.
func (s *Sim) Clock() clock.Clock { return virtual{s} }

type virtual struct{ s *Sim }

// Now implements clock.Clock.
func (v virtual) Now() int64 { return v.s.now }

// Until implements clock.Clock.
func (v virtual) Until(t time.Time) time.Duration { return t.Sub(Epoch) - time.Duration(v.s.now) }

// AfterFunc implements clock.Clock.
func (v virtual) AfterFunc(d time.Duration, f func()) clock.Timer {
	return pending{v.s, v.s.At(v.s.now+int64(d), callback(f), kindCallback, 0)}
}

type pending struct {
	s *Sim
	t Timer
}

// Stop implements clock.Timer.
func (p pending) Stop() bool { return p.s.Stop(p.t) }
