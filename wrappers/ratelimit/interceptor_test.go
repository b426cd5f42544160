package ratelimit

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

func isRefused(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// retryIn is what the RetryInfo of err says; negative if there is none.
func retryIn(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return -1
}

// TestRate is the row of the issue: 100 a second, burst 10, 8 callers for 5 seconds, on either side.
func TestRate(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		synctest.Test(t, func(t *testing.T) {
			l := mustNew(t, Config{Policy: Policy{Rate: 100, Burst: 10}})
			o := rigOptions{client: l}
			if side == "server" {
				o = rigOptions{server: l}
			}
			r, stop := newRig(t, o)
			defer stop()
			var admitted, refused atomic.Int64
			var callers sync.WaitGroup
			end := time.Now().Add(5 * time.Second)
			for i := range 8 {
				callers.Go(func() {
					for time.Now().Before(end) {
						switch err := r.call(t.Context(), kinds[i%4], 1); {
						case err == nil:
							admitted.Add(1)
						case isRefused(err):
							refused.Add(1)
						default:
							t.Errorf("%s: %v", side, err)
						}
						time.Sleep(13 * time.Millisecond) // six times what they may
					}
				})
			}
			callers.Wait()
			if n := admitted.Load(); n < 500 || n > 515 {
				t.Errorf("%s: %d admitted, want 500 to 515", side, n)
			}
			s := l.State().Scopes[0]
			if s.Admitted != uint64(admitted.Load()) || s.Refused.Rate != uint64(refused.Load()) || refused.Load() == 0 {
				t.Errorf("%s: state says %d admitted, %d refused; seen %d, %d", side, s.Admitted, s.Refused.Rate, admitted.Load(), refused.Load())
			}
		})
	}
}

// TestWait is the other half of the row: with Wait, all that can be within their deadline are served, none of them
// late, and the others are refused at once.
func TestWait(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		synctest.Test(t, func(t *testing.T) {
			l := mustNew(t, Config{Policy: Policy{Rate: 100, Burst: 10, Wait: true}})
			o := rigOptions{client: l}
			if side == "server" {
				o = rigOptions{server: l}
			}
			r, stop := newRig(t, o)
			defer stop()
			if err := r.call(t.Context(), unary, 1); err != nil { // connects
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			began := time.Now()
			var served, refused atomic.Int64
			var callers sync.WaitGroup
			for i := range 200 { // 10 at once, then one each 10 ms: 110 within the second
				callers.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second+time.Millisecond)
					defer cancel()
					switch err := r.call(ctx, kinds[i%4], 1); {
					case err == nil:
						served.Add(1)
					case isRefused(err):
						refused.Add(1)
						if took := time.Since(began); took > 0 {
							t.Errorf("%s: refused after %v, want at once", side, took)
						}
					default:
						t.Errorf("%s: %v", side, err)
					}
				})
			}
			synctest.Wait()
			if n := l.State().Scopes[0].Waiting; n != 100 {
				t.Errorf("%s: %d wait, want 100", side, n)
			}
			callers.Wait()
			if served.Load() != 110 || refused.Load() != 90 {
				t.Errorf("%s: %d served, %d refused, want 110 and 90", side, served.Load(), refused.Load())
			}
			// 8 callers with enough time: all are served, at the rate.
			began = time.Now()
			for range 8 {
				callers.Go(func() {
					for range 25 {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						if err := r.call(ctx, unary, 1); err != nil {
							t.Errorf("%s: %v, want all served", side, err)
						}
						cancel()
					}
				})
			}
			callers.Wait()
			if took := time.Since(began); took < 1900*ms || took > 2100*ms {
				t.Errorf("%s: 200 calls took %v, want 2s", side, took)
			}
			if s := l.State().Scopes[0]; s.Waiting != 0 {
				t.Errorf("%s: %d wait after the calls, want 0", side, s.Waiting)
			}
		})
	}
}

// TestWaitEndsWithTheCaller: who goes away gives its tokens to those behind it, and nobody is left waiting.
func TestWaitEndsWithTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Rate: 1, Burst: 1, Wait: true}})
		r, stop := newRig(t, rigOptions{client: l})
		defer stop()
		for _, kind := range kinds {
			time.Sleep(10 * time.Second)
			if err := r.call(t.Context(), unary, 1); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- r.call(ctx, kind, 1) }()
			synctest.Wait()
			cancel()
			if err := <-done; status.Code(err) != codes.Canceled {
				t.Errorf("%s: %v, want CANCELLED", kind, err)
			}
			began := time.Now()
			if err := r.call(t.Context(), kind, 1); err != nil || time.Since(began) != time.Second {
				t.Errorf("%s: next call: %v after %v, want success after 1s", kind, err, time.Since(began))
			}
		}
		// Without a deadline there is a bound nevertheless.
		l2 := mustNew(t, Config{Policy: Policy{Rate: 0.01, Burst: 1, Wait: true}})
		for _, want := range []codes.Code{codes.OK, codes.ResourceExhausted} {
			err := l2.UnaryClientInterceptor()(t.Context(), unary, nil, nil, nil, noCall)
			if status.Code(err) != want {
				t.Errorf("without deadline, 100 s to wait: %v, want %v", err, want)
			}
		}
	})
}

func noCall(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
	return nil
}

// TestRefusal: what a caller is told, for each kind of call on each side.
func TestRefusal(t *testing.T) {
	for _, kind := range kinds {
		for _, side := range []string{"client", "server"} {
			synctest.Test(t, func(t *testing.T) {
				var events []Event
				var l *Limiter
				l = mustNew(t, Config{Policy: Policy{Rate: 2, Burst: 1}, OnLimit: func(e Event) {
					events = append(events, e)
					_ = l.State()          // no lock is held
					_ = l.Update(Config{}) // limits nothing from now on
				}})
				o := rigOptions{client: l}
				if side == "server" {
					o = rigOptions{server: l}
				}
				r, stop := newRig(t, o)
				defer stop()
				if err := r.call(t.Context(), kind, 1); err != nil {
					t.Fatal(err)
				}
				var trailer metadata.MD
				err := r.call(t.Context(), kind, 1, grpc.Trailer(&trailer))
				if !isRefused(err) || !strings.Contains(err.Error(), kind) || !strings.Contains(err.Error(), "2 tokens a second") {
					t.Errorf("%s, %s: %v, want RESOURCE_EXHAUSTED with method and rate", kind, side, err)
				}
				if d := retryIn(err); d < 500*ms || d > 750*ms {
					t.Errorf("%s, %s: RetryInfo = %v, want 500ms and up to a half more", kind, side, d)
				}
				if got := outcome.Default(kind, err, outcome.NoDeadline); got != outcome.Soft {
					t.Errorf("%s, %s: outcome = %v, want soft", kind, side, got)
				}
				pushback := trailer.Get(pushbackKey)
				if side == "server" && (len(pushback) != 1 || pushback[0] < "500" || pushback[0] > "751") || side == "client" && len(pushback) > 0 {
					t.Errorf("%s, %s: pushback = %q, want 500 to 751 from a server", kind, side, pushback)
				}
				if len(events) != 1 || events[0].Method != kind || events[0].Reason != Rate || events[0].Scope != "*" || events[0].Cost != 1 ||
					events[0].RetryIn != retryIn(err) || events[0].DryRun {
					t.Errorf("%s, %s: events = %+v, want one", kind, side, events)
				}
				if err := r.call(t.Context(), kind, 1); err != nil {
					t.Errorf("%s, %s: after Update in the callback: %v", kind, side, err)
				}
			})
		}
	}
}

// TestGRPCRetryObeys: gRPC's own retry comes back when the server said, and succeeds.
func TestGRPCRetryObeys(t *testing.T) {
	for _, kind := range []string{unary, server} {
		synctest.Test(t, func(t *testing.T) {
			l := mustNew(t, Config{Policy: Policy{Rate: 1, Burst: 1}})
			r, stop := newRig(t, rigOptions{server: l, dial: []grpc.DialOption{grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],
				"retryPolicy":{"maxAttempts":2,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,
				"retryableStatusCodes":["RESOURCE_EXHAUSTED"]}}]}`)}})
			defer stop()
			if err := r.call(t.Context(), kind, 1); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := r.call(t.Context(), kind, 1); err != nil {
				t.Errorf("%s: %v, want success at the second attempt", kind, err)
			}
			if took := time.Since(began); took < time.Second || took > 1502*ms {
				t.Errorf("%s: took %v, want the pushback of 1s to 1.5s, not the backoff of 1ms", kind, took)
			}
			time.Sleep(10 * time.Second)
			if err := l.Update(Config{Policy: Policy{Rate: 1, Burst: 1}, CostFunc: func(context.Context, string, any) int { return 2 }}); err != nil {
				t.Fatal(err)
			}
			if err := r.call(t.Context(), kind, 1); !isRefused(err) || retryIn(err) >= 0 {
				t.Errorf("%s: %v, want a refusal without RetryInfo", kind, err)
			}
			if n := l.State().Scopes[0].Refused; n.Cost != 1 {
				t.Errorf("%s: %+v, want one attempt: the pushback is negative", kind, n)
			}
		})
	}
}

// TestAdaptiveInterceptor: places are taken and given back whatever a handler does, and what is refused is told
// why.
func TestAdaptiveInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Adaptive: Adaptive{Enabled: true, Initial: 2, Max: 2}}})
		in := l.UnaryServerInterceptor()
		info := &grpc.UnaryServerInfo{FullMethod: unary}
		for name, handler := range map[string]grpc.UnaryHandler{
			"error":  func(context.Context, any) (any, error) { return nil, errors.New("x") },
			"panic":  func(context.Context, any) (any, error) { panic("x") },
			"goexit": func(context.Context, any) (any, error) { runtime.Goexit(); return nil, nil },
		} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = recover() }()
				_, _ = in(t.Context(), nil, info, handler)
			}()
			<-done
			if n := l.State().Scopes[0].Concurrency.InFlight; n != 0 {
				t.Errorf("%s: %d in flight afterwards, want 0", name, n)
			}
		}
		r, stop := newRig(t, rigOptions{server: l})
		defer stop()
		r.handle = func(ctx context.Context, in string) (string, error) {
			time.Sleep(100 * ms)
			return in, nil
		}
		var calls sync.WaitGroup
		for range 2 {
			calls.Go(func() {
				if err := r.call(t.Context(), unary, 1); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		for _, kind := range kinds { // streams are refused as well, though they take no place
			var trailer metadata.MD
			err := r.call(t.Context(), kind, 1, grpc.Trailer(&trailer))
			if !isRefused(err) || retryIn(err) <= 0 || len(trailer.Get(pushbackKey)) != 1 {
				t.Errorf("%s: %v, pushback %q, want a refusal", kind, err, trailer.Get(pushbackKey))
			}
		}
		calls.Wait()
		for _, kind := range kinds[1:] {
			if err := r.call(t.Context(), kind, 1); err != nil {
				t.Errorf("%s: %v, want it let in", kind, err)
			}
		}
		// A call takes 100 ms. With one in progress, who has only 50 left is refused on arrival.
		calls.Go(func() { _ = r.call(t.Context(), unary, 1) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 50*ms)
		defer cancel()
		began := time.Now()
		err := r.call(ctx, unary, 1)
		if !isRefused(err) || time.Since(began) != 0 || retryIn(err) != 0 || !strings.Contains(err.Error(), "100ms") {
			t.Errorf("call that cannot finish: %v after %v, want a refusal at once", err, time.Since(began))
		}
		calls.Wait()
		if s := l.State().Scopes[0]; s.Refused != (Refusals{Concurrency: 4, Deadline: 1}) || s.Concurrency.InFlight != 0 {
			t.Errorf("state = %+v, %+v", s, s.Concurrency)
		}
	})
}
