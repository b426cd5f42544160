package breaker

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sony/gobreaker/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

// Phase is the state of a breaker.
type Phase uint8

const (
	// Closed: calls pass and are counted. It is the zero value.
	Closed Phase = iota
	// Open: no call passes.
	Open
	// HalfOpen: a few calls pass as probes; whether they succeed decides.
	HalfOpen
	// Recovering: the probes succeeded, and a growing share of the calls passes. They are counted as in Closed.
	Recovering
)

// String returns the phase's name in lower case.
func (p Phase) String() string {
	switch p {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	case Recovering:
		return "recovering"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// Error is what a call ends with that a breaker turned away: UNAVAILABLE for gRPC, and not to be retried. Find it
// with [errors.As]. It is immutable.
type Error struct {
	// Breaker is the breaker's name, Method the method that was called.
	Breaker, Method string
	// Phase is the breaker's state. It is Closed if only MaxConcurrent was in the way.
	Phase Phase
	// Full tells that MaxConcurrent calls were in flight.
	Full bool
	// Since is when that state began.
	Since time.Time
	// Until is when an open breaker lets probes through, or when a recovering one lets all calls through; else
	// zero.
	Until time.Time
	// Last is the failure that opened the breaker, nil if there is none to tell.
	Last error
	// DryRun tells that the call was let through nevertheless.
	DryRun bool

	server bool
}

// refusal makes the error for a call that b, being in the state c, turned away; err is gobreaker's.
func (b *breaker) refusal(c *change, err error) *Error {
	e := &Error{Breaker: b.name, Phase: c.phase, Since: c.at, Until: c.until, Last: c.err, server: b.key.which.server()}
	if err != nil && (c.phase == Closed || c.phase == Recovering) { // it has come back since gobreaker's answer
		e.Phase, e.Until = Open, time.Time{}
		if errors.Is(err, gobreaker.ErrTooManyRequests) {
			e.Phase = HalfOpen
		}
	}
	return e
}

// Error says which breaker, why, since when, until when, and the last failure.
func (e *Error) Error() string {
	return e.text(func(err error) string { return err.Error() })
}

// GRPCStatus makes it UNAVAILABLE. A server tells its clients only the code of the last failure: its text may be
// about another caller's request.
func (e *Error) GRPCStatus() *status.Status {
	if e.server {
		return status.New(codes.Unavailable, e.text(func(err error) string { return outcome.Code(err).String() }))
	}
	return status.New(codes.Unavailable, e.Error())
}

// DoNotRetry tells evenkeel's retry to leave it at that: the breaker would turn the next attempt away as well. It
// does not travel, so that clients of a server with breakers are free to try another instance.
func (e *Error) DoNotRetry() bool { return true }

// maxLast bounds the text of the last failure: errors quote errors, and headers have limits.
const maxLast = 200

func (e *Error) text(last func(error) string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "breaker %q ", e.Breaker)
	switch {
	case e.Full:
		s.WriteString("has as many calls in flight as it allows")
	default:
		fmt.Fprintf(&s, "is %v since %s", e.Phase, clockText(e.Since))
		switch {
		case !e.Until.IsZero():
			fmt.Fprintf(&s, ", until %s", clockText(e.Until))
		case e.Phase == HalfOpen:
			s.WriteString(", until its probe has ended")
		}
	}
	if e.Last != nil {
		text := last(e.Last)
		if len(text) > maxLast {
			text = strings.ToValidUTF8(text[:maxLast], "") + "..."
		}
		s.WriteString("; last failure: " + text)
	}
	return s.String()
}

// clockText is short, sorts, and says which zone.
func clockText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// FallbackError is what a call ends with under Policy.FallbackFails when its [Fallback] has answered: a failure
// for everybody on the way up, with the answer in it. [AcceptFallback] turns it into a success again.
type FallbackError struct {
	// Reply is the message that the fallback filled.
	Reply any
	// Err is why the fallback was asked.
	Err error
}

// Error returns Err's text.
func (e *FallbackError) Error() string { return "answered by a fallback after: " + e.Err.Error() }

// Unwrap returns Err, so that a call that a breaker turned away is still found to be that.
func (e *FallbackError) Unwrap() error { return e.Err }

// GRPCStatus is Err's status.
func (e *FallbackError) GRPCStatus() *status.Status {
	if s, ok := status.FromError(e.Err); ok {
		return s
	}
	return status.New(outcome.Code(e.Err), e.Err.Error())
}

// StateChange is the event that OnStateChange gets.
type StateChange struct {
	// Breaker is its name.
	Breaker string
	// From and To are the states before and after.
	From, To Phase
	// At is when it happened.
	At time.Time
	// Until is when probes are let through, if To is Open, or all calls, if To is Recovering; else zero.
	Until time.Time
	// Err is the last failure before the breaker opened; nil once it has come back.
	Err error
	// DryRun tells that the breaker turns no call away.
	DryRun bool
}
