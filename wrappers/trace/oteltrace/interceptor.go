package oteltrace

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// UnaryClientInterceptor traces unary calls. Put it first in the chain.
func (t *Tracing) UnaryClientInterceptor() grpc.UnaryClientInterceptor { return t.unaryClient }

// StreamClientInterceptor traces streams of all kinds. Put it first in the chain.
func (t *Tracing) StreamClientInterceptor() grpc.StreamClientInterceptor { return t.streamClient }

// UnaryServerInterceptor traces the handlers of unary calls. Put it first in the chain.
func (t *Tracing) UnaryServerInterceptor() grpc.UnaryServerInterceptor { return t.unaryServer }

// StreamServerInterceptor traces the handlers of streams. Put it first in the chain.
func (t *Tracing) StreamServerInterceptor() grpc.StreamServerInterceptor { return t.streamServer }

// active returns what holds for a call; on is false if there is nothing to do.
func (t *Tracing) active(ctx context.Context, side trace.Side, method string, opts []grpc.CallOption) (s *settings, p trace.Policy, on bool) {
	s = t.settings.Load()
	if s.silent {
		measured := s.clientTime.Enabled(ctx) || s.attempts.Enabled(ctx)
		if side == trace.Server {
			measured = s.serverTime.Enabled(ctx)
		}
		if !measured {
			return s, p, false
		}
	}
	p, on = s.policyFor(method, opts)
	return s, p, on
}

// dial starts the span of a client's call. The call is made with what prepare returns.
func (t *Tracing) dial(ctx context.Context, s *settings, p trace.Policy, method string, cc *grpc.ClientConn) *call {
	attrs := startAttributes(method)
	service := serviceOf(cc)
	if service != "" {
		attrs = append(attrs, semconv.ServerAddress(service))
	}
	ctx, span := s.tracer.Start(ctx, nameOf(method), oteltrace.WithSpanKind(oteltrace.SpanKindClient),
		oteltrace.WithAttributes(attrs...))
	c := t.begin(ctx, s, p, trace.Client, method, span)
	c.server = service
	return c
}

// prepare returns the context that a client's call is made with.
func (c *call) prepare(kind callctx.Kind) (ctx context.Context) {
	rec := callctx.Copy(c.ctx)
	if c.span.IsRecording() {
		if f := filterOf(&rec, c.server); f != "" {
			c.span.SetAttributes(attribute.String(trace.TagFilter, f))
		}
	}
	rec.Observer = c
	ctx, c.picked = callctx.Begin(callctx.With(inject(c.ctx, c.s), rec), kind, nil)
	return ctx
}

// with returns opts and more in a slice of its own: the caller's may have room behind it that others use too.
func with(opts []grpc.CallOption, more ...grpc.CallOption) []grpc.CallOption {
	return append(opts[:len(opts):len(opts)], more...)
}

func (t *Tracing) unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	s, p, on := t.active(ctx, trace.Client, method, opts)
	if !on {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	return t.dial(ctx, s, p, method, cc).unary(req, reply, cc, invoker, opts)
}

func (c *call) unary(req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts []grpc.CallOption) (err error) {
	returned := false
	defer c.guard(&returned, &err)
	c.message("request", 0, req)
	err = invoker(c.prepare(callctx.Unary), c.method, req, reply, cc, with(opts, grpc.Peer(&c.peer))...)
	if err == nil {
		c.message("reply", 0, reply)
	}
	returned = true
	return err
}

func (t *Tracing) streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, p, on := t.active(ctx, trace.Client, method, opts)
	if !on {
		return streamer(ctx, desc, cc, method, opts...)
	}
	return t.dial(ctx, s, p, method, cc).stream(desc, cc, streamer, opts)
}

func (c *call) stream(desc *grpc.StreamDesc, cc *grpc.ClientConn, streamer grpc.Streamer,
	opts []grpc.CallOption) (stream grpc.ClientStream, err error) {
	cs := &clientStream{c: c, serverStreams: desc.ServerStreams}
	returned := false
	defer func() {
		switch {
		case !returned:
			c.abort()
		case err != nil: // a wrapper refused before gRPC knew of the call, or gRPC failed and has said so
			cs.end(err)
		}
	}()
	stream, err = streamer(c.prepare(callctx.Stream), desc, cc, c.method,
		with(opts, grpc.Peer(&c.peer), grpc.OnFinish(cs.onFinish))...)
	returned = true
	if err != nil {
		return nil, err
	}
	cs.ClientStream = stream
	return cs, nil
}

// clientStream adds messages as events, and ends the span should a wrapper below have kept the end to itself. It
// never calls Context, which would disable gRPC's own retries.
type clientStream struct {
	grpc.ClientStream
	c              *call
	serverStreams  bool
	over           atomic.Bool  // onFinish ran, so gRPC has written the peer
	sent, received atomic.Int64 // one goroutine may send while another receives
}

// onFinish is called by gRPC when the stream has ended.
func (cs *clientStream) onFinish(err error) {
	cs.over.Store(true)
	if err == nil && !cs.serverStreams && cs.c.policy.Payloads {
		return // RecvMsg has the only reply in its hands, and shows it first
	}
	cs.end(err)
}

func (cs *clientStream) end(err error) {
	var addr net.Addr
	if cs.over.Load() {
		addr = cs.c.peer.Addr
	}
	cs.c.end(err, addr)
}

// SendMsg implements [grpc.ClientStream].
func (cs *clientStream) SendMsg(m any) error {
	if cs.c.policy.Payloads {
		cs.log("sent", cs.sent.Add(1), m)
	}
	err := cs.ClientStream.SendMsg(m)
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: how it ended, RecvMsg will say
		cs.end(err)
	}
	return err
}

// RecvMsg implements [grpc.ClientStream].
func (cs *clientStream) RecvMsg(m any) error {
	err := cs.ClientStream.RecvMsg(m)
	switch {
	case err == nil:
		if cs.c.policy.Payloads {
			cs.log("received", cs.received.Add(1), m)
		}
		if !cs.serverStreams { // this was the only one
			cs.end(nil)
		}
	case errors.Is(err, io.EOF):
		cs.end(nil)
	default:
		cs.end(err)
	}
	return err
}

// log adds a message as an event. If the user's Payload does not return, nobody may be left who would end the stream,
// so the span ends here.
func (cs *clientStream) log(event string, number int64, m any) {
	logged := false
	defer func() {
		if !logged {
			cs.c.abort()
		}
	}()
	cs.c.message(event, number, m)
	logged = true
}

// serve starts the span of a handler and returns the handler's context.
func (t *Tracing) serve(ctx context.Context, s *settings, p trace.Policy, method string) (context.Context, *call) {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = s.propagator.Extract(ctx, carrier(md))
	}
	attrs := startAttributes(method)
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, peerAttributes(p.Addr.String())...)
	}
	ctx, span := s.tracer.Start(ctx, nameOf(method), oteltrace.WithSpanKind(oteltrace.SpanKindServer),
		oteltrace.WithAttributes(attrs...))
	c := t.begin(ctx, s, p, trace.Server, method, span)
	rec := callctx.Copy(ctx)
	rec.Observer, rec.Call = c, nil
	return callctx.With(ctx, rec), c
}

func (t *Tracing) unaryServer(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (reply any, err error) {
	s, p, on := t.active(ctx, trace.Server, info.FullMethod, nil)
	if !on {
		return handler(ctx, req)
	}
	ctx, c := t.serve(ctx, s, p, info.FullMethod)
	returned := false
	defer c.guard(&returned, &err)
	c.message("request", 0, req)
	reply, err = handler(ctx, req)
	if err == nil {
		c.message("reply", 0, reply)
	}
	returned = true
	return reply, err
}

func (t *Tracing) streamServer(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	s, p, on := t.active(stream.Context(), trace.Server, info.FullMethod, nil)
	if !on {
		return handler(srv, stream)
	}
	ctx, c := t.serve(stream.Context(), s, p, info.FullMethod)
	returned := false
	defer c.guard(&returned, &err)
	err = handler(srv, &serverStream{ServerStream: stream, ctx: ctx, c: c})
	returned = true
	return err
}

// serverStream hands the handler its context, and adds messages as events.
type serverStream struct {
	grpc.ServerStream
	ctx            context.Context
	c              *call
	sent, received atomic.Int64 // one goroutine may send while another receives
}

// Context implements [grpc.ServerStream].
func (ss *serverStream) Context() context.Context { return ss.ctx }

// SendMsg implements [grpc.ServerStream].
func (ss *serverStream) SendMsg(m any) error {
	if ss.c.policy.Payloads {
		ss.c.message("sent", ss.sent.Add(1), m)
	}
	return ss.ServerStream.SendMsg(m)
}

// RecvMsg implements [grpc.ServerStream].
func (ss *serverStream) RecvMsg(m any) error {
	err := ss.ServerStream.RecvMsg(m)
	if err == nil && ss.c.policy.Payloads {
		ss.c.message("received", ss.received.Add(1), m)
	}
	return err
}
