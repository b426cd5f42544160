package oteltrace

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// exits are the ways not to return.
var exits = map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit}

// apart runs f, which need not return, on a goroutine of its own.
func apart(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		f()
	}()
	<-done
}

// oneReply is a client stream as gRPC has it: it calls OnFinish before the only reply is returned.
type oneReply struct {
	grpc.ClientStream
	opts []grpc.CallOption
}

func (*oneReply) SendMsg(any) error { return nil }
func (o *oneReply) RecvMsg(any) error {
	for _, opt := range o.opts {
		if f, ok := opt.(grpc.OnFinishCallOption); ok {
			f.OnFinish(nil)
		}
	}
	return nil
}

// spoken is a handler's stream with one message.
type spoken struct {
	grpc.ServerStream
	ctx context.Context
}

func (s spoken) Context() context.Context { return s.ctx }
func (spoken) SendMsg(any) error          { return nil }
func (spoken) RecvMsg(any) error          { return nil }

func well(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }

// uses are calls on both sides, with one message each way.
var uses = map[string]func(ctx context.Context, l *lab){
	"unary client": func(ctx context.Context, l *lab) { _ = l.unaryClient(ctx, "/a/B", "ada", "reply", nil, well) },
	"client stream": func(ctx context.Context, l *lab) {
		s, err := l.streamClient(ctx, &grpc.StreamDesc{ClientStreams: true}, nil, "/a/B",
			func(_ context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				return &oneReply{opts: opts}, nil
			})
		if err == nil {
			_ = s.SendMsg("ada")
			_ = s.RecvMsg("reply")
		}
	},
	"unary server": func(ctx context.Context, l *lab) {
		_, _ = l.unaryServer(ctx, "ada", &grpc.UnaryServerInfo{FullMethod: "/a/B"},
			func(context.Context, any) (any, error) { return "reply", nil })
	},
	"stream server": func(ctx context.Context, l *lab) {
		_ = l.streamServer(nil, spoken{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/a/B"}, func(_ any, s grpc.ServerStream) error {
			_ = s.RecvMsg("ada")
			return s.SendMsg("reply")
		})
	},
}

// A function of the user's that does not return leaves no span open, whichever it is and wherever it is called.
func TestFunctionsThatDoNotReturn(t *testing.T) {
	for way, exit := range exits {
		for kind, use := range uses {
			for function, c := range map[string]struct {
				config Config
				status string
			}{
				"Payload of the first message": {Config{Policy: trace.Policy{Payloads: true}, Payload: func(_ string, m any) string {
					if m == "ada" {
						exit()
					}
					return ""
				}}, "INTERNAL"},
				"Payload of the second message": {Config{Policy: trace.Policy{Payloads: true}, Payload: func(_ string, m any) string {
					if m == "reply" {
						exit()
					}
					return ""
				}}, "INTERNAL"},
				"OnEnd":      {Config{OnEnd: func(oteltrace.Span, trace.End) { exit() }}, "OK"},
				"Propagator": {Config{Propagator: &script{inject: func(propagation.TextMapCarrier) { exit() }}}, "INTERNAL"},
			} {
				if function == "Propagator" && strings.HasSuffix(kind, "server") {
					continue // nothing is injected
				}
				name := way + " in " + function + ", " + kind
				l := newLab(t, c.config, sdktrace.AlwaysSample())
				returned := false
				apart(func() { use(t.Context(), l); returned = true })
				if returned {
					t.Errorf("%s: the call returned, want it to end as the function did", name)
				}
				if s := l.State(); s != (State{}) {
					t.Errorf("%s: %+v, want nothing open", name, s)
				}
				if spans := l.spans.Ended(); len(spans) != 1 || value(spans[0], "rpc.response.status_code") != c.status {
					t.Errorf("%s: %d spans ended, want one with %s:\n%s", name, len(spans), c.status, l.tree())
				}
			}
		}
	}
}

// script is a propagator that injects by a function.
type script struct {
	propagation.TextMapPropagator
	inject func(propagation.TextMapCarrier)
}

func (s *script) Inject(_ context.Context, c propagation.TextMapCarrier) { s.inject(c) }
func (*script) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}

// A propagator that panics does not leave the span of an attempt open.
func TestAttemptThatCannotStart(t *testing.T) {
	injected := 0
	l := newLab(t, Config{Propagator: &script{inject: func(propagation.TextMapCarrier) {
		if injected++; injected == 2 {
			panic("boom")
		}
	}}}, sdktrace.AlwaysSample())
	apart(func() {
		_ = l.unaryClient(t.Context(), "/a/B", nil, nil, nil,
			func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				callctx.StartAttempt(ctx, callctx.Attempt{Number: 1})
				t.Error("the attempt started, want the propagator to panic")
				return nil
			})
	})
	if s := l.State(); s != (State{}) || len(l.spans.Ended()) != 2 {
		t.Errorf("%+v and %d spans ended, want nothing open and two", s, len(l.spans.Ended()))
	}
}

// What a propagator writes that gRPC would refuse costs that pair, not the call.
func TestPropagatorWithoutManners(t *testing.T) {
	leak.Check(t)
	l := newLab(t, Config{Propagator: &script{inject: func(c propagation.TextMapCarrier) {
		for k, v := range map[string]string{"X-Good": "1", "x-name": "Zürich", "x-line": "a\nb", "ünï": "1", "": "1", "x-stale": "\xff",
			"x-raw-bin": "\x00\xff", "x space": "1"} {
			c.Set(k, v)
		}
	}}}, sdktrace.AlwaysSample())
	came := make(chan metadata.MD, 1)
	cc := fleet(t, l, 1, func(ctx context.Context) error {
		md, _ := metadata.FromIncomingContext(ctx)
		came <- md
		return nil
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-stale", "old", "mine", "1")
	if _, err := greeter.Hello(ctx, cc, "ada", grpc.WaitForReady(true)); err != nil {
		t.Fatalf("%v, want the call to go on without what cannot be sent", err)
	}
	got := <-came
	for key, want := range map[string][]string{"x-good": {"1"}, "x-raw-bin": {"\x00\xff"}, "mine": {"1"}, "x-name": nil, "x-line": nil, "x-stale": nil} {
		if !slices.Equal(got.Get(key), want) {
			t.Errorf("%s = %q came, want %q", key, got.Get(key), want)
		}
	}
}

// A span shows what breakers, limiters and others decided, and what they would have without DryRun.
func TestEveryDecisionIsShown(t *testing.T) {
	for kind := callctx.Retry; kind <= callctx.Returned; kind++ {
		for _, dry := range []bool{false, true} {
			l := newLab(t, Config{}, sdktrace.AlwaysSample())
			_ = l.unaryClient(t.Context(), "/a/B", nil, nil, nil,
				func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
					callctx.Report(ctx, callctx.Event{Kind: kind, By: "breaker", Detail: "orders open", DryRun: dry})
					return nil
				})
			want := kind.String() + " by=breaker detail=orders open"
			if dry {
				want += " dry_run=true"
			}
			if got := events(l.spans.Ended()[0]); len(got) != 1 || got[0] != want {
				t.Errorf("events %q, want %q", got, want)
			}
		}
	}
}

// Whatever bytes an error or a message has, what is shown of it is text: an exporter would lose the whole batch.
func TestTextIsText(t *testing.T) {
	l := newLab(t, Config{Policy: trace.Policy{Payloads: true, MaxPayload: 3}}, sdktrace.AlwaysSample())
	failure := status.Error(codes.Internal, "a\xffb")
	_ = l.unaryClient(t.Context(), "/a/B", "x\xffyz", nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			callctx.Report(ctx, callctx.Event{Kind: callctx.Fallback, Detail: "\xfe", Err: errors.New("\xfd")})
			return failure
		})
	s := l.spans.Ended()[0]
	all := fmt.Sprintf("%v %s", events(s), s.Status().Description)
	if want := "[request payload=x\uFFFDy... fallback detail=\uFFFD message=\uFFFD] a\uFFFDb"; all != want || !utf8.ValidString(all) {
		t.Errorf("shown: %q, want %q", all, want)
	}
}

// A wrapper below opens a stream, gives it up and returns an error: gRPC is still writing the peer then.
func TestStreamGivenUpBelow(t *testing.T) {
	leak.Check(t)
	failure := errors.New("no")
	l := newLab(t, Config{}, sdktrace.AlwaysSample())
	cc := fleet(t, l, 1, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	for range 20 {
		_, err := l.streamClient(t.Context(), &grpc.StreamDesc{ServerStreams: true}, cc, "/evenkeel.Greeter/Tell",
			func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				s, err := grpc.NewClientStream(ctx, desc, cc, method, append(opts, WithPolicy(trace.Policy{Disabled: true}), grpc.WaitForReady(true))...)
				if err != nil {
					return nil, err
				}
				return nil, errors.Join(failure, s.SendMsg(wrapperspb.String("ada")))
			})
		if !errors.Is(err, failure) {
			t.Errorf("got %v, want the wrapper's error", err)
		}
	}
	if s := l.State(); s.OpenClient != 0 {
		t.Errorf("%+v, want no span of the client open", s)
	}
}
