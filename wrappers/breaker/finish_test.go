package breaker

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ends collects what grpc.OnFinish is told.
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

// once fails the test unless there was one end, with want.
func (e *ends) once(t *testing.T, name string, want error) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.errs) != 1 || e.errs[0] != want {
		t.Errorf("%s: OnFinish is told %v, want %v once", name, e.errs, want)
	}
}

// TestOnFinish: a call that gRPC never sees, since its breaker turned it away, ends for grpc.OnFinish as any other.
func TestOnFinish(t *testing.T) {
	for name, x := range map[string]struct {
		p      Policy
		before func(r *rig) (ctx context.Context, after func())
		code   codes.Code
	}{
		"open": {Policy{ConsecutiveFailures: 1}, func(r *rig) (context.Context, func()) {
			r.call(errDown, 0)
			return context.Background(), func() {}
		}, codes.Unavailable},
		"full": {Policy{MaxConcurrent: 1}, func(r *rig) (context.Context, func()) {
			var wg sync.WaitGroup
			wg.Go(func() { r.call(nil, sec) })
			synctest.Wait()
			return context.Background(), wg.Wait
		}, codes.Unavailable},
		"recovering": {Policy{ConsecutiveFailures: 1}, func(r *rig) (context.Context, func()) {
			r.trip()
			r.call(nil, 0)
			r.draw = never
			return context.Background(), func() {}
		}, codes.Unavailable},
		"over already": {Policy{}, func(*rig) (context.Context, func()) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return ctx, func() {}
		}, codes.Canceled},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: x.p})
			ctx, after := x.before(r)
			defer after()
			unary, stream := new(ends), new(ends)
			err := r.unaryClient(ctx, method, nil, nil, nil, nil, grpc.WaitForReady(true), unary.option())
			if status.Code(err) != x.code {
				t.Errorf("%s: unary: %v, want %v", name, err, x.code)
			}
			unary.once(t, name+", unary", err)
			_, err = r.streamClient(ctx, &grpc.StreamDesc{}, nil, method, nil, grpc.WaitForReady(true), stream.option())
			if status.Code(err) != x.code {
				t.Errorf("%s: stream: %v, want %v", name, err, x.code)
			}
			stream.once(t, name+", stream", err)
		})
	}
}

// TestOnFinishWithFallback: what a fallback made of a call that was turned away is its end.
func TestOnFinishWithFallback(t *testing.T) {
	other := errors.New("other")
	for name, x := range map[string]struct {
		p    Policy
		want func(err error) error
	}{
		"answers": {Policy{Fallback: func(context.Context, string, any, any, error) error { return nil }},
			func(error) error { return nil }},
		"fails": {Policy{Fallback: func(context.Context, string, any, any, error) error { return other }},
			func(error) error { return other }},
		"answers, and it counts as failed": {
			Policy{FallbackFails: true, Fallback: func(context.Context, string, any, any, error) error { return nil }},
			func(err error) error {
				var f *FallbackError
				if !errors.As(err, &f) {
					t.Errorf("%v, want a *FallbackError", err)
				}
				return err
			}},
	} {
		x.p.ConsecutiveFailures = 1
		r, e := newRig(t, Config{Policy: x.p}), new(ends)
		r.call(errDown, 0)
		err := r.unaryClient(context.Background(), method, nil, nil, nil, nil, e.option())
		if err != x.want(err) {
			t.Errorf("%s: %v, want %v", name, err, x.want(err))
		}
		e.once(t, name, err)
	}

	r, e := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}}), new(ends)
	r.call(errDown, 0)
	survive(func() {
		_ = r.unaryClient(context.Background(), method, nil, nil, nil, nil, e.option(),
			WithFallback(func(context.Context, string, any, any, error) error { panic("fallback") }))
	})
	var refused *Error
	if len(e.errs) != 1 || !errors.As(e.errs[0], &refused) {
		t.Errorf("a fallback that panics: OnFinish is told %v, want the breaker's error once", e.errs)
	}
}

// TestOnFinishOverStack: what gRPC gets to see it ends itself, once, also if a fallback answers then.
func TestOnFinishOverStack(t *testing.T) {
	for _, fails := range []bool{false, true} {
		for _, k := range kinds {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1,
					Fallback: func(context.Context, string, any, any, error) error { return nil }}})
				s := newStack(t, echo(func() error {
					if fails {
						return errDown
					}
					return nil
				}), r.Breakers, nil)
				defer s.close()
				e := new(ends)
				_ = s.call(context.Background(), k, e.option())
				synctest.Wait()
				if want := map[bool]codes.Code{false: codes.OK, true: codes.Unavailable}[fails]; len(e.errs) != 1 || status.Code(e.errs[0]) != want {
					t.Errorf("%v: OnFinish is told %v, want %v once", k, e.errs, want)
				}
				if !fails {
					return
				}
				e = new(ends)
				err := s.call(context.Background(), k, e.option())
				synctest.Wait()
				e.once(t, k.String()+", open", err)
			})
		}
	}
}

// TestOnFinishNested: of two breakers, one inside the other, the inner one refuses. The caller and the outer one hear of
// one end.
func TestOnFinishNested(t *testing.T) {
	outer, inner := newRig(t, Config{}), newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, OpenFor: time.Hour}})
	inner.call(errDown, 0)
	e := new(ends)
	err := outer.unaryClient(t.Context(), method, nil, nil, nil,
		func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, o ...grpc.CallOption) error {
			return inner.unaryClient(ctx, m, req, reply, cc, nil, o...)
		}, e.option())
	e.once(t, "unary", err)
	e = new(ends)
	_, err = outer.streamClient(t.Context(), &grpc.StreamDesc{}, nil, method,
		func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return inner.streamClient(ctx, d, cc, m, nil, o...)
		}, e.option())
	e.once(t, "stream", err)
	var refused *Error
	if s := outer.one(); !errors.As(err, &refused) || s.Failures != 0 || s.Successes != 0 || s.InFlight != 0 {
		t.Errorf("%v; the outer one: %v, want the inner one's refusal, which does not count", err, s)
	}
}
