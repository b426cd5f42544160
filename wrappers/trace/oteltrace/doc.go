// Package oteltrace is package trace for OpenTelemetry: spans for calls and attempts, and metrics.
//
//	tracing, err := oteltrace.New(oteltrace.Config{})            // the global providers
//	conn, err := grpc.NewClient("lb:///orders",
//		grpc.WithChainUnaryInterceptor(tracing.UnaryClientInterceptor(), retrier.UnaryClientInterceptor()),
//		grpc.WithChainStreamInterceptor(tracing.StreamClientInterceptor(), retrier.StreamClientInterceptor()))
//	stop, err := oteltrace.Watch(nil, oteltrace.Sources{Retriers: map[string]*retry.Retrier{"orders": retrier}})
//
// It is a module of its own, so that only who imports it downloads OpenTelemetry. It stands outermost in the chain,
// before ratelimit, retry and breaker, and changes nothing about a call but its metadata.
//
// # Spans
//
// The client's span has the method's name, "pkg.Service/Method". A retry in the chain gives it a child
// "attempt pkg.Service/Method" for every attempt, hedges included, and the server's span is the child of the attempt
// that reached it. Attributes are those of the semantic conventions for RPC (rpc.system.name, rpc.method,
// rpc.response.status_code, error.type, server.address, network.peer.address) and evenkeel's own: evenkeel.instance,
// evenkeel.filter, evenkeel.attempt, evenkeel.hedge, evenkeel.attempts. What retry, breaker, limiter and balancer
// decide about the call is an event of its span: "retry", "hedge", "breaker_refused", "limited" and their like.
// A client's span is an error with any status but OK, a server's only with one that is the server's own fault. The
// context travels by the configured propagator, W3C Trace Context and Baggage unless you say otherwise.
//
// # Metrics
//
// Calls record, sampled or not:
//
//	rpc.client.call.duration       s        histogram, by method and status (semantic conventions)
//	rpc.server.call.duration       s        the same for handlers
//	evenkeel.client.attempts       attempts histogram of attempts per call, by method and status
//	evenkeel.client.hedges_won     calls    decided by a hedge, by method
//
// [Watch] reports, whenever the reader collects, what the wrappers and the balancer know:
//
//	evenkeel.retry.budget          retries  that the budget would pay for now, by retrier
//	evenkeel.retry.refused         attempts that it did not pay for, by retrier and method
//	evenkeel.breaker.state         1        for the state (closed, open, half-open, recovering) that a breaker is in, else 0
//	evenkeel.breaker.rejected      calls    turned away, by breaker
//	evenkeel.ratelimit.rejected    calls    by limiter, scope and reason
//	evenkeel.ratelimit.concurrency calls    that the adaptive limit allows now, by limiter and scope
//	evenkeel.blacklist.size        instances that are blacklisted, by target
//	evenkeel.blacklist.ejections   instances that were put on it, by target
//	evenkeel.endpoints             instances by target and connectivity state
//
// # Ends
//
// Every span ends once: with the return of a unary call or handler, panics and runtime.Goexit included, and with the
// end of a stream, of which gRPC tells through grpc.OnFinish. An abandoned stream whose context is not cancelled keeps
// its span open.
//
// # What it costs
//
// With a noop TracerProvider and a noop MeterProvider a call costs some nanoseconds. Otherwise the attempts of every
// call are counted, so every call allocates, sampled or not: a microsecond or two beside a call that takes fifty.
package oteltrace
