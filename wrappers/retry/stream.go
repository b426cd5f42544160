package retry

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/clock"
)

// stream is a stream that another attempt can take the place of, until it is fixed: until its first message (or its
// header) was delivered, or the caller asked for its context, or sent a message on a client or bidirectional stream,
// or one that cannot be sent. Requests of server-streaming calls are kept until then, to be sent again; nothing else
// is. The timeouts hold until the first message was delivered.
//
// grpc allows one goroutine to send and one to receive at the same time. Whoever receives also retries; who sends
// meanwhile waits for it.
type stream struct {
	trial
	desc     *grpc.StreamDesc
	cc       *grpc.ClientConn
	streamer grpc.Streamer
	opts     []grpc.CallOption // of the caller, without OnFinish
	finish   func(error)       // calls the caller's OnFinish options; they may not be called twice

	// settled is set once, with the first message or at the end. Then current and err change no more and may be read
	// without mu.
	settled atomic.Bool

	mu       sync.Mutex // guards what follows; nothing else is called under it
	fixed    bool       // no other attempt takes current's place
	current  grpc.ClientStream
	attempt  *streamAttempt
	busy     chan struct{} // closed at the end of a retry under way, nil without one
	request  any           // what was sent, if hasSent
	hasSent  bool
	closed   bool        // CloseSend was called
	err      error       // what the stream ended with if no attempt was fixed
	finished bool        // finish was called, or is about to be
	stop     func() bool // of the pending report that the caller went away, nil without one
}

// streamAttempt is an attempt and what its stream knows about it, guarded by the stream's mu.
type streamAttempt struct {
	whole
	timer    clock.Timer
	timedOut bool
	ended    bool
	err      error // if ended
}

// stream is the interceptor.
func (r *Retrier) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, name string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	m := r.method(r.state.Load(), name)
	rules, exempt := m.rules, m.exempt
	for _, o := range opts {
		if o, ok := o.(policyOption); ok {
			rules, exempt = o.rules, false
		}
	}
	if exempt {
		return streamer(ctx, desc, cc, name, opts...)
	}
	m.budget(rules).deposit()
	m.begin()
	s := &stream{
		trial: trial{r: r, m: m, rules: rules, limits: rules.limits, ctx: ctx, name: name},
		desc:  desc, cc: cc, streamer: streamer,
	}
	s.opts, s.finish = withoutFinish(opts)
	s.obeyChain()
	if _, has := ctx.Deadline(); rules.timeout > 0 && !has && s.timeouts() {
		s.giveUpAt = r.clock.Now() + int64(rules.timeout)
	}
	err := errAborted
	defer func() {
		if err != nil {
			s.report(err)
		}
	}()
	if err = s.establish(); err != nil {
		return nil, err
	}
	return s, nil
}

// timeouts reports whether the policy's timeouts apply: they bound the wait for the one answer to one request.
func (s *stream) timeouts() bool { return !s.desc.ClientStreams && !s.rules.dryRun }

// establish makes attempts until one has a stream, on which it repeats what was sent. Its error is final.
func (s *stream) establish() error {
	for {
		if s.progress.attempts > 0 {
			clearTargets(s.opts) // as for unary calls
		}
		a := new(streamAttempt)
		s.count(&a.whole)
		cs, err := s.open(a)
		if err == nil {
			if s.install(a, cs); a.number() == 1 {
				return nil
			}
			if err = s.repeat(cs); err == nil {
				return nil
			}
			s.failed(&a.attempt, err)
			return s.giveUp(err, NotRetryable)
		}
		why, again := s.again(s.failed(&a.attempt, err))
		if !again {
			s.mu.Lock()
			s.current = nil // what there was belongs to an earlier attempt
			s.mu.Unlock()
			return s.giveUp(err, why)
		}
	}
}

// install makes a the stream's attempt.
func (s *stream) install(a *streamAttempt, cs grpc.ClientStream) {
	s.mu.Lock()
	s.current, s.attempt = cs, a
	final := a.ended && s.endedLocked(a)
	s.mu.Unlock()
	if final {
		s.report(a.err)
	}
}

// open starts the attempt a.
func (s *stream) open(a *streamAttempt) (cs grpc.ClientStream, err error) {
	ctx := s.ctx
	wait := s.patience()
	if wait > 0 {
		ctx, a.extra.cancel = context.WithCancel(ctx)
	}
	opts := s.prepare(&a.whole, ctx, callctx.Stream, s.opts)
	opts = append(opts, grpc.OnFinish(func(err error) { s.ended(a, err) }))
	a.start()
	if wait > 0 {
		a.timer = s.r.clock.AfterFunc(wait, func() { s.expire(a) })
	}
	err = errAborted
	defer func() {
		if err != nil { // grpc has said so already, if it got that far
			s.ended(a, err)
		}
	}()
	if cs, err = s.streamer(a.context(), s.desc, s.cc, s.name, opts...); err != nil {
		return nil, s.inTime(a, err)
	}
	return cs, nil
}

// patience is how long an attempt has until its first message, 0 for ever.
func (s *stream) patience() time.Duration {
	if !s.timeouts() {
		return 0
	}
	wait := s.rules.attemptTimeout
	if s.giveUpAt != 0 {
		left := max(time.Duration(s.giveUpAt-s.r.clock.Now()), 1)
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}

// expire ends an attempt that has had no message in time.
func (s *stream) expire(a *streamAttempt) {
	s.mu.Lock()
	a.timedOut = !s.settled.Load() && !a.ended
	timedOut := a.timedOut
	s.mu.Unlock()
	if timedOut {
		a.extra.cancel()
	}
}

// inTime returns err, or what it is if a's time ran out.
func (s *stream) inTime(a *streamAttempt, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inTimeLocked(a, err)
}

func (s *stream) inTimeLocked(a *streamAttempt, err error) error {
	switch {
	case !a.timedOut:
		return err
	case s.ctx.Err() != nil:
		return status.FromContextError(s.ctx.Err()).Err()
	}
	return status.Errorf(codes.DeadlineExceeded, "retry: no message within the attempt's time: %v", err)
}

// ended takes account of the end of a, of which grpc tells exactly once if it got that far.
func (s *stream) ended(a *streamAttempt, err error) {
	s.mu.Lock()
	if a.ended {
		s.mu.Unlock()
		return
	}
	err = s.inTimeLocked(a, err)
	a.ended, a.err = true, err
	if a.timer != nil {
		a.timer.Stop()
	}
	final := s.attempt == a && s.busy == nil && s.endedLocked(a)
	s.mu.Unlock()
	if err != nil && s.rules.chainStop && s.diagnose(&a.attempt, err).push == stayAway {
		s.endChain(err) // also if nobody decides about it, since the stream is fixed
	}
	a.over(err)
	if a.extra.cancel != nil {
		a.extra.cancel()
	}
	if final {
		s.report(err)
	}
}

// endedLocked reports whether the end of the current attempt is that of the stream. If not, then whoever receives
// next decides, and if nobody does, the stream ends when the caller's context ends.
func (s *stream) endedLocked(a *streamAttempt) bool {
	if a.err == nil || s.fixed || s.ctx.Err() != nil || s.progress.attempts >= s.limits.maxAttempts ||
		!s.limits.retryable(s.diagnose(&a.attempt, a.err), s.idempotent()) {
		return true
	}
	if s.stop == nil {
		s.stop = context.AfterFunc(s.ctx, func() { s.report(status.FromContextError(s.ctx.Err()).Err()) })
	}
	return false
}

// report tells the caller's OnFinish options how the stream ended, once.
func (s *stream) report(err error) {
	s.mu.Lock()
	done := s.finished
	s.finished = true
	s.unwatchLocked()
	s.mu.Unlock()
	if !done {
		s.finish(err)
	}
}

// unwatchLocked ends the wait for the end of the caller's context.
func (s *stream) unwatchLocked() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// repeat sends on a new stream what was sent on the one before. What fails here, receiving will tell.
func (s *stream) repeat(cs grpc.ClientStream) error {
	s.mu.Lock()
	request, sent, closed := s.request, s.hasSent, s.closed
	s.mu.Unlock()
	if sent {
		if err := cs.SendMsg(request); err != nil && err != io.EOF {
			return err
		}
	}
	if closed {
		return cs.CloseSend()
	}
	return nil
}

// lock takes mu when no retry is under way.
func (s *stream) lock() {
	for {
		s.mu.Lock()
		busy := s.busy
		if busy == nil {
			return
		}
		s.mu.Unlock()
		<-busy
	}
}

// fix makes the current stream the last one, if it is still a's and has not failed.
func (s *stream) fix(a *streamAttempt) bool {
	s.lock()
	if s.attempt != a || s.err != nil {
		s.mu.Unlock()
		return false
	}
	s.fixAndUnlock()
	return true
}

// deliver is fix, for the first message of a or its end, and with that the timeouts are over. It is false if they
// were already.
func (s *stream) deliver(a *streamAttempt) bool {
	s.lock()
	if s.attempt != a || s.err != nil || a.timedOut {
		s.mu.Unlock()
		return false
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	s.settled.Store(true)
	s.fixAndUnlock()
	if a.number() > 1 {
		s.m.retried(s.r.clock.Now(), true)
	}
	return true
}

// fixAndUnlock makes the current stream the last one. If it has ended already, that is now the end.
func (s *stream) fixAndUnlock() {
	s.fixed = true
	s.request = nil
	ended, err := s.attempt.ended && s.err == nil, s.attempt.err
	s.mu.Unlock()
	if ended {
		s.report(err)
	}
}

// retry decides whether another attempt follows a's failure, and if so has it take a's place; otherwise it returns
// what the stream ends with.
func (s *stream) retry(a *streamAttempt, err error) error {
	s.lock()
	switch {
	case s.attempt != a || s.err != nil: // somebody else has done it
		defer s.mu.Unlock()
		return s.err
	case s.fixed:
		s.mu.Unlock()
		s.report(err)
		return err
	}
	s.unwatchLocked()
	busy := make(chan struct{})
	s.busy = busy
	s.mu.Unlock()
	final := errAborted
	defer func() {
		s.mu.Lock()
		if s.busy = nil; final != nil {
			s.err = final
			s.request = nil
			s.fixed = true
			s.settled.Store(true)
		}
		s.mu.Unlock()
		close(busy)
		if final != nil {
			s.report(final)
		}
	}()
	if why, again := s.again(s.failed(&a.attempt, err)); !again {
		final = s.giveUp(err, why)
		return final
	}
	final = s.establish()
	return final
}
