// Package breaker stops calling what is down, and lets it come back gently.
//
// A client that goes on calling a service which hangs or fails spends its own goroutines and deadlines on errors,
// and keeps the service from recovering. A circuit breaker counts, and after too many failures turns calls away at
// once, for a few seconds. Then it lets one call through as a probe. With no options at all,
//
//	grpc.WithChainUnaryInterceptor(breaker.UnaryClientInterceptor(breaker.Policy{}))
//
// each method of each connection has a breaker of its own. It opens after 10 failures in a row, or when half of 20
// calls or more within 10 s failed; it stays open for 5 s; a probe that succeeds within 5 s closes it; and from
// then on the share of the calls that pass grows from 10 % to 100 % within 10 s, since a service that has just
// come back is the one that a full load kills. [Policy] has the knobs and says what each means when it is zero.
//
// The engine is github.com/sony/gobreaker, in its two-step form: one question before the call, one report after
// it. What this package adds is what a gRPC client needs around that: which breaker a call belongs to ([Key]),
// what counts as a failure (package outcome, the same as for the balancer's blacklist and for retries), streams, a
// limit for calls in flight, slow calls, probes that hang, the gentle return, fallbacks, and changing all of it
// while calls are running. [New] makes [Breakers] with a [Config]; give the unary and the streaming interceptor of
// the same Breakers to one client or server, or to several.
//
// # The life of a call
//
// Its method decides the policy, and the policy's Key decides the breaker, which is made when it is first needed.
// A call whose context is over ends right there, since it would be a wasted probe. MaxConcurrent is asked first,
// then the ramp of a breaker that is recovering, then gobreaker. What is turned away ends with an [*Error]:
// UNAVAILABLE, with the breaker's name, since when and until when it is open, and the last failure. Retries do not
// repeat it. What passes is reported exactly once, whatever happens: an answer, an error, a cancelled context, a
// panic, runtime.Goexit, a stream's end. A panic is the caller's doing on a client and says nothing; on a server
// it is the handler's failure.
//
// An end says something only about the state in which the call began: what was sent while the breaker was closed
// does not decide anything when it is half-open. Business errors such as NOT_FOUND count neither way, but they do
// satisfy a probe: the service answers. UNKNOWN and INTERNAL may be business errors too, so a run of those opens a
// breaker only if half of the window failed as well.
//
// # Streams
//
// A stream asks when it is opened and is reported when it ends: by gRPC's OnFinish on a client, by the handler's
// return on a server. It holds its place of MaxConcurrent for that long. One that is abandoned without cancelling
// its context has not ended, on the server least of all, and is in flight until the connection is closed; cancel
// contexts. Streams are never slow, have no Timeout and no Fallback. How a stream older than Window ends is not
// counted, because that is about the time when it began; a unary call counts at its end, however long it took. A
// probing stream passes with the first message from the service.
//
// # One call's own wishes
//
// [Bypass] leaves a call alone, [WithKey] gives it another breaker, [WithFallback] another fallback, and [WithOverride]
// what else is decided for each call by itself, its Timeout for one. Thresholds are not: they are about what all calls
// of a breaker have in common.
//
// # Where it stands
//
// Interceptors, outermost first: trace, ratelimit, retry, breaker. So each attempt of a retry asks the breaker. On
// a server the breaker turns calls away with an ordinary UNAVAILABLE, which the client's retry may well take
// elsewhere.
//
// # What it costs
//
// A successful call costs nearly half more than gobreaker's two steps alone, and 60 % more with a SlowCall or
// a deadline that is further away than BucketPeriod; it allocates nothing beyond what those allocate. There is no
// goroutine: time is looked at when a call or [Breakers.State] comes by, and OnStateChange is called by a call that
// happens to pass. A breaker has about a kilobyte.
//
// # When not to use it
//
// A breaker of a service does not know its instances: with one bad one of ten, it either does nothing or takes
// away the nine good ones. That is the blacklist's business, in package balancer, which takes the instance out and
// hurts nobody. Put a breaker behind it for the day on which the whole service is down, and where a fallback is
// ready. It is no rate limiter either, and for a service that merely is overloaded the limits in package ratelimit
// lose fewer calls.
package breaker
