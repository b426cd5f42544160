// Package outcome says what the end of a call tells about the endpoint that served it.
//
// It is the one classifier of the library: the balancer's blacklist and load-aware strategies, the circuit breaker
// and the retry all ask it, so that there is a single definition of failure. Its question is narrow. Not "did the
// call succeed?" but "does this end say something about the *instance*?" A NOT_FOUND is the right answer to a
// wrong question; a caller that went away says nothing about the callee. Counting such business errors against an
// instance takes healthy instances out of service, which is worse than having no blacklist at all.
//
// The default rule, [Default]:
//
//   - no error is [OK];
//   - UNAVAILABLE and DATA_LOSS are a [Failure]; so is a DEADLINE_EXCEEDED of a call that had 10 ms or more left
//     when it was sent (with less, it was the caller's doing);
//   - UNKNOWN and INTERNAL are a [Failure] too, but a doubtful one ([Doubtful]): a handler's plain Go error
//     becomes UNKNOWN, so whoever takes an instance out of service wants a second witness;
//   - RESOURCE_EXHAUSTED is [Soft]: the instance is alive and asks for less;
//   - everything else, the caller's own CANCELLED included, is [Ignore].
//
// A service whose codes mean something else registers a [Classifier] of its own under a name, in an init function,
// and names it in the balancer's configuration. All functions here are safe for concurrent use and cost a few
// nanoseconds.
package outcome

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Class is what a call's end says about the endpoint.
type Class uint8

const (
	// OK: the endpoint did its work.
	OK Class = iota
	// Ignore: says nothing about the endpoint.
	Ignore
	// Soft: the endpoint is alive but wants less; it is penalised by load-aware strategies, never ejected for it.
	Soft
	// Failure: counts against the endpoint.
	Failure
)

// String returns the class's name in lower case.
func (c Class) String() string {
	switch c {
	case OK:
		return "ok"
	case Ignore:
		return "ignore"
	case Soft:
		return "soft"
	case Failure:
		return "failure"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// NoDeadline is what a [Classifier] gets as the remaining time of a call that had no deadline.
const NoDeadline = time.Duration(1<<63 - 1)

// minRemaining is what a call must have had left for its DEADLINE_EXCEEDED to count against the endpoint.
const minRemaining = 10 * time.Millisecond

// Classifier judges one call. method is the full name ("/pkg.Service/Method"), err what the call ended with (never
// nil: a call without an error is [OK] and not asked about), and remaining the time that was left until its
// deadline when the endpoint was picked, [NoDeadline] if it had none. It must be safe for concurrent use, fast, and
// must not block: it runs at the end of every failed call.
type Classifier func(method string, err error, remaining time.Duration) Class

// Default is the rule that the package documentation states. It depends on err's status code and on remaining only.
func Default(_ string, err error, remaining time.Duration) Class {
	switch Code(err) {
	case codes.OK:
		return OK
	case codes.Unavailable, codes.DataLoss, codes.Unknown, codes.Internal:
		return Failure
	case codes.DeadlineExceeded:
		if remaining >= minRemaining {
			return Failure
		}
		return Ignore
	case codes.ResourceExhausted:
		return Soft
	}
	return Ignore
}

// Doubtful reports whether err, though a failure, may as well be the answer of a healthy handler: UNKNOWN, which is
// what a plain Go error becomes, and INTERNAL.
func Doubtful(err error) bool {
	c := Code(err)
	return c == codes.Unknown || c == codes.Internal
}

// Code is err's status code. A context error that is not a status counts as the status it would become.
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Unknown
}

var (
	mu    sync.RWMutex
	named = map[string]Classifier{"default": Default}
)

// Register makes c known under name, so that JSON configurations can name it. Call it from an init function only.
// It panics, being a programmer's error, on an empty name, a nil classifier or a name that is taken ("default" is).
func Register(name string, c Classifier) {
	mu.Lock()
	defer mu.Unlock()
	if name == "" || c == nil {
		panic("outcome: Register: want a name and a classifier")
	}
	if _, taken := named[name]; taken {
		panic(fmt.Sprintf("outcome: Register: name = %q, want one that is not taken", name))
	}
	named[name] = c
}

// Lookup returns the classifier registered under name; the empty name means "default". The error lists the names
// that are known.
func Lookup(name string) (Classifier, error) {
	if name == "" {
		return Default, nil
	}
	mu.RLock()
	defer mu.RUnlock()
	if c, ok := named[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("classifier = %q, want one of %q", name, slices.Sorted(maps.Keys(named)))
}
