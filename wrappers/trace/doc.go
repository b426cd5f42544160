// Package trace shows where a call went and why: an OpenTracing span for every call, a child span for every attempt,
// and in them what retry, breaker, limiter and blacklist decided.
//
//	tracing, err := trace.New(trace.Config{Tracer: tracer})
//	conn, err := grpc.NewClient("lb:///orders",
//		grpc.WithChainUnaryInterceptor(tracing.UnaryClientInterceptor(), retrier.UnaryClientInterceptor()),
//		grpc.WithChainStreamInterceptor(tracing.StreamClientInterceptor(), retrier.StreamClientInterceptor()))
//	srv := grpc.NewServer(
//		grpc.ChainUnaryInterceptor(tracing.UnaryServerInterceptor()),
//		grpc.ChainStreamInterceptor(tracing.StreamServerInterceptor()))
//
// It stands outermost, before ratelimit, retry and breaker, so that it sees what they refuse. It changes nothing about
// a call but its metadata, refuses nothing, and therefore has no dry run.
//
// # What one sees
//
// The client's span has the method's full name, "/pkg.Service/Method". The server's has the same name and is its
// child. When a retry is in the chain, a span "attempt /pkg.Service/Method" stands between them for every attempt,
// hedges included, and the server's span is the child of the attempt that reached it. Tags say what the end was
// ([TagStatus]), which instance had been chosen ([TagInstance], from evenkeel's balancer), the address ([TagPeer]),
// the filter that the context carried ([TagFilter]), and which attempt it was ([TagAttempt]). Logs say what was
// decided on the way, each at its own time: "retry", "hedge", "breaker_refused", "limited", "ejected" and their like.
// Logs are handed to the tracer when the span ends. What happens after that, the end of a hedge that lost for one,
// is on the span of its attempt, or nowhere.
//
// A client's span fails (tag error) with any status but OK. A server's does so only with one that is the server's
// own fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS; a NOT_FOUND is an answer.
//
// Messages are not logged unless [Policy].Payloads asks for it, for they contain what people entrusted to you.
//
// # How the context travels
//
// In the metadata of the call, under the keys that the tracer gives, so that any OpenTracing server understands it.
// What HTTP/2 would not carry unharmed (baggage with bytes that are not printable ASCII, odd keys) goes, all of it,
// in one binary value, "evenkeel-trace-bin", and comes out unchanged on the other side. Keys that the outgoing
// metadata has from before, because a handler passed on what it had received, are replaced.
//
// # Ends
//
// Every span that starts ends once: with the return of a unary call or handler, panics and runtime.Goexit included,
// and with the end of a stream, of which gRPC tells through grpc.OnFinish. A client that abandons a stream without
// cancelling its context leaves its span open, as it leaves the stream open; cancel it. [State] counts what is open.
//
// # What it costs
//
// Without a tracer, or with OpenTracing's NoopTracer, a call costs some nanoseconds and no allocation. The same holds
// below a server span that is not sampled, because the server wrapper has put the decision into the handler's
// outgoing metadata once and for all. OpenTracing has no way to ask whether a span is sampled. What its
// implementations have in common is a SpanContext with a method IsSampled() bool (Jaeger's client and OpenTelemetry's
// bridge have it), so that is what counts, or [Config].Sampled for the others; who has neither is taken as sampled.
// Nothing can be known of a root before the tracer has started it, so a root costs at least what the tracer's
// StartSpan does.
//
// # When not to use it
//
// If your services speak OpenTelemetry, use package oteltrace beside this one, which does the same natively and has
// metrics. OpenTracing is a finished API: nothing is added to it, much still speaks it.
package trace
