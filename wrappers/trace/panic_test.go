package trace

import (
	"context"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/opentracing/opentracing-go"
	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/callctx"
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

// ended are streams as gRPC has them: it calls OnFinish before the RecvMsg that brings the end returns, and before that
// of the only reply.
type ended struct {
	fakeStream
	desc *grpc.StreamDesc
	opts []grpc.CallOption
}

func (e *ended) RecvMsg(m any) error {
	err := e.fakeStream.RecvMsg(m)
	if err == nil && e.desc.ServerStreams {
		return nil
	}
	for _, o := range e.opts {
		if f, ok := o.(grpc.OnFinishCallOption); ok {
			f.OnFinish(nil)
		}
	}
	return err
}

func startEnded(_ context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return &ended{desc: desc, opts: opts}, nil
}

// spoken is a handler's stream with one message.
type spoken struct{ noStream }

func (spoken) SendMsg(any) error { return nil }
func (spoken) RecvMsg(any) error { return nil }

// uses are calls of each kind on both sides, with one message each way.
var uses = map[string]func(ctx context.Context, tr *Tracing){
	"unary client": func(ctx context.Context, tr *Tracing) {
		_ = tr.unaryClient(ctx, full("Unary"), "ada", "reply", nil, well)
	},
	"client stream": func(ctx context.Context, tr *Tracing) { useStream(ctx, tr, "ClientStream") },
	"server stream": func(ctx context.Context, tr *Tracing) { useStream(ctx, tr, "ServerStream") },
	"bidi stream":   func(ctx context.Context, tr *Tracing) { useStream(ctx, tr, "BidiStream") },
	"unary server": func(ctx context.Context, tr *Tracing) {
		_, _ = tr.unaryServer(ctx, "ada", &grpc.UnaryServerInfo{FullMethod: full("Unary")},
			func(context.Context, any) (any, error) { return "reply", nil })
	},
	"stream server": func(ctx context.Context, tr *Tracing) {
		_ = tr.streamServer(nil, spoken{noStream{ctx: ctx}}, &grpc.StreamServerInfo{FullMethod: full("BidiStream")},
			func(_ any, s grpc.ServerStream) error {
				_ = s.RecvMsg("ada")
				return s.SendMsg("reply")
			})
	},
}

func useStream(ctx context.Context, tr *Tracing, kind string) {
	s, err := tr.streamClient(ctx, streams[kind], nil, full(kind), startEnded)
	if err != nil {
		return
	}
	_ = s.SendMsg("ada")
	_ = s.RecvMsg("reply")
	if cs, ok := s.(*clientStream); ok && streams[kind].ServerStreams {
		cs.ClientStream.(*ended).recv = io.EOF
		_ = s.RecvMsg(nil)
	}
}

// A function of the user's that does not return leaves no span open, whichever it is and wherever it is called.
func TestFunctionsThatDoNotReturn(t *testing.T) {
	for way, exit := range exits {
		for kind, use := range uses {
			for function, c := range map[string]struct {
				config Config
				status any  // of the span; nil if it is not sampled
				log    bool // that says so
			}{
				"Payload of the first message": {Config{Policy: Policy{Payloads: true}, Payload: func(_ string, m any) string {
					if m == "ada" {
						exit()
					}
					return ""
				}}, "INTERNAL", true},
				"Payload of the second message": {Config{Policy: Policy{Payloads: true}, Payload: func(_ string, m any) string {
					if m == "reply" {
						exit()
					}
					return ""
				}}, "INTERNAL", true},
				"OnEnd":   {Config{OnEnd: func(opentracing.Span, End) { exit() }}, "OK", false},
				"Sampled": {Config{Sampled: func(opentracing.SpanContext) bool { exit(); return true }}, nil, false},
			} {
				name := way + " in " + function + ", " + kind
				tr, tracer := newTracing(t, c.config)
				returned := false
				apart(func() { use(t.Context(), tr); returned = true })
				if returned {
					t.Errorf("%s: the call returned, want it to end as the function did", name)
				}
				if s := tr.State(); s.Client.Open != 0 || s.Server.Open != 0 {
					t.Errorf("%s: %+v, want nothing open", name, s)
				}
				spans := tracer.FinishedSpans()
				if len(spans) != 1 || spans[0].Tag(TagStatus) != c.status {
					t.Errorf("%s: finished spans %v, want one with the status %v", name, spans, c.status)
					continue
				}
				if said := strings.Contains(strings.Join(logs(spans[0]), "\n"), "panic message="); said != c.log {
					t.Errorf("%s: logs %q; a log of it: %v, want %v", name, logs(spans[0]), said, c.log)
				}
			}
		}
	}
}

// A tracer that panics does not leave the span of an attempt open.
func TestAttemptThatCannotStart(t *testing.T) {
	tr, _ := newTracing(t, Config{})
	if err := tr.Update(Config{Tracer: &bomb{}}); err != nil {
		t.Fatal(err)
	}
	apart(func() {
		_ = tr.unaryClient(t.Context(), full("Unary"), nil, nil, nil,
			func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				callctx.StartAttempt(ctx, callctx.Attempt{Number: 1})
				t.Error("the attempt started, want the tracer to panic")
				return nil
			})
	})
	if s := tr.State().Client; s != (Counts{Started: 2, Attempts: 1}) {
		t.Errorf("%+v, want the call and its attempt, both ended", s)
	}
}

// bomb is a tracer whose second Inject panics.
type bomb struct {
	coin
	injected int
}

func (b *bomb) StartSpan(name string, opts ...opentracing.StartSpanOption) opentracing.Span {
	b.heads = true
	return b.coin.StartSpan(name, opts...)
}

func (b *bomb) Inject(opentracing.SpanContext, any, any) error {
	if b.injected++; b.injected == 2 {
		panic("boom")
	}
	return nil
}
