package oteltrace

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// call is a call or an attempt that has started. It hears what happens to it (callctx.Observer) and ends once. An
// OpenTelemetry span takes events from any goroutine and ignores those after its end, so there is nothing to guard
// here but the end itself.
type call struct {
	t      *Tracing
	s      *settings
	policy trace.Policy
	side   trace.Side
	method string
	number int   // of the attempt, 0 for a call
	parent *call // of an attempt

	ctx    context.Context // has the span, for the exemplars of metrics
	span   oteltrace.Span
	began  time.Time
	server string // server.address of a client's call
	picked *callctx.Call
	peer   peer.Peer // of a call, filled by gRPC before it returns or its OnFinish runs

	done     atomic.Bool
	attempts atomic.Int64 // the highest number of an attempt

	mu       sync.Mutex        // guards what follows
	endpoint *callctx.Endpoint // of the attempt that answered, or of the last that ended
	answered bool
}

// begin wraps a span that was just started.
func (t *Tracing) begin(ctx context.Context, s *settings, p trace.Policy, side trace.Side, method string, span oteltrace.Span) *call {
	t.open[side].Add(1)
	return &call{t: t, s: s, policy: p, side: side, method: method, ctx: ctx, span: span, began: time.Now()}
}

// Attempt implements [callctx.Observer]: it starts the span of an attempt, whose context then travels instead.
func (c *call) Attempt(ctx context.Context, a callctx.Attempt) context.Context {
	if c.side == trace.Server || c.done.Load() {
		// A call made by the handler, through a client without a trace; or an attempt after the end.
		return ctx
	}
	for {
		n := c.attempts.Load()
		if int64(a.Number) <= n || c.attempts.CompareAndSwap(n, int64(a.Number)) {
			break
		}
	}
	attrs := append(startAttributes(c.method), attribute.Int(trace.TagAttempt, a.Number))
	if a.Hedge {
		attrs = append(attrs, attribute.Bool(trace.TagHedge, true))
	}
	ctx = oteltrace.ContextWithSpan(ctx, c.span)
	ctx, span := c.s.tracer.Start(ctx, "attempt "+nameOf(c.method), oteltrace.WithSpanKind(oteltrace.SpanKindClient),
		oteltrace.WithAttributes(attrs...))
	child := c.t.begin(ctx, c.s, c.policy, trace.Client, c.method, span)
	child.number, child.parent = a.Number, c
	injected := false
	defer func() {
		if !injected { // the propagator panicked, and nobody knows of the attempt
			child.abort()
		}
	}()
	rec := callctx.Copy(ctx)
	child.picked, rec.Observer = rec.Call, child
	ctx = callctx.With(inject(ctx, c.s), rec)
	injected = true
	return ctx
}

// Event implements [callctx.Observer].
func (c *call) Event(e callctx.Event) {
	if e.Kind == callctx.AttemptEnded {
		if c.number != 0 {
			c.end(e.Err, e.Peer)
		}
		return
	}
	if e.Kind == callctx.HedgeWon && !e.DryRun && c.side == trace.Client {
		c.s.hedgesWon.Add(c.ctx, 1, metric.WithAttributes(semconv.RPCMethod(nameOf(c.method))))
	}
	if c.span.IsRecording() {
		c.span.AddEvent(e.Kind.String(), oteltrace.WithAttributes(eventAttributes(e)...))
	}
}

// end ends the span and records the metrics. Only the first call counts. addr is who answered, nil if unknown.
func (c *call) end(err error, addr net.Addr) {
	if c.done.Swap(true) {
		return
	}
	defer c.span.End()
	defer c.t.open[c.side].Add(-1)
	code := outcome.Code(err)
	e := c.endpointOf()
	if c.parent != nil {
		c.parent.attemptEnded(e, err == nil)
	} else {
		c.record(code)
	}
	if !c.span.IsRecording() {
		return
	}
	attrs := append(make([]attribute.KeyValue, 0, 8), semconv.RPCResponseStatusCode(codeName(code)))
	if n := c.attempts.Load(); n > 0 {
		attrs = append(attrs, attribute.Int64(trace.TagAttempts, n))
	}
	if e != nil && e.ID != "" {
		attrs = append(attrs, attribute.String(trace.TagInstance, e.ID))
	}
	switch {
	case addr != nil:
		attrs = append(attrs, peerAttributes(addr.String())...)
	case e != nil:
		attrs = append(attrs, peerAttributes(e.Addr)...)
	}
	if isError(c.side, code) {
		attrs = append(attrs, semconv.ErrorTypeKey.String(codeName(code)))
		c.span.SetStatus(otelcodes.Error, cut(status.Convert(err).Message(), maxText))
	}
	c.span.SetAttributes(attrs...)
	if c.s.onEnd != nil {
		c.s.onEnd(c.span, trace.End{Side: c.side, Method: c.method, Attempt: c.number, Err: err})
	}
}

// record records the metrics of a call.
func (c *call) record(code codes.Code) {
	attrs := append(make([]attribute.KeyValue, 0, 4), semconv.RPCMethod(nameOf(c.method)),
		semconv.RPCResponseStatusCode(codeName(code)))
	if isError(c.side, code) {
		attrs = append(attrs, semconv.ErrorTypeKey.String(codeName(code)))
	}
	took := time.Since(c.began).Seconds()
	if c.side == trace.Server {
		c.s.serverTime.Record(c.ctx, took, rpcconv.SystemNameGRPC, attrs...)
		return
	}
	c.s.attempts.Record(c.ctx, max(1, c.attempts.Load()), metric.WithAttributes(attrs...))
	if c.server != "" {
		attrs = append(attrs, semconv.ServerAddress(c.server))
	}
	c.s.clientTime.Record(c.ctx, took, rpcconv.SystemNameGRPC, attrs...)
}

func (c *call) attemptEnded(e *callctx.Endpoint, well bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e != nil && !c.answered {
		c.endpoint, c.answered = e, well
	}
}

// endpointOf is where the call went, as far as evenkeel's balancer said.
func (c *call) endpointOf() *callctx.Endpoint {
	c.mu.Lock()
	e := c.endpoint
	c.mu.Unlock()
	if e == nil && c.picked != nil {
		e = c.picked.Picked()
	}
	return e
}

// guard ends a call that ran to its return, or did not.
func (c *call) guard(returned *bool, err *error) {
	if *returned {
		c.end(*err, c.peer.Addr)
		return
	}
	c.abort()
}

// abort ends a call that a panic or runtime.Goexit ended.
func (c *call) abort() {
	c.span.AddEvent("panic", oteltrace.WithAttributes(attribute.String("message", "a panic or runtime.Goexit ended the call")))
	c.end(errAborted, nil)
}

// errAborted stands for the error of a call that a panic or runtime.Goexit ended.
var errAborted = status.Error(codes.Internal, "the call did not return")

// message adds m as an event, if that was asked for. number is 0 for unary calls.
func (c *call) message(event string, number int64, m any) {
	if !c.policy.Payloads || !c.span.IsRecording() {
		return
	}
	most := c.policy.MaxPayload
	if most == 0 {
		most = 1 << 10
	}
	attrs := []attribute.KeyValue{attribute.String("payload", cut(c.text(m), most))}
	if number > 0 {
		attrs = append(attrs, attribute.Int64("number", number))
	}
	c.span.AddEvent(event, oteltrace.WithAttributes(attrs...))
}

func (c *call) text(m any) string {
	if c.s.payload != nil {
		return c.s.payload(c.method, m)
	}
	if pm, ok := m.(proto.Message); ok {
		if js, err := protojson.Marshal(pm); err == nil {
			return string(js)
		}
	}
	return fmt.Sprint(m)
}

// inject returns ctx with its span in the outgoing metadata, in the place of what another span had put there.
func inject(ctx context.Context, s *settings) context.Context {
	md, ok := metadata.FromOutgoingContext(ctx) // a copy
	if !ok {
		md = make(metadata.MD, 2)
	}
	s.propagator.Inject(ctx, carrier(md))
	return metadata.NewOutgoingContext(ctx, md)
}

// carrier is a propagation.TextMapCarrier over metadata. gRPC encodes the values of keys that end in -bin; others that
// are not printable ASCII, and keys of other letters than its own, it does not send: the call fails. OpenTelemetry's
// own propagators encode what they write; what another one does not is left out, for a call is worth more.
type carrier metadata.MD

func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c carrier) Set(key, value string) {
	key = strings.ToLower(key)
	if !isKey(key) || !strings.HasSuffix(key, "-bin") && strings.ContainsFunc(value, notText) {
		delete(c, key) // what another span had there
		return
	}
	c[key] = []string{value}
}

func (c carrier) Values(key string) []string { return metadata.MD(c).Get(key) }

func (c carrier) Keys() (keys []string) {
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

// isKey reports whether gRPC permits key, which is in lower case, in metadata.
func isKey(key string) bool {
	return key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	})
}

// notText reports whether gRPC does not permit r in a value.
func notText(r rune) bool { return r < ' ' || r > '~' }

func startAttributes(method string) []attribute.KeyValue {
	return append(make([]attribute.KeyValue, 0, 6), semconv.RPCSystemNameGRPC, semconv.RPCMethod(nameOf(method)))
}

func peerAttributes(addr string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return []attribute.KeyValue{semconv.NetworkPeerAddress(addr)}
	}
	attrs := []attribute.KeyValue{semconv.NetworkPeerAddress(host)}
	if n, err := strconv.Atoi(port); err == nil {
		attrs = append(attrs, semconv.NetworkPeerPort(n))
	}
	return attrs
}

// serviceOf is what cc calls, as the balancer names it.
func serviceOf(cc *grpc.ClientConn) string {
	if cc == nil {
		return ""
	}
	u, err := url.Parse(cc.CanonicalTarget())
	if err != nil {
		return ""
	}
	return gresolver.Target{URL: *u}.Endpoint()
}

// filterOf is the filter that the caller bound to the service, as text.
func filterOf(rec *callctx.Record, service string) string {
	for b := rec.Filters; b != nil; b = b.Next {
		if len(b.Services) == 0 || slices.Contains(b.Services, service) {
			return cut(fmt.Sprint(b.Filter), maxText)
		}
	}
	return ""
}
