// Package ratelimit keeps a client from sending more than it may, and a server from taking more than it can.
//
// Two limits, for two questions. "How many calls a second is this caller entitled to?" is a number that somebody
// decided: a token bucket, on golang.org/x/time/rate, on either side. "How many calls can this server work on at
// once?" is a number that nobody knows and that changes with every deployment: an adaptive limit, on the server's
// side, which finds it out. Use the first for fairness and quotas, the second against overload; a fixed rate that
// is meant to protect a server is too low on a good day and too high on a bad one.
//
//	conn, err := grpc.NewClient(target, grpc.WithChainUnaryInterceptor(
//		ratelimit.UnaryClientInterceptor(ratelimit.Policy{Rate: 100, Burst: 10}))) // refuses the 101st
//
//	l, err := ratelimit.New(ratelimit.Config{
//		Policy: ratelimit.Policy{Adaptive: ratelimit.Adaptive{Enabled: true}}, // sheds what it cannot do
//	})
//	s := grpc.NewServer(
//		grpc.ChainUnaryInterceptor(l.UnaryServerInterceptor()),
//		grpc.ChainStreamInterceptor(l.StreamServerInterceptor()))
//
// # What happens to a call
//
// A call, or the start of a stream, takes Cost tokens from the bucket of its policy: the most exact of
// Config.Methods, else Config.Policy. One bucket serves all methods of a policy, or one each (PerMethod), and all
// callers, or one each (Key). If the tokens are there the call goes on. If not, it is refused; with Wait it waits
// for them, in the order of arrival, unless they would come after its deadline: then it is refused at once, since
// waiting would help nobody. On a server a unary call then needs a place under the adaptive limit; it is refused
// if there is none, or if calls to its method lately took longer than its deadline leaves it. Nobody waits for a
// place: a queue in front of an overloaded server is how the overload becomes an outage.
//
// A refusal is RESOURCE_EXHAUSTED with a google.rpc.RetryInfo that says when to come back (later by up to a half,
// at random, so that not all do at once). A server adds the trailer grpc-retry-pushback-ms, by which gRPC's own
// retry and evenkeel's know that no handler ran. Package outcome calls it soft: a balancer gives the instance
// less, and does not take it out. A call that costs more than its bucket can ever hold is told not to retry.
//
// A client's call may say otherwise for itself: [WithCost], [WithWait], and [Bypass], which lets it pass.
//
// Health checks and reflection pass, unless Config.Methods names them: a limiter that refuses health checks takes a
// server out of service when it is needed most.
//
// # Streams
//
// Starting a stream counts as a call. What flows on it is free, or costs MessageCost for each request message of a
// client or bidi stream from the second one on; responses are free always. A refused message ends the stream.
// Streams are refused while the adaptive limit is reached, and do not count towards it: how long a stream lasts
// says nothing about load.
//
// # Many callers
//
// With Key each caller has a bucket, made on demand and forgotten when it is full again. There are MaxKeys at
// most; callers beyond share one. So memory is bounded, and so is what somebody gains by inventing names. A key
// that callers choose themselves, such as a metadata value that nobody verified, limits the honest only: prefer
// "func" with the identity that authentication established.
//
// # What it costs
//
// A call that passes allocates nothing here, waits for no lock but its bucket's, and costs less than 1.5 times
// rate.Limiter's Allow. A client or bidi stream is watched to its end, since an Update may set MessageCost while it
// runs: 7 small allocations on a client, one on a server. PerMethod and Key add a map behind a mutex of the policy; a metadata key costs gRPC's copy
// of the value. The adaptive limit is another mutex, twice a call, for well under a microsecond. A refusal costs
// some microseconds, mostly for its details: cheap beside most handlers, but a flood has to be stopped further out.
//
// # When not to use it
//
// Limits are per process: ten servers with 100 calls a second each are a thousand, and nothing here talks to the
// others. A limit on one client's connections in number, or bytes, is gRPC's business (MaxConcurrentStreams). To
// stop calling a server that fails, use package breaker. Documentation for users is in docs/ratelimit.md, reasons
// are in ADR-0013.
package ratelimit
