package outcome_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

func TestDefault(t *testing.T) {
	const long, short = time.Second, 9 * time.Millisecond
	for _, tt := range []struct {
		code        codes.Code
		long, short outcome.Class // with much and with little time left at the pick
		doubtful    bool
	}{
		{code: codes.OK, long: outcome.OK, short: outcome.OK},
		{code: codes.Canceled, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.Unknown, long: outcome.Failure, short: outcome.Failure, doubtful: true},
		{code: codes.InvalidArgument, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.DeadlineExceeded, long: outcome.Failure, short: outcome.Ignore},
		{code: codes.NotFound, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.AlreadyExists, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.PermissionDenied, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.ResourceExhausted, long: outcome.Soft, short: outcome.Soft},
		{code: codes.FailedPrecondition, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.Aborted, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.OutOfRange, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.Unimplemented, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.Internal, long: outcome.Failure, short: outcome.Failure, doubtful: true},
		{code: codes.Unavailable, long: outcome.Failure, short: outcome.Failure},
		{code: codes.DataLoss, long: outcome.Failure, short: outcome.Failure},
		{code: codes.Unauthenticated, long: outcome.Ignore, short: outcome.Ignore},
		{code: codes.Code(17), long: outcome.Ignore, short: outcome.Ignore},
	} {
		for _, err := range []error{status.Error(tt.code, "x"), fmt.Errorf("wrapped: %w", status.Error(tt.code, "x"))} {
			if tt.code == codes.OK {
				err = nil
			}
			for remaining, want := range map[time.Duration]outcome.Class{
				outcome.NoDeadline: tt.long, long: tt.long, 10 * time.Millisecond: tt.long, short: tt.short, 0: tt.short, -long: tt.short,
			} {
				if got := outcome.Default("/a/b", err, remaining); got != want {
					t.Errorf("%v with %v left: %v, want %v", err, remaining, got, want)
				}
			}
			if got := outcome.Doubtful(err); got != tt.doubtful {
				t.Errorf("%v: doubtful %t, want %t", err, got, tt.doubtful)
			}
			if got := outcome.Code(err); got != tt.code {
				t.Errorf("%v: code %v, want %v", err, got, tt.code)
			}
		}
	}
}

// TestNoStatus has errors that are no statuses: they count as what gRPC would make of them.
func TestNoStatus(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code codes.Code
		want outcome.Class
	}{
		{nil, codes.OK, outcome.OK},
		{errors.New("x"), codes.Unknown, outcome.Failure},
		{io.ErrUnexpectedEOF, codes.Unknown, outcome.Failure},
		{context.Canceled, codes.Canceled, outcome.Ignore},
		{context.DeadlineExceeded, codes.DeadlineExceeded, outcome.Failure},
		{fmt.Errorf("wrapped: %w", context.Canceled), codes.Canceled, outcome.Ignore},
		{fmt.Errorf("wrapped twice: %w", fmt.Errorf("wrapped: %w", context.DeadlineExceeded)), codes.DeadlineExceeded, outcome.Failure},
		{errors.Join(errors.New("x"), status.Error(codes.NotFound, "y")), codes.NotFound, outcome.Ignore},
	} {
		if got := outcome.Code(tt.err); got != tt.code {
			t.Errorf("%v: code %v, want %v", tt.err, got, tt.code)
		}
		if got := outcome.Default("", tt.err, time.Second); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestClassString(t *testing.T) {
	for c, want := range map[outcome.Class]string{outcome.OK: "ok", outcome.Ignore: "ignore", outcome.Soft: "soft",
		outcome.Failure: "failure", 9: "class(9)"} {
		if c.String() != want {
			t.Errorf("class %d is %q, want %q", c, c, want)
		}
	}
}

func TestLookup(t *testing.T) {
	for _, name := range []string{"", "default"} {
		c, err := outcome.Lookup(name)
		if err != nil || c("", status.Error(codes.Unavailable, ""), 0) != outcome.Failure || c("", status.Error(codes.NotFound, ""), 0) != outcome.Ignore {
			t.Errorf("Lookup(%q): %v, want the default", name, err)
		}
	}
	if _, err := outcome.Lookup("mine"); err == nil || !strings.HasPrefix(err.Error(), `classifier = "mine", want one of ["default" "payments"]`) {
		t.Errorf("an unknown name: %v", err)
	}
	for what, f := range map[string]func(){
		"no name":       func() { outcome.Register("", outcome.Default) },
		"no classifier": func() { outcome.Register("x", nil) },
		"taken":         func() { outcome.Register("default", outcome.Default) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Register with %s does not panic", what)
				}
			}()
			f()
		}()
	}
}

func init() { outcome.Register("payments", payments) }

// payments knows that this service answers ABORTED when its database has failed over, which moving to another
// instance mends.
func payments(method string, err error, remaining time.Duration) outcome.Class {
	if outcome.Code(err) == codes.Aborted && strings.HasPrefix(method, "/payments.") {
		return outcome.Failure
	}
	return outcome.Default(method, err, remaining)
}

func ExampleDefault() {
	for _, c := range []codes.Code{codes.Unavailable, codes.Unknown, codes.ResourceExhausted, codes.NotFound, codes.Canceled} {
		err := status.Error(c, "")
		fmt.Println(c, outcome.Default("/orders.Orders/Get", err, outcome.NoDeadline), "doubtful:", outcome.Doubtful(err))
	}
	late := status.Error(codes.DeadlineExceeded, "")
	fmt.Println("a deadline with 1s left at the pick:", outcome.Default("", late, time.Second))
	fmt.Println("a deadline with 1ms left at the pick:", outcome.Default("", late, time.Millisecond))
	// Output:
	// Unavailable failure doubtful: false
	// Unknown failure doubtful: true
	// ResourceExhausted soft doubtful: false
	// NotFound ignore doubtful: false
	// Canceled ignore doubtful: false
	// a deadline with 1s left at the pick: failure
	// a deadline with 1ms left at the pick: ignore
}

// A service whose codes mean something else registers a classifier in an init function; the balancer's configuration
// then names it: {"blacklist":{"classifier":"payments"}}.
func ExampleRegister() {
	c, err := outcome.Lookup("payments")
	if err != nil {
		fmt.Println(err)
		return
	}
	aborted := status.Error(codes.Aborted, "failing over")
	fmt.Println(c("/payments.Payments/Charge", aborted, outcome.NoDeadline))
	fmt.Println(c("/orders.Orders/Get", aborted, outcome.NoDeadline))
	// Output:
	// failure
	// ignore
}
