package oteltrace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	otelcodes "go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// lab is a Tracing with what it produced.
type lab struct {
	*Tracing
	t      *testing.T
	spans  *tracetest.SpanRecorder
	reader *sdkmetric.ManualReader
	meters *sdkmetric.MeterProvider
}

func newLab(t *testing.T, c Config, sampler sdktrace.Sampler) *lab {
	t.Helper()
	l := &lab{t: t, spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader()}
	c.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(l.spans), sdktrace.WithSampler(sampler))
	l.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(l.reader))
	c.MeterProvider = l.meters
	var err error
	if l.Tracing, err = New(c); err != nil {
		t.Fatal(err)
	}
	return l
}

// tree is the spans that have ended: a line for each below its parent.
func (l *lab) tree() string {
	spans := l.spans.Ended()
	slices.SortFunc(spans, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	known := make(map[oteltrace.SpanID]bool)
	for _, s := range spans {
		known[s.SpanContext().SpanID()] = true
	}
	var b strings.Builder
	var print func(parent oteltrace.SpanID, root bool, indent string)
	print = func(parent oteltrace.SpanID, root bool, indent string) {
		for _, s := range spans {
			if p := s.Parent().SpanID(); p != parent && !(root && !known[p]) || (root && known[p]) {
				continue
			}
			fmt.Fprintf(&b, "%s%v %s %s", indent, s.SpanKind(), s.Name(), value(s, "rpc.response.status_code"))
			if n := value(s, trace.TagAttempt); n != "" {
				b.WriteString(" #" + n)
			}
			b.WriteString("\n")
			print(s.SpanContext().SpanID(), false, indent+"  ")
		}
	}
	print(oteltrace.SpanID{}, true, "")
	return b.String()
}

func value(s sdktrace.ReadOnlySpan, key string) string {
	for _, a := range s.Attributes() {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

func events(s sdktrace.ReadOnlySpan) (lines []string) {
	for _, e := range s.Events() {
		line := e.Name
		for _, a := range e.Attributes {
			line += " " + string(a.Key) + "=" + a.Value.String()
		}
		lines = append(lines, line)
	}
	return lines
}

// metrics are the data points that the reader collects now, "name{key=value,...} value"; of histograms count and sum,
// of times the count alone.
func (l *lab) metrics() (lines []string) {
	l.t.Helper()
	var rm metricdata.ResourceMetrics
	if err := l.reader.Collect(l.t.Context(), &rm); err != nil {
		l.t.Fatal(err)
	}
	add := func(name string, set attribute.Set, value any) {
		var parts []string
		for _, a := range set.ToSlice() {
			parts = append(parts, string(a.Key)+"="+a.Value.String())
		}
		lines = append(lines, fmt.Sprintf("%s{%s} %v", name, strings.Join(parts, ","), value))
	}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					add(m.Name, p.Attributes, p.Count)
				}
			case metricdata.Histogram[int64]:
				for _, p := range d.DataPoints {
					add(m.Name, p.Attributes, fmt.Sprintf("%d/%d", p.Sum, p.Count))
				}
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					add(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					add(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					add(m.Name, p.Attributes, p.Value)
				}
			default:
				l.t.Errorf("%s is a %T, want a test for it", m.Name, d)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func (l *lab) wantMetrics(want ...string) {
	l.t.Helper()
	got := l.metrics()
	for _, w := range want {
		if !slices.Contains(got, w) {
			l.t.Errorf("no metric %s in\n%s", w, strings.Join(got, "\n"))
		}
	}
}

type handlers struct {
	hello func(ctx context.Context) error
}

func (h handlers) Hello(ctx context.Context, name string) (string, error) { return name, h.hello(ctx) }
func (h handlers) Tell(ctx context.Context, _ string, send func(string) error) error {
	return errors.Join(send("one"), send("two"), h.hello(ctx))
}

// fleet runs n instances of a service behind the real resolver and balancer, on loopback.
func fleet(t *testing.T, l *lab, n int, do func(ctx context.Context) error, below ...grpc.UnaryClientInterceptor) *grpc.ClientConn {
	t.Helper()
	reg := memory.New()
	for i := range n {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer(grpc.ChainUnaryInterceptor(l.UnaryServerInterceptor()), grpc.ChainStreamInterceptor(l.StreamServerInterceptor()))
		greeter.Register(srv, handlers{do})
		healthpb.RegisterHealthServer(srv, health.NewServer())
		done := make(chan error)
		go func() { done <- srv.Serve(lis) }()
		t.Cleanup(func() {
			srv.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		in := registry.Instance{ID: fmt.Sprintf("orders-%d", i+1), Addr: lis.Addr().String(), Labels: map[string]string{"track": "stable"}}
		if _, err := reg.Register(t.Context(), "orders", in); err != nil {
			t.Fatal(err)
		}
	}
	cc, err := grpc.NewClient("lb:///orders", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(resolver.NewBuilder(reg, resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{Blacklist: balancer.Blacklist{Failures: 1}})))),
		grpc.WithChainUnaryInterceptor(append([]grpc.UnaryClientInterceptor{l.UnaryClientInterceptor()}, below...)...),
		grpc.WithChainStreamInterceptor(l.StreamClientInterceptor()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range n { // until calls can go to each; health checks pass every wrapper
		ctx := filters.NewContext(t.Context(), filters.ID(fmt.Sprintf("orders-%d", i+1)))
		_, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
	}
	return cc
}

// settle waits until the handlers' spans have ended too.
func (l *lab) settle(n int) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); len(l.spans.Ended()) < n; {
		if time.Now().After(deadline) {
			l.t.Fatalf("%d spans ended, want %d:\n%s", len(l.spans.Ended()), n, l.tree())
		}
		<-time.After(time.Millisecond)
	}
	if s := l.State(); s != (State{}) {
		l.t.Errorf("open: %+v, want none", s)
	}
}

func (l *lab) wantTree(want string) {
	l.t.Helper()
	if got, want := l.tree(), strings.TrimPrefix(want, "\n"); got != want {
		l.t.Errorf("spans\n%swant\n%s", got, want)
	}
}

// The whole chain, with the real wrappers: attempts, events, metrics of calls and of what Watch sees.
func TestChain(t *testing.T) {
	leak.Check(t)
	l := newLab(t, Config{}, sdktrace.AlwaysSample())
	retrier, err := retry.New(retry.Config{Policy: retry.Policy{Idempotent: true}})
	if err != nil {
		t.Fatal(err)
	}
	breakers, err := breaker.New(breaker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := ratelimit.New(ratelimit.Config{Policy: ratelimit.Policy{Rate: 0.001, Burst: 2}})
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	cc := fleet(t, l, 3, func(context.Context) error {
		if calls.Add(1) == 1 {
			return status.Error(codes.Unavailable, "warming up")
		}
		return nil
	}, limiter.UnaryClientInterceptor(), retrier.UnaryClientInterceptor(), breakers.UnaryClientInterceptor())
	stop, err := Watch(l.meters, Sources{Retriers: map[string]*retry.Retrier{"r": retrier},
		Breakers: map[string]*breaker.Breakers{"b": breakers}, Limiters: map[string]*ratelimit.Limiter{"l": limiter}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := filters.NewContext(t.Context(), filters.Label("track", "stable"), "orders")
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.ResourceExhausted} {
		if _, err := greeter.Hello(ctx, cc, "ada", grpc.WaitForReady(true)); status.Code(err) != want {
			t.Fatalf("call %d: %v, want %v", i+1, err, want)
		}
	}
	l.settle(9)
	l.wantTree(`
client evenkeel.Greeter/Hello OK
  client attempt evenkeel.Greeter/Hello UNAVAILABLE #1
    server evenkeel.Greeter/Hello UNAVAILABLE
  client attempt evenkeel.Greeter/Hello OK #2
    server evenkeel.Greeter/Hello OK
client evenkeel.Greeter/Hello OK
  client attempt evenkeel.Greeter/Hello OK #1
    server evenkeel.Greeter/Hello OK
client evenkeel.Greeter/Hello RESOURCE_EXHAUSTED
`)
	for _, s := range l.spans.Ended() {
		root := s.SpanKind() == oteltrace.SpanKindClient && value(s, trace.TagAttempt) == ""
		if root && (value(s, trace.TagFilter) != "track=stable" || value(s, "server.address") != "orders") {
			t.Errorf("%s: attributes %v, want the filter and the service", s.Name(), s.Attributes())
		}
		if got := value(s, "rpc.response.status_code"); (s.Status().Code == otelcodes.Error) != (got == "UNAVAILABLE" || got == "RESOURCE_EXHAUSTED") {
			t.Errorf("%s ended with %s and the status %v", s.Name(), got, s.Status())
		}
		if value(s, "rpc.response.status_code") == "OK" && s.SpanKind() == oteltrace.SpanKindClient &&
			(!strings.HasPrefix(value(s, trace.TagInstance), "orders-") || value(s, "network.peer.address") != "127.0.0.1" || value(s, "network.peer.port") == "") {
			t.Errorf("%s: attributes %v, want instance and address", s.Name(), s.Attributes())
		}
	}
	method := "rpc.method=evenkeel.Greeter/Hello,rpc.response.status_code="
	l.wantMetrics(
		"evenkeel.client.attempts{"+method+"OK} 3/2",
		"evenkeel.client.attempts{error.type=RESOURCE_EXHAUSTED,"+method+"RESOURCE_EXHAUSTED} 1/1",
		"rpc.client.call.duration{"+method+"OK,rpc.system.name=grpc,server.address=orders} 2",
		"rpc.server.call.duration{"+method+"OK,rpc.system.name=grpc} 2",
		"rpc.server.call.duration{error.type=UNAVAILABLE,"+method+"UNAVAILABLE,rpc.system.name=grpc} 1",
		"evenkeel.retry.refused{evenkeel.name=r,rpc.method=evenkeel.Greeter/Hello} 0",
		"evenkeel.ratelimit.rejected{evenkeel.name=l,evenkeel.scope=*,reason=rate} 1",
		"evenkeel.ratelimit.rejected{evenkeel.name=l,evenkeel.scope=*,reason=deadline} 0",
		"evenkeel.blacklist.size{evenkeel.target=lb:///orders} 1",
		"evenkeel.blacklist.ejections{evenkeel.target=lb:///orders} 1",
		"evenkeel.endpoints{evenkeel.target=lb:///orders,state=READY} 3",
	)
	var budget, closed, open bool
	for _, m := range l.metrics() {
		var balance float64
		if n, _ := fmt.Sscanf(m, "evenkeel.retry.budget{evenkeel.name=r} %g", &balance); n == 1 && balance > 0 {
			budget = true
		}
		closed = closed || strings.HasPrefix(m, "evenkeel.breaker.state{") && strings.HasSuffix(m, "state=closed} 1")
		open = open || strings.HasPrefix(m, "evenkeel.breaker.state{") && strings.HasSuffix(m, "state=open} 0")
	}
	if !budget || !closed || !open {
		t.Errorf("budget %v, closed %v, open %v, want a budget and one closed breaker in\n%s", budget, closed, open, strings.Join(l.metrics(), "\n"))
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, m := range l.metrics() {
		if strings.HasPrefix(m, "evenkeel.retry") || strings.HasPrefix(m, "evenkeel.blacklist") {
			t.Errorf("%s after Watch was stopped, want none", m)
		}
	}
}

func TestEventsOfTheChain(t *testing.T) {
	leak.Check(t)
	l := newLab(t, Config{Policy: trace.Policy{Payloads: true, MaxPayload: 3}}, sdktrace.AlwaysSample())
	var calls atomic.Int64
	retrier, err := retry.New(retry.Config{Policy: retry.Policy{Idempotent: true, Backoff: retry.Backoff{Base: 1, Max: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	cc := fleet(t, l, 2, func(context.Context) error {
		if calls.Add(1) == 1 {
			return status.Error(codes.Unavailable, "warming up")
		}
		return nil
	}, retrier.UnaryClientInterceptor())
	if _, err := greeter.Hello(t.Context(), cc, "ada", grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	l.settle(5)
	for _, s := range l.spans.Ended() {
		if s.SpanKind() != oteltrace.SpanKindClient || value(s, trace.TagAttempt) != "" {
			continue
		}
		got := events(s)
		if len(got) != 3 || got[0] != `request payload="ad...` || !strings.HasPrefix(got[1], "retry by=retry attempt=2 ") ||
			!strings.HasSuffix(got[1], "message=rpc error: code = Unavailable desc = warming up") || got[2] != `reply payload="ad...` {
			t.Errorf("events %q, want the request, the retry with its reason, and the reply", got)
		}
	}
}

func TestStream(t *testing.T) {
	leak.Check(t)
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"well":   {nil, "\nclient evenkeel.Greeter/Tell OK\n  server evenkeel.Greeter/Tell OK\n"},
		"failed": {status.Error(codes.NotFound, "no"), "\nclient evenkeel.Greeter/Tell NOT_FOUND\n  server evenkeel.Greeter/Tell NOT_FOUND\n"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Config{Policy: trace.Policy{Payloads: true}}, sdktrace.AlwaysSample())
			cc := fleet(t, l, 1, func(context.Context) error { return c.err })
			recv, err := greeter.Tell(t.Context(), cc, "ada", grpc.WaitForReady(true))
			for err == nil {
				_, err = recv()
			}
			if c.err == nil && !errors.Is(err, io.EOF) || c.err != nil && status.Code(err) != codes.NotFound {
				t.Fatal(err)
			}
			l.settle(2)
			l.wantTree(c.want)
			for _, s := range l.spans.Ended() {
				if n := len(s.Events()); n != 3 {
					t.Errorf("%v: events %q, want 3 messages", s.SpanKind(), events(s))
				}
				server := s.SpanKind() == oteltrace.SpanKindServer
				if failed := s.Status().Code == otelcodes.Error; failed != (c.err != nil && !server) {
					t.Errorf("%v: status %v; a NOT_FOUND is an error for the client only", s.SpanKind(), s.Status())
				}
			}
		})
	}
}

// A stream that is cancelled, or abandoned and then cancelled, ends its span once.
func TestCancelledStream(t *testing.T) {
	leak.Check(t)
	l := newLab(t, Config{}, sdktrace.AlwaysSample())
	entered := make(chan struct{})
	cc := fleet(t, l, 1, func(ctx context.Context) error { close(entered); <-ctx.Done(); return ctx.Err() })
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := greeter.Tell(ctx, cc, "ada", grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	<-entered
	if s := l.State(); s != (State{OpenClient: 1, OpenServer: 1}) {
		t.Errorf("open %+v, want one of each", s)
	}
	cancel()
	l.settle(2)
	l.wantTree("\nclient evenkeel.Greeter/Tell CANCELLED\n  server evenkeel.Greeter/Tell CANCELLED\n")
}

func TestCallsThatDoNotReturn(t *testing.T) {
	l := newLab(t, Config{}, sdktrace.AlwaysSample())
	exits := []func(){func() { panic("boom") }, runtime.Goexit}
	for _, exit := range exits {
		for _, f := range []func(){
			func() {
				_ = l.unaryClient(t.Context(), "/a/B", nil, nil, nil,
					func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
						exit()
						return nil
					})
			},
			func() {
				_, _ = l.streamClient(t.Context(), &grpc.StreamDesc{}, nil, "/a/B",
					func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
						exit()
						return nil, nil
					})
			},
			func() {
				_, _ = l.unaryServer(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/a/B"},
					func(context.Context, any) (any, error) { exit(); return nil, nil })
			},
		} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = recover() }()
				f()
			}()
			<-done
		}
	}
	l.settle(6)
	for _, s := range l.spans.Ended() {
		if value(s, "rpc.response.status_code") != "INTERNAL" || events(s)[0] != "panic message=a panic or runtime.Goexit ended the call" {
			t.Errorf("%v: %v %q, want INTERNAL and an event", s.SpanKind(), s.Attributes(), events(s))
		}
	}
}

// Attempts are counted, and the decision travels, also when nothing is sampled.
func TestUnsampled(t *testing.T) {
	l := newLab(t, Config{}, sdktrace.NeverSample())
	err := l.unaryClient(t.Context(), "/a/B", nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			for n := range 2 {
				actx, _ := callctx.Begin(ctx, callctx.Unary, nil)
				actx = callctx.StartAttempt(actx, callctx.Attempt{Number: n + 1, Hedge: n > 0})
				md, _ := metadata.FromOutgoingContext(actx)
				if p := md.Get("traceparent"); len(p) != 1 || !strings.HasSuffix(p[0], "-00") {
					t.Errorf("traceparent %q, want one that is not sampled", p)
				}
				callctx.EndAttempt(actx, nil)
				callctx.EndAttempt(actx, errors.New("twice"))
			}
			callctx.Report(ctx, callctx.Event{Kind: callctx.HedgeWon, By: "retry", Attempt: 2})
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	l.settle(0)
	l.wantMetrics("evenkeel.client.attempts{rpc.method=a/B,rpc.response.status_code=OK} 2/1", "evenkeel.client.hedges_won{rpc.method=a/B} 1")
	if n := len(l.spans.Ended()); n != 0 {
		t.Errorf("%d spans were recorded, want none", n)
	}
}

// Baggage of any text crosses a hop and replaces what the metadata had.
func TestBaggage(t *testing.T) {
	l := newLab(t, Config{}, sdktrace.AlwaysSample())
	m, err := baggage.NewMemberRaw("user", "Zürich \n")
	if err != nil {
		t.Fatal(err)
	}
	b, err := baggage.New(m)
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(baggage.ContextWithBaggage(t.Context(), b), "traceparent", "stale", "mine", "1")
	_ = l.unaryClient(ctx, "/a/B", nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			md, _ := metadata.FromOutgoingContext(ctx)
			if len(md["traceparent"]) != 1 || md["traceparent"][0] == "stale" || md["mine"][0] != "1" {
				t.Errorf("metadata %v, want one new traceparent and the caller's own", md)
			}
			_, err := l.unaryServer(metadata.NewIncomingContext(t.Context(), md), nil, &grpc.UnaryServerInfo{FullMethod: "/a/B"},
				func(ctx context.Context, _ any) (any, error) {
					if got := baggage.FromContext(ctx).Member("user").Value(); got != "Zürich \n" {
						t.Errorf("baggage %q arrived, want it unchanged", got)
					}
					return nil, nil
				})
			return err
		})
	l.wantTree("\nclient a/B OK\n  server a/B OK\n")
}

func TestPolicies(t *testing.T) {
	l := newLab(t, Config{Methods: map[string]trace.Policy{"/a/Off": {Disabled: true}}}, sdktrace.AlwaysSample())
	for _, c := range []struct {
		method string
		opts   []grpc.CallOption
		want   int
	}{
		{"/a/B", nil, 1}, {"/a/Off", nil, 0}, {"/a/Off", []grpc.CallOption{WithPolicy(trace.Policy{})}, 1},
		{"/grpc.health.v1.Health/Check", nil, 0}, {"/a/B", []grpc.CallOption{WithPolicy(trace.Policy{Disabled: true})}, 0},
	} {
		before := len(l.spans.Ended())
		_ = l.unaryClient(t.Context(), c.method, wrapperspb.String(""), nil, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }, c.opts...)
		if got := len(l.spans.Ended()) - before; got != c.want {
			t.Errorf("%s %v: %d spans, want %d", c.method, c.opts, got, c.want)
		}
	}
	for name, c := range map[string]Config{
		`maxPayload = -1, want 0 or more`:        {Policy: trace.Policy{MaxPayload: -1}},
		`method "a", want "/pkg.Service/Method"`: {Methods: map[string]trace.Policy{"a": {}}},
	} {
		if err := l.Update(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error with %q", err, name)
		}
	}
}

func TestOnEnd(t *testing.T) {
	var ends []trace.End
	l := newLab(t, Config{OnEnd: func(s oteltrace.Span, e trace.End) {
		s.SetAttributes(attribute.Bool("mine", true))
		ends = append(ends, e)
	}}, sdktrace.AlwaysSample())
	failure := errors.New("x")
	_ = l.unaryClient(t.Context(), "/a/B", nil, nil, nil,
		func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return failure })
	if want := []trace.End{{Side: trace.Client, Method: "/a/B", Err: failure}}; !slices.Equal(ends, want) {
		t.Errorf("ends %v, want %v", ends, want)
	}
	if value(l.spans.Ended()[0], "mine") != "true" {
		t.Error("the span has not the attribute that OnEnd set")
	}
}

// Without tracer and meter nothing is allocated.
func TestSilent(t *testing.T) {
	tracing, err := New(Config{TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: metricnoop.NewMeterProvider()})
	if err != nil {
		t.Fatal(err)
	}
	chain := tracing.UnaryClientInterceptor()
	well := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	if n := testing.AllocsPerRun(1000, func() { _ = chain(t.Context(), "/a/B", nil, nil, nil, well) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestConfigJSON: a file that configures package trace configures this one.
func TestConfigJSON(t *testing.T) {
	const js = `{"payloads":true,"maxPayload":64,"methods":{"/a.B/*":{"disabled":true}}}`
	c := Config{Payload: func(string, any) string { return "" }, Policy: trace.Policy{Disabled: true}}
	if err := json.Unmarshal([]byte(js), &c); err != nil {
		t.Fatal(err)
	}
	if c.Policy != (trace.Policy{Payloads: true, MaxPayload: 64}) || c.Methods["/a.B/*"] != (trace.Policy{Disabled: true}) || c.Payload == nil {
		t.Errorf("got %+v, want what the file says and the function kept", c)
	}
	if got, err := json.Marshal(c); err != nil || string(got) != js {
		t.Errorf("written %s, %v, want %s", got, err, js)
	}
	for bad, want := range map[string]string{
		`{"method":{}}`:                       `unknown field "method"`,
		`{"methods":{"a/B":{}}}`:              `method "a/B", want "/pkg.Service/Method"`,
		`{"methods":{"/a/B":{"payloads":1}}}`: `methods["/a/B"].payloads = a JSON number, want true or false`,
	} {
		before := c.Policy
		if err := json.Unmarshal([]byte(bad), &c); err == nil || !strings.Contains(err.Error(), want) || c.Policy != before {
			t.Errorf("%s: %v, and %+v, want %s, and nothing changed", bad, err, c.Policy, want)
		}
	}
}
