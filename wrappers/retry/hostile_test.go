package retry

import (
	"context"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// stalling answers the first attempt late and the others at once, or fails every attempt, as err says.
func stalling(err error) handler {
	return func(i int, _ kind, s grpc.ServerStream) error {
		if err != nil {
			return err
		}
		if PreviousAttempts(s.Context()) == 0 {
			if err := takes(s.Context(), time.Second); err != nil {
				return err
			}
		}
		return echo(i, s)
	}
}

// TestCallbacksThatPanic: a callback that panics, or ends its goroutine, ends the call and nothing else: the panic
// reaches the caller, whoever waits for the end of the call is told once, nothing stays in flight, and the next call
// is made as ever. That no goroutine is left is for the bubble to see.
func TestCallbacksThatPanic(t *testing.T) {
	hedged := Policy{MaxAttempts: 2, Hedge: Hedge{Delay: 10 * time.Millisecond}}
	for _, tt := range []struct {
		name   string
		policy Policy
		h      handler
		k      kind
		set    func(*Config, func(Event))
	}{
		{"OnRetry", Policy{}, stalling(errDown), unaryKind, func(c *Config, f func(Event)) { c.OnRetry = f }},
		{"OnRetry", Policy{}, stalling(errDown), serverKind, func(c *Config, f func(Event)) { c.OnRetry = f }},
		{"OnRetry", Policy{}, stalling(errDown), bidiKind, func(c *Config, f func(Event)) { c.OnRetry = f }},
		{"OnGiveUp", Policy{}, stalling(errDown), unaryKind, func(c *Config, f func(Event)) { c.OnGiveUp = f }},
		{"OnGiveUp", Policy{}, stalling(errDown), serverKind, func(c *Config, f func(Event)) { c.OnGiveUp = f }},
		{"OnGiveUp", Policy{}, stalling(errDown), bidiKind, func(c *Config, f func(Event)) { c.OnGiveUp = f }},
		{"OnHedge", hedged, stalling(nil), unaryKind, func(c *Config, f func(Event)) { c.OnHedge = f }},
	} {
		for ending, end := range map[string]func(){"panic": func() { panic("ouch") }, "exit": runtime.Goexit} {
			t.Run(tt.name+" "+tt.k.String()+" "+ending, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					armed := true
					c := Config{Policy: tt.policy}
					tt.set(&c, func(Event) {
						if armed {
							armed = false
							end()
						}
					})
					var l log
					f := newFleet(t, 2, noBlacklist, newTest(t, c), tt.h)
					defer f.warm().close()
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					notify := grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) })
					var panicked any
					returned := false
					var err error
					onOwn(func() {
						defer func() { panicked = recover() }()
						err = f.talk(ctx, tt.k, notify)
						returned = true
					})
					if armed {
						t.Fatal("the callback was not called")
					}
					switch {
					case ending == "panic" && panicked != "ouch":
						t.Errorf("the caller has %v and a panic with %v, want one with ouch", err, panicked)
					case ending == "exit" && tt.name == "OnHedge": // that ends the timer's goroutine, not the caller's
						if status.Code(err) != codes.Aborted {
							t.Errorf("%v, want ABORTED", err)
						}
					case ending == "exit" && (returned || panicked != nil):
						t.Errorf("the call returned %v or panicked with %v, want its goroutine gone", err, panicked)
					}
					synctest.Wait()
					if told := l.String(); told != "Aborted" && told != "Unavailable" { // the latter of the last attempt
						t.Errorf("OnFinish is told %q, want one failure", told)
					}
					f.idle()
					want := codes.OK
					if tt.h(0, tt.k, deadStream{}) == errDown {
						want = codes.Unavailable
					}
					if err := f.talk(ctx, tt.k); status.Code(err) != want {
						t.Errorf("the next call: %v, want %v", err, want)
					}
				})
			})
		}
	}
}

// deadStream tells a handler that its caller is gone.
type deadStream struct{ grpc.ServerStream }

func (deadStream) Context() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// onOwn runs f on a goroutine that it may end as it likes.
func onOwn(f func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	wg.Wait()
}

// talk makes a call of kind k to a declared method. On a bidirectional stream it listens before it speaks.
func (f *fleet) talk(ctx context.Context, k kind, opts ...grpc.CallOption) error {
	if k != bidiKind {
		_, err := f.exchange(ctx, k, k.declared(), opts...)
		return err
	}
	s, err := f.conn.NewStream(ctx, k.desc(), k.declared(), opts...)
	if err != nil {
		return err
	}
	_, err = next(s)
	return err
}

// TestStreamAfterPanic: a stream whose callback panicked has ended, for everybody who still holds it.
func TestStreamAfterPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, noBlacklist, newTest(t, Config{OnRetry: func(Event) { panic("ouch") }}), stalling(errDown))
		defer f.warm().close()
		s := f.open(context.Background(), serverKind)
		onOwn(func() {
			defer func() { _ = recover() }()
			_, _ = next(s)
		})
		_, err := next(s)
		if status.Code(err) != codes.Aborted {
			t.Errorf("receiving after the panic: %v, want ABORTED", err)
		}
		if err := s.SendMsg(wrapperspb.String("hello")); status.Code(err) != codes.Aborted {
			t.Errorf("sending after the panic: %v, want ABORTED", err)
		}
		if md, err := s.Header(); md != nil || err != nil {
			t.Errorf("the header after the panic: %v, %v, want none", md, err)
		}
		_, _ = s.Trailer(), s.Context()
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	})
}

// TestStreamPushback: on a stream the server's word on retries holds as on a unary call, as long as there can be one.
func TestStreamPushback(t *testing.T) {
	exhausted := status.Error(codes.ResourceExhausted, "too much")
	for _, tt := range []struct {
		name     string
		err      error
		pushback []string
		k        kind
		speaks   bool // the caller has sent, on a client or bidirectional stream
		declared bool
		attempts int64
		takes    time.Duration
	}{
		{"50 ms", errDown, []string{"50"}, serverKind, true, false, 3, 100 * milli},
		{"50 ms, another code", exhausted, []string{"50"}, serverKind, true, false, 3, 100 * milli},
		{"0", exhausted, []string{"0"}, serverKind, true, true, 3, 0},
		{"negative", errDown, []string{"-1"}, serverKind, true, true, 1, 0},
		{"not a number", errDown, []string{"soon"}, serverKind, true, true, 1, 0},
		{"two values", errDown, []string{"1", "2"}, serverKind, true, true, 1, 0},
		{"two hours", errDown, []string{"7200000"}, serverKind, true, true, 1, 0},
		{"50 ms", errDown, []string{"50"}, bidiKind, false, false, 3, 100 * milli},
		{"negative", errDown, []string{"-1"}, bidiKind, false, true, 1, 0},
		{"50 ms", errDown, []string{"50"}, bidiKind, true, true, 1, 0},
		{"50 ms", errDown, []string{"50"}, clientKind, false, false, 3, 100 * milli},
		{"50 ms", errDown, []string{"50"}, clientKind, true, true, 1, 0},
	} {
		for _, policy := range []string{noBlacklist, roundRobin} {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, policy, newTest(t, Config{}), func(_ int, _ kind, s grpc.ServerStream) error {
					s.SetTrailer(metadata.MD{pushbackKey: tt.pushback})
					return tt.err
				})
				defer f.warm().close()
				method := tt.k.plain()
				if tt.declared {
					method = tt.k.declared()
				}
				began := time.Now()
				s, err := f.conn.NewStream(context.Background(), tt.k.desc(), method)
				if err != nil {
					t.Fatal(err)
				}
				if tt.speaks {
					if err := s.SendMsg(wrapperspb.String("hello")); err != nil && err != io.EOF {
						t.Fatal(err)
					}
				}
				_, err = next(s)
				took := time.Since(began)
				if got := f.total(); got != tt.attempts || status.Code(err) != status.Code(tt.err) || took != tt.takes {
					t.Errorf("%v, %s, has spoken %v, %s: %d attempts in %v and %v, want %d in %v",
						tt.k, tt.name, tt.speaks, policy, got, took, err, tt.attempts, tt.takes)
				}
			})
		}
	}
}

// TestStreamKeepsItsPolicy: what Update says holds for the streams that begin after it, in each of the states that an
// older one may be in.
func TestStreamKeepsItsPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{Policy: Policy{MaxAttempts: 2}})
		var l log
		f := newFleet(t, 2, noBlacklist, r, func(i int, k kind, s grpc.ServerStream) error {
			if PreviousAttempts(s.Context()) == 0 {
				if err := takes(s.Context(), time.Second); err != nil {
					return err
				}
				return errDown
			}
			return echo(i, s)
		})
		defer f.warm().close()
		var wg sync.WaitGroup
		received := f.open(context.Background(), serverKind) // fails while somebody receives
		wg.Go(func() {
			_, err := next(received)
			l.add("received: %v", err)
		})
		lazy := f.open(context.Background(), serverKind)                                                 // has failed when somebody receives
		timed := f.open(context.Background(), serverKind, WithPolicy(Policy{AttemptTimeout: time.Hour})) // has its own
		synctest.Wait()
		again := Config{Policy: Policy{MaxAttempts: 1, AttemptTimeout: time.Millisecond}, OnRetry: func(Event) { l.add("new OnRetry") }}
		if err := r.Update(again); err != nil {
			t.Fatal(err)
		}
		if _, err := next(f.open(context.Background(), serverKind)); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("a new stream: %v, want DEADLINE_EXCEEDED after 1 ms, and no retry", err)
		}
		wg.Wait()
		time.Sleep(time.Minute)
		for name, s := range map[string]grpc.ClientStream{"lazy": lazy, "timed": timed} {
			if _, err := next(s); err != nil {
				t.Errorf("%s: %v, want the second attempt that its policy allows", name, err)
			}
		}
		if l.String() != "new OnRetry; received: <nil>; new OnRetry; new OnRetry" {
			t.Errorf("%q, want each of the three to be tried again and the new function to be told", l.String())
		}
	})
}

// TestUpdateUnderStreams: policies are replaced while streams of all kinds run: no race, no failed stream, no start
// without an end.
func TestUpdateUnderStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{})
		f := newFleet(t, 3, noBlacklist, r, func(i int, k kind, s grpc.ServerStream) error {
			if PreviousAttempts(s.Context()) == 0 && k == serverKind {
				return errDown
			}
			if err := takes(s.Context(), time.Millisecond); err != nil {
				return err
			}
			return echo(i, s)
		})
		defer f.warm().close()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 60 {
					if _, err := f.exchange(context.Background(), kinds[(i+j)%len(kinds)], kinds[(i+j)%len(kinds)].declared()); err != nil {
						t.Errorf("%v: %v", kinds[(i+j)%len(kinds)], err)
					}
				}
			})
		}
		wg.Go(func() {
			for i := range 100 {
				p := Policy{MaxAttempts: 2 + i%3, AttemptTimeout: time.Duration(i%2) * time.Minute, Budget: budget(t, 100, 1000)}
				if err := r.Update(Config{Policy: p, Methods: map[string]Policy{serverKind.declared(): p}}); err != nil {
					t.Error(err)
				}
				_ = r.State()
				time.Sleep(time.Millisecond)
			}
		})
		wg.Wait()
		synctest.Wait()
		f.idle()
	})
}

// TestContextsThatAreOver: a call whose context has ended makes no second attempt, whatever its kind, and tells so.
func TestContextsThatAreOver(t *testing.T) {
	for name, over := range map[string]func() (context.Context, context.CancelFunc){
		"cancelled": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return ctx, cancel
		},
		"too late": func() (context.Context, context.CancelFunc) {
			return context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		},
	} {
		for _, p := range []Policy{{}, {AttemptTimeout: time.Second, Timeout: time.Second}, {Hedge: Hedge{Delay: 1}}} {
			synctest.Test(t, func(t *testing.T) {
				r := newTest(t, Config{Policy: p})
				f := newFleet(t, 2, noBlacklist, r, stalling(nil))
				defer f.warm().close()
				ctx, cancel := over()
				defer cancel()
				for _, k := range kinds {
					var l log
					_, err := f.exchange(ctx, k, k.declared(), grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
					want := status.FromContextError(ctx.Err()).Code()
					if status.Code(err) != want || l.String() != want.String() {
						t.Errorf("%s, %v: %v, OnFinish is told %q, want %v once", name, k, err, l.String(), want)
					}
				}
				for _, m := range r.State().Methods {
					if m.Retries+m.Hedges != 0 {
						t.Errorf("%s: %s was tried again", name, m.Method)
					}
				}
				f.idle()
			})
		}
	}
}
