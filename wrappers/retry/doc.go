// Package retry tries failed gRPC calls again, on another endpoint, and sends slow ones twice.
//
// It is a pair of client interceptors, and one line gives a client the whole of it:
//
//	grpc.WithChainUnaryInterceptor(retry.UnaryClientInterceptor(retry.Policy{}))
//
// With the zero [Policy] a call has up to 3 attempts with a random wait of up to 25 ms, then 50 ms, in between. What
// is repeated depends on what the method is. A method that is declared idempotent, by the option idempotency_level in
// its proto file or by [Policy].Idempotent, is tried again after UNAVAILABLE (other Codes are a choice) and when an
// attempt ran into AttemptTimeout. Any other method is tried again only where it is certain that no handler ran:
//
//   - no connection could be had, or the one that was picked had gone, so grpc never had a stream for the attempt; an
//     inner interceptor that keeps the call options to itself makes that uncertain, and then there is no retry (one
//     that does so for a few of its calls only is not found out: pass them on);
//   - the server says so, by a trailer grpc-retry-pushback-ms of 0 or more.
//
// An error that forbids it, as that of an open breaker does by a method DoNotRetry() bool, is never followed by
// another attempt; nor is a negative pushback.
//
// Each attempt goes to another endpoint than those before where evenkeel's balancer picks, and to wherever any other
// balancer wants. No attempt is made that the deadline leaves no time for: the wait and the method's median latency
// must fit into what is left, or the call ends at once with the error that it has.
//
// The [Budget] is what makes retrying safe. It pays for retries and hedges with 20 % of the calls of the last ten
// seconds plus 10 a second, and refuses when it is empty; so a service that answers nothing but errors sees 1.2 times
// its load and not 3 times. Clients of one backend should share one.
//
// Hedging ([Hedge]) is for the slow call, not for the failed one: if there is no answer after a fixed delay, or after
// the time that 95 % of the calls take, another attempt is sent elsewhere, and the first good answer wins. The losers
// are cancelled, and the call returns when they have ended. Only unary calls of idempotent methods are hedged.
//
// Streams: a server-streaming call is tried again until its first message, or its header if that is asked for, was
// delivered; its request is kept until then. A client or bidirectional stream is tried again as long as the caller
// has sent nothing on it. Timeouts bound the time to the first message of a server-streaming call.
//
// The error at the end is the last attempt's, unchanged in code, message and details, and its [Error] tells what was
// tried, where, and for how long. The number of earlier attempts travels in the metadata grpc-previous-rpc-attempts,
// which [PreviousAttempts] reads in a handler.
//
// A chain of services multiplies retries: four layers of 3 attempts are 81. With ChainStop in the policies of the calls
// that handlers make, and this package's interceptors on the servers, the layer next to the failure retries, and tells
// those above, by the pushback that every gRPC client obeys, not to repeat what it gave up on, unless most retries
// succeed. A service that is answering a retry makes one attempt per call.
//
// It costs a call that succeeds one allocation, of 160 bytes where evenkeel's balancer picks and 224 elsewhere, and
// about a tenth of a microsecond, and no goroutine.
// A call with a timeout of its own or with hedging costs about a microsecond more.
//
// Why not grpc's own retries, in the service config? They have no timeout per attempt, no budget unless it is
// configured, no hedging, and pick the failed endpoint again as happily as any other. They run inside this package's
// attempts, and 3 times 3 is 9: switch them off with grpc.WithDisableRetry. Transparent retries of calls that never
// left the client stay on in any case, and are not attempts in the sense of this package.
//
// Do not use it for calls that somebody further out already repeats, such as a queue's consumer; nor instead of fixing
// a service that fails one call of five: the budget is for accidents. In a chain of interceptors it stands after those
// for tracing and rate limiting and before the one for breaking: one call takes one token, and every attempt asks the
// breaker.
package retry
