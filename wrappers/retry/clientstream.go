package retry

import (
	"context"
	"io"

	"google.golang.org/grpc/metadata"
)

// The methods of grpc.ClientStream. Each works on the current attempt's stream.

// RecvMsg implements [grpc.ClientStream].
func (s *stream) RecvMsg(m any) error {
	if s.settled.Load() && s.err == nil {
		return s.current.RecvMsg(m)
	}
	for {
		s.lock()
		cs, a, err := s.current, s.attempt, s.err
		s.mu.Unlock()
		if err != nil {
			return err
		}
		err = cs.RecvMsg(m)
		if (err == nil || err == io.EOF) && s.deliver(a) {
			return err
		}
		for err == nil {
			// It came too late. a is cancelled; have grpc end it, and with it what it writes into the caller's
			// variables, before another attempt does.
			err = cs.RecvMsg(m)
		}
		if err = s.retry(a, s.inTime(a, err)); err != nil {
			return err
		}
	}
}

// Header implements [grpc.ClientStream].
func (s *stream) Header() (metadata.MD, error) {
	for {
		s.lock()
		cs, a, fixed := s.current, s.attempt, s.fixed
		s.mu.Unlock()
		if cs == nil {
			return nil, nil // the error is for RecvMsg to tell
		}
		md, err := cs.Header()
		if md != nil || err != nil {
			if fixed || s.fix(a) {
				return md, err
			}
			continue // somebody who receives has gone on to another attempt
		}
		// There is none because the attempt has ended.
		s.mu.Lock()
		err = a.err
		s.mu.Unlock()
		if fixed || err == nil || s.retry(a, err) != nil {
			return nil, nil
		}
	}
}

// SendMsg implements [grpc.ClientStream].
func (s *stream) SendMsg(m any) error {
	s.lock()
	cs, a := s.current, s.attempt
	switch {
	case s.fixed:
		s.mu.Unlock()
	case s.desc.ClientStreams: // nobody keeps this message
		s.fixAndUnlock()
	default:
		if !s.hasSent {
			s.request, s.hasSent = m, true
		}
		s.mu.Unlock()
	}
	if cs == nil {
		return io.EOF
	}
	err := cs.SendMsg(m)
	switch {
	case err == nil:
		return nil
	case err != io.EOF:
		return s.unsendable(a, err)
	case s.desc.ClientStreams:
		return err
	}
	return nil // as grpc has it: receiving tells, and may retry
}

// unsendable is what SendMsg returns when the message could not be sent on a's stream, which is the end of that.
func (s *stream) unsendable(a *streamAttempt, err error) error {
	if s.fix(a) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err // nil: whoever receives has sent it on another stream meanwhile
}

// CloseSend implements [grpc.ClientStream].
func (s *stream) CloseSend() error {
	s.lock()
	s.closed = true
	cs := s.current
	s.mu.Unlock()
	if cs == nil {
		return nil
	}
	return cs.CloseSend()
}

// Context implements [grpc.ClientStream]. As with grpc's own streams, asking for it ends all retries. The timeouts
// hold until the first message all the same.
func (s *stream) Context() context.Context {
	s.lock()
	cs := s.current
	s.fixAndUnlock()
	if cs == nil {
		return s.ctx
	}
	return cs.Context()
}

// Trailer implements [grpc.ClientStream].
func (s *stream) Trailer() metadata.MD {
	s.lock()
	cs := s.current
	s.mu.Unlock()
	if cs == nil {
		return nil
	}
	return cs.Trailer()
}
