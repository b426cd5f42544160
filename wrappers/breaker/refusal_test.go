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

// TestDryRunForetells: with DryRun on, as many calls are reported as would be turned away without it, although all of
// them are in flight: the load is twice what MaxConcurrent allows, so it is half of them.
func TestDryRunForetells(t *testing.T) {
	rejected := map[string]int{}
	for name, x := range map[string]struct {
		policy Policy
		opts   []grpc.CallOption
	}{
		"for real":  {Policy{MaxConcurrent: 4}, nil},
		"policy":    {Policy{MaxConcurrent: 4, DryRun: true}, nil},
		"each call": {Policy{MaxConcurrent: 4}, []grpc.CallOption{WithOverride(Override{DryRun: true})}},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: x.policy})
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() { r.call(nil, 790*time.Millisecond, x.opts...) })
				if synctest.Wait(); name != "for real" && i == 100 && r.one().InFlight != 8 {
					t.Errorf("%s: %v, want 8 in flight", name, r.one())
				}
				time.Sleep(100 * time.Millisecond)
			}
			wg.Wait()
			r.idle()
			rejected[name] = len(r.rejected)
		})
	}
	if n := rejected["for real"]; n < 90 || n > 110 || rejected["policy"] != n || rejected["each call"] != n {
		t.Errorf("%v of 200 calls are turned away, want about 100, the same number in each case", rejected)
	}
}

// TestDryRunLeavesPlaces: a call that only DryRun lets through takes no place from one that passes on its merits.
func TestDryRunLeavesPlaces(t *testing.T) {
	dry := WithOverride(Override{DryRun: true})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, MaxConcurrent: 1}})
		r.call(errDown, 0)
		var wg sync.WaitGroup
		wg.Go(func() { r.call(nil, 8*sec, dry) }) // the breaker is open
		time.Sleep(6 * sec)
		if passed, err := r.call(nil, 0); !passed {
			t.Errorf("the probe was turned away: %v", err)
		}
		if s := r.one(); s.InFlight != 1 || s.Phase != Recovering {
			t.Errorf("%v, want 1 in flight and recovering", s)
		}
		wg.Wait()
		r.idle()
	})
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

// TestShortTimeout: a call that the policy's Timeout ended counts however short that is, unless its caller had left it
// no time: the least that a deadline must have left is about the callers' own deadlines.
func TestShortTimeout(t *testing.T) {
	for _, slow := range []time.Duration{0, time.Minute} {
		for own, want := range map[time.Duration]Phase{0: Open, time.Minute: Open, 8 * time.Millisecond: Closed, time.Millisecond: Closed} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Timeout: 5 * time.Millisecond, SlowCall: slow}})
				ctx := context.Background()
				if own > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, own)
					defer cancel()
				}
				hangs := func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
					<-ctx.Done()
					return status.FromContextError(ctx.Err()).Err()
				}
				if err := r.unaryClient(ctx, method, nil, nil, nil, hangs); status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("%v, want DEADLINE_EXCEEDED", err)
				}
				if p := r.phase(); p != want {
					t.Errorf("with %v of the caller's own, slow calls %v: %v, want %v", own, slow, p, want)
				}
			})
		}
	}
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
