package breaker

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

// trip opens r's breaker and waits until it is about to be half-open.
func (r *rig) trip() {
	r.t.Helper()
	for range 100 {
		if r.call(errDown, 0); r.phase() == Open {
			sleep(6 * sec)
			r.events()
			return
		}
	}
	r.t.Fatal("100 failures do not open the breaker")
}

// TestHangingProbe: a half-open breaker gets a probe that never returns, and recovers.
func TestHangingProbe(t *testing.T) {
	for name, x := range map[string]struct {
		wait time.Duration // from the probe's beginning to the next call
		told string
	}{
		"somebody looks in time":    {5 * sec, "half-open>open"},
		"nobody looks for a minute": {60 * sec, "half-open>recovering"}, // it would have been open and half-open again
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
				r.trip()
				release := make(chan error)
				var wg sync.WaitGroup
				wg.Go(func() {
					_ = r.unaryClient(context.Background(), method, nil, nil, nil,
						func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
							return <-release
						})
				})
				synctest.Wait()
				if p := r.phase(); p != HalfOpen {
					t.Fatalf("the breaker is %v, want half-open", p)
				}
				time.Sleep(5*sec - 1)
				if passed, err := r.call(nil, 0); passed || !strings.Contains(err.Error(), "until its probe has ended") {
					t.Errorf("passed %v, %v while the probe is out, want turned away until it has ended", passed, err)
				}
				r.events()
				time.Sleep(x.wait - (5*sec - 1))
				r.call(nil, 0)
				if told := r.events(); told != x.told {
					t.Errorf("told %q, want %q", told, x.told)
				}
				time.Sleep(6 * sec)
				if passed, _ := r.call(nil, 0); !passed || r.phase() != Recovering {
					t.Errorf("passed %v, the breaker is %v, want recovering", passed, r.phase())
				}
				r.events()
				release <- errDown // the real end comes after all, and says nothing any more
				wg.Wait()
				if told := r.events(); told != "" || r.phase() != Recovering {
					t.Errorf("told %q by a probe whose time was over, want nothing", told)
				}
				r.idle()
			})
		})
	}
}

// TestLateCall: a call that was admitted while the breaker was closed says nothing about it in another state.
func TestLateCall(t *testing.T) {
	for _, late := range []error{nil, errDown} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Probes: 2}})
			var wg sync.WaitGroup
			wg.Go(func() { r.call(late, 8*sec) })
			synctest.Wait()
			r.trip() // takes 6 s
			r.call(nil, 0)
			time.Sleep(3 * sec)
			wg.Wait()
			if s := r.one(); s.Phase != HalfOpen || s.Successes != 1 {
				t.Errorf("late end %v: %v with %d successes, want half-open with the probe's one", late, s, s.Successes)
			}
			r.call(nil, 0)
			if p := r.phase(); p != Recovering {
				t.Errorf("late end %v: %v, want the second probe to close it", late, p)
			}
			r.idle()
		})
	}
}

// TestHungProbeOfSeveral: the end of a probe that was taken out late does not decide about those that followed it.
func TestHungProbeOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Probes: 2}})
		r.trip()
		var wg sync.WaitGroup
		wg.Go(func() { r.call(errDown, 70*sec) })
		time.Sleep(60 * sec)
		r.call(nil, 0)
		wg.Wait()
		if s := r.one(); s.Phase != HalfOpen || s.Successes != 1 {
			t.Errorf("%v with %d successes, want half-open with 1", s, s.Successes)
		}
		if r.call(nil, 0); r.phase() != Recovering {
			t.Errorf("%v, want recovering after the second good probe", r.phase())
		}
		r.idle()
	})
}

// TestLateSlowCall: a slow call that began before the breaker opened is not counted after it has come back.
func TestLateSlowCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, SlowCall: sec, MinCalls: 2, NoRamp: true}})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { r.call(nil, 8*sec) })
		}
		synctest.Wait()
		r.trip() // takes 6 s
		r.call(nil, 0)
		wg.Wait()
		if r.call(nil, 2*sec); r.phase() != Closed {
			t.Errorf("%v, want closed after one slow call in this window", r.phase())
		}
	})
}

// TestStateMovesOn: State brings a breaker that nobody calls up to date, and tells.
func TestStateMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
		r.call(errDown, 0)
		if s := r.one(); s.Err != errDown || s.Share != 0 {
			t.Errorf("open: %v, share %v, want the failure and 0", s.Err, s.Share)
		}
		time.Sleep(6 * sec)
		if s := r.one(); s.Phase != HalfOpen || s.Err != errDown || s.Share != 0 {
			t.Errorf("%v, share %v, want half-open and 0", s, s.Share)
		}
		if told := r.events(); told != "closed>open open>half-open" {
			t.Errorf("told %q", told)
		}
		r.call(nil, 0)
		time.Sleep(5 * sec)
		if s := r.one(); s.Phase != Recovering || s.Err != nil || s.Share < 0.549 || s.Share > 0.551 {
			t.Errorf("%v, %v, share %v, want recovering, no error, 0.55", s, s.Err, s.Share)
		}
		time.Sleep(5 * sec)
		if s := r.one(); s.Phase != Closed || s.Share != 1 {
			t.Errorf("%v, share %v, want closed and 1", s, s.Share)
		}
		if told := r.events(); told != "half-open>recovering recovering>closed" {
			t.Errorf("told %q", told)
		}
	})
}

// TestCallsLongerThanTheWindow: calls that hang until a deadline which is later than the window do trip it.
// gobreaker alone forgets them.
func TestCallsLongerThanTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 3}})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { r.call(status.Error(codes.DeadlineExceeded, "hung"), 15*sec) })
			time.Sleep(sec)
		}
		wg.Wait()
		if p := r.phase(); p != Open {
			t.Errorf("after 3 calls that hung for 15 s: %v, want open", p)
		}
	})
}

// TestContextOver: a call that is over before it began does not use up the probe.
func TestContextOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
		r.trip()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		never := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
			t.Error("the call was made")
			return nil
		}
		if err := r.unaryClient(ctx, method, nil, nil, nil, never); status.Code(err) != codes.Canceled {
			t.Errorf("unary client: %v, want CANCELLED", err)
		}
		_, err := r.streamClient(ctx, &grpc.StreamDesc{}, nil, method, nil)
		if status.Code(err) != codes.Canceled {
			t.Errorf("stream client: %v, want CANCELLED", err)
		}
		if _, err := r.unaryServer(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, nil); status.Code(err) != codes.Canceled {
			t.Errorf("unary server: %v, want CANCELLED", err)
		}
		if passed, _ := r.call(nil, 0); !passed {
			t.Error("the next call was turned away, want it to be the probe")
		}
	})
}

// TestPanicAndGoexit: whatever ends a call, it is reported, and its place is free.
func TestPanicAndGoexit(t *testing.T) {
	boom := func() { panic("boom") }
	for name, end := range map[string]func(){"panic": boom, "goexit": runtime.Goexit} {
		invoker := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { end(); return nil }
		streamer := func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
			end()
			return nil, nil
		}
		for side, call := range map[string]func(r *rig){
			"unary client":  func(r *rig) { _ = r.unaryClient(t.Context(), method, nil, nil, nil, invoker) },
			"stream client": func(r *rig) { _, _ = r.streamClient(t.Context(), &grpc.StreamDesc{}, nil, method, streamer) },
			"unary server": func(r *rig) {
				_, _ = r.unaryServer(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method},
					func(context.Context, any) (any, error) { end(); return nil, nil })
			},
			"stream server": func(r *rig) {
				_ = r.streamServer(nil, fakeServerStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: method},
					func(any, grpc.ServerStream) error { end(); return nil })
			},
		} {
			t.Run(side+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 2, MaxConcurrent: 1}})
					survive(func() { call(r) })
					r.idle()
					s := r.one()
					want := uint32(0) // on a client it is the caller's doing
					if strings.HasSuffix(side, "server") {
						want = 1
					}
					if s.Failures != want || s.Successes != 0 {
						t.Errorf("%d failures, %d successes, want %d and 0", s.Failures, s.Successes, want)
					}
					if want == 1 {
						survive(func() { call(r) })
						if p := r.phase(); p != Open {
							t.Errorf("after two: %v, want open", p)
						}
						return
					}
					// As a probe: the next call probes, and nothing is stuck.
					r.trip()
					survive(func() { call(r) })
					if passed, _ := r.call(nil, 0); !passed || r.phase() != Recovering {
						t.Errorf("the next call: passed %v, %v, want it to be the probe that succeeds", passed, r.phase())
					}
				})
			})
		}
	}
}

// survive runs f on a goroutine that it may end as it likes.
func survive(f func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { _ = recover() }()
		f()
	})
	wg.Wait()
}

type fakeServerStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s fakeServerStream) Context() context.Context { return s.ctx }

func init() {
	outcome.Register("breaker_test.panics", func(string, error, time.Duration) outcome.Class { panic("classifier") })
	outcome.Register("breaker_test.notfound", func(_ string, err error, _ time.Duration) outcome.Class {
		if status.Code(err) == codes.NotFound {
			return outcome.Failure
		}
		return outcome.Ignore
	})
}

// TestUserCodePanics: whatever of the user's panics, no call stays counted and no lock held.
func TestUserCodePanics(t *testing.T) {
	t.Run("classifier", func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{Classifier: "breaker_test.panics"}})
		survive(func() { r.call(errDown, 0) })
		r.idle()
	})
	t.Run("fallback", func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{Fallback: func(context.Context, string, any, any, error) error { panic("f") }}})
		survive(func() { r.call(errDown, 0) })
		r.idle()
		if s := r.one(); s.Failures != 1 {
			t.Errorf("%d failures, want 1: reported before the fallback", s.Failures)
		}
	})
	for _, to := range []Phase{Open, HalfOpen, Recovering} {
		t.Run("OnStateChange "+to.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told []Phase
				r := newRig(t, Config{})
				err := r.Update(Config{Policy: Policy{ConsecutiveFailures: 1}, OnStateChange: func(e StateChange) {
					told = append(told, e.To)
					if e.To == to {
						panic("told")
					}
				}})
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					survive(func() { r.call(errDown, 0) })
					r.idle()
					time.Sleep(6 * sec)
					survive(func() { r.call(nil, 0) })
					r.idle()
				}
				survive(func() { r.call(nil, 0) })
				if len(told) < 3 || r.phase() != Recovering {
					t.Errorf("told %v, now %v, want it to have gone on to recovering", told, r.phase())
				}
			})
		})
	}
	t.Run("OnReject", func(t *testing.T) {
		r := newRig(t, Config{})
		if err := r.Update(Config{Policy: Policy{ConsecutiveFailures: 1}, OnReject: func(*Error) { panic("rejected") }}); err != nil {
			t.Fatal(err)
		}
		r.call(errDown, 0)
		survive(func() { r.call(nil, 0) })
		r.idle()
	})
}

// TestCallbackMayCall: OnStateChange runs outside of the locks, so it can ask the breakers and even call.
func TestCallbackMayCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		var told []string
		err := r.Update(Config{Policy: Policy{ConsecutiveFailures: 1, NoRamp: true}, OnStateChange: func(e StateChange) {
			passed, _ := r.call(nil, 0)
			told = append(told, fmt.Sprintf("%v %v %v", e.To, r.one().Phase, passed))
		}})
		if err != nil {
			t.Fatal(err)
		}
		r.call(errDown, 0)
		time.Sleep(6 * sec)
		r.call(nil, 0)
		// The breaker is half-open and waits for its probe while the callback calls; then it closes.
		if got := strings.Join(told, ", "); got != "open open false, half-open half-open false, closed closed true" {
			t.Errorf("told %s", got)
		}
	})
}

// TestCallbackIsNotInterrupted: what happens during a callback is told after it.
func TestCallbackIsNotInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		var told []string
		err := r.Update(Config{Policy: Policy{ConsecutiveFailures: 1, NoRamp: true}, OnStateChange: func(e StateChange) {
			told = append(told, "to "+e.To.String())
			if e.To == Open {
				time.Sleep(6 * sec)
				r.call(nil, 0)
			}
			told = append(told, "told")
		}})
		if err != nil {
			t.Fatal(err)
		}
		r.call(errDown, 0)
		if got := strings.Join(told, ", "); got != "to open, told, to half-open, told, to closed, told" {
			t.Errorf("%s", got)
		}
	})
}
