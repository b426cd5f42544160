package breaker

import (
	"context"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

// UnaryClientInterceptor is shorthand for the one of Breakers that nobody else shares. It panics on an invalid
// policy, being a programmer's error.
func UnaryClientInterceptor(p Policy) grpc.UnaryClientInterceptor {
	return mustNew(p).UnaryClientInterceptor()
}

// StreamClientInterceptor is shorthand for the one of Breakers that nobody else shares. It panics on an invalid
// policy, being a programmer's error.
func StreamClientInterceptor(p Policy) grpc.StreamClientInterceptor {
	return mustNew(p).StreamClientInterceptor()
}

// UnaryServerInterceptor is shorthand for the one of Breakers that nobody else shares. It panics on an invalid
// policy, being a programmer's error.
func UnaryServerInterceptor(p Policy) grpc.UnaryServerInterceptor {
	return mustNew(p).UnaryServerInterceptor()
}

// StreamServerInterceptor is shorthand for the one of Breakers that nobody else shares. It panics on an invalid
// policy, being a programmer's error.
func StreamServerInterceptor(p Policy) grpc.StreamServerInterceptor {
	return mustNew(p).StreamServerInterceptor()
}

// UnaryClientInterceptor guards a client's unary calls. Make it the innermost interceptor, so that every attempt
// of a retry asks the breaker.
func (b *Breakers) UnaryClientInterceptor() grpc.UnaryClientInterceptor { return b.unaryClient }

// StreamClientInterceptor guards a client's streams. A stream counts from its beginning until gRPC has ended it;
// see the package documentation on streams that are abandoned.
func (b *Breakers) StreamClientInterceptor() grpc.StreamClientInterceptor { return b.streamClient }

// UnaryServerInterceptor guards a server's unary handlers. A handler that panics counts as failed.
func (b *Breakers) UnaryServerInterceptor() grpc.UnaryServerInterceptor { return b.unaryServer }

// StreamServerInterceptor guards a server's streaming handlers. A handler that panics counts as failed.
func (b *Breakers) StreamServerInterceptor() grpc.StreamServerInterceptor { return b.streamServer }

// overAlready is what a call ends with whose context is over before anybody was asked: it would be a wasted probe.
func overAlready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return nil
}

// finished tells the grpc.OnFinish options of a call that gRPC never got to see, and so does not tell itself, that it
// ended with err.
func finished(opts []grpc.CallOption, err error) {
	for _, o := range opts {
		if o, ok := o.(grpc.OnFinishCallOption); ok {
			o.OnFinish(err)
		}
	}
}

func target(cc *grpc.ClientConn) string {
	if cc == nil { // in other people's tests
		return ""
	}
	return cc.Target()
}

func (b *Breakers) unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	w := &noWishes
	if len(opts) > 0 {
		w = wishes(opts)
	}
	if w.bypass {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	if err := overAlready(ctx); err != nil {
		finished(opts, err)
		return err
	}
	c := call{ctx: ctx, method: method}
	if e := b.enter(&c, target(cc), 0, w); e != nil {
		return c.turnAway(w, req, reply, opts, e)
	}
	if c.b == nil {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	returned := false
	defer func() {
		if !returned {
			c.abort()
		}
	}()
	inner := ctx
	if t := c.rule.timeout; t > 0 && !c.rule.dry {
		var cancel context.CancelFunc
		inner, cancel = context.WithTimeout(ctx, t)
		defer cancel()
		c.caller = ctx
	}
	c.begin(inner)
	err := invoker(inner, method, req, reply, cc, opts...)
	returned = true
	if c.finish(err) == outcome.Failure {
		return fallBack(ctx, c.fallback(w), c.rule.fallbackFails, method, req, reply, err)
	}
	return err
}

// turnAway ends a client's unary call that the breaker did not let through.
func (c *call) turnAway(w *callOption, req, reply any, opts []grpc.CallOption, e *Error) (err error) {
	err = e
	defer func() { finished(opts, err) }() // even if the fallback panics
	c.announce()
	err = fallBack(c.ctx, c.fallback(w), c.rule.fallbackFails, c.method, req, reply, e)
	return err
}

// fallback is the call's own or the policy's.
func (c *call) fallback(w *callOption) Fallback {
	switch {
	case c.rule.dry:
		return nil
	case w.fallback != nil:
		return w.fallback
	}
	return c.rule.fallback
}

func (b *Breakers) unaryServer(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := overAlready(ctx); err != nil {
		return nil, err
	}
	c := call{ctx: ctx, method: info.FullMethod}
	if e := b.enter(&c, "", serverBit, &noWishes); e != nil {
		c.announce()
		return c.serveFallback(ctx, req, nil, e)
	}
	if c.b == nil {
		return handler(ctx, req)
	}
	class, reply, err := c.handle(ctx, req, handler)
	if class == outcome.Failure {
		return c.serveFallback(ctx, req, reply, err)
	}
	return reply, err
}

// handle runs the handler of the admitted call and reports it.
func (c *call) handle(ctx context.Context, req any, handler grpc.UnaryHandler) (outcome.Class, any, error) {
	returned := false
	defer func() {
		if !returned {
			c.abort()
		}
	}()
	if t := c.rule.timeout; t > 0 && !c.rule.dry {
		var cancel context.CancelFunc
		c.caller = ctx
		ctx, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	c.begin(ctx)
	reply, err := handler(ctx, req)
	returned = true
	return c.finish(err), reply, err
}

// serveFallback answers instead of a handler. A reply cannot travel together with an error, so under FallbackFails
// nobody is asked; nor if the reply's type is not known.
func (c *call) serveFallback(ctx context.Context, req, reply any, err error) (any, error) {
	f := c.fallback(&noWishes)
	if f == nil || c.rule.fallbackFails {
		return reply, err
	}
	m := newReply(c.method)
	if m == nil {
		return reply, err
	}
	if err := fallBack(ctx, f, false, c.method, req, m, err); err != nil {
		return nil, err
	}
	return m, nil
}

func (b *Breakers) streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	w := wishes(opts)
	if w.bypass {
		return streamer(ctx, desc, cc, method, opts...)
	}
	if err := overAlready(ctx); err != nil {
		finished(opts, err)
		return nil, err
	}
	s := &clientStream{call: call{ctx: ctx, method: method, stream: true}, receives: desc.ServerStreams}
	if e := b.enter(&s.call, target(cc), 0, w); e != nil {
		s.announce()
		finished(opts, e)
		return nil, e
	}
	if s.b == nil {
		return streamer(ctx, desc, cc, method, opts...)
	}
	returned := false
	defer func() {
		if !returned && s.over.CompareAndSwap(false, true) {
			s.abort()
		}
	}()
	s.begin(ctx)
	// OnFinish comes however the stream ends, and to us before the others, who are further out: a retry that begins
	// another attempt there, or a span that is over then. A copy of opts, whose array concurrent calls may share.
	inner, err := streamer(ctx, desc, cc, method, append([]grpc.CallOption{grpc.OnFinish(s.end)}, opts...)...)
	returned = true
	if err != nil {
		s.end(err)
		return nil, err
	}
	s.ClientStream = inner
	return s, nil
}

// clientStream watches a stream's end. gRPC tells by OnFinish; RecvMsg tells too, because an interceptor further
// in may have made a stream that knows no OnFinish.
type clientStream struct {
	grpc.ClientStream
	call
	receives bool // any number of messages
	over     atomic.Bool
}

// end reports the end, once.
func (s *clientStream) end(err error) {
	if s.over.CompareAndSwap(false, true) {
		s.finish(err)
	}
}

// RecvMsg implements [grpc.ClientStream].
func (s *clientStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	switch {
	case err == io.EOF || err == nil && !s.receives:
		s.end(nil)
	case err != nil:
		s.end(err)
	default:
		s.passed()
	}
	return err
}

func (b *Breakers) streamServer(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx := ss.Context()
	if err := overAlready(ctx); err != nil {
		return err
	}
	c := &call{ctx: ctx, method: info.FullMethod, stream: true}
	if e := b.enter(c, "", serverBit, &noWishes); e != nil {
		c.announce()
		return e
	}
	if c.b == nil {
		return handler(srv, ss)
	}
	returned := false
	defer func() {
		if !returned {
			c.abort()
		}
	}()
	c.begin(ctx)
	if c.probe != 0 {
		ss = &serverStream{ss, c}
	}
	err := handler(srv, ss)
	returned = true
	c.finish(err)
	return err
}

// serverStream watches a probing stream for its first message.
type serverStream struct {
	grpc.ServerStream
	call *call
}

// SendMsg implements [grpc.ServerStream].
func (s *serverStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.call.passed()
	}
	return err
}
