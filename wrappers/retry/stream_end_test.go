package retry

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestStreamUnsendable: a message that cannot be sent is the end of the stream, whatever the policy repeats, and its
// caller is told once, without the context's end.
func TestStreamUnsendable(t *testing.T) {
	tooLarge := grpc.MaxCallSendMsgSize(2)
	exhausted := Policy{Codes: []codes.Code{codes.ResourceExhausted, codes.Internal}}
	for _, tt := range []struct {
		name string
		p    Policy
		k    kind
		opts []grpc.CallOption
		want codes.Code
	}{
		{"too large", Policy{}, serverKind, []grpc.CallOption{tooLarge}, codes.ResourceExhausted},
		{"too large, of a code that is repeated", exhausted, serverKind, []grpc.CallOption{tooLarge}, codes.ResourceExhausted},
		{"one too many, of a code that is repeated", exhausted, serverKind, nil, codes.Internal},
		{"too large, client-streaming", exhausted, clientKind, []grpc.CallOption{tooLarge}, codes.ResourceExhausted},
	} {
		synctest.Test(t, func(t *testing.T) {
			var l log
			f := newFleet(t, 2, noBlacklist, newTest(t, Config{Policy: tt.p}), func(_ int, _ kind, s grpc.ServerStream) error {
				return takes(s.Context(), time.Hour)
			})
			defer f.warm().close()
			opts := append(tt.opts, grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
			s, err := f.conn.NewStream(context.Background(), tt.k.desc(), tt.k.declared(), opts...)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err = s.SendMsg(wrapperspb.String("hello")); err != nil {
					break
				}
			}
			synctest.Wait()
			if status.Code(err) != tt.want || l.String() != tt.want.String() {
				t.Errorf("%s: SendMsg: %v, and OnFinish is told %q, want %v once", tt.name, err, l.String(), tt.want)
			}
			if _, err := next(s); err == nil || err == io.EOF {
				t.Errorf("%s: receiving ends with %v, want an error", tt.name, err)
			}
			f.idle()
			if l.String() != tt.want.String() {
				t.Errorf("%s: in the end OnFinish is told %q, want %v once", tt.name, l.String(), tt.want)
			}
		})
	}
}

// TestStreamTimeoutsOfFixed: who asks for the context or the header early gets no other attempt, and the timeouts
// bound the time to the first message, and no more than that, as they do otherwise.
func TestStreamTimeoutsOfFixed(t *testing.T) {
	const second = time.Second
	asks := map[string]func(grpc.ClientStream){
		"the context": func(s grpc.ClientStream) { _ = s.Context() },
		"the header":  func(s grpc.ClientStream) { _, _ = s.Header() },
	}
	for _, tt := range []struct {
		name         string
		p            Policy
		first, later time.Duration
		code         codes.Code
		took         time.Duration
	}{
		{"AttemptTimeout", Policy{AttemptTimeout: second}, 10 * second, 0, codes.DeadlineExceeded, second},
		{"Timeout", Policy{Timeout: second}, 10 * second, 0, codes.DeadlineExceeded, second},
		{"a slow second message", Policy{AttemptTimeout: second, Timeout: second}, second / 2, 10 * second, codes.OK, 21 * second / 2},
		{"dry run", Policy{AttemptTimeout: second, Timeout: second, DryRun: true}, 10 * second, 0, codes.OK, 10 * second},
	} {
		for what, ask := range asks {
			synctest.Test(t, func(t *testing.T) {
				var l log
				f := newFleet(t, 2, noBlacklist, newTest(t, Config{Policy: tt.p}), func(_ int, _ kind, s grpc.ServerStream) error {
					err := errors.Join(receive(s), s.SendHeader(nil), takes(s.Context(), tt.first), send(s, "one"), takes(s.Context(), tt.later))
					if err != nil {
						return err
					}
					return send(s, "two")
				})
				defer f.warm().close()
				began := time.Now()
				s := f.open(context.Background(), serverKind, grpc.OnFinish(func(err error) { l.add("%v", status.Code(err)) }))
				ask(s)
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
				if status.Code(err) != tt.code || err == nil && n != 2 || took != tt.took || f.total() != 1 {
					t.Errorf("%s, asked for %s: %d messages, %v after %v in %d attempts, want %v after %v in 1",
						tt.name, what, n, err, took, f.total(), tt.code, tt.took)
				}
				synctest.Wait()
				if l.String() != tt.code.String() {
					t.Errorf("%s, asked for %s: OnFinish is told %q, want %v once", tt.name, what, l.String(), tt.code)
				}
			})
		}
	}
}

// TestOnFinishWaits: who waited for a retry goes on before the caller's OnFinish runs, which may wait for them.
func TestOnFinishWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{MaxAttempts: 2, Backoff: Backoff{Base: time.Minute, Max: time.Minute}}
		f := newFleet(t, 1, roundRobin, newTest(t, Config{Policy: p}), failing(errDown))
		defer f.warm().close()
		stop := time.AfterFunc(time.Millisecond, f.servers[0].Stop)
		defer stop.Stop()
		closed := make(chan struct{})
		told := codes.OK
		s := f.open(context.Background(), serverKind, grpc.OnFinish(func(err error) {
			<-closed
			told = status.Code(err)
		}))
		go func() { // in the middle of the wait before the retry, which fails for good
			defer close(closed)
			_ = takes(context.Background(), 10*time.Second)
			_ = s.CloseSend()
		}()
		if _, err := next(s); status.Code(err) != codes.Unavailable || told != codes.Unavailable {
			t.Errorf("%v, and OnFinish is told %v, want UNAVAILABLE", err, told)
		}
	})
}
