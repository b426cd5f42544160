package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// flaky is a handler whose first attempts fail: when says at which point.
func flaky(when string) handler {
	return func(i int, k kind, s grpc.ServerStream) error {
		first := PreviousAttempts(s.Context()) == 0
		if first && when == "at once" {
			return errDown
		}
		if err := receive(s); err != nil {
			return err
		}
		switch {
		case first && when == "after the request":
			return errDown
		case first && when == "after the header":
			if err := s.SendHeader(metadata.Pairs("server", fmt.Sprintf("i%d", i))); err != nil {
				return err
			}
			return errDown
		}
		if err := send(s, fmt.Sprintf("i%d", i)); err != nil {
			return err
		}
		if first && when == "after a message" {
			return errDown
		}
		return nil
	}
}

// TestStreams: each kind of call, with every policy, when it fails at some point.
func TestStreams(t *testing.T) {
	for _, tt := range []struct {
		when     string
		declared bool
		attempts [4]int64 // unary, server-, client-streaming, bidirectional
		ok       [4]bool
	}{
		{"never", false, [4]int64{1, 1, 1, 1}, [4]bool{true, true, true, true}},
		{"at once", true, [4]int64{2, 2, 1, 1}, [4]bool{true, true, false, false}},
		{"at once", false, [4]int64{1, 1, 1, 1}, [4]bool{}},
		{"after the request", true, [4]int64{2, 2, 1, 1}, [4]bool{true, true, false, false}},
		{"after a message", true, [4]int64{2, 1, 1, 1}, [4]bool{true, false, false, false}},
	} {
		for _, policy := range policies {
			for i, k := range kinds {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, 2, policy, newTest(t, Config{}), flaky(tt.when))
					defer f.warm().close()
					method := k.plain()
					if tt.declared {
						method = k.declared()
					}
					_, err := f.exchange(context.Background(), k, method)
					if f.total() != tt.attempts[i] || (err == nil) != tt.ok[i] {
						t.Errorf("%s fails %s, %s: %d attempts and %v, want %d and success %v",
							method, tt.when, policy, f.total(), err, tt.attempts[i], tt.ok[i])
					}
				})
			}
		}
	}
}

// open starts a stream of kind k that sends its one request, if any.
func (f *fleet) open(ctx context.Context, k kind, opts ...grpc.CallOption) grpc.ClientStream {
	f.t.Helper()
	s, err := f.conn.NewStream(ctx, k.desc(), k.declared(), opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	if !k.desc().ClientStreams {
		if err := errors.Join(s.SendMsg(wrapperspb.String("hello")), s.CloseSend()); err != nil {
			f.t.Fatal(err)
		}
	}
	return s
}

func next(s grpc.ClientStream) (string, error) {
	out := new(wrapperspb.StringValue)
	err := s.RecvMsg(out)
	return out.GetValue(), err
}

// TestBidiBeforeSending: a client that listens first has sent nothing, so it gets another attempt.
func TestBidiBeforeSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), func(i int, _ kind, s grpc.ServerStream) error {
			if PreviousAttempts(s.Context()) == 0 {
				return errDown
			}
			if err := send(s, "welcome"); err != nil {
				return err
			}
			return echo(i, s)
		})
		defer f.warm().close()
		s := f.open(context.Background(), bidiKind)
		if text, err := next(s); text != "welcome" || err != nil {
			t.Fatalf("%q, %v, want a welcome", text, err)
		}
		if err := s.SendMsg(wrapperspb.String("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := next(s); err != nil {
			t.Fatal(err)
		}
		if _, err := next(s); err != io.EOF || f.total() != 2 {
			t.Errorf("%v after %d attempts, want EOF after 2", err, f.total())
		}
	})
}

// TestStreamHeader: who asks for the header first gets one of an attempt that then stands.
func TestStreamHeader(t *testing.T) {
	for _, tt := range []struct {
		when     string
		attempts int64
		header   bool
		code     codes.Code
	}{
		{"at once", 2, true, codes.OK},
		{"after the request", 2, true, codes.OK},
		{"after the header", 1, true, codes.Unavailable},
		{"never", 1, true, codes.OK},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), flaky(tt.when))
			defer f.warm().close()
			s := f.open(context.Background(), serverKind)
			md, err := s.Header()
			if err != nil || (md != nil) != tt.header {
				t.Errorf("fails %s: header %v, %v, want one = %v", tt.when, md, err, tt.header)
			}
			_, err = next(s)
			if status.Code(err) != tt.code || f.total() != tt.attempts {
				t.Errorf("fails %s: %v after %d attempts, want %v after %d", tt.when, err, f.total(), tt.code, tt.attempts)
			}
			for err == nil {
				_, err = next(s)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), failing(errDown))
		defer f.warm().close()
		s := f.open(context.Background(), serverKind)
		md, err := s.Header()
		if md != nil || err != nil {
			t.Errorf("header %v, %v of a call that failed, want none and that RecvMsg tells", md, err)
		}
		_, err = next(s)
		var tried *Error
		if !errors.As(err, &tried) || len(tried.Attempts) != 3 {
			t.Errorf("%v, want an account of 3 attempts", err)
		}
		if _, again := next(s); again != err {
			t.Errorf("%v the second time, want %v", again, err)
		}
	})
}

// TestStreamContext: asking for the context ends retries, as it does with grpc's own.
func TestStreamContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), flaky("at once"))
		defer f.warm().close()
		s := f.open(context.Background(), serverKind)
		if s.Context() == nil {
			t.Error("no context")
		}
		if _, err := next(s); status.Code(err) != codes.Unavailable || f.total() != 1 {
			t.Errorf("%v after %d attempts, want UNAVAILABLE after 1", err, f.total())
		}
	})
}

// TestStreamTimeouts: they bound the time to the first message of server-streaming calls, and nothing else.
func TestStreamTimeouts(t *testing.T) {
	const second = time.Second
	for _, tt := range []struct {
		name   string
		p      Policy
		k      kind
		first  time.Duration // until the first message of first attempts
		later  time.Duration // until the second
		code   codes.Code
		took   time.Duration
		within time.Duration // how much longer it may take
		total  int64
	}{
		{"a slow first message", Policy{AttemptTimeout: second}, serverKind, 10 * second, 0, codes.OK, second, 25 * time.Millisecond, 2},
		{"a slow second message", Policy{AttemptTimeout: second}, serverKind, second / 2, 10 * second, codes.OK, 21 * second / 2, 0, 1},
		{"Timeout", Policy{Timeout: second}, serverKind, 10 * second, 0, codes.DeadlineExceeded, second, 0, 1},
		{"Timeout, a slow second message", Policy{Timeout: second}, serverKind, 0, 10 * second, codes.OK, 10 * second, 0, 1},
		{"both", Policy{AttemptTimeout: second, Timeout: second / 2}, serverKind, 10 * second, 0, codes.DeadlineExceeded, second / 2, 0, 1},
		{"bidirectional", Policy{AttemptTimeout: second, Timeout: second}, bidiKind, 3 * second, 0, codes.OK, 3 * second, 0, 1},
		{"dry run", Policy{AttemptTimeout: second, Timeout: second, DryRun: true}, serverKind, 3 * second, 0, codes.OK, 3 * second, 0, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2, noBlacklist, newTest(t, Config{Policy: tt.p}), func(i int, k kind, s grpc.ServerStream) error {
				if err := receive(s); err != nil {
					return err
				}
				if PreviousAttempts(s.Context()) == 0 {
					if err := takes(s.Context(), tt.first); err != nil {
						return err
					}
				}
				if err := send(s, "one"); err != nil {
					return err
				}
				if err := takes(s.Context(), tt.later); err != nil {
					return err
				}
				return send(s, "two")
			})
			defer f.warm().close()
			began := time.Now()
			s := f.open(context.Background(), tt.k)
			if tt.k == bidiKind {
				if err := errors.Join(s.SendMsg(wrapperspb.String("hello")), s.CloseSend()); err != nil {
					t.Fatal(err)
				}
			}
			n, err := 0, error(nil)
			for err == nil {
				if _, err = next(s); err == nil {
					n++
				}
			}
			if err == io.EOF {
				err = nil
			}
			took := time.Since(began)
			if status.Code(err) != tt.code || err == nil && n != 2 || took < tt.took || took > tt.took+tt.within || f.total() != tt.total {
				t.Errorf("%s: %d messages, %v after %v in %d attempts, want %v after %v in %d", tt.name, n, err, took,
					f.total(), tt.code, tt.took, tt.total)
			}
			synctest.Wait()
		})
	}
}

// TestStreamOnFinish: however a stream ends, its caller is told once, whatever number of attempts it had.
func TestStreamOnFinish(t *testing.T) {
	drain := func(_ context.CancelFunc, s grpc.ClientStream) {
		for {
			if _, err := next(s); err != nil {
				return
			}
		}
	}
	for _, tt := range []struct {
		name string
		h    handler
		k    kind
		do   func(context.CancelFunc, grpc.ClientStream)
		want string
	}{
		{"EOF", flaky("never"), serverKind, drain, "OK"},
		{"EOF after a retry", flaky("at once"), serverKind, drain, "OK"},
		{"error", failing(errDown), serverKind, drain, "Unavailable"},
		{"error that is not retried", failing(status.Error(codes.NotFound, "")), serverKind, drain, "NotFound"},
		{"error after a message", flaky("after a message"), serverKind, drain, "Unavailable"},
		{"cancel", flaky("never"), bidiKind, func(cancel context.CancelFunc, s grpc.ClientStream) { cancel(); drain(cancel, s) }, "Canceled"},
		{"abandoned, then cancelled", flaky("never"), bidiKind, func(cancel context.CancelFunc, _ grpc.ClientStream) { cancel() }, "Canceled"},
		{"failed and abandoned, then cancelled", failing(errDown), serverKind, func(cancel context.CancelFunc, _ grpc.ClientStream) {
			_ = takes(context.Background(), time.Second)
			cancel()
		}, "Canceled"},
		{"header only, then cancelled", flaky("after a message"), serverKind, func(cancel context.CancelFunc, s grpc.ClientStream) {
			_, _ = s.Header()
			cancel()
		}, "Canceled"},
		{"sends into a failed stream", failing(errDown), bidiKind, func(_ context.CancelFunc, s grpc.ClientStream) {
			_ = takes(context.Background(), time.Second)
			_ = s.SendMsg(wrapperspb.String("hello"))
			drain(nil, s)
		}, "Unavailable"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var l log
			f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), tt.h)
			defer f.warm().close()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			s := f.open(ctx, tt.k, grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
			tt.do(cancel, s)
			synctest.Wait()
			if got := l.String(); got != tt.want {
				t.Errorf("%s: OnFinish is told %q, want %q once", tt.name, got, tt.want)
			}
			cancel()
			synctest.Wait()
			f.idle()
			if got := l.String(); got != tt.want {
				t.Errorf("%s: in the end OnFinish is told %q, want %q once", tt.name, got, tt.want)
			}
		})
	}
}

// TestStreamGoroutineEnds: a panic or an exit further in ends the call for OnFinish, and nothing hangs.
func TestStreamGoroutineEnds(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("ouch") }, "exit": runtime.Goexit} {
		var l log
		r := newTest(t, Config{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			_, _ = r.stream(context.Background(), serverKind.desc(), nil, "/a.B/C",
				func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
					end()
					return nil, nil
				}, grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
		}()
		<-done
		if l.String() != "Aborted" {
			t.Errorf("%s: OnFinish is told %q, want ABORTED once", name, l.String())
		}
	}
}

// TestUnaryGoroutineEnds is the same for unary calls.
func TestUnaryGoroutineEnds(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("ouch") }, "exit": runtime.Goexit} {
		var l log
		r := newTest(t, Config{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			_ = r.unary()(context.Background(), "/a.B/C", nil, nil, nil,
				func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
					end()
					return nil
				}, grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
		}()
		<-done
		if l.String() != "Aborted" {
			t.Errorf("%s: OnFinish is told %q, want ABORTED once", name, l.String())
		}
	}
}

// TestStreamConcurrency: one goroutine sends and one receives, on streams that fail at every moment.
func TestStreamConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		r := newTest(t, Config{Policy: Policy{Budget: budget(t, 300, 0)}})
		f := newFleet(t, 3, noBlacklist, r, func(i int, k kind, s grpc.ServerStream) error {
			if n.Add(1)%3 != 0 {
				return errDown
			}
			return echo(i, s)
		})
		defer f.warm().close()
		var wg sync.WaitGroup
		var good atomic.Int64
		for c := range 300 {
			wg.Go(func() {
				k := []kind{serverKind, bidiKind}[c%2]
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				s, err := f.conn.NewStream(ctx, k.desc(), k.declared())
				if err != nil {
					t.Error(err)
					return
				}
				wg.Go(func() {
					if err := s.SendMsg(wrapperspb.String("hello")); err != nil && err != io.EOF {
						t.Errorf("%v: SendMsg: %v", k, err)
					}
					_ = s.CloseSend()
				})
				_, err = next(s)
				for err == nil {
					if _, err = next(s); err == io.EOF {
						good.Add(1)
					}
				}
				if err != io.EOF && status.Code(err) != codes.Unavailable {
					t.Errorf("%v: %v", k, err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		f.idle()
		if good.Load() == 0 {
			t.Error("no stream ended well")
		}
		t.Logf("%d of 300 streams ended well in %d attempts", good.Load(), n.Load())
	})
}

// TestUnaryOverStream: a unary method called through NewStream, as proxies do.
func TestUnaryOverStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), flaky("after the request"))
		defer f.warm().close()
		s, err := f.conn.NewStream(context.Background(), &grpc.StreamDesc{}, unaryKind.declared())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.SendMsg(wrapperspb.String("hello")), s.CloseSend()); err != nil {
			t.Fatal(err)
		}
		if text, err := next(s); err != nil || text == "" || f.total() != 2 {
			t.Errorf("%q, %v after %d attempts, want an answer after 2", text, err, f.total())
		}
	})
}

// TestStreamReplayRefused: a request that can be encoded once and not again ends the call, with an account.
func TestStreamReplayRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, noBlacklist, newTest(t, Config{}), flaky("after the request"))
		defer f.warm().close()
		codec := &onceCodec{}
		s, err := f.conn.NewStream(context.Background(), serverKind.desc(), serverKind.declared(), grpc.ForceCodec(codec))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(&raw{}); err != nil {
			t.Fatal(err)
		}
		err = s.RecvMsg(&raw{})
		var tried *Error
		if status.Code(err) != codes.Internal || !errors.As(err, &tried) || len(tried.Attempts) != 2 {
			t.Errorf("%v, want INTERNAL with an account of 2 attempts", err)
		}
	})
}

type onceCodec struct {
	rawCodec
	used bool
}

func (c *onceCodec) Marshal(any) ([]byte, error) {
	if c.used {
		return nil, errors.New("once")
	}
	c.used = true
	return nil, nil
}

// TestStreamConnCloses: the connection is closed under a stream that nobody receives from any more.
func TestStreamConnCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l log
		f := newFleet(t, 1, ours, newTest(t, Config{}), func(_ int, _ kind, s grpc.ServerStream) error {
			return takes(s.Context(), time.Hour)
		})
		defer f.warm().close()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		f.open(ctx, serverKind, grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
		_ = f.conn.Close()
		synctest.Wait()
		if l.String() != "Canceled" {
			t.Errorf("OnFinish is told %q, want CANCELLED once", l.String())
		}
		cancel()
		synctest.Wait()
		if l.String() != "Canceled" {
			t.Errorf("in the end OnFinish is told %q, want CANCELLED once", l.String())
		}
	})
}
