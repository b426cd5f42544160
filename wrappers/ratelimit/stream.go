package ratelimit

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
)

// messages takes tokens for the messages of one stream. It is used by one goroutine at a time, as SendMsg and
// RecvMsg each are.
type messages struct {
	l     *Limiter
	ask   ask // of the stream's start
	first bool
}

// next takes the tokens of one more message; the first belongs to the stream's start. Each message is judged by the
// policy that holds when it comes.
func (m *messages) next(ctx context.Context, identify func(*settings, *entry) id) (*refusal, error) {
	if !m.first {
		m.first = true
		return nil, nil
	}
	s := m.l.settings.Load()
	if s != m.ask.s {
		e, ok := s.table.Applies(m.ask.method)
		if !ok {
			return nil, nil
		}
		m.ask.s, m.ask.e = s, e
		m.ask.id = identify(s, e)
	}
	e := m.ask.e
	if e.Rate == 0 || e.MessageCost == 0 {
		return nil, nil
	}
	b := m.l.pass(e, &m.ask.id, e.MessageCost)
	if b == nil {
		return nil, nil
	}
	a := m.ask
	a.n, a.message = e.MessageCost, true
	return m.l.scarce(ctx, b, &a)
}

// serverStream takes tokens for what it receives.
type serverStream struct {
	grpc.ServerStream
	messages
}

func (st *serverStream) RecvMsg(m any) error {
	if err := st.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	// No pushback: this handler has begun, so that nobody may conclude that nothing was done.
	ctx := st.Context()
	_, err := st.next(ctx, func(s *settings, e *entry) id { return s.serverID(ctx, e, st.ask.method) })
	return err
}

// clientStream takes tokens for what it sends.
type clientStream struct {
	grpc.ClientStream
	messages
	ctx     context.Context // the stream's; to ask ClientStream.Context for it would disable retries
	cc      *grpc.ClientConn
	cancel  context.CancelFunc
	refused atomic.Pointer[error]
}

func (l *Limiter) startClientStream(ctx context.Context, a ask, desc *grpc.StreamDesc, cc *grpc.ClientConn,
	streamer grpc.Streamer, opts []grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	// Behind the caller's options, in a slice of our own: the caller may use its again.
	opts = append(opts[:len(opts):len(opts)], grpc.OnFinish(func(error) { cancel() }))
	inner, err := streamer(ctx, desc, cc, a.method, opts...)
	if err != nil {
		cancel()
		return nil, err
	}
	m := messages{l: l, ask: a}
	return &clientStream{ClientStream: inner, messages: m, ctx: ctx, cc: cc, cancel: cancel}, nil
}

func (st *clientStream) SendMsg(m any) error {
	r, err := st.next(st.ctx, func(s *settings, e *entry) id { return s.clientID(st.ctx, e, st.ask.method, st.cc) })
	if err != nil && r != nil {
		st.refused.CompareAndSwap(nil, &err)
		st.cancel() // a SendMsg that fails ends the stream, says grpc.ClientStream
		return err
	}
	return st.ClientStream.SendMsg(m) // which knows best what to say if the stream has ended during a wait
}

func (st *clientStream) RecvMsg(m any) error {
	err := st.ClientStream.RecvMsg(m)
	if refused := st.refused.Load(); err != nil && refused != nil {
		return *refused
	}
	return err
}
