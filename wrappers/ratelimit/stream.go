package ratelimit

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// messages takes tokens for the messages of one stream. It is used by one goroutine at a time, as SendMsg and
// RecvMsg each are.
type messages struct {
	l     *Limiter
	ask   ask  // of the stream's start; e is nil while messages pass because the method is exempt
	fixed bool // an option says whether they wait, not the policy
	first bool
}

// judgeBy sets the policy by which messages are judged; if it does not apply to the method they pass.
func (m *messages) judgeBy(e *entry, applies bool) {
	if !applies {
		m.ask.e = nil
		return
	}
	m.ask.e = e
	if !m.fixed {
		m.ask.wait = e.Wait
	}
}

// next takes the tokens of one more message; the first belongs to the stream's start. Each message is judged by the
// policy that holds when it comes.
func (m *messages) next(ctx context.Context, identify func(*settings, *entry) id) (*refusal, error) {
	if !m.first {
		m.first = true
		return nil, nil
	}
	if s := m.l.settings.Load(); s != m.ask.s {
		m.ask.s = s
		m.judgeBy(s.table.Applies(m.ask.method))
		if e := m.ask.e; e != nil && e.Rate > 0 {
			m.ask.id = identify(s, e)
		}
	}
	e := m.ask.e
	if e == nil || e.Rate == 0 || e.MessageCost == 0 {
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

// RecvMsg implements [grpc.ServerStream].
func (st *serverStream) RecvMsg(m any) error {
	if err := st.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	// No pushback: this handler has begun, so that nobody may conclude that nothing was done.
	ctx := st.Context()
	_, err := st.next(ctx, func(s *settings, e *entry) id { return s.serverID(ctx, e, st.ask.method) })
	return err
}

// clientStream takes tokens for what it sends. A message that is refused ends the stream, and gRPC, whose context is
// cancelled for it, would call that CANCELLED. So the refusal, if it came before gRPC's own end, is what everybody is
// told: who sends, who receives, and the OnFinish options.
type clientStream struct {
	grpc.ClientStream
	messages
	ctx    context.Context // the stream's; to ask ClientStream.Context for it would disable retries
	cc     *grpc.ClientConn
	cancel context.CancelFunc
	finish func(error) // calls the caller's OnFinish options

	mu      sync.Mutex // guards what follows; nothing is called under it
	over    bool       // gRPC has ended the stream
	refusal error      // of a message, if that ended the stream
}

// errAborted stands for the end of a stream whose start panicked or called runtime.Goexit.
var errAborted = status.Error(codes.Aborted, "ratelimit: the call's goroutine panicked or exited")

func (l *Limiter) startClientStream(ctx context.Context, m messages, desc *grpc.StreamDesc, cc *grpc.ClientConn,
	streamer grpc.Streamer, opts []grpc.CallOption) (grpc.ClientStream, error) {

	st := &clientStream{messages: m, cc: cc}
	opts, st.finish = withoutFinish(opts)
	st.ctx, st.cancel = context.WithCancel(ctx)
	err := errAborted
	defer func() {
		if err != nil { // gRPC has said so already, if it got that far
			st.ended(err)
		}
	}()
	st.ClientStream, err = streamer(st.ctx, desc, cc, m.ask.method, append(opts, grpc.OnFinish(st.ended))...)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// ended is called when gRPC has ended the stream. Only the first call counts.
func (st *clientStream) ended(err error) {
	st.mu.Lock()
	first := !st.over
	st.over = true
	if st.refusal != nil {
		err = st.refusal
	}
	st.mu.Unlock()
	if first {
		st.cancel()
		st.finish(err)
	}
}

// refuse notes that err, a refusal, ends the stream. It reports false if it has ended by itself.
func (st *clientStream) refuse(err error) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over {
		return false
	}
	st.refusal = err
	return true
}

// refused is the refusal that ended the stream, nil if none did.
func (st *clientStream) refused() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.refusal
}

// SendMsg implements [grpc.ClientStream].
func (st *clientStream) SendMsg(m any) error {
	if st.refused() != nil {
		return io.EOF // the stream has ended, and RecvMsg says how
	}
	r, err := st.next(st.ctx, func(s *settings, e *entry) id { return s.clientID(st.ctx, e, st.ask.method, st.cc) })
	if err != nil && r != nil && st.refuse(err) {
		st.cancel() // a SendMsg that fails ends the stream, says grpc.ClientStream
		return err
	}
	return st.ClientStream.SendMsg(m) // which knows best what to say if the stream has ended during a wait
}

// RecvMsg implements [grpc.ClientStream].
func (st *clientStream) RecvMsg(m any) error {
	err := st.ClientStream.RecvMsg(m)
	if err != nil {
		if refusal := st.refused(); refusal != nil {
			return refusal
		}
	}
	return err
}
