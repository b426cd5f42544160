// Package clock is the time that the library's shells read, so that a simulator can replace it.
//
// Cores take the time as an argument and never import this package. A shell reads it once an event and passes the
// answer on. Inside a testing/synctest bubble [Real] already runs on the bubble's virtual time; another
// implementation is needed only where no goroutines are wanted, as in a discrete-event simulation.
package clock

import "time"

// Clock tells the time and calls back later. Implementations are safe for concurrent use.
type Clock interface {
	// Now is nanoseconds since a fixed moment; it is positive and never goes backwards.
	Now() int64
	// Until is the time left until t, as time.Until.
	Until(t time.Time) time.Duration
	// AfterFunc calls f once, on a goroutine or event of its own, after d.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a pending call of [Clock.AfterFunc].
type Timer interface {
	// Stop cancels the call; it reports false if the call has begun or was stopped before.
	Stop() bool
}

// Real is the machine's monotonic clock. Its zero value is not usable; use [New].
type Real struct{ base time.Time }

// New returns a Real that counts from now.
func New() Real { return Real{base: time.Now()} }

// Now implements Clock. time.Since of a time with a monotonic reading costs one clock read, time.Now two.
func (r Real) Now() int64 { return int64(time.Since(r.base)) + 1 }

// Until implements Clock.
func (Real) Until(t time.Time) time.Duration { return time.Until(t) }

// AfterFunc implements Clock.
func (Real) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
