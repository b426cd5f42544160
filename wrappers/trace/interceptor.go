package trace

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"github.com/opentracing/opentracing-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// errAborted stands for the error of a call that a panic or runtime.Goexit ended.
var errAborted = status.Error(codes.Internal, "the call did not return")

func (t *Tracing) unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	s := t.settings.Load()
	tracer := s.active()
	if tracer == nil {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	p, on := s.policyFor(method, opts)
	if !on {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	parent := opentracing.SpanFromContext(ctx)
	if parent != nil {
		if sc := parent.Context(); !s.sampled(sc) {
			return invoker(t.unsampled(ctx, tracer, parent, sc), method, req, reply, cc, opts...)
		}
	}
	return t.tracedUnary(ctx, s, tracer, p, parent, method, req, reply, cc, invoker, opts)
}

func (t *Tracing) tracedUnary(ctx context.Context, s *settings, tracer opentracing.Tracer, p Policy, parent opentracing.Span,
	method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts []grpc.CallOption) (err error) {
	ot := startClient(tracer, parent, method)
	if !s.records(ot) {
		defer ot.Finish()
		return invoker(t.carry(ctx, tracer, ot), method, req, reply, cc, opts...)
	}
	sp := t.begin(s, tracer, p, Client, method, ot)
	returned := false
	defer sp.guard(&returned, &err)
	sp.message("request", 0, req)
	err = invoker(sp.observed(ctx, callctx.Unary, cc), method, req, reply, cc, with(opts, grpc.Peer(&sp.peer))...)
	if err == nil {
		sp.message("reply", 0, reply)
	}
	returned = true
	return err
}

// startClient starts the span of a call.
func startClient(tracer opentracing.Tracer, parent opentracing.Span, method string) opentracing.Span {
	opts := startTags(Client, method)
	if parent != nil {
		opts = append(opts, opentracing.ChildOf(parent.Context()))
	}
	return tracer.StartSpan(method, opts...)
}

// observed returns the context that the call is made with: it carries the span, here and on the wire, has sp hear what
// wrappers and picker decide, and learns who is picked.
func (sp *span) observed(ctx context.Context, kind callctx.Kind, cc *grpc.ClientConn) context.Context {
	ctx = sp.t.carry(ctx, sp.tracer, sp.ot)
	rec := callctx.Copy(ctx)
	if f := filterOf(&rec, cc); f != "" {
		sp.ot.SetTag(TagFilter, f)
	}
	rec.Observer = sp
	ctx, sp.call = callctx.Begin(callctx.With(ctx, rec), kind, nil)
	return ctx
}

// with returns opts and more in a slice of its own: the caller's may have room behind it that others use too.
func with(opts []grpc.CallOption, more ...grpc.CallOption) []grpc.CallOption {
	return append(opts[:len(opts):len(opts)], more...)
}

func (t *Tracing) streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s := t.settings.Load()
	tracer := s.active()
	if tracer == nil {
		return streamer(ctx, desc, cc, method, opts...)
	}
	p, on := s.policyFor(method, opts)
	if !on {
		return streamer(ctx, desc, cc, method, opts...)
	}
	parent := opentracing.SpanFromContext(ctx)
	if parent != nil {
		if sc := parent.Context(); !s.sampled(sc) {
			return streamer(t.unsampled(ctx, tracer, parent, sc), desc, cc, method, opts...)
		}
	}
	return t.tracedStream(ctx, s, tracer, p, parent, desc, cc, method, streamer, opts)
}

func (t *Tracing) tracedStream(ctx context.Context, s *settings, tracer opentracing.Tracer, p Policy, parent opentracing.Span,
	desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts []grpc.CallOption) (stream grpc.ClientStream, err error) {
	ot := startClient(tracer, parent, method)
	if !s.records(ot) {
		ot.Finish() // nobody will see how long it took
		return streamer(t.carry(ctx, tracer, ot), desc, cc, method, opts...)
	}
	sp := t.begin(s, tracer, p, Client, method, ot)
	cs := &clientStream{sp: sp, serverStreams: desc.ServerStreams}
	returned := false
	defer func() {
		switch {
		case !returned:
			sp.abort()
		case err != nil: // a wrapper refused before gRPC knew of the call, or gRPC failed and has said so
			cs.finish(err)
		}
	}()
	stream, err = streamer(sp.observed(ctx, callctx.Stream, cc), desc, cc, method,
		with(opts, grpc.Peer(&sp.peer), grpc.OnFinish(cs.onFinish))...)
	returned = true
	if err != nil {
		return nil, err
	}
	cs.ClientStream = stream
	return cs, nil
}

// clientStream logs messages, and ends the span should a wrapper below have kept the end to itself. It never calls
// Context, which would disable gRPC's own retries.
type clientStream struct {
	grpc.ClientStream
	sp             *span
	serverStreams  bool
	over           atomic.Bool   // onFinish ran, so gRPC has written the peer
	sent, received atomic.Uint64 // one goroutine may send while another receives
}

// onFinish is called by gRPC when the stream has ended.
func (cs *clientStream) onFinish(err error) {
	cs.over.Store(true)
	if err == nil && !cs.serverStreams && cs.sp.policy.Payloads {
		return // RecvMsg has the only reply in its hands, and logs it first
	}
	cs.finish(err)
}

func (cs *clientStream) finish(err error) {
	var addr net.Addr
	if cs.over.Load() {
		addr = cs.sp.peer.Addr
	}
	cs.sp.finish(err, addr)
}

// SendMsg implements [grpc.ClientStream].
func (cs *clientStream) SendMsg(m any) error {
	if cs.sp.policy.Payloads {
		cs.log("sent", cs.sent.Add(1), m)
	}
	err := cs.ClientStream.SendMsg(m)
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: how it ended, RecvMsg will say
		cs.finish(err)
	}
	return err
}

// RecvMsg implements [grpc.ClientStream].
func (cs *clientStream) RecvMsg(m any) error {
	err := cs.ClientStream.RecvMsg(m)
	if err == nil {
		if cs.sp.policy.Payloads {
			cs.log("received", cs.received.Add(1), m)
		}
		if !cs.serverStreams { // this was the only one
			cs.finish(nil)
		}
		return nil
	}
	if errors.Is(err, io.EOF) {
		cs.finish(nil)
	} else {
		cs.finish(err)
	}
	return err
}

// log logs a message. If the user's Payload does not return, nobody may be left who would end the stream, so the span
// ends here.
func (cs *clientStream) log(event string, number uint64, m any) {
	logged := false
	defer func() {
		if !logged {
			cs.sp.abort()
		}
	}()
	cs.sp.message(event, number, m)
	logged = true
}
