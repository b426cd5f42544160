package trace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
)

// A message that the client's own limiter refuses ends the stream by cancelling it. The span says what the caller is
// told, whichever comes first: gRPC's cancellation, or the return of SendMsg or RecvMsg.
func TestRefusedMessage(t *testing.T) {
	for _, kind := range []string{"ClientStream", "BidiStream"} {
		for i := range 20 { // it used to be a matter of luck
			synctest.Test(t, func(t *testing.T) {
				limiter, err := ratelimit.New(ratelimit.Config{Policy: ratelimit.Policy{Rate: 1, Burst: 1, MessageCost: 1}})
				if err != nil {
					t.Fatal(err)
				}
				r := newRig(t, setup{streamBelow: []grpc.StreamClientInterceptor{limiter.StreamClientInterceptor()}})
				defer r.stop()
				told := make(chan error, 2)
				s, err := r.cc.NewStream(t.Context(), streams[kind], full(kind), grpc.OnFinish(func(err error) { told <- err }))
				if err != nil {
					t.Fatal(err)
				}
				received := make(chan error)
				go func() { received <- s.RecvMsg(new(wrapperspb.StringValue)) }()
				err = s.SendMsg(wrapperspb.String("ada"))
				for err == nil {
					err = s.SendMsg(wrapperspb.String("ada"))
				}
				for who, err := range map[string]error{"SendMsg": err, "RecvMsg": <-received, "OnFinish": <-told} {
					if status.Code(err) != codes.ResourceExhausted {
						t.Errorf("%s, %d: %s says %v, want the refusal", kind, i, who, err)
					}
				}
				synctest.Wait()
				if got := r.only(Client, 0).Tag(TagStatus); got != "RESOURCE_EXHAUSTED" || len(told) != 0 {
					t.Errorf("%s, %d: the span says %v, OnFinish was told %d times more, want the refusal and none", kind, i, got, len(told))
				}
			})
		}
	}
}

// A call that the limiter refuses is one span with the refusal, whose OnFinish runs once.
func TestRefusedCall(t *testing.T) {
	for _, kind := range kinds {
		synctest.Test(t, func(t *testing.T) {
			limiter, err := ratelimit.New(ratelimit.Config{Policy: ratelimit.Policy{Rate: 1, Burst: 1}})
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, setup{streamBelow: []grpc.StreamClientInterceptor{limiter.StreamClientInterceptor()},
				unaryBelow: []grpc.UnaryClientInterceptor{limiter.UnaryClientInterceptor()}})
			if err := call(t.Context(), r.cc, kind); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			r.tracer.Reset()
			var told []error
			err = call(t.Context(), r.cc, kind, grpc.OnFinish(func(err error) { told = append(told, err) }))
			if status.Code(err) != codes.ResourceExhausted || fmt.Sprint(told) != fmt.Sprint([]error{err}) {
				t.Errorf("%s: %v, OnFinish was told of %v, want a refusal, and once", kind, err, told)
			}
			if got := r.only(Client, 0).Tag(TagStatus); got != "RESOURCE_EXHAUSTED" {
				t.Errorf("%s: the span says %v, want the refusal", kind, got)
			}
			r.stop()
		})
	}
}

// A wrapper below opens a stream, gives it up and returns an error: gRPC is still writing the peer then.
func TestStreamGivenUpBelow(t *testing.T) {
	failure := errors.New("no")
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, setup{streamBelow: []grpc.StreamClientInterceptor{func(ctx context.Context, desc *grpc.StreamDesc,
				cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				if _, err := streamer(ctx, desc, cc, method, opts...); err != nil {
					return nil, err
				}
				return nil, failure
			}}})
			if _, err := r.cc.NewStream(t.Context(), streams["BidiStream"], full("BidiStream")); !errors.Is(err, failure) {
				t.Errorf("got %v, want the wrapper's error", err)
			}
			synctest.Wait()
			if s := r.client.State().Client; s != (Counts{Started: 1}) {
				t.Errorf("state %+v, want one span that has ended", s)
			}
			r.stop()
		})
	}
}

// The end of a call that opens a breaker is on its span, also where gRPC tells of the end through OnFinish.
func TestBreakerThatOpens(t *testing.T) {
	for _, kind := range kinds {
		synctest.Test(t, func(t *testing.T) {
			breakers, err := breaker.New(breaker.Config{Policy: breaker.Policy{ConsecutiveFailures: 1}})
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, setup{streamBelow: []grpc.StreamClientInterceptor{breakers.StreamClientInterceptor()},
				unaryBelow: []grpc.UnaryClientInterceptor{breakers.UnaryClientInterceptor()},
				do:         func(context.Context) error { return status.Error(codes.Unavailable, "gone") }})
			for i, want := range []string{"breaker_changed by=breaker ", "breaker_refused by=breaker "} {
				r.tracer.Reset()
				if err := call(t.Context(), r.cc, kind); status.Code(err) != codes.Unavailable {
					t.Fatalf("%s: %v, want UNAVAILABLE", kind, err)
				}
				synctest.Wait()
				if got := logs(r.only(Client, 0)); len(got) != 2 || !strings.HasPrefix(got[0], want) || !strings.HasPrefix(got[1], "error ") {
					t.Errorf("%s, call %d: logs %q, want %q and the error", kind, i+1, got, want)
				}
			}
			r.stop()
		})
	}
}
