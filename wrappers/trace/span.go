package trace

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opentracing/opentracing-go"
	"github.com/opentracing/opentracing-go/ext"
	"github.com/opentracing/opentracing-go/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
)

// span is a sampled span that has started, of a call or of an attempt. It hears what happens to it (callctx.Observer)
// and is finished once.
type span struct {
	t      *Tracing
	s      *settings
	tracer opentracing.Tracer
	policy Policy
	side   Side
	method string
	number int // of the attempt, 0 for a call

	ot     opentracing.Span
	call   *callctx.Call // where the picker says whom it chose; nil on a server
	parent *span         // of an attempt: its call
	peer   peer.Peer     // of a call, filled by gRPC before the call returns or its OnFinish runs
	story
}

// startTags are what a tracer's sampler may want to see.
func startTags(side Side, method string) []opentracing.StartSpanOption {
	kind := ext.SpanKindRPCClient
	if side == Server {
		kind = ext.SpanKindRPCServer
	}
	return append(make([]opentracing.StartSpanOption, 0, 8),
		opentracing.Tag{Key: string(ext.Component), Value: "gRPC"}, kind,
		opentracing.Tag{Key: TagMethod, Value: strings.TrimPrefix(method, "/")})
}

// begin wraps the span that was just started.
func (t *Tracing) begin(s *settings, tracer opentracing.Tracer, p Policy, side Side, method string, ot opentracing.Span) *span {
	t.counts[side].started.Add(1)
	return &span{t: t, s: s, tracer: tracer, policy: p, side: side, method: method, ot: ot}
}

// Attempt implements [callctx.Observer]: it starts the span of an attempt, whose context then travels instead.
func (sp *span) Attempt(ctx context.Context, a callctx.Attempt) context.Context {
	if sp.side == Server || !sp.story.attempt(a.Number) {
		// A call made by the handler, through a client without a trace; or an attempt after the end.
		return ctx
	}
	opts := append(startTags(Client, sp.method), opentracing.ChildOf(sp.ot.Context()),
		opentracing.Tag{Key: TagAttempt, Value: a.Number})
	if a.Hedge {
		opts = append(opts, opentracing.Tag{Key: TagHedge, Value: true})
	}
	child := sp.t.begin(sp.s, sp.tracer, sp.policy, Client, sp.method,
		sp.tracer.StartSpan("attempt "+sp.method, opts...))
	child.number, child.parent = a.Number, sp
	sp.t.counts[Client].attempts.Add(1)
	carried := false
	defer func() {
		if !carried { // the tracer panicked, and nobody knows of the attempt
			child.abort()
		}
	}()
	rec := callctx.Copy(ctx)
	child.call, rec.Observer = rec.Call, child
	ctx = callctx.With(sp.t.carry(ctx, sp.tracer, child.ot), rec)
	carried = true
	return ctx
}

// Event implements [callctx.Observer].
func (sp *span) Event(e callctx.Event) {
	if e.Kind != callctx.AttemptEnded {
		sp.story.note(time.Now(), eventFields(e))
		return
	}
	if sp.number != 0 {
		sp.finish(e.Err, e.Peer)
	}
}

// finish ends the span with err. Only the first call counts. addr is who answered, nil if the caller cannot know.
func (sp *span) finish(err error, addr net.Addr) {
	end, first := sp.story.end()
	if !first {
		return
	}
	sp.tagEndpoint(end.endpoint, addr, err == nil)
	if end.attempts > 0 {
		sp.ot.SetTag(TagAttempts, end.attempts)
	}
	if end.dropped > 0 {
		sp.ot.SetTag(TagLogsDropped, end.dropped)
	}
	code := outcome.Code(err)
	sp.ot.SetTag(TagStatus, codeName(code))
	if isError(sp.side, code) {
		ext.Error.Set(sp.ot, true)
	}
	if err != nil {
		end.logs = append(end.logs, opentracing.LogRecord{Timestamp: time.Now(), Fields: []log.Field{
			log.String("event", "error"), log.String("error.kind", codeName(code)),
			log.String("message", cut(status.Convert(err).Message(), maxText)),
		}})
	}
	// Finished and counted even if the user's function panics, since nobody will try again.
	defer func() {
		defer sp.t.counts[sp.side].ended.Add(1)
		sp.ot.FinishWithOptions(opentracing.FinishOptions{FinishTime: time.Now(), LogRecords: end.logs})
	}()
	if sp.s.onEnd != nil {
		sp.s.onEnd(sp.ot, End{Side: sp.side, Method: sp.method, Attempt: sp.number, Err: err})
	}
}

// tagEndpoint says who was at the other end, of a client's span. attempt is the endpoint that its attempts came to.
func (sp *span) tagEndpoint(attempt *callctx.Endpoint, addr net.Addr, well bool) {
	e := attempt
	if e == nil && sp.call != nil {
		e = sp.call.Picked()
	}
	if sp.parent != nil {
		sp.parent.story.attemptEnded(e, well)
	}
	if e != nil && e.ID != "" {
		sp.ot.SetTag(TagInstance, e.ID)
	}
	switch {
	case addr != nil:
		sp.ot.SetTag(TagPeer, addr.String())
	case e != nil:
		sp.ot.SetTag(TagPeer, e.Addr)
	}
}

// guard finishes the span of a call that ran to its return, or did not.
func (sp *span) guard(returned *bool, err *error) {
	if *returned {
		sp.finish(*err, sp.peer.Addr)
		return
	}
	sp.abort()
}

// abort finishes the span of a call that a panic or runtime.Goexit ended.
func (sp *span) abort() {
	sp.story.note(time.Now(), []log.Field{log.String("event", "panic"),
		log.String("message", "a panic or runtime.Goexit ended the call")})
	sp.finish(errAborted, nil)
}

// message logs m, if that was asked for. number is 0 for unary calls.
func (sp *span) message(event string, number uint64, m any) {
	if !sp.policy.Payloads {
		return
	}
	fields := append(make([]log.Field, 0, 3), log.String("event", event))
	if number > 0 {
		fields = append(fields, log.Uint64("number", number))
	}
	sp.story.note(time.Now(), append(fields, log.String("payload", cut(sp.text(m), sp.policy.maxPayload()))))
}

func (sp *span) text(m any) string {
	if sp.s.payload != nil {
		return sp.s.payload(sp.method, m)
	}
	if pm, ok := m.(proto.Message); ok {
		if js, err := protojson.Marshal(pm); err == nil {
			return string(js)
		}
	}
	return fmt.Sprint(m)
}

// carry returns ctx with ot in it, for this process and in the outgoing metadata.
func (t *Tracing) carry(ctx context.Context, tracer opentracing.Tracer, ot opentracing.Span) context.Context {
	return t.inject(opentracing.ContextWithSpan(ctx, ot), tracer, ot.Context())
}

func (t *Tracing) inject(ctx context.Context, tracer opentracing.Tracer, sc opentracing.SpanContext) context.Context {
	ctx, err := inject(ctx, tracer, sc)
	if err != nil {
		t.lost.Add(1)
	}
	return ctx
}

// filterOf is the filter that the caller bound to the service that cc calls, as text.
func filterOf(rec *callctx.Record, cc *grpc.ClientConn) string {
	if rec.Filters == nil || cc == nil {
		return ""
	}
	service := ""
	if u, err := url.Parse(cc.CanonicalTarget()); err == nil {
		service = gresolver.Target{URL: *u}.Endpoint() // as the balancer calls it
	}
	for b := rec.Filters; b != nil; b = b.Next {
		if len(b.Services) == 0 || slices.Contains(b.Services, service) {
			return cut(fmt.Sprint(b.Filter), maxText)
		}
	}
	return ""
}
