package breaker

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestOverride: what a call has different holds for it, and for no other.
func TestOverride(t *testing.T) {
	with := WithOverride
	notFound := status.Error(codes.NotFound, "")
	for name, x := range map[string]struct {
		p    Policy
		play func(t *testing.T, r *rig)
	}{
		"dry run": {Policy{ConsecutiveFailures: 1, Timeout: sec}, func(t *testing.T, r *rig) {
			r.call(errDown, 0)
			if passed, err := r.call(nil, 2*sec, with(Override{DryRun: true})); !passed || err != nil {
				t.Errorf("passed %v, %v, want to pass, without a timeout", passed, err)
			}
			if len(r.rejected) != 1 || !r.rejected[0].DryRun {
				t.Errorf("OnReject was told %v, want what would have been", r.rejected)
			}
			if passed, _ := r.call(nil, 0); passed {
				t.Error("another call passed")
			}
		}},
		"classifier": {Policy{ConsecutiveFailures: 1}, func(t *testing.T, r *rig) {
			r.call(notFound, 0)
			if r.phase() != Closed {
				t.Errorf("%v, want closed", r.phase())
			}
			if r.call(notFound, 0, with(Override{Classifier: "breaker_test.notfound"})); r.phase() != Open {
				t.Errorf("%v, want open", r.phase())
			}
		}},
		"longer until it is slow": {Policy{SlowCall: sec, MinCalls: 1}, func(t *testing.T, r *rig) {
			if r.call(nil, 2*sec, with(Override{SlowCall: 3 * sec})); r.phase() != Closed {
				t.Errorf("%v, want closed", r.phase())
			}
			if r.call(nil, 3*sec, with(Override{SlowCall: 3 * sec})); r.phase() != Open {
				t.Errorf("%v, want open", r.phase())
			}
		}},
		"never slow": {Policy{SlowCall: sec, MinCalls: 1}, func(t *testing.T, r *rig) {
			if r.call(nil, time.Hour, with(Override{SlowCall: -1})); r.phase() != Closed {
				t.Errorf("%v, want closed", r.phase())
			}
			if r.call(nil, sec); r.phase() != Open {
				t.Errorf("%v, want open", r.phase())
			}
		}},
		"slow where nothing else is": {Policy{MinCalls: 1, ConsecutiveFailures: 1}, func(t *testing.T, r *rig) {
			r.call(nil, 2*sec, with(Override{SlowCall: sec}))
			r.trip()
			if r.call(nil, 2*sec, with(Override{SlowCall: sec})); r.phase() != Recovering {
				t.Errorf("%v, want recovering: the policy has no SlowCall", r.phase())
			}
		}},
		"probe timeout": {Policy{ConsecutiveFailures: 1}, func(t *testing.T, r *rig) {
			r.trip()
			var wg sync.WaitGroup
			wg.Go(func() { r.call(nil, 20*sec, with(Override{ProbeTimeout: 30 * sec})) })
			sleep(10 * sec)
			if s := r.one(); s.Phase != HalfOpen {
				t.Errorf("%v, want half-open still", s)
			}
			wg.Wait()
			if p := r.phase(); p != Recovering {
				t.Errorf("%v, want recovering", p)
			}
			r.call(errDown, 0)
			sleep(6 * sec)
			wg.Go(func() { r.call(nil, 20*sec, with(Override{ProbeTimeout: 7 * sec})) })
			sleep(8 * sec)
			if s := r.one(); s.Phase != Open || s.Err.Error() != "a probe has not ended within 7s" {
				t.Errorf("%v because %v, want open since the probe took 7s", s, s.Err)
			}
			wg.Wait()
		}},
		"less room": {Policy{MaxConcurrent: 2}, func(t *testing.T, r *rig) {
			var wg sync.WaitGroup
			wg.Go(func() { r.call(nil, sec) })
			synctest.Wait()
			if passed, _ := r.call(nil, 0, with(Override{MaxConcurrent: 1})); passed {
				t.Error("a call that wants one place at most passed as the second")
			}
			if passed, _ := r.call(nil, 0); !passed {
				t.Error("another call did not pass")
			}
			wg.Wait()
		}},
		"any number": {Policy{MaxConcurrent: 1}, func(t *testing.T, r *rig) {
			var wg sync.WaitGroup
			wg.Go(func() { r.call(nil, sec) })
			synctest.Wait()
			if passed, _ := r.call(nil, 0, with(Override{MaxConcurrent: -1})); !passed {
				t.Error("it did not pass")
			}
			wg.Wait()
		}},
		"timeout": {Policy{Timeout: sec}, func(t *testing.T, r *rig) {
			if _, err := r.call(nil, 2*sec, with(Override{Timeout: 3 * sec})); err != nil {
				t.Errorf("%v, want success within 3s", err)
			}
			if _, err := r.call(nil, 2*sec, with(Override{Timeout: -1})); err != nil {
				t.Errorf("%v, want success without a timeout", err)
			}
			if _, err := r.call(nil, 2*sec); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%v, want the policy's timeout", err)
			}
		}},
		"fallback fails": {Policy{ConsecutiveFailures: 1}, func(t *testing.T, r *rig) {
			answers := WithFallback(func(context.Context, string, any, any, error) error { return nil })
			if _, err := r.call(errDown, 0, answers, with(Override{FallbackFails: true})); status.Code(err) != codes.Unavailable {
				t.Errorf("%v, want UNAVAILABLE", err)
			}
			if _, err := r.call(nil, 0, answers); err != nil {
				t.Errorf("%v, want the fallback's success", err)
			}
		}},
		"nothing": {Policy{ConsecutiveFailures: 2, SlowCall: sec, Timeout: 3 * sec, MaxConcurrent: 1, FallbackFails: true}, func(t *testing.T, r *rig) {
			for b := range r.index.Load().all() {
				t.Fatalf("there is a breaker already: %v", b.name)
			}
			rs := r.rules.Load()
			v, err := Override{}.resolve()
			if err != nil {
				t.Fatal(err)
			}
			a, b := *rs.byScope[0], *rs.byScope[0].with(v)
			a.classify, b.classify, a.fallback, b.fallback = nil, nil, nil, nil // functions
			if a.brief != b.brief || a.dry != b.dry || a.slowCall != b.slowCall || a.probeTimeout != b.probeTimeout ||
				a.maxConcurrent != b.maxConcurrent || a.timeout != b.timeout || a.fallbackFails != b.fallbackFails {
				t.Errorf("an empty Override makes %+v of %+v", b, a)
			}
		}},
		"the last one holds": {Policy{Timeout: sec}, func(t *testing.T, r *rig) {
			_, err := r.call(nil, 2*sec, with(Override{Timeout: -1}), with(Override{Timeout: 500 * time.Millisecond}))
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%v, want DEADLINE_EXCEEDED", err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: x.p})
				x.play(t, r)
				r.idle()
			})
		})
	}
}

// TestOverrideOfStreams: what is said of all calls holds for streams too.
func TestOverrideOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Timeout: sec}})
		s := newStack(t, func(_ context.Context, _ kind, ss grpc.ServerStream) error {
			time.Sleep(2 * sec)
			return errDown
		}, r.Breakers, nil)
		defer s.close()
		for _, k := range kinds[1:] {
			_ = s.call(t.Context(), k)
			err := s.call(t.Context(), k, WithOverride(Override{DryRun: true, Timeout: sec}))
			if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "breaker") {
				t.Errorf("%v: %v, want the server's error", k, err)
			}
		}
	})
}

// TestOverrideInvalid: the error names the field.
func TestOverrideInvalid(t *testing.T) {
	for want, o := range map[string]Override{
		"slowCall = -2ns, want":      {SlowCall: -2},
		"probeTimeout = -1ns, want":  {ProbeTimeout: -1},
		"timeout = 87600h0m0s, want": {Timeout: 10 * 365 * 24 * time.Hour},
		"maxConcurrent = -2, want":   {MaxConcurrent: -2},
		`classifier = "x", want`:     {Classifier: "x"},
	} {
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.HasPrefix(got, "breaker: WithOverride: "+want) {
					t.Errorf("%+v: %q, want a panic that says %q", o, got, want)
				}
			}()
			WithOverride(o)
		}()
	}
}
