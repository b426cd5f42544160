package retry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// failing is a handler that takes the request and fails.
func failing(err error) handler {
	return func(_ int, _ kind, s grpc.ServerStream) error {
		_ = receive(s)
		return err
	}
}

// TestNothingSent: any method is tried again when no connection could be had, for then no handler ran.
func TestNothingSent(t *testing.T) {
	refuse := grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") })
	for _, policy := range []string{ours, roundRobin, "pick_first"} {
		for _, k := range kinds {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, policy, newTest(t, Config{}), nil, refuse)
				defer f.close()
				_, err := f.exchange(context.Background(), k, k.plain())
				var tried *Error
				if !errors.As(err, &tried) || len(tried.Attempts) != 3 || tried.Reason != Exhausted || status.Code(err) != codes.Unavailable {
					t.Errorf("%s %v: %v, want UNAVAILABLE after 3 attempts", policy, k, err)
				}
			})
		}
	}
}

// TestNothingSentLater: the same on a connection that has served calls before and whose servers are gone now.
func TestNothingSentLater(t *testing.T) {
	for _, policy := range policies {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 1, policy, newTest(t, Config{}), func(i int, _ kind, s grpc.ServerStream) error { return echo(i, s) })
			defer f.warm().close()
			if _, err := f.hello(context.Background(), unaryKind.plain()); err != nil {
				t.Fatal(err)
			}
			f.servers[0].Stop()
			_ = takes(context.Background(), time.Second)
			_, err := f.hello(context.Background(), unaryKind.plain())
			var tried *Error
			if !errors.As(err, &tried) || len(tried.Attempts) != 3 {
				t.Errorf("%s: %v, want 3 attempts", policy, err)
			}
		})
	}
}

// TestKnownConnection: a calm method's attempts, which carry less, tell as much when they fail, watched or not.
func TestKnownConnection(t *testing.T) {
	for _, policy := range []string{noBlacklist, roundRobin} {
		for _, watched := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				r := newTest(t, Config{})
				f := newFleet(t, 2, policy, r, func(i int, _ kind, s grpc.ServerStream) error {
					if down.Load() {
						return errDown
					}
					return echo(i, s)
				})
				defer f.warm().close()
				ctx, w := context.Background(), new(watcher)
				if watched {
					ctx = callctx.With(ctx, callctx.Record{Observer: w})
				}
				calm := func() {
					for range 20 {
						if _, err := f.hello(context.Background(), unaryKind.declared()); err != nil {
							t.Fatal(err)
						}
					}
					r.method(r.state.Load(), unaryKind.declared()).timedUntil.Store(0)
				}
				calm()
				down.Store(true)
				_, err := f.hello(ctx, unaryKind.declared())
				var tried *Error
				if !errors.As(err, &tried) || len(tried.Attempts) != 3 || tried.Attempts[0].Endpoint == "" || tried.Attempts[0].Duration != 0 {
					t.Errorf("%s, watched %v: %v, want 3 attempts, of which the first was not measured and went somewhere", policy, watched, err)
				}
				if watched && !strings.HasPrefix(w.String(), "attempt 1 hedge false; ended 1 at s") {
					t.Errorf("%s: the observer hears %q, want where the first attempt went", policy, w.String())
				}
				down.Store(false)
				calm()
				for _, s := range f.servers {
					s.Stop()
				}
				_ = takes(context.Background(), time.Second)
				r.method(r.state.Load(), unaryKind.declared()).idempotent = false // so it takes proof
				_, err = f.hello(ctx, unaryKind.declared())
				if !errors.As(err, &tried) || len(tried.Attempts) != 3 {
					t.Errorf("%s, watched %v: %v, want 3 attempts, since nothing was sent", policy, watched, err)
				}
			})
		}
	}
}

// TestCertainty: what looks as if nothing had been sent, and is not certain, is not retried.
func TestCertainty(t *testing.T) {
	forgetful := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, _ ...grpc.CallOption) error {
		return invoker(ctx, method, req, reply, cc)
	}
	answering := func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
		return errDown
	}
	for name, inner := range map[string]grpc.UnaryClientInterceptor{
		"an inner interceptor drops the call options": forgetful,
		"an inner interceptor answers":                answering,
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newTest(t, Config{})
			var fine atomic.Bool
			fine.Store(true)
			h := func(i int, _ kind, s grpc.ServerStream) error {
				if fine.Load() {
					return echo(i, s)
				}
				return failing(errDown)(i, 0, s)
			}
			good := newFleet(t, 1, ours, r, h)
			defer good.warm().close()
			for range 3 { // this connection passes options on; the other does not, and has the same method
				if _, err := good.hello(context.Background(), unaryKind.plain()); err != nil {
					t.Fatal(err)
				}
			}
			fine.Store(false)
			bad := newFleet(t, 1, ours, nil, h, grpc.WithChainUnaryInterceptor(r.UnaryClientInterceptor(), inner))
			defer bad.close()
			_, err := bad.hello(context.Background(), unaryKind.plain(), grpc.WaitForReady(true))
			var tried *Error
			if status.Code(err) != codes.Unavailable || errors.As(err, &tried) {
				t.Errorf("%s: %v, want UNAVAILABLE after one attempt", name, err)
			}
		})
	}
}

func TestPushback(t *testing.T) {
	info, err := status.New(codes.Unavailable, "down").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	exhausted := status.Error(codes.ResourceExhausted, "too much")
	for _, tt := range []struct {
		name     string
		err      error
		pushback []string
		method   string
		attempts int64
		least    time.Duration // how long the call takes
		most     time.Duration
	}{
		{"none", errDown, nil, unaryKind.plain(), 1, 0, 0},
		{"50 ms", errDown, []string{"50"}, unaryKind.plain(), 3, 100 * time.Millisecond, 100 * time.Millisecond},
		{"50 ms, another code", exhausted, []string{"50"}, unaryKind.plain(), 3, 100 * time.Millisecond, 100 * time.Millisecond},
		{"0", exhausted, []string{"0"}, unaryKind.plain(), 3, 0, 0},
		{"negative", errDown, []string{"-1"}, unaryKind.declared(), 1, 0, 0},
		{"not a number", errDown, []string{"soon"}, unaryKind.declared(), 1, 0, 0},
		{"two values", errDown, []string{"1", "2"}, unaryKind.declared(), 1, 0, 0},
		{"too large a number", errDown, []string{"99999999999"}, unaryKind.declared(), 1, 0, 0},
		{"two hours", errDown, []string{"7200000"}, unaryKind.declared(), 1, 0, 0},
		{"RetryInfo", info.Err(), nil, unaryKind.declared(), 3, 6 * time.Second, 6100 * time.Millisecond},
		{"RetryInfo, not idempotent", info.Err(), nil, unaryKind.plain(), 1, 0, 0},
		{"RetryInfo and pushback", info.Err(), []string{"10"}, unaryKind.declared(), 3, 20 * time.Millisecond, 20 * time.Millisecond},
	} {
		for _, policy := range []string{noBlacklist, roundRobin} {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, policy, newTest(t, Config{}), func(i int, _ kind, s grpc.ServerStream) error {
					_ = grpc.SetTrailer(s.Context(), metadata.MD{pushbackKey: tt.pushback})
					return tt.err
				})
				defer f.warm().close()
				began := time.Now()
				_, err := f.hello(context.Background(), tt.method)
				took := time.Since(began)
				if got := f.total(); got != tt.attempts || status.Code(err) != status.Code(tt.err) {
					t.Errorf("%s: %d attempts and %v, want %d", tt.name, got, err, tt.attempts)
				}
				if took < tt.least || took > tt.most {
					t.Errorf("%s: took %v, want %v to %v", tt.name, took, tt.least, tt.most)
				}
			})
		}
	}
}

func TestDeadlines(t *testing.T) {
	const second = time.Second
	for _, tt := range []struct {
		name     string
		p        Policy
		deadline time.Duration // the caller's, 0 for none
		method   string
		h        func(int, grpc.ServerStream) error
		attempts int64
		code     codes.Code
		reason   Reason
		least    time.Duration
		most     time.Duration
	}{
		{"no deadline", Policy{}, 0, unaryKind.declared(), after(5000, nil), 1, codes.OK, "", 5 * second, 5 * second},
		{"Timeout", Policy{Timeout: second}, 0, unaryKind.declared(), after(5000, nil), 1, codes.DeadlineExceeded, "", second, second},
		{"the caller's counts", Policy{Timeout: second}, 2 * second, unaryKind.declared(), after(5000, nil), 1, codes.DeadlineExceeded, "", 2 * second, 2 * second},
		{"AttemptTimeout", Policy{AttemptTimeout: second}, 0, unaryKind.declared(), after(5000, nil), 3, codes.DeadlineExceeded, Exhausted, 3 * second, 3100 * time.Millisecond},
		{"AttemptTimeout, not idempotent", Policy{AttemptTimeout: second}, 0, unaryKind.plain(), after(5000, nil), 1, codes.DeadlineExceeded, "", second, second},
		{"AttemptTimeout and the caller's", Policy{AttemptTimeout: second}, 1500 * time.Millisecond, unaryKind.declared(), after(5000, nil), 2, codes.DeadlineExceeded, CallerGone, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"no sleep past the deadline", Policy{Backoff: Backoff{Base: time.Hour, Max: time.Hour}}, second, unaryKind.declared(), after(10, errDown), 1, codes.Unavailable, NoTime, 10 * time.Millisecond, 10 * time.Millisecond},
		{"dry run", Policy{Timeout: second, AttemptTimeout: second, DryRun: true}, 0, unaryKind.declared(), after(5000, nil), 1, codes.OK, "", 5 * second, 5 * second},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 5, noBlacklist, newTest(t, Config{Policy: tt.p}), func(i int, _ kind, s grpc.ServerStream) error {
				return tt.h(i, s)
			})
			defer f.warm().close()
			ctx := context.Background()
			if tt.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.deadline)
				defer cancel()
			}
			began := time.Now()
			_, err := f.hello(ctx, tt.method)
			took := time.Since(began)
			if f.total() != tt.attempts || status.Code(err) != tt.code || took < tt.least || took > tt.most {
				t.Errorf("%s: %d attempts in %v and %v, want %d in %v to %v and %v", tt.name, f.total(), took, err,
					tt.attempts, tt.least, tt.most, tt.code)
			}
			var tried *Error
			if errors.As(err, &tried) != (tt.reason != "") || tried != nil && tried.Reason != tt.reason {
				t.Errorf("%s: %v, want the reason %q", tt.name, err, tt.reason)
			}
		})
	}
}

// TestCannotFinish: no attempt is sent that usually takes longer than there is time for.
func TestCannotFinish(t *testing.T) {
	run := func(known bool) (attempts int64, reason Reason) {
		synctest.Test(t, func(t *testing.T) {
			var down atomic.Bool
			f := newFleet(t, 3, noBlacklist, newTest(t, Config{}), func(i int, _ kind, s grpc.ServerStream) error {
				if down.Load() {
					return after(70, errDown)(i, s)
				}
				return after(50, nil)(i, s)
			})
			defer f.warm().close()
			for range 20 {
				if known {
					if _, err := f.hello(context.Background(), unaryKind.declared()); err != nil {
						t.Fatal(err)
					}
				}
			}
			before := f.total()
			down.Store(true)
			ctx, cancel := context.WithTimeout(context.Background(), 115*time.Millisecond)
			defer cancel()
			_, err := f.hello(ctx, unaryKind.declared())
			var tried *Error
			if errors.As(err, &tried) {
				reason = tried.Reason
			}
			attempts = f.total() - before
		})
		return attempts, reason
	}
	if n, why := run(true); n != 1 || why != NoTime {
		t.Errorf("%d attempts (%s) with 45 ms left where 50 are usual, want 1 (%s)", n, why, NoTime)
	}
	if n, _ := run(false); n != 2 {
		t.Errorf("%d attempts with nothing known about the method, so this shows nothing", n)
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Backoff: Backoff{Base: time.Hour, Max: time.Hour}}
		f := newFleet(t, 1, ours, newTest(t, Config{Policy: p}), failing(errDown))
		defer f.warm().close()
		ctx, cancel := context.WithCancel(context.Background())
		stop := time.AfterFunc(time.Second, cancel)
		defer stop.Stop()
		began := time.Now()
		_, err := f.hello(ctx, unaryKind.declared())
		var tried *Error
		if status.Code(err) != codes.Canceled || time.Since(began) > time.Second || !errors.As(err, &tried) ||
			len(tried.Attempts) != 1 || tried.Reason != CallerGone {
			t.Errorf("%v after %v, want CANCELLED after 1s at most, with an account of the one attempt", err, time.Since(began))
		}
	})
}

// TestLastStatus: the error is the last attempt's, unchanged, and tells of all.
func TestLastStatus(t *testing.T) {
	for _, policy := range []string{noBlacklist, roundRobin} {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			f := newFleet(t, 3, policy, newTest(t, Config{Policy: Policy{Codes: []codes.Code{codes.Aborted}}}),
				func(i int, _ kind, s grpc.ServerStream) error {
					sign(i, s)
					if err := takes(s.Context(), 10*time.Millisecond); err != nil {
						return err
					}
					st, err := status.New(codes.Aborted, fmt.Sprintf("failure %d", n.Add(1))).
						WithDetails(&errdetails.ErrorInfo{Reason: fmt.Sprintf("R%d", n.Load())})
					if err != nil {
						return err
					}
					return st.Err()
				})
			defer f.warm().close()
			got := f.ask(context.Background(), unaryKind.declared())
			st, ok := status.FromError(got.err)
			if !ok || st.Code() != codes.Aborted || st.Message() != "failure 3" || len(st.Details()) != 1 ||
				st.Details()[0].(*errdetails.ErrorInfo).GetReason() != "R3" {
				t.Errorf("%s: status %v with details %v, want the third attempt's", policy, st, st.Details())
			}
			var tried *Error
			if !errors.As(got.err, &tried) || len(tried.Attempts) != 3 {
				t.Fatalf("%s: %v, want an account of 3 attempts", policy, got.err)
			}
			last := tried.Attempts[2]
			if last.Endpoint != got.peer.Addr.String() || "i"+last.Endpoint[1:2] != got.header.Get("server")[0] {
				t.Errorf("%s: the caller's peer is %v and header %v, want those of the last attempt, %v", policy, got.peer, got.header, last)
			}
			text := got.err.Error()
			for _, a := range tried.Attempts {
				if a.Code != codes.Aborted || a.Duration != 10*time.Millisecond || a.Endpoint == "" || !strings.Contains(text, a.String()) {
					t.Errorf("%s: attempt %+v in %q, want ABORTED after 10ms and where", policy, a, text)
				}
				if (a.Instance != "") != (policy == noBlacklist) {
					t.Errorf("%s: attempt %+v, want an instance where our balancer picked", policy, a)
				}
			}
		})
	}
}

// TestTargetsAreCleared: what a failed attempt wrote into the caller's targets does not outlive it.
func TestTargetsAreCleared(t *testing.T) {
	for _, k := range []kind{unaryKind, serverKind} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 1, roundRobin, newTest(t, Config{Policy: Policy{Backoff: Backoff{Base: time.Minute, Max: time.Minute}}}),
				func(i int, _ kind, s grpc.ServerStream) error {
					sign(i, s)
					return errDown
				})
			defer f.warm().close()
			stop := time.AfterFunc(time.Millisecond, f.servers[0].Stop)
			defer stop.Stop()
			var header, trailer metadata.MD
			var from peer.Peer
			_, err := f.exchange(context.Background(), k, k.declared(), grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from))
			var tried *Error
			if !errors.As(err, &tried) || len(tried.Attempts) < 2 {
				t.Fatalf("%v: %v, want a failure of several attempts", k, err)
			}
			if len(header) != 0 || len(trailer) != 0 || from.Addr != nil {
				t.Errorf("%v: the last attempt had no stream, and the caller has %v and %v from %v, want nothing", k, header,
					trailer, from.Addr)
			}
		})
	}
}

// TestHedgeTargetsAreCleared: the same where the last of two that ran side by side was refused on its way out.
func TestHedgeTargetsAreCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{Policy: Policy{MaxAttempts: 2, Hedge: Hedge{Delay: 20 * time.Millisecond}}})
		lateRefusal := func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if md, _ := metadata.FromOutgoingContext(ctx); len(md[attemptsKey]) == 0 {
				return invoker(ctx, name, req, reply, cc, opts...)
			}
			_ = takes(ctx, 50*time.Millisecond)
			return barred{errors.New("open")}
		}
		f := newFleet(t, 1, roundRobin, nil, func(i int, _ kind, s grpc.ServerStream) error {
			sign(i, s)
			return after(30, errDown)(i, s)
		}, grpc.WithChainUnaryInterceptor(r.UnaryClientInterceptor(), lateRefusal))
		defer f.warm().close()
		got := f.ask(context.Background(), unaryKind.declared())
		if len(got.header) != 0 || len(got.trailer) != 0 || got.peer.Addr != nil || f.total() != 1 {
			t.Errorf("the hedge was refused last, and the caller has %s, want nothing", got.text())
		}
	})
}

func TestOnFinishOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    handler
		p    Policy
		want string
	}{
		{"success", func(i int, _ kind, s grpc.ServerStream) error { return echo(i, s) }, Policy{}, "OK"},
		{"retried", oneDown, Policy{}, "OK"},
		{"hedged", func(i int, _ kind, s grpc.ServerStream) error { return after(50, nil)(i, s) },
			Policy{Hedge: Hedge{Delay: time.Millisecond}}, "OK"},
		{"failure", failing(errDown), Policy{}, "Unavailable"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var l log
			f := newFleet(t, 3, noBlacklist, newTest(t, Config{Policy: tt.p}), tt.h)
			defer f.warm().close()
			for range 3 { // one of them begins with the server that is down
				_, err := f.hello(context.Background(), unaryKind.declared(), grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
				if got := l.String(); got != tt.want || status.Code(err).String() != tt.want {
					t.Errorf("%s: OnFinish is told %q and the call %v, want %q once", tt.name, got, err, tt.want)
				}
				l.lines = nil
			}
		})
	}
}

// barred is an error like that of an open breaker.
type barred struct{ error }

func (barred) DoNotRetry() bool           { return true }
func (barred) GRPCStatus() *status.Status { return status.New(codes.Unavailable, "open") }

func TestDoNotRetry(t *testing.T) {
	var calls int
	ic := newTest(t, Config{Policy: Policy{Idempotent: true}}).UnaryClientInterceptor()
	err := ic(context.Background(), "/a.B/C", nil, nil, nil,
		func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
			calls++
			return fmt.Errorf("wrapped: %w", barred{errors.New("open")})
		})
	if calls != 1 || status.Code(err) != codes.Unavailable {
		t.Errorf("%d attempts and %v, want 1 and UNAVAILABLE", calls, err)
	}
	// Two retries that are stacked by mistake do not multiply.
	calls = 0
	outer := newTest(t, Config{Policy: Policy{Idempotent: true}}).UnaryClientInterceptor()
	err = outer(context.Background(), "/a.B/C", nil, nil, nil,
		func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
			return ic(ctx, m, req, reply, cc, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				calls++
				return errDown
			}, opts...)
		})
	if calls != 3 || status.Code(err) != codes.Unavailable {
		t.Errorf("%d attempts and %v, want 3 and UNAVAILABLE", calls, err)
	}
}

func TestScope(t *testing.T) {
	calls := 0
	down := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		calls++
		return errDown
	}
	r := newTest(t, Config{
		Policy: Policy{Idempotent: true, Backoff: Backoff{Base: 1}},
		Methods: map[string]Policy{
			"/a.B/Once": {MaxAttempts: 1}, "/a.C/*": {Idempotent: true, MaxAttempts: 2, Backoff: Backoff{Base: 1}},
		},
	})
	for _, tt := range []struct {
		method string
		opts   []grpc.CallOption
		want   int
	}{
		{"/a.B/C", nil, 3},
		{"/a.B/Once", nil, 1},
		{"/a.C/Any", nil, 2},
		{"/grpc.health.v1.Health/Check", nil, 1},
		{"/grpc.health.v1.Health/Check", []grpc.CallOption{WithPolicy(Policy{Idempotent: true, MaxAttempts: 2, Backoff: Backoff{Base: 1}})}, 2},
		{"/a.B/C", []grpc.CallOption{WithPolicy(Policy{MaxAttempts: 1})}, 1},
		{"/a.B/Once", []grpc.CallOption{WithPolicy(Policy{Idempotent: true, MaxAttempts: 5, Backoff: Backoff{Base: 1}})}, 5},
		{"not a method name", nil, 3},
		{"", nil, 3},
	} {
		calls = 0
		err := r.unary()(context.Background(), tt.method, nil, nil, nil, down, tt.opts...)
		if calls != tt.want || status.Code(err) != codes.Unavailable {
			t.Errorf("%s with %d options: %d attempts, want %d", tt.method, len(tt.opts), calls, tt.want)
		}
	}
}

func TestDryRun(t *testing.T) {
	var l log
	calls := 0
	b := budget(t, 0, 0.1) // pays for one retry
	r := newTest(t, Config{
		Policy:   Policy{Idempotent: true, DryRun: true, Budget: b},
		OnRetry:  func(e Event) { l.add("retry, dry %v", e.DryRun) },
		OnGiveUp: func(e Event) { l.add("gave up: %s", e.Reason) },
	})
	for range 2 {
		err := r.unary()(context.Background(), "/a.B/C", nil, nil, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				calls++
				return errDown
			})
		if !errors.Is(err, errDown) {
			t.Error(err)
		}
	}
	if want := "retry, dry true; gave up: over budget"; l.String() != want || calls != 2 {
		t.Errorf("%d attempts, events %q, want 2 and %q", calls, l.String(), want)
	}
}

// TestManyMethods: a proxy's methods cost bounded memory, and all of them work.
func TestManyMethods(t *testing.T) {
	r := newTest(t, Config{Policy: Policy{Idempotent: true}})
	for i := range maxMethods + 50 {
		if err := r.unary()(context.Background(), fmt.Sprintf("/a.B/M%d", i), nil, nil, nil, answer); err != nil {
			t.Fatal(err)
		}
	}
	s := r.State()
	if len(s.Methods) != maxMethods+1 || s.Methods[0].Method != "" || s.Methods[0].Calls != 50 {
		t.Errorf("%d methods, the first %+v, want %d and one for the rest", len(s.Methods), s.Methods[0], maxMethods)
	}
	if n := len(*r.state.Load().known.Load()); n != maxMethods {
		t.Errorf("%d methods are remembered, want %d", n, maxMethods)
	}
}

// TestInnerRetries: grpc's own retries run inside each attempt, 3 x 3 = 9 (trap 7).
func TestInnerRetries(t *testing.T) {
	const config = `{"loadBalancingConfig":[{"round_robin":{}}],"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":3,
		"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`
	for _, disable := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newTest(t, Config{})
			opts := []grpc.DialOption{grpc.WithDefaultServiceConfig(config)}
			f := newFleet(t, 1, roundRobin, nil, failing(errDown), opts...)
			f.conn.Close() // newFleet's has grpc's retries off
			conn, err := grpc.NewClient("fleet:///test", append(f.dial(disable), grpc.WithDefaultServiceConfig(config),
				grpc.WithUnaryInterceptor(r.UnaryClientInterceptor()))...)
			if err != nil {
				t.Fatal(err)
			}
			f.conn = conn
			defer f.close()
			_, err = f.hello(context.Background(), unaryKind.declared(), grpc.WaitForReady(true))
			want := map[bool]int64{false: 9, true: 3}[disable]
			if f.total() != want || status.Code(err) != codes.Unavailable {
				t.Errorf("%d attempts with grpc's retries off = %v, want %d: %v", f.total(), disable, want, err)
			}
		})
	}
}

// witness of what an observer hears.
type watcher struct{ log }

func (w *watcher) Attempt(ctx context.Context, a callctx.Attempt) context.Context {
	w.add("attempt %d hedge %v", a.Number, a.Hedge)
	return ctx
}

func (w *watcher) Event(e callctx.Event) {
	switch e.Kind {
	case callctx.AttemptEnded:
		w.add("ended %d at %v: %v", e.Attempt, e.Peer, status.Code(e.Err))
	default:
		w.add("%v %d by %s", e.Kind, e.Attempt, e.By)
	}
}

func TestObserver(t *testing.T) {
	for _, tt := range []struct {
		k    kind
		want string
	}{
		{unaryKind, "attempt 1 hedge false; ended 1 at s0:1: Unavailable; retry 2 by retry; attempt 2 hedge false; ended 2 at s0:1: OK"},
		{serverKind, "attempt 1 hedge false; ended 1 at s0:1: Unavailable; retry 2 by retry; attempt 2 hedge false; ended 2 at s0:1: OK"},
		{bidiKind, "attempt 1 hedge false; ended 1 at s0:1: OK"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 1, roundRobin, newTest(t, Config{}), func(i int, k kind, s grpc.ServerStream) error {
				if k != bidiKind && PreviousAttempts(s.Context()) == 0 {
					return errDown
				}
				return echo(i, s)
			})
			defer f.warm().close()
			w := new(watcher)
			ctx, cancel := context.WithCancel(callctx.With(context.Background(), callctx.Record{Observer: w}))
			defer cancel()
			if _, err := f.exchange(ctx, tt.k, tt.k.declared()); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if got := w.String(); !strings.HasPrefix(got, tt.want) || strings.Count(got, "ended") != strings.Count(got, "attempt ") {
				t.Errorf("%v: the observer hears %q, want %q", tt.k, got, tt.want)
			}
		})
	}
}

// TestSharedBudget: two Retriers with one Budget have no more between them.
func TestSharedBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget(t, 0, 1) // ten
		calls := 0
		for range 2 {
			r := newTest(t, Config{Policy: Policy{Idempotent: true, Budget: b, Backoff: Backoff{Base: 1}}})
			for range 10 {
				err := r.unary()(context.Background(), "/a.B/C", nil, wrapperspb.String(""), nil,
					func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
						calls++
						return errDown
					})
				if status.Code(err) != codes.Unavailable {
					t.Fatal(err)
				}
			}
		}
		if calls != 30 {
			t.Errorf("%d attempts of 20 calls with 10 retries to share, want 30", calls)
		}
	})
}
