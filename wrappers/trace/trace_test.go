package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opentracing/opentracing-go"
	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

func TestEachKindOfCall(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, setup{})
				if err := call(t.Context(), r.cc, kind); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				wantTree(t, r.tracer, fmt.Sprintf("\nclient %s OK\n  server %s OK\n", full(kind), full(kind)))
				for _, side := range []Side{Client, Server} {
					tags := r.only(side, 0).Tags()
					delete(tags, "span.kind")
					want := map[string]any{"component": "gRPC", TagMethod: service + "/" + kind, TagStatus: "OK", TagPeer: "bufconn"}
					if !reflect.DeepEqual(tags, want) {
						t.Errorf("tags of the %v: %v, want %v", side, tags, want)
					}
					if l := logs(r.only(side, 0)); l != nil {
						t.Errorf("logs of the %v: %q, want none", side, l)
					}
				}
				r.stop()
				r.closed(1, 0, 1)
			})
		})
	}
}

func TestErrors(t *testing.T) {
	cases := []struct {
		err    error
		status string
		client any // the tag error
		server any
	}{
		{nil, "OK", nil, nil},
		{status.Error(codes.NotFound, "no such order"), "NOT_FOUND", true, nil},
		{status.Error(codes.Unavailable, "going away"), "UNAVAILABLE", true, true},
		{errors.New("plain"), "UNKNOWN", true, true},
		{context.DeadlineExceeded, "DEADLINE_EXCEEDED", true, true},
		{status.Error(codes.Code(77), "odd"), "Code(77)", true, nil},
	}
	for _, kind := range kinds {
		for _, c := range cases {
			t.Run(kind+" "+c.status, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, setup{do: func(context.Context) error { return c.err }})
					err := call(t.Context(), r.cc, kind)
					synctest.Wait()
					for side, failed := range map[Side]any{Client: c.client, Server: c.server} {
						s := r.only(side, 0)
						if s.Tag(TagStatus) != c.status || s.Tag("error") != failed {
							t.Errorf("%v: status %v, error %v, want %v, %v", side, s.Tag(TagStatus), s.Tag("error"), c.status, failed)
						}
						var want []string
						if c.err != nil {
							want = []string{"error error.kind=" + c.status + " message=" + status.Convert(err).Message()}
						}
						if got := logs(s); !slices.Equal(got, want) {
							t.Errorf("%v: logs %q, want %q", side, got, want)
						}
					}
					r.stop()
					r.closed(1, 0, 1)
				})
			})
		}
	}
}

// However a call ends, its span ends once.
func TestEveryStartHasOneEnd(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	cases := []struct {
		name, status string // of the client
		do           work
		make         func(t *testing.T, r *rig, kind string)
	}{
		{"cancelled while it runs", "CANCELLED", wait, func(t *testing.T, r *rig, kind string) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if err := call(ctx, r.cc, kind); status.Code(err) != codes.Canceled {
				t.Errorf("got %v, want CANCELLED", err)
			}
		}},
		{"deadline", "DEADLINE_EXCEEDED", wait, func(t *testing.T, r *rig, kind string) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := call(ctx, r.cc, kind); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("got %v, want DEADLINE_EXCEEDED", err)
			}
		}},
		{"abandoned, then cancelled", "CANCELLED", wait, func(t *testing.T, r *rig, kind string) {
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := r.cc.NewStream(ctx, streams[kind], full(kind))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.SendMsg(wrapperspb.String("ada")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if open := r.client.State().Client.Open; open != 1 {
				t.Errorf("%d spans are open while the stream is, want 1", open)
			}
			cancel()
		}},
		{"connection lost", "UNAVAILABLE", wait, func(t *testing.T, r *rig, kind string) {
			ended := make(chan error)
			go func() { ended <- call(t.Context(), r.cc, kind) }()
			synctest.Wait()
			r.srv.Stop()
			if err := <-ended; status.Code(err) != codes.Unavailable {
				t.Errorf("got %v, want UNAVAILABLE", err)
			}
		}},
	}
	for _, c := range cases {
		for _, kind := range kinds {
			if kind == "Unary" && strings.HasPrefix(c.name, "abandoned") {
				continue // it cannot be
			}
			t.Run(c.name+" "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, setup{do: c.do})
					c.make(t, r, kind)
					synctest.Wait()
					if got := r.only(Client, 0).Tag(TagStatus); got != c.status {
						t.Errorf("status %v, want %v", got, c.status)
					}
					r.stop()
					synctest.Wait()
					r.closed(1, 0, 1)
				})
			})
		}
	}
}

// Panics and runtime.Goexit, below the client's wrapper and in handlers.
func TestCallsThatDoNotReturn(t *testing.T) {
	exits := map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit}
	tracing, tracer := newTracing(t, Config{})
	run := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			f()
		}()
		<-done
	}
	for name, exit := range exits {
		calls := map[string]func(){
			"unary client": func() {
				_ = tracing.unaryClient(t.Context(), full("Unary"), nil, nil, nil,
					func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
						exit()
						return nil
					})
			},
			"stream client": func() {
				_, _ = tracing.streamClient(t.Context(), streams["BidiStream"], nil, full("BidiStream"),
					func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
						exit()
						return nil, nil
					})
			},
			"unary server": func() {
				_, _ = tracing.unaryServer(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: full("Unary")},
					func(context.Context, any) (any, error) { exit(); return nil, nil })
			},
			"stream server": func() {
				_ = tracing.streamServer(nil, noStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: full("BidiStream")},
					func(any, grpc.ServerStream) error { exit(); return nil })
			},
		}
		for kind, f := range calls {
			tracer.Reset()
			run(f)
			spans := tracer.FinishedSpans()
			if len(spans) != 1 {
				t.Errorf("%s in %s: %d spans ended, want 1", name, kind, len(spans))
				continue
			}
			if spans[0].Tag(TagStatus) != "INTERNAL" || spans[0].Tag("error") != true ||
				!strings.HasPrefix(logs(spans[0])[0], "panic ") {
				t.Errorf("%s in %s: tags %v, logs %q, want an INTERNAL error and a log", name, kind, spans[0].Tags(), logs(spans[0]))
			}
		}
	}
	if s := tracing.State(); s.Client.Open != 0 || s.Server.Open != 0 {
		t.Errorf("state %+v, want nothing open", s)
	}
}

type noStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s noStream) Context() context.Context { return s.ctx }

func newTracing(t testing.TB, c Config) (*Tracing, *mocktracer.MockTracer) {
	t.Helper()
	tracer := mocktracer.New()
	c.Tracer = tracer
	tracing, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return tracing, tracer
}

// A wrapper below that keeps OnFinish to itself, and a stream that it made up.
func TestStreamThatGRPCDoesNotEnd(t *testing.T) {
	for name, c := range map[string]struct {
		stream fakeStream
		kind   string
		use    func(grpc.ClientStream)
		status string
	}{
		"EOF":          {fakeStream{recv: io.EOF}, "BidiStream", func(s grpc.ClientStream) { _ = s.RecvMsg(nil) }, "OK"},
		"error":        {fakeStream{recv: errors.New("x")}, "BidiStream", func(s grpc.ClientStream) { _ = s.RecvMsg(nil) }, "UNKNOWN"},
		"send error":   {fakeStream{send: errors.New("x")}, "BidiStream", func(s grpc.ClientStream) { _ = s.SendMsg(nil) }, "UNKNOWN"},
		"single reply": {fakeStream{}, "ClientStream", func(s grpc.ClientStream) { _ = s.RecvMsg(nil) }, "OK"},
		"send EOF": {fakeStream{send: io.EOF, recv: status.Error(codes.Aborted, "")}, "BidiStream",
			func(s grpc.ClientStream) { _ = s.SendMsg(nil); _ = s.RecvMsg(nil); _ = s.RecvMsg(nil) }, "ABORTED"},
	} {
		tracing, tracer := newTracing(t, Config{})
		s, err := tracing.streamClient(t.Context(), streams[c.kind], nil, full(c.kind),
			func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
				return &c.stream, nil
			})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(tracer.FinishedSpans()); n != 0 {
			t.Errorf("%s: %d spans ended before the stream, want 0", name, n)
		}
		c.use(s)
		spans := tracer.FinishedSpans()
		if len(spans) != 1 || spans[0].Tag(TagStatus) != c.status {
			t.Errorf("%s: spans %v, want one with %s", name, spans, c.status)
		}
	}
}

type fakeStream struct {
	grpc.ClientStream // Context panics, as it must not be called
	send, recv        error
}

func (f *fakeStream) SendMsg(any) error { return f.send }
func (f *fakeStream) RecvMsg(any) error { return f.recv }

// retrying makes up to n attempts, as a retry does.
func retrying(n int) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
		var tried callctx.Tried
		for i := 1; i <= n; i++ {
			actx, call := callctx.Begin(ctx, callctx.Unary, &tried)
			actx = callctx.StartAttempt(actx, callctx.Attempt{Number: i})
			call.SetPicked(&callctx.Endpoint{ID: fmt.Sprintf("orders-%d", i), Addr: fmt.Sprintf("10.0.0.%d:80", i)})
			err = invoker(actx, method, req, reply, cc, opts...)
			callctx.EndAttempt(actx, err)
			if err == nil {
				return nil
			}
			if i < n {
				callctx.Report(ctx, callctx.Event{Kind: callctx.Retry, By: "retry", Attempt: i + 1, Delay: 25 * time.Millisecond, Err: err})
			}
		}
		callctx.Report(ctx, callctx.Event{Kind: callctx.RetryRefused, By: "retry", Err: err, Detail: "attempts"})
		return err
	}
}

func TestAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		served := 0
		r := newRig(t, setup{unaryBelow: []grpc.UnaryClientInterceptor{retrying(3)}, do: func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if served++; served < 3 {
				return status.Error(codes.Unavailable, "going away")
			}
			return nil
		}})
		if err := call(t.Context(), r.cc, "Unary"); err != nil {
			t.Fatal(err)
		}
		wantTree(t, r.tracer, `
client /test.Kinds/Unary OK
  client attempt /test.Kinds/Unary UNAVAILABLE #1
    server /test.Kinds/Unary UNAVAILABLE
  client attempt /test.Kinds/Unary UNAVAILABLE #2
    server /test.Kinds/Unary UNAVAILABLE
  client attempt /test.Kinds/Unary OK #3
    server /test.Kinds/Unary OK
`)
		for n := 1; n <= 3; n++ {
			s := r.only(Client, n)
			if s.Tag(TagInstance) != fmt.Sprintf("orders-%d", n) || s.Tag(TagPeer) != fmt.Sprintf("10.0.0.%d:80", n) {
				t.Errorf("attempt %d: tags %v, want its instance and address", n, s.Tags())
			}
		}
		top := r.only(Client, 0)
		if top.Tag(TagAttempts) != 3 || top.Tag(TagInstance) != "orders-3" || top.Tag(TagPeer) != "bufconn" {
			t.Errorf("the call's tags %v, want 3 attempts, and the instance and the peer of the last", top.Tags())
		}
		want := []string{
			"retry by=retry attempt=2 delay=25ms message=rpc error: code = Unavailable desc = going away",
			"retry by=retry attempt=3 delay=25ms message=rpc error: code = Unavailable desc = going away",
		}
		if got := logs(top); !slices.Equal(got, want) {
			t.Errorf("the call's logs:\n%q, want\n%q", got, want)
		}
		r.stop()
		r.closed(1, 3, 3)
	})
}

// The losers of a hedge end after the call; what they do then is theirs.
func TestHedgeEndsLate(t *testing.T) {
	tracing, tracer := newTracing(t, Config{})
	var loser, winner context.Context
	err := tracing.unaryClient(t.Context(), full("Unary"), nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			start := func(a callctx.Attempt, id string) context.Context {
				actx, call := callctx.Begin(ctx, callctx.Unary, nil)
				actx = callctx.StartAttempt(actx, a)
				call.SetPicked(&callctx.Endpoint{ID: id, Addr: id + ":1"})
				return actx
			}
			loser = start(callctx.Attempt{Number: 1}, "slow")
			callctx.Report(ctx, callctx.Event{Kind: callctx.Hedge, By: "retry", Attempt: 2, Delay: time.Second})
			winner = start(callctx.Attempt{Number: 2, Hedge: true}, "fast")
			callctx.EndAttempt(winner, nil)
			callctx.Report(ctx, callctx.Event{Kind: callctx.HedgeWon, By: "retry", Attempt: 2})
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if s := tracing.State().Client; s.Open != 1 {
		t.Errorf("%d spans open, want 1: the attempt that lost", s.Open)
	}
	callctx.EndAttempt(winner, errors.New("reported twice"))
	callctx.Report(winner, callctx.Event{Kind: callctx.Ejected})
	callctx.EndAttempt(loser, context.Canceled)
	wantTree(t, tracer, `
client /test.Kinds/Unary OK
  client attempt /test.Kinds/Unary CANCELLED #1
  client attempt /test.Kinds/Unary OK #2
`)
	r := &rig{t: t, tracer: tracer}
	if got := r.only(Client, 2); got.Tag(TagHedge) != true || len(got.Logs()) != 0 {
		t.Errorf("the hedge: tags %v, logs %q, want %s and none", got.Tags(), logs(got), TagHedge)
	}
	if got := r.only(Client, 0); got.Tag(TagInstance) != "fast" || got.Tag(TagAttempts) != 2 {
		t.Errorf("the call: tags %v, want the instance of the winner and 2 attempts", got.Tags())
	}
	if got, want := logs(r.only(Client, 0)), []string{"hedge by=retry attempt=2 delay=1s", "hedge_won by=retry attempt=2"}; !slices.Equal(got, want) {
		t.Errorf("logs %q, want %q", got, want)
	}
	if s := tracing.State().Client; s != (Counts{Started: 3, Attempts: 2}) {
		t.Errorf("state %+v, want 3 spans, all ended", s)
	}
}

// The call names the instance that answered, whoever was picked last.
func TestInstanceOfTheAnswer(t *testing.T) {
	tracing, tracer := newTracing(t, Config{})
	_ = tracing.unaryClient(t.Context(), full("Unary"), nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			var attempts []context.Context
			for i, id := range []string{"answers", "hangs"} {
				actx, call := callctx.Begin(ctx, callctx.Unary, nil)
				attempts = append(attempts, callctx.StartAttempt(actx, callctx.Attempt{Number: i + 1, Hedge: i > 0}))
				call.SetPicked(&callctx.Endpoint{ID: id})
			}
			callctx.EndAttempt(attempts[0], nil)
			callctx.EndAttempt(attempts[1], context.Canceled)
			return nil
		})
	if got := (&rig{t: t, tracer: tracer}).only(Client, 0).Tag(TagInstance); got != "answers" {
		t.Errorf("instance %v, want the one that answered", got)
	}
}

// A handler's own calls do not pass for attempts of a call of the client that is in the same process.
func TestHandlerForgetsTheCall(t *testing.T) {
	tracing, _ := newTracing(t, Config{})
	ctx, _ := callctx.Begin(t.Context(), callctx.Unary, new(callctx.Tried))
	_, err := tracing.unaryServer(ctx, nil, &grpc.UnaryServerInfo{FullMethod: full("Unary")},
		func(ctx context.Context, _ any) (any, error) {
			if rec := callctx.From(ctx); rec.Call != nil {
				t.Error("the handler's context carries a client's call, want none")
			}
			return nil, nil
		})
	if err != nil {
		t.Error(err)
	}
}

// An attempt that starts after its call ended, as of a hedge that lost a race, has no span and no parent.
func TestAttemptAfterTheEnd(t *testing.T) {
	tracing, tracer := newTracing(t, Config{})
	var kept context.Context
	_ = tracing.unaryClient(t.Context(), full("Unary"), nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			kept = ctx
			return nil
		})
	if got := callctx.StartAttempt(kept, callctx.Attempt{Number: 1}); got != kept {
		t.Error("got a context for an attempt of a call that is over, want the same")
	}
	callctx.EndAttempt(kept, nil)
	callctx.Report(kept, callctx.Event{Kind: callctx.Retry})
	if n := len(tracer.FinishedSpans()); n != 1 {
		t.Errorf("%d spans, want 1", n)
	}
}

// What wrappers of a server decide is on the server's span. A client without a trace, used by the handler, tells its
// story there too, but starts no spans.
func TestServerHearsDecisions(t *testing.T) {
	tracing, tracer := newTracing(t, Config{})
	limited := status.Error(codes.ResourceExhausted, "too many")
	_, err := tracing.unaryServer(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: full("Unary")},
		func(ctx context.Context, _ any) (any, error) {
			actx := callctx.StartAttempt(ctx, callctx.Attempt{Number: 1})
			callctx.EndAttempt(actx, nil)
			callctx.Report(ctx, callctx.Event{Kind: callctx.Limited, By: "ratelimit", Delay: time.Second, Detail: "all", DryRun: true})
			callctx.Report(ctx, callctx.Event{Kind: callctx.Ejected, By: "balancer", Endpoint: &callctx.Endpoint{Addr: "10.0.0.1:80"}})
			return nil, limited
		})
	if !errors.Is(err, limited) {
		t.Fatalf("got %v, want the handler's error", err)
	}
	spans := tracer.FinishedSpans()
	if len(spans) != 1 {
		t.Fatalf("%d spans, want 1", len(spans))
	}
	want := []string{"limited by=ratelimit delay=1s detail=all dry_run=true", "ejected by=balancer endpoint=10.0.0.1:80",
		"error error.kind=RESOURCE_EXHAUSTED message=too many"}
	if got := logs(spans[0]); !slices.Equal(got, want) {
		t.Errorf("logs %q, want %q", got, want)
	}
}

func TestPayloads(t *testing.T) {
	texts := map[string]func(*testing.T, []string, Side){
		"Unary": func(t *testing.T, got []string, _ Side) {
			wantLines(t, got, `request payload="ada"`, `reply payload="reply t...`)
		},
		"ClientStream": func(t *testing.T, got []string, s Side) {
			in, out := directions(s)
			wantLines(t, got, in+` number=1 payload="ada"`, in+` number=2 payload="ada"`, out+` number=1 payload="message...`)
		},
		"ServerStream": func(t *testing.T, got []string, s Side) {
			in, out := directions(s)
			wantLines(t, got, in+` number=1 payload="ada"`, out+` number=1 payload="message...`, out+` number=2 payload="message...`)
		},
		"BidiStream": func(t *testing.T, got []string, s Side) {
			in, out := directions(s)
			wantLines(t, got, in+` number=1 payload="ada"`, in+` number=2 payload="ada"`,
				out+` number=1 payload="message...`, out+` number=2 payload="message...`)
		},
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, setup{config: Config{Policy: Policy{Payloads: true, MaxPayload: 8}}})
				if err := call(t.Context(), r.cc, kind); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				for _, side := range []Side{Client, Server} {
					texts[kind](t, logs(r.only(side, 0)), side)
				}
				r.stop()
			})
		})
	}
}

// directions are what a side calls messages to the server and from it.
func directions(s Side) (in, out string) {
	if s == Client {
		return "sent", "received"
	}
	return "received", "sent"
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("logs\n%q, want\n%q", got, want)
	}
}

func TestPayloadFunction(t *testing.T) {
	tracing, tracer := newTracing(t, Config{Policy: Policy{Payloads: true},
		Payload: func(method string, m any) string { return fmt.Sprintf("%s %T", method, m) }})
	_ = tracing.unaryClient(t.Context(), "/a/B", wrapperspb.String("secret"), new(int), nil, well)
	wantLines(t, logs(tracer.FinishedSpans()[0]), "request payload=/a/B *wrapperspb.StringValue", "reply payload=/a/B *int")

	tracing, tracer = newTracing(t, Config{Policy: Policy{Payloads: true}})
	_ = tracing.unaryClient(t.Context(), "/a/B", "no protobuf", wrapperspb.String("\xff"), nil, well)
	if got := logs(tracer.FinishedSpans()[0]); got[0] != "request payload=no protobuf" || !strings.HasPrefix(got[1], "reply payload=") {
		t.Errorf("logs %q, want the text of what is no protobuf, and something for a message that has no JSON", got)
	}
}

func well(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }

func TestLogsAreBounded(t *testing.T) {
	tracing, tracer := newTracing(t, Config{})
	_ = tracing.unaryClient(t.Context(), "/a/B", nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			for range maxLogs + 3 {
				callctx.Report(ctx, callctx.Event{Kind: callctx.Retry})
			}
			return errors.New("in the end")
		})
	s := tracer.FinishedSpans()[0]
	if s.Tag(TagLogsDropped) != 3 || len(s.Logs()) != maxLogs+1 {
		t.Errorf("%d logs, tag %v, want %d with the error, and 3", len(s.Logs()), s.Tag(TagLogsDropped), maxLogs+1)
	}
}

func TestExemptAndPerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, setup{config: Config{Methods: map[string]Policy{"/test.Kinds/BidiStream": {Disabled: true}}}})
		check := "/grpc.health.v1.Health/Check"
		invoke := func(opts ...grpc.CallOption) {
			err := r.cc.Invoke(t.Context(), check, &healthpb.HealthCheckRequest{}, &healthpb.HealthCheckResponse{}, opts...)
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("got %v, want UNIMPLEMENTED", err)
			}
		}
		steps := []struct {
			name string
			do   func()
			want int
		}{
			{"health check", func() { invoke() }, 0},
			{"health check by option", func() { invoke(WithPolicy(Policy{})) }, 1},
			{"the last option counts", func() { invoke(WithPolicy(Policy{}), WithPolicy(Policy{Disabled: true})) }, 0},
			{"disabled", func() { _ = call(t.Context(), r.cc, "BidiStream") }, 0},
			{"enabled by option", func() { _ = call(t.Context(), r.cc, "BidiStream", WithPolicy(Policy{})) }, 1},
			{"switched off by option", func() { _ = call(t.Context(), r.cc, "Unary", WithPolicy(Policy{Disabled: true})) }, 1}, // the server's
		}
		for _, s := range steps {
			r.tracer.Reset()
			s.do()
			synctest.Wait()
			if n := len(r.tracer.FinishedSpans()); n != s.want {
				t.Errorf("%s: %d spans, want %d", s.name, n, s.want)
			}
		}
		r.stop()
	})
}

func TestHealthServerIsExempt(t *testing.T) {
	tracing, tracer := newTracing(t, Config{})
	h := health.NewServer()
	_, err := tracing.unaryServer(t.Context(), &healthpb.HealthCheckRequest{}, &grpc.UnaryServerInfo{FullMethod: "/grpc.health.v1.Health/Check"},
		func(ctx context.Context, req any) (any, error) {
			return h.Check(ctx, req.(*healthpb.HealthCheckRequest))
		})
	if err != nil || len(tracer.FinishedSpans()) != 0 {
		t.Errorf("%v and %d spans, want none", err, len(tracer.FinishedSpans()))
	}
}

func TestOnEnd(t *testing.T) {
	var ends []End
	failure := errors.New("x")
	tracing, tracer := newTracing(t, Config{OnEnd: func(s opentracing.Span, e End) {
		s.SetTag("mine", e.Attempt)
		ends = append(ends, e)
	}})
	_ = tracing.unaryClient(t.Context(), "/a/B", nil, nil, nil, func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, _ ...grpc.CallOption) error {
		return retrying(1)(ctx, m, req, reply, cc, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return failure })
	})
	want := []End{{Client, "/a/B", 1, failure}, {Client, "/a/B", 0, failure}}
	if !slices.Equal(ends, want) {
		t.Errorf("ends %v, want %v", ends, want)
	}
	for _, s := range tracer.FinishedSpans() {
		if s.Tag("mine") == nil {
			t.Errorf("span %v has not the tag that OnEnd set", s)
		}
	}
}

func TestUpdateWhileCallsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, setup{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					for _, kind := range kinds {
						if err := call(t.Context(), r.cc, kind); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		for i := range 50 {
			c := Config{Tracer: r.tracer, Policy: Policy{Payloads: i%2 == 0, Disabled: i%3 == 0}}
			if err := errors.Join(r.client.Update(c), r.server.Update(c)); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(r.client.Update(Config{Policy: Policy{MaxPayload: -1}})); err == nil {
			t.Error("an invalid configuration was taken")
		}
		wg.Wait()
		synctest.Wait()
		if s := r.client.State().Client; s.Open != 0 {
			t.Errorf("client %+v, want nothing open", s)
		}
		if s := r.server.State().Server; s.Open != 0 {
			t.Errorf("server %+v, want nothing open", s)
		}
		r.tracer.Reset()
		if err := r.client.Update(Config{Tracer: r.tracer}); err != nil {
			t.Error(err)
		}
		if err := call(t.Context(), r.cc, "Unary"); err != nil {
			t.Error(err)
		}
		if len(r.tracer.FinishedSpans()) == 0 {
			t.Error("the last policy does not hold")
		}
		r.stop()
	})
}

// The caller's options have room behind them that another call may be using.
func TestOptionsAreNotOverwritten(t *testing.T) {
	tracing, _ := newTracing(t, Config{})
	opts := make([]grpc.CallOption, 1, 4)
	opts[0] = grpc.WaitForReady(true)
	_ = tracing.unaryClient(t.Context(), "/a/B", nil, nil, nil,
		func(_ context.Context, _ string, _, _ any, _ *grpc.ClientConn, got ...grpc.CallOption) error {
			if len(got) != 2 || got[0] != opts[0] {
				t.Errorf("options %v, want the caller's and one more", got)
			}
			return nil
		}, opts...)
	if opts[:4][1] != nil {
		t.Error("the wrapper wrote behind the caller's options")
	}
}
