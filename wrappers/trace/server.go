package trace

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/opentracing/opentracing-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

func (t *Tracing) unaryServer(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (reply any, err error) {
	ctx, sp, done := t.serve(ctx, info.FullMethod)
	if sp == nil {
		defer done()
		return handler(ctx, req)
	}
	returned := false
	defer sp.guard(&returned, &err)
	sp.message("request", 0, req)
	reply, err = handler(ctx, req)
	if err == nil {
		sp.message("reply", 0, reply)
	}
	returned = true
	return reply, err
}

func (t *Tracing) streamServer(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ctx, sp, done := t.serve(stream.Context(), info.FullMethod)
	if sp == nil {
		defer done()
		if ctx != stream.Context() {
			stream = &serverStream{ServerStream: stream, ctx: ctx}
		}
		return handler(srv, stream)
	}
	returned := false
	defer sp.guard(&returned, &err)
	err = handler(srv, &serverStream{ServerStream: stream, ctx: ctx, sp: sp})
	returned = true
	return err
}

// serve starts the span of a handler and returns the handler's context. The span is nil if there is none or it is not
// sampled; then done is to be called when the handler has returned.
func (t *Tracing) serve(ctx context.Context, method string) (_ context.Context, sp *span, done func()) {
	s := t.settings.Load()
	tracer := s.active()
	if tracer == nil {
		return ctx, nil, nothing
	}
	p, on := s.policyFor(method, nil)
	if !on {
		return ctx, nil, nothing
	}
	ot := t.startServer(ctx, tracer, method)
	if !s.records(ot) {
		return prepare(t.carry(ctx, tracer, ot), ot), nil, ot.Finish
	}
	sp = t.begin(s, tracer, p, Server, method, ot)
	rec := callctx.Copy(ctx)
	rec.Observer, rec.Call = sp, nil
	return callctx.With(opentracing.ContextWithSpan(ctx, ot), rec), sp, nil
}

func nothing() {}

// startServer starts the span of a handler, the child of whatever span the caller sent.
func (t *Tracing) startServer(ctx context.Context, tracer opentracing.Tracer, method string) opentracing.Span {
	opts := startTags(Server, method)
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		sc, err := tracer.Extract(opentracing.HTTPHeaders, reader{md})
		switch {
		case err == nil && sc != nil:
			opts = append(opts, opentracing.ChildOf(sc))
		case err != nil && !errors.Is(err, opentracing.ErrSpanContextNotFound):
			t.lost.Add(1)
		}
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		opts = append(opts, opentracing.Tag{Key: TagPeer, Value: p.Addr.String()})
	}
	return tracer.StartSpan(method, opts...)
}

// serverStream hands the handler its context, and logs messages.
type serverStream struct {
	grpc.ServerStream
	ctx            context.Context
	sp             *span         // nil if it is not sampled
	sent, received atomic.Uint64 // one goroutine may send while another receives
}

// Context implements [grpc.ServerStream].
func (ss *serverStream) Context() context.Context { return ss.ctx }

// SendMsg implements [grpc.ServerStream].
func (ss *serverStream) SendMsg(m any) error {
	if ss.sp != nil && ss.sp.policy.Payloads {
		ss.sp.message("sent", ss.sent.Add(1), m)
	}
	return ss.ServerStream.SendMsg(m)
}

// RecvMsg implements [grpc.ServerStream].
func (ss *serverStream) RecvMsg(m any) error {
	err := ss.ServerStream.RecvMsg(m)
	if err == nil && ss.sp != nil && ss.sp.policy.Payloads {
		ss.sp.message("received", ss.received.Add(1), m)
	}
	return err
}
