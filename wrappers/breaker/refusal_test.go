package breaker

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestRejection: what a call that is turned away ends with.
func TestRejection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
		began := time.Now()
		long := status.Error(codes.Unavailable, strings.Repeat("long ", 100))
		r.call(long, 0)
		time.Sleep(sec)
		_, err := r.call(nil, 0)
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%v, want an *Error", err)
		}
		if e.Breaker != "/a.B/C" || e.Method != method || e.Phase != Open || e.Full || e.DryRun || e.Last != long ||
			!e.Since.Equal(began) || !e.Until.Equal(began.Add(5*sec)) {
			t.Errorf("%+v", e)
		}
		if !e.DoNotRetry() || status.Code(err) != codes.Unavailable {
			t.Errorf("retryable %v, code %v, want an UNAVAILABLE that is not retried", !e.DoNotRetry(), status.Code(err))
		}
		want := `breaker "/a.B/C" is open since 2000-01-01T00:00:00.000Z, until 2000-01-01T00:00:05.000Z; last failure: ` +
			`rpc error: code = Unavailable desc = long long`
		if got := status.Convert(err).Message(); !strings.HasPrefix(got, want) || len(got) > 350 {
			t.Errorf("the status says\n%s\nwant\n%s...", got, want)
		}
		server := *e
		server.server = true
		if got := server.GRPCStatus().Message(); !strings.HasSuffix(got, "last failure: Unavailable") {
			t.Errorf("a server tells %q, want no more than the code of the last failure", got)
		}
		if len(r.rejected) != 1 || r.rejected[0] != e || r.one().Rejected != 1 {
			t.Errorf("OnReject got %v, State has %d, want this one", r.rejected, r.one().Rejected)
		}
	})
}

// TestInnerBreaker: being turned away by a breaker further in says nothing about the service.
func TestInnerBreaker(t *testing.T) {
	r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
	r.call(&Error{Breaker: "another"}, 0)
	if s := r.one(); s.Phase != Closed || s.Failures != 0 {
		t.Errorf("%v, want closed without a failure", s)
	}
}

// TestMaxConcurrent: the bulkhead turns away without a report, and frees places.
func TestMaxConcurrent(t *testing.T) {
	for _, dry := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: Policy{MaxConcurrent: 2, DryRun: dry}})
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { r.call(nil, sec) })
			}
			synctest.Wait()
			passed, err := r.call(nil, 0)
			if passed != dry {
				t.Errorf("dry run %v: a third call passed: %v, want %v", dry, passed, dry)
			}
			if len(r.rejected) != 1 || !r.rejected[0].Full || r.rejected[0].DryRun != dry {
				t.Fatalf("dry run %v: OnReject got %v, want one that says full", dry, r.rejected)
			}
			if !dry && status.Convert(err).Message() != `breaker "/a.B/C" has as many calls in flight as it allows` {
				t.Errorf("%v", err)
			}
			wg.Wait()
			if passed, _ := r.call(nil, 0); !passed {
				t.Error("a call after the others was turned away")
			}
			r.idle()
		})
	}
}

// TestTimeout: Hystrix's timeout ends the call and counts as a failure; a caller's own shorter deadline does so
// too.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Timeout: sec}})
		began := time.Now()
		if _, err := r.call(nil, time.Hour); status.Code(err) != codes.DeadlineExceeded || time.Since(began) != sec {
			t.Errorf("%v after %v, want DEADLINE_EXCEEDED after 1s", err, time.Since(began))
		}
		if p := r.phase(); p != Open {
			t.Errorf("%v, want open", p)
		}
	})
}

// TestTimeoutInDryRun: it is not set.
func TestTimeoutInDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{Timeout: sec, DryRun: true}})
		if _, err := r.call(nil, time.Hour); err != nil {
			t.Errorf("%v, want success", err)
		}
		_, err := r.unaryServer(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(ctx context.Context, _ any) (any, error) {
				if d, ok := ctx.Deadline(); ok {
					t.Errorf("the handler has a deadline, %v", d)
				}
				return nil, nil
			})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestClassifier: the policy's classifier is asked.
func TestClassifier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Classifier: "breaker_test.notfound"}})
		r.call(errDown, 0)
		if p := r.phase(); p != Closed {
			t.Errorf("after UNAVAILABLE: %v, want closed", p)
		}
		r.call(status.Error(codes.NotFound, ""), 0)
		if p := r.phase(); p != Open {
			t.Errorf("after NOT_FOUND: %v, want open", p)
		}
	})
}
