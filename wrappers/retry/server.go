package retry

import (
	"context"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// chainKey is sent with calls that are part of answering a retry, so that a whole chain of services that stop there
// knows of it.
const chainKey = "evenkeel-answers-retry"

type previousKey struct{}

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
	if p, ok := ctx.Value(previousKey{}).(previous); ok {
		return p
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

func noted(ctx context.Context) context.Context {
	if p := readPrevious(ctx); p != (previous{}) {
		return context.WithValue(ctx, previousKey{}, p)
	}
	return ctx
}

// UnaryServerInterceptor lets handlers see which calls are retries ([PreviousAttempts]), and ChainStop too, even where
// the handler replaces the incoming metadata of its context. First attempts pass at no cost but a look.
func UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(noted(ctx), req)
	}
}

// StreamServerInterceptor is [UnaryServerInterceptor] for streams of every kind.
func StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx := stream.Context()
		if with := noted(ctx); with != ctx {
			stream = &serverStream{stream, with}
		}
		return handler(srv, stream)
	}
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *serverStream) Context() context.Context { return s.ctx }

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
