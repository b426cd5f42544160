package ratelimit

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ends is what the OnFinish options of a call were told.
type ends struct {
	mu   sync.Mutex
	errs []error
}

func (e *ends) option() grpc.CallOption {
	return grpc.OnFinish(func(err error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.errs = append(e.errs, err)
	})
}

func (e *ends) codes() (all []codes.Code) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, err := range e.errs {
		all = append(all, status.Code(err))
	}
	return all
}

// TestFinish: however a call ends, the caller's OnFinish options are told once each, as gRPC alone would tell them, and
// of the error that the call returns. So it is with the call that the limiter does not let gRPC see, wherever in the
// chain it stands.
func TestFinish(t *testing.T) {
	one := Config{Policy: Policy{Rate: 0.1, Burst: 1, MessageCost: 1}}
	waiting := one
	waiting.Wait = true
	plain := func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithCancel(ctx) }
	over := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, -time.Second)
	}
	for _, row := range []struct {
		name    string
		config  Config
		spent   bool // there are no tokens
		context func(context.Context) (context.Context, context.CancelFunc)
		want    codes.Code
		refused uint64
	}{
		{"admitted", one, false, plain, codes.OK, 0},
		{"refused", one, true, plain, codes.ResourceExhausted, 1},
		{"refused since it would wait too long", waiting, true, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, codes.ResourceExhausted, 1},
		{"cancelled while it waits", waiting, true, func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		}, codes.Canceled, 0},
		{"its deadline is over", one, false, over, codes.DeadlineExceeded, 0},
		{"its deadline is over and there are no tokens", one, true, over, codes.DeadlineExceeded, 0},
		{"its deadline is over and it would wait", waiting, true, over, codes.DeadlineExceeded, 0},
	} {
		for _, kind := range kinds {
			for _, place := range []string{"alone", "below another", "above another"} {
				t.Run(row.name+"/"+kind+"/"+place, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l, other := mustNew(t, row.config), mustNew(t, Config{Policy: Policy{Rate: 1000, MessageCost: 1}})
						chain := map[string][]*Limiter{"alone": {l}, "below another": {other, l}, "above another": {l, other}}[place]
						r, stop := newRig(t, rigOptions{dial: chained(chain...)})
						defer stop()
						if row.spent {
							_ = l.UnaryClientInterceptor()(t.Context(), unary, nil, nil, nil, noCall)
						}
						ctx, cancel := row.context(t.Context())
						defer cancel()
						var first, second ends
						err := r.call(ctx, kind, 1, first.option(), grpc.WaitForReady(true), second.option())
						synctest.Wait()
						if status.Code(err) != row.want {
							t.Errorf("call: %v, want %v", err, row.want)
						}
						want := []codes.Code{row.want}
						if got, also := first.codes(), second.codes(); !slices.Equal(got, want) || !slices.Equal(also, want) {
							t.Errorf("OnFinish options were told of %v and %v, want once %v", got, also, row.want)
						}
						if got := l.State().Scopes[0].Refused.Rate; got != row.refused {
							t.Errorf("%d refusals were counted, want %d", got, row.refused)
						}
					})
				})
			}
		}
	}
}

// chained are the client's interceptors of limiters, the outermost first.
func chained(ls ...*Limiter) (all []grpc.DialOption) {
	for _, l := range ls {
		all = append(all, grpc.WithChainUnaryInterceptor(l.UnaryClientInterceptor()), grpc.WithChainStreamInterceptor(l.StreamClientInterceptor()))
	}
	return all
}

// scripted is a stream below the limiter whose end comes when a test says so.
type scripted struct {
	grpc.ClientStream
	opts       []grpc.CallOption
	ctx        context.Context
	send, recv error
	sent       int
	atLimit    func() // called when a message is refused
}

func (s *scripted) start(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s.ctx, s.opts = ctx, opts
	return s, nil
}

func (s *scripted) end(err error) { _ = finished(s.opts, err) }
func (s *scripted) SendMsg(any) error {
	s.sent++
	return s.send
}
func (s *scripted) RecvMsg(any) error { return s.recv }

// TestRefusedMessageOrEnd: a refused message and the stream's own end may come at the same time. Whichever is first is
// what everybody is told, in whatever order they ask.
func TestRefusedMessageOrEnd(t *testing.T) {
	cancelled, gone := status.Error(codes.Canceled, "context canceled"), status.Error(codes.Unavailable, "gone")
	for _, row := range []struct {
		name   string
		run    func(cs grpc.ClientStream, s *scripted) []error // what SendMsg and RecvMsg return
		want   []codes.Code
		finish codes.Code
	}{
		{"refused, then cancelled for it", func(cs grpc.ClientStream, s *scripted) []error {
			sent := cs.SendMsg(nil)
			s.end(cancelled)
			s.recv = cancelled
			return []error{sent, cs.RecvMsg(nil), cs.RecvMsg(nil)}
		}, []codes.Code{codes.ResourceExhausted, codes.ResourceExhausted, codes.ResourceExhausted}, codes.ResourceExhausted},
		{"refused, then a success that was under way", func(cs grpc.ClientStream, s *scripted) []error {
			sent := cs.SendMsg(nil)
			s.recv = io.EOF
			s.end(nil)
			return []error{sent, cs.RecvMsg(nil)}
		}, []codes.Code{codes.ResourceExhausted, codes.ResourceExhausted}, codes.ResourceExhausted},
		{"ended, then refused", func(cs grpc.ClientStream, s *scripted) []error {
			s.end(gone)
			s.send, s.recv = io.EOF, gone
			return []error{cs.SendMsg(nil), cs.RecvMsg(nil)}
		}, []codes.Code{codes.Unknown, codes.Unavailable}, codes.Unavailable},
		{"ended while it is refused", func(cs grpc.ClientStream, s *scripted) []error {
			s.atLimit = func() { s.end(gone) }
			s.send, s.recv = io.EOF, gone
			return []error{cs.SendMsg(nil), cs.RecvMsg(nil)}
		}, []codes.Code{codes.Unknown, codes.Unavailable}, codes.Unavailable},
		{"ended twice", func(cs grpc.ClientStream, s *scripted) []error {
			s.end(nil)
			s.end(gone)
			return nil
		}, nil, codes.OK},
	} {
		t.Run(row.name, func(t *testing.T) {
			var s scripted
			l := mustNew(t, Config{Policy: Policy{Rate: 1e-9, Burst: 1, MessageCost: 1}, OnLimit: func(Event) {
				if s.atLimit != nil {
					s.atLimit()
				}
			}})
			var e ends
			cs, err := l.StreamClientInterceptor()(t.Context(), &grpc.StreamDesc{ClientStreams: true}, nil, client, s.start, e.option())
			if err != nil || cs.SendMsg(nil) != nil {
				t.Fatalf("start: %v, want it admitted with its first message", err)
			}
			var got []codes.Code
			for _, err := range row.run(cs, &s) {
				got = append(got, status.Code(err))
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("got %v, want %v", got, row.want)
			}
			if told := e.codes(); !slices.Equal(told, []codes.Code{row.finish}) {
				t.Errorf("OnFinish was told of %v, want once %v", told, row.finish)
			}
			if s.ctx.Err() == nil {
				t.Error("the stream's context has not ended with it")
			}
			before := s.sent
			if err := cs.SendMsg(nil); row.finish == codes.ResourceExhausted && (err != io.EOF || s.sent != before) {
				t.Errorf("SendMsg after a refusal: %v, %d sent, want EOF and nothing", err, s.sent-before)
			}
		})
	}
}

// TestStreamThatDoesNotStart: whatever the start of a stream does, nothing stays behind, and OnFinish is told once.
func TestStreamThatDoesNotStart(t *testing.T) {
	failure := errors.New("refused further in, without a word to OnFinish")
	for name, row := range map[string]struct {
		start func(s *scripted) error
		want  codes.Code
	}{
		"error":              {func(*scripted) error { return failure }, codes.Unknown},
		"error and word":     {func(s *scripted) error { s.end(failure); return failure }, codes.Unknown},
		"panic":              {func(*scripted) error { panic("x") }, codes.Aborted},
		"panic after a word": {func(s *scripted) error { s.end(failure); panic("x") }, codes.Unknown},
		"Goexit":             {func(*scripted) error { runtime.Goexit(); return nil }, codes.Aborted},
	} {
		l := mustNew(t, Config{Policy: Policy{Rate: 1000, MessageCost: 1}})
		var s scripted
		var e ends
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			cs, err := l.StreamClientInterceptor()(t.Context(), &grpc.StreamDesc{ClientStreams: true}, nil, client,
				func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
					s.ctx, s.opts = ctx, opts
					return nil, row.start(&s)
				}, e.option())
			if cs != nil || !errors.Is(err, failure) {
				t.Errorf("%s: %v, %v, want no stream and the error", name, cs, err)
			}
		}()
		<-done
		if told := e.codes(); !slices.Equal(told, []codes.Code{row.want}) {
			t.Errorf("%s: OnFinish was told of %v, want once %v", name, told, row.want)
		}
		if s.ctx.Err() == nil {
			t.Errorf("%s: the stream's context has not ended", name)
		}
	}
}

// TestBypass: a call with the option passes a limiter that has nothing left, in all its messages, unseen.
func TestBypass(t *testing.T) {
	for _, kind := range kinds {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			l := mustNew(t, Config{Policy: Policy{Rate: 1e-9, Burst: 1, MessageCost: 1, Wait: true, Key: "func"},
				KeyFunc:  func(context.Context, string) string { asked++; return "" },
				CostFunc: func(context.Context, string, any) int { asked++; return 1 }})
			r, stop := newRig(t, rigOptions{client: l})
			defer stop()
			_ = l.UnaryClientInterceptor()(t.Context(), unary, nil, nil, nil, noCall)
			before, asks := l.State().Scopes[0], asked
			for _, opts := range [][]grpc.CallOption{{Bypass()}, {WithCost(5), Bypass(), WithWait(false)}} {
				var e ends
				if err := r.call(t.Context(), kind, 3, append(opts, e.option())...); err != nil {
					t.Errorf("%s: %v, want it to pass", kind, err)
				}
				synctest.Wait()
				if told := e.codes(); !slices.Equal(told, []codes.Code{codes.OK}) {
					t.Errorf("%s: OnFinish was told of %v, want once OK", kind, told)
				}
			}
			if after := l.State().Scopes[0]; after != before || asked != asks {
				t.Errorf("%s: state %+v and %d questions, want %+v and %d", kind, after, asked, before, asks)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := r.call(ctx, kind, 1); !isRefused(err) {
				t.Errorf("%s: without the option: %v, want a refusal", kind, err)
			}
		})
	}
}
