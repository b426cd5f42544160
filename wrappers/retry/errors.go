package retry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

// Attempt is one attempt of a call that failed.
type Attempt struct {
	// Endpoint is the address that it was sent to, empty if none was picked.
	Endpoint string
	// Instance is the ID of the instance there, empty unless evenkeel's balancer picked it.
	Instance string
	// Code is how it ended, CANCELLED for one that was cancelled because another decided the call.
	Code codes.Code
	// Err is the error it ended with.
	Err error
	// Duration is how long it took, 0 if that was not measured: while a method has no failures, the start of a first
	// attempt is noted for one call of 16 only, because reading the clock costs as much as the rest of the wrapper.
	// From a method's first failure on, and in its first 1,024 calls, every attempt is measured.
	Duration time.Duration
	// Hedge: it was sent while an earlier attempt was still under way.
	Hedge bool
}

// String is what people read: where, what, how long.
func (a Attempt) String() string {
	var b strings.Builder
	switch {
	case a.Instance != "" && a.Endpoint != "":
		fmt.Fprintf(&b, "%s (%s)", a.Instance, a.Endpoint)
	case a.Endpoint != "":
		b.WriteString(a.Endpoint)
	default:
		b.WriteString("no endpoint")
	}
	fmt.Fprintf(&b, ": %s", codeName(a.Code))
	if a.Duration > 0 {
		fmt.Fprintf(&b, " after %v", a.Duration.Round(time.Microsecond))
	}
	if a.Hedge {
		b.WriteString(", hedge")
	}
	return b.String()
}

// Error is what a call ends with when it was tried more than once in vain, or when a retry was due and did not happen.
// It is the last attempt's error with an account of the others: status.FromError gives that attempt's status with its
// code, message and details unchanged, and errors.Is and errors.As see its error. Find it with errors.As:
//
//	var tried *retry.Error
//	if errors.As(err, &tried) { log.Print(tried.Attempts, tried.Reason) }
type Error struct {
	// Attempts are the attempts that failed, in the order in which they ended; there is at least one. The last one is
	// whose error this is: those that it had cancelled, as a hedge's failure for good does, stand before it.
	Attempts []Attempt
	// Reason says why there was no further attempt.
	Reason Reason

	err error
}

// Error is the last error's text and what was tried.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v (retry: %s", e.err, e.Reason)
	for i, a := range e.Attempts {
		fmt.Fprintf(&b, "; %d: %v", i+1, a)
	}
	b.WriteByte(')')
	return b.String()
}

// Unwrap is the last attempt's error.
func (e *Error) Unwrap() error { return e.err }

// GRPCStatus is the last attempt's status.
func (e *Error) GRPCStatus() *status.Status {
	if s, ok := status.FromError(e.err); ok {
		return s
	}
	return status.New(outcome.Code(e.err), e.err.Error())
}

// DoNotRetry tells other retries around this one to leave it at that: two that are stacked by mistake would multiply.
func (e *Error) DoNotRetry() bool { return true }

// forbids reports whether err says of itself that it must not be retried. An error type, such as the one of an open
// breaker, says so by a method DoNotRetry; wrappers need not know each other for that.
func forbids(err error) bool {
	var marked interface{ DoNotRetry() bool }
	return errors.As(err, &marked) && marked.DoNotRetry()
}

// Metadata keys of gRFC A6.
const (
	pushbackKey = "grpc-retry-pushback-ms"
	attemptsKey = "grpc-previous-rpc-attempts"
)

// diagnose reads from an error, the trailer that came with it and the call's context what there is to know.
func diagnose(ctx context.Context, err error, trailer metadata.MD) failure {
	f := failure{code: outcome.Code(err), over: ctx.Err() != nil, forbidden: forbids(err)}
	if values := trailer[pushbackKey]; len(values) > 0 {
		f.push, f.after = parsePushback(values)
	} else if st, ok := status.FromError(err); ok {
		f.after = retryInfo(st)
	}
	return f
}

// parsePushback reads the pushback of a trailer. What cannot be parsed means no, gRFC A6, and so do several values.
func parsePushback(values []string) (pushback, time.Duration) {
	ms, err := strconv.ParseInt(values[0], 10, 32)
	if err != nil || ms < 0 || len(values) > 1 {
		return stayAway, 0
	}
	return comeBack, time.Duration(ms) * time.Millisecond
}

// retryInfo is the delay of the google.rpc.RetryInfo among st's details, 0 if there is none.
func retryInfo(st *status.Status) time.Duration {
	for _, d := range st.Proto().GetDetails() { // most details are none: look before decoding
		info := new(errdetails.RetryInfo)
		if d.MessageIs(info) && d.UnmarshalTo(info) == nil {
			return max(info.GetRetryDelay().AsDuration(), 0)
		}
	}
	return 0
}
