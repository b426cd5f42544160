package retry

import (
	"context"
	"strconv"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/evenkeel/evenkeel/outcome"
)

// chainKey is sent with calls that are part of answering a retry, so that a whole chain of services that stop there
// knows of it.
const chainKey = "evenkeel-answers-retry"

// previous is what the metadata of an incoming call say about retries.
type previous struct {
	attempts int
	chain    bool // the caller itself answers a retry
}

// PreviousAttempts is how often the call that a handler serves was tried before: 0 for a first attempt, and for a
// context that is not a handler's. Clients with this package send the number, and so do gRPC's own retries.
func PreviousAttempts(ctx context.Context) int { return before(ctx).attempts }

// answersRetry reports whether ctx is that of a handler that serves a retry, or that was called by one who does.
func answersRetry(ctx context.Context) bool {
	p := before(ctx)
	return p.attempts > 0 || p.chain
}

func before(ctx context.Context) previous {
	if s := servingIn(ctx); s != nil && s.previous != (previous{}) {
		return s.previous
	}
	return readPrevious(ctx)
}

// readPrevious looks into the incoming metadata. Where both this package and grpc retry there are two numbers.
func readPrevious(ctx context.Context) (p previous) {
	for _, v := range metadata.ValueFromIncomingContext(ctx, attemptsKey) {
		if n, err := strconv.ParseUint(v, 10, 16); err == nil {
			p.attempts = max(p.attempts, int(n))
		}
	}
	p.chain = len(metadata.ValueFromIncomingContext(ctx, chainKey)) > 0
	return p
}

// serving is a handler's context, and what is known about the call that the handler serves: one allocation.
type serving struct {
	context.Context
	previous previous
	// ended has bit n set if a call that the handler made ended with codes.Code(n), and nobody further up is to repeat it.
	ended atomic.Uint32
}

type servingKey struct{}

// Value implements [context.Context].
func (s *serving) Value(k any) any {
	if _, ok := k.(servingKey); ok {
		return s
	}
	return s.Context.Value(k)
}

// servingIn is the innermost handler's that ctx belongs to, nil if there is none with the interceptor.
func servingIn(ctx context.Context) *serving {
	s, _ := ctx.Value(servingKey{}).(*serving)
	return s
}

// endChain notes that a call of the handler ended with c, and that nobody further up is to repeat it. A handler that makes
// calls for hours needs no more room for that than any other.
func (s *serving) endChain(c codes.Code) {
	if c < 32 {
		s.ended.Or(1 << c)
	}
}

// returned takes account of what the handler returned. If it fails with the code of a call of its own that nobody is to
// repeat, then it passes on that failure, and its caller is told not to retry: by set, which sets the trailer. Any other
// end is the handler's own, and a pushback that it has set itself stands.
func (s *serving) returned(err error, set func(metadata.MD)) {
	if err == nil {
		return
	}
	ended := s.ended.Load()
	if c := outcome.Code(err); ended == 0 || c >= 32 || ended>>c&1 == 0 {
		return
	}
	// Two values would mean no as well (gRFC A6). grpc's streams tell what was set.
	ts, _ := grpc.ServerTransportStreamFromContext(s.Context).(interface{ Trailer() metadata.MD })
	if ts == nil || len(ts.Trailer()[pushbackKey]) == 0 {
		set(metadata.Pairs(pushbackKey, "-1"))
	}
}

// UnaryServerInterceptor lets handlers see which calls are retries ([PreviousAttempts]), and is the server's half of
// [Policy].ChainStop: the handler's own calls know that they are part of answering a retry, even where the handler
// replaces the incoming metadata of its context, and when they gave up, the caller is told not to retry what the
// handler fails with. Give those calls the handler's context, or one that is made from it. It costs a call one
// allocation.
func UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		s := &serving{Context: ctx, previous: readPrevious(ctx)}
		reply, err := handler(s, req)
		s.returned(err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }) // fails only outside of a server
		return reply, err
	}
}

// StreamServerInterceptor is [UnaryServerInterceptor] for streams of every kind.
func StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx := stream.Context()
		s := &serverStream{stream, serving{Context: ctx, previous: readPrevious(ctx)}}
		err := handler(srv, s)
		s.serving.returned(err, stream.SetTrailer)
		return err
	}
}

type serverStream struct {
	grpc.ServerStream
	serving serving
}

func (s *serverStream) Context() context.Context { return &s.serving }

// announce puts into the outgoing metadata how many attempts there were before, and that the caller answers a retry.
func announce(ctx context.Context, attempts int, chain bool) context.Context {
	if attempts == 0 && !chain {
		return ctx
	}
	md, ok := metadata.FromOutgoingContext(ctx) // a copy
	if !ok {
		md = make(metadata.MD, 1)
	}
	if attempts > 0 {
		md.Set(attemptsKey, strconv.Itoa(attempts)) // replaces what a proxy passes on
	}
	if chain {
		md.Set(chainKey, "1")
	}
	return metadata.NewOutgoingContext(ctx, md)
}
