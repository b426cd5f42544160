// Package balancer chooses the instance for each call of a gRPC client.
//
// It is one load-balancing policy, registered with grpc-go under the name "evenkeel" ([Name]); importing the
// package registers it. A service config selects it, written by hand or by [ServiceConfig]:
//
//	{"loadBalancingConfig":[{"evenkeel":{"strategy":{"least_request":{}},"filter":"track=stable"}}]}
//
// With no options at all ({"evenkeel":{}}, [Config]{}) it keeps a connection to every instance that the resolver
// knows, and sends calls to the connected ones in turn. An instance whose last three calls failed in a way that
// says something about the instance, or that clearly fails more often than the others ([Outliers]), is taken out for
// 30 s, longer each time; one probing call decides its return; and never are more than half of the instances out that
// could serve a call ([Blacklist]). An instance that is
// draining, or whose health service says NOT_SERVING where the service config asks for health checks, gets no new
// calls. What is an instance's failure is said in package outcome.
//
// # The life of a pick
//
// grpc-go asks the current picker, an immutable snapshot, for a connection.
//
//  1. The filter: the one that the call's context carries for this service ([filters.NewContext]), else
//     Config.Filter; and in any case Config.Require. It leads to a candidate set that was computed when the
//     snapshot was made, or at the first call that carries the filter.
//  2. If an instance of the set is back from an ejection and nobody is probing it, this call does.
//  3. Else the [Strategy] names a member of the set, or of its part in the client's zone ([Zone]). Members are
//     connected, not draining, and healthy, unless too few are healthy. One that has lost its connection since, or
//     that the call was sent to before (a retry), is passed over; so is one that warms up ([SlowStart]), for a part
//     of the calls.
//  4. The endpoint counts the call in. When the call ends, grpc-go reports how: the endpoint counts it out, the
//     strategy learns the latency if it wants to, and the blacklist may act, which takes effect at once, also in
//     snapshots that are still in use.
//
// If the set is empty because its instances are still being connected to, the call waits. If none matches, or none
// can be connected to, it fails with UNAVAILABLE and a text that says why, unless it is wait-for-ready: then it
// waits.
//
// What is known about an instance, its load, latency, health and ejections, belongs to its [Endpoint]. That
// outlives snapshots, updates of the registry, reconnects and changes of the configuration, and ends when the
// instance leaves or another ID stands at its address. Labels, weight, version and zone change without touching
// the connection.
//
// # What it costs
//
// A pick takes no lock that calls share and allocates nothing, with a filter or without, at three endpoints and at
// ten thousand. Calls that have a deadline, and strategies that measure, read the clock; the latter, and calls of
// which more has to be known at their end, take a record from a pool. The exceptions are rare: the first call with a
// new filter computes its set, a probing call takes the policy's lock, and so does whatever ejects or returns an
// instance. A change among n endpoints costs time in proportion to n, and a burst of changes is published as few
// snapshots (ADR-0007). At most 1,024 different filters are remembered. bench/README.md has figures.
//
// # When not to use it
//
// Where something else balances every call, a service mesh or a proxy that speaks HTTP/2, leave this out: two
// balancers in a row fight each other, and an ejection here would be of the proxy. For a server with one address
// there is nothing to choose. A client that makes a call an hour gains nothing from connections kept to all
// instances. And affinity by [Hash] is a preference: a call that is wrong anywhere but at one instance needs a lease
// or an address, not a balancer.
//
// # Why not grpc-go's own
//
// round_robin knows neither filters, nor weights, nor draining. least_request forgets what is under way at an
// endpoint whenever its connection is lost. Policies on the base package see addresses, not endpoints, and so no
// labels; and they build a picker over all connections at every change of one, so that n instances which connect
// cost n². endpointsharding has one child per endpoint, as this policy has, but builds everything anew at every
// change of a child too. outlier_detection is linked only together with xDS, counts every error, NOT_FOUND and the
// caller's own cancel included, and judges by rates, once in ten seconds, where the blacklist acts at the third
// failure (ADR-0008). Who wants it can have it ([Outliers].A50); what is on by default compares instances too, and does
// without its flaws (ADR-0019).
//
// # Seeing what it does
//
// Ejections and returns are logged by log/slog. [Observe] delivers them, and each new snapshot, to a function;
// [Channels] returns the state of every live client. A new strategy is a small struct: see [Strategy],
// [RegisterStrategy] and the example. docs/balancer.md is the reference of the configuration, of the blacklist's
// rules and of the errors.
package balancer
