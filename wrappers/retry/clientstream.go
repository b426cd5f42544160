package retry

import (
	"context"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The methods of grpc.ClientStream. Each works on the current attempt's stream.

// RecvMsg implements [grpc.ClientStream].
func (s *stream) RecvMsg(m any) error {
	for {
		if s.fixed.Load() {
			if s.err != nil {
				return s.err
			}
			return s.current.RecvMsg(m)
		}
		s.lock()
		cs, a := s.current, s.attempt
		s.mu.Unlock()
		err := cs.RecvMsg(m)
		if err == nil || err == io.EOF {
			if s.fix(a) || s.fixed.Load() {
				return err
			}
			err = status.Error(codes.Canceled, "retry: the message came too late")
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
		cs, a, err := s.current, s.attempt, s.err
		s.mu.Unlock()
		if err != nil && cs == nil {
			return nil, nil // the error is for RecvMsg to tell
		}
		md, err := cs.Header()
		if err != nil || md != nil && s.fix(a) || s.fixed.Load() {
			return md, err
		}
		// There is no header because the attempt has failed, or there was one too late.
		s.mu.Lock()
		err = a.err
		s.mu.Unlock()
		if err == nil && md == nil {
			return nil, nil
		}
		if err == nil {
			err = status.Error(codes.Canceled, "retry: the header came too late")
		}
		if s.retry(a, s.inTime(a, err)) != nil {
			return nil, nil
		}
	}
}

// SendMsg implements [grpc.ClientStream].
func (s *stream) SendMsg(m any) error {
	s.lock()
	cs := s.current
	switch {
	case s.fixed.Load():
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
	if err == io.EOF && !s.desc.ClientStreams {
		return nil // as grpc has it: receiving tells, and may retry
	}
	return err
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

// Context implements [grpc.ClientStream]. As with grpc's own streams, asking for it ends all retries.
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
