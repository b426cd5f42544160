package ratelimit

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
)

// UnaryClientInterceptor is shorthand for that of a [Limiter] of its own. It panics on an invalid policy, and on
// one with an adaptive limit, which is for servers.
func UnaryClientInterceptor(p Policy) grpc.UnaryClientInterceptor {
	return mustClient(p).UnaryClientInterceptor()
}

// StreamClientInterceptor is shorthand for that of a [Limiter] of its own. It panics on an invalid policy, and on
// one with an adaptive limit, which is for servers.
func StreamClientInterceptor(p Policy) grpc.StreamClientInterceptor {
	return mustClient(p).StreamClientInterceptor()
}

// UnaryServerInterceptor is shorthand for that of a [Limiter] of its own. It panics on an invalid policy.
func UnaryServerInterceptor(p Policy) grpc.UnaryServerInterceptor {
	return must(p).UnaryServerInterceptor()
}

// StreamServerInterceptor is shorthand for that of a [Limiter] of its own. It panics on an invalid policy.
func StreamServerInterceptor(p Policy) grpc.StreamServerInterceptor {
	return must(p).StreamServerInterceptor()
}

func must(p Policy) *Limiter {
	l, err := New(Config{Policy: p})
	if err != nil {
		panic(err)
	}
	return l
}

func mustClient(p Policy) *Limiter {
	if p.Adaptive.Enabled {
		panic("ratelimit: adaptive.enabled = true, want false: the adaptive limit is for servers")
	}
	return must(p)
}

// UnaryClientInterceptor limits the unary calls that a client makes. A call that has to wait does so here, before
// anything is sent, and a call that is refused is not sent; its grpc.OnFinish options are told of the refusal.
func (l *Limiter) UnaryClientInterceptor() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
		opts ...grpc.CallOption) error {

		s := l.settings.Load()
		e, ok := s.table.Applies(method)
		if !ok || e.Rate == 0 {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		w := wishesOf(opts)
		if w.bypass {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		n := w.costOf(ctx, s, e, method, req)
		k := s.clientID(ctx, e, method, cc)
		if b := l.pass(e, &k, n); b != nil {
			a := ask{s: s, e: e, method: method, id: k, n: n, wait: w.waitsBy(e), client: true}
			if _, err := l.scarce(ctx, b, &a); err != nil {
				return finished(opts, err)
			}
		}
		e.counts.admitted.Add(1)
		return invoke(ctx, method, req, reply, cc, opts...)
	}
}

// StreamClientInterceptor limits the streams that a client starts, and with MessageCost the messages that it sends
// on client and bidi streams from the second one on. A message that is refused ends the stream, as gRPC's contract
// for a failed SendMsg says: the error of both SendMsg and RecvMsg is the refusal, and so is what grpc.OnFinish
// options are told, once. Messages are judged by the policy that holds when they are sent, whatever held when the
// stream began: so every client and bidi stream is watched, for about a microsecond at its start, and a few
// nanoseconds a message while that costs nothing.
func (l *Limiter) StreamClientInterceptor() grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {

		w := wishesOf(opts)
		if w.bypass {
			return streamer(ctx, desc, cc, method, opts...)
		}
		s := l.settings.Load()
		e, ok := s.table.Applies(method)
		var k id
		if ok && e.Rate > 0 {
			n := w.costOf(ctx, s, e, method, nil)
			k = s.clientID(ctx, e, method, cc)
			if b := l.pass(e, &k, n); b != nil {
				a := ask{s: s, e: e, method: method, id: k, n: n, wait: w.waitsBy(e), client: true}
				if _, err := l.scarce(ctx, b, &a); err != nil {
					return nil, finished(opts, err)
				}
			}
			e.counts.admitted.Add(1)
		}
		if !desc.ClientStreams {
			return streamer(ctx, desc, cc, method, opts...)
		}
		m := messages{l: l, ask: ask{s: s, method: method, id: k, wait: w.wait, client: true}, fixed: w.waits}
		m.judgeBy(e, ok)
		return l.startClientStream(ctx, m, desc, cc, streamer, opts)
	}
}

// UnaryServerInterceptor limits the unary calls that reach handlers: first by tokens, then by the adaptive limit. A
// call that is refused has spent its tokens if it was the latter. Place it outside of what does work for a call
// (authentication against a database, say), but inside of what Key depends on.
func (l *Limiter) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		s := l.settings.Load()
		e, ok := s.table.Applies(info.FullMethod)
		if !ok || e.idle() {
			return handler(ctx, req)
		}
		var n int
		var k id
		if e.Rate > 0 {
			n = s.cost(ctx, e, info.FullMethod, req)
			k = s.serverID(ctx, e, info.FullMethod)
			if b := l.pass(e, &k, n); b != nil {
				r, err := l.scarce(ctx, b, &ask{s: s, e: e, method: info.FullMethod, id: k, n: n, wait: e.Wait})
				if r != nil && err != nil {
					_ = grpc.SetTrailer(ctx, r.pushback()) // fails only outside of a server
				}
				if err != nil {
					return nil, err
				}
			}
		}
		if e.gate != nil {
			return l.gated(ctx, &ask{s: s, e: e, method: info.FullMethod, id: k, n: n}, req, handler)
		}
		e.counts.admitted.Add(1)
		return handler(ctx, req)
	}
}

// gated runs the handler if the adaptive limit lets it.
func (l *Limiter) gated(ctx context.Context, a *ask, req any, handler grpc.UnaryHandler) (any, error) {
	gate := a.e.gate
	remaining := outcome.NoDeadline
	if deadline, ok := ctx.Deadline(); ok {
		remaining = l.clock.Until(deadline)
	}
	began := l.clock.Now()
	v, t, expected := gate.arrive(began, a.method, remaining)
	if v != enter {
		r := a.turnedAway(v, expected, remaining)
		if err := l.refuse(ctx, a, r); err != nil {
			_ = grpc.SetTrailer(ctx, r.pushback())
			return nil, err
		}
		a.e.counts.admitted.Add(1)
		return handler(ctx, req)
	}
	a.e.counts.admitted.Add(1)
	end := silent // what a panic and runtime.Goexit leave it at
	defer func() { gate.leave(l.clock.Now(), began, t, end) }()
	resp, err := handler(ctx, req)
	switch outcome.Code(err) {
	case codes.OK:
		end = served
	case codes.DeadlineExceeded:
		end = timedOut
	}
	return resp, err
}

// StreamServerInterceptor limits the streams that reach handlers: their start, and with MessageCost the messages
// that come on client and bidi streams from the second one on, where RecvMsg waits or returns the refusal. Messages
// are judged by the policy that holds when they come, whatever held when the stream began. The adaptive limit refuses a stream that comes while unary calls fill it; a stream does not occupy a place, and its
// duration teaches nothing, since it lasts as long as it lasts.
func (l *Limiter) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		s := l.settings.Load()
		e, ok := s.table.Applies(info.FullMethod)
		a := ask{s: s, e: e, method: info.FullMethod}
		if ok && !e.idle() {
			a.wait = e.Wait
			if r, err := l.startServerStream(ss.Context(), &a); err != nil {
				if r != nil {
					ss.SetTrailer(r.pushback())
				}
				return err
			}
		}
		if info.IsClientStream {
			m := messages{l: l, ask: a}
			m.judgeBy(e, ok)
			ss = &serverStream{ServerStream: ss, messages: m}
		}
		return handler(srv, ss)
	}
}

// startServerStream takes the tokens of a stream's start, and says whose stream it is. With an error the refusal is
// returned too, unless the error is that ctx has ended.
func (l *Limiter) startServerStream(ctx context.Context, a *ask) (*refusal, error) {
	if a.e.Rate > 0 {
		a.n = a.s.cost(ctx, a.e, a.method, nil)
		a.id = a.s.serverID(ctx, a.e, a.method)
		if b := l.pass(a.e, &a.id, a.n); b != nil {
			if r, err := l.scarce(ctx, b, a); err != nil {
				return r, err
			}
		}
	}
	if a.e.gate != nil {
		if expected, ok := a.e.gate.glance(l.clock.Now()); !ok {
			r := a.turnedAway(full, expected, 0)
			if err := l.refuse(ctx, a, r); err != nil {
				return r, err
			}
		}
	}
	a.e.counts.admitted.Add(1)
	return nil, nil
}

// pass takes n tokens from the bucket of k; if they are not there it returns the bucket. It does not allocate; what
// only a call that does not pass needs is put together after it.
func (l *Limiter) pass(e *entry, k *id, n int) *bucket {
	now := l.clock.Now()
	b := e.bucket(now, k)
	if b.allow(now, n) {
		return nil
	}
	return b
}

// scarce is for when the tokens that a asks for are not in b: it refuses, or takes them after waiting. With an
// error the refusal is returned too, unless the error is that ctx has ended.
func (l *Limiter) scarce(ctx context.Context, b *bucket, a *ask) (*refusal, error) {
	if err := ctx.Err(); err != nil && !a.s.DryRun { // nobody waits for an answer, and nobody need hear of a limit
		return nil, status.FromContextError(err).Err()
	}
	now := l.clock.Now()
	if !a.wait {
		r := a.tooMany(b.shortfall(now, a.n))
		return r, l.refuse(ctx, a, r)
	}
	deadline, ok := ctx.Deadline()
	remaining := time.Duration(0)
	if ok {
		remaining = l.clock.Until(deadline)
	}
	wait, back, granted := b.reserve(now, a.n, a.e.patience(ok, remaining))
	if !granted {
		r := a.tooMany(wait)
		return r, l.refuse(ctx, a, r)
	}
	if wait == 0 {
		return nil, nil
	}
	a.e.counts.waited.Add(1)
	callctx.Report(ctx, callctx.Event{Kind: callctx.Waited, By: "ratelimit", Delay: wait, Detail: a.e.scope, DryRun: a.s.DryRun})
	if a.s.DryRun {
		return nil, nil
	}
	a.e.counts.waiting.Add(1)
	defer a.e.counts.waiting.Add(-1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil, nil
	case <-ctx.Done():
		b.giveBack(l.clock.Now(), back)
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// refuse counts and reports a refusal, and returns it as an error unless it is a dry run.
func (l *Limiter) refuse(ctx context.Context, a *ask, r *refusal) error {
	a.e.counts.refused[r.Reason].Add(1)
	r.RetryIn = spread(r.RetryIn, l.rand())
	if a.s.OnLimit != nil {
		a.s.OnLimit(r.Event)
	}
	callctx.Report(ctx, callctx.Event{Kind: callctx.Limited, By: "ratelimit", Delay: r.RetryIn, Detail: r.Scope, DryRun: a.s.DryRun})
	if a.s.DryRun {
		return nil
	}
	return r.err()
}
