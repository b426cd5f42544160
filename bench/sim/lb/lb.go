// Package lb is what stands between a simulated client and the way it balances: one interface for this library's
// own policy and for every baseline that it is compared with.
//
// A simulation has many clients and many servers, one goroutine and one virtual time. Each client owns one
// [Balancer], made by a [Maker] from an [Env]. For every attempt of a call the client asks it for a server
// ([Balancer.Pick]), and tells it how the attempt ended ([Balancer.Done]), exactly once for each successful Pick. When
// the registry's set changes the client hands the new one to [Balancer.Update]; attempts on servers that have left still
// end with a Done.
//
// Everything that a balancer may know arrives through these calls and through Env: the virtual time, timers,
// randomness of its own, and probes that travel over the simulated network and are answered by the simulated server. A
// balancer that reads anything else (the machine's clock, a global source of randomness, the order of a map) breaks
// the promise that one seed gives one run.
//
// Nothing here is safe for concurrent use, since there is one goroutine. Times and durations are nanoseconds of the
// virtual clock, which starts at 1.
package lb

import (
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/registry"
)

// Server is one server as the registry shows it to a client.
type Server struct {
	// Index tells servers apart for as long as the simulation runs; a server that is replaced gets a new one.
	Index int
	// Instance is its record: ID, address, zone, weight, labels. It is shared and must not be modified.
	Instance *registry.Instance
}

// Load is what a server says about itself, in the answer to a probe or at the end of a call.
type Load struct {
	// RIF is how many requests it has in flight.
	RIF int
	// Latency is the median of what recent requests took that arrived at about this RIF; 0 if there were none.
	Latency int64
	// Utilization is the part of its allocation that it used over its reporting window; it may be above 1.
	Utilization float64
	// QPS and EPS are the requests and the failed ones that it ended in a second, over the same window.
	QPS, EPS float64
}

// Env is what a balancer is given.
type Env struct {
	// Client is this client's number, Clients how many there are.
	Client, Clients int
	// Zone is where it is; "" if there are none.
	Zone string
	// Servers are those that the registry shows at the start.
	Servers []Server
	// Now is the virtual time.
	Now func() int64
	// After calls f after d, and stop prevents that.
	After func(d int64, f func()) (stop func())
	// Rand returns 64 random bits from this client's own stream.
	Rand func() uint64
	// Probe asks a server for its load. answer is called once, with false when no answer came within the timeout.
	Probe func(server int, timeout int64, answer func(Load, bool))
	// Peek is the true state of a server, for the lower bound that knows everything, and for no other.
	Peek func(server int) Truth
}

// Truth is what nobody but the simulator knows about a server.
type Truth struct {
	// Up: it answers.
	Up bool
	// RIF is how many requests it has in flight at this moment.
	RIF int
	// Finish is how long a request of average work would take that arrived now, if nothing else came.
	Finish int64
	// Harm is by how much that request would raise the sum of the fourth powers of the latencies, in nanoseconds, of
	// those that the server has. It is 0 where nobody is slowed down: a core is idle, or newcomers wait at the end.
	Harm float64
	// Fail is the part of the requests that it fails.
	Fail float64
}

// Call is one attempt of a call, from the pick to its end. The client makes one for each attempt, so a balancer may
// keep what it wants to remember in Note.
type Call struct {
	// Key is the key to keep affinity by, if HasKey.
	Key    string
	HasKey bool
	// Stream says that it will last: how long it takes is no latency.
	Stream bool
	// Deadline is the virtual time at which the caller gives up; 0 for never.
	Deadline int64
	// Tried are the servers that earlier attempts of the same call were sent to.
	Tried []int
	// Note is the balancer's.
	Note any
}

// Result is the end of one attempt.
type Result struct {
	// Latency is how long it took, from the pick to the answer.
	Latency int64
	// Err is nil or a gRPC status error; a deadline that ran out is DEADLINE_EXCEEDED.
	Err error
	// Load is what the server said with its answer; nil if it said nothing.
	Load *Load
}

// Balancer is how one client chooses.
type Balancer interface {
	// Pick chooses a server. An error is a gRPC status error, with which the attempt fails at once.
	Pick(c *Call) (server int, err error)
	// Done ends an attempt that Pick gave server to.
	Done(c *Call, server int, r Result)
	// Update replaces the set of servers.
	Update(servers []Server)
}

// Connections is a Balancer that deals with the loss of connections itself, as this library's policy does. For any
// other the client does it: a server whose process is gone is left out of what Update shows until it is back, as gRPC
// leaves connections that are not ready out of a picker.
type Connections interface {
	// Lost tells that the connection to a server broke, and that its process is gone.
	Lost(server int)
	// Ready tells that the server can be connected to again.
	Ready(server int)
}

// Maker is one way to balance, and whatever goes with it.
type Maker struct {
	// Name is what tables and the command line call it.
	Name string
	// New makes one client's balancer.
	New func(Env) (Balancer, error)
	// Retry makes what decides about one client's attempts; nil leaves it to the scenario.
	Retry func(now func() int64, random func() uint64) (Retry, error)
	// Admission makes what decides which requests one server takes; nil takes them all.
	Admission func(random func() uint64) (Admission, error)
	// Samples is how many latencies make the median that servers report, where a policy comes with a server's half of its
	// own; 0 means as many as package server's Load takes.
	Samples int
}

// Retry decides about the attempts of one client's calls.
type Retry interface {
	// Begin begins a call that has to be done by the time deadline. chained says that it is made on behalf of a call
	// that is being tried again somewhere upstream.
	Begin(deadline int64, chained bool) Attempts
}

// Failure is how an attempt failed.
type Failure struct {
	Code codes.Code
	// Unsent: it is certain that nothing was sent; a server that answers that it has no place has been reached.
	Unsent bool
	// Stop: the server says that it wants no retry (gRFC A6, a negative pushback).
	Stop bool
}

// Attempts decides about the attempts of one call.
type Attempts interface {
	// Began is an attempt that begins. If it has not ended after slow, and slow is not 0, Hedge is asked.
	Began() (slow int64)
	// Hedge says whether another attempt is sent although none has failed.
	Hedge() bool
	// Failed decides what follows the failure of the last attempt that was under way: another one, after wait, or
	// nothing.
	Failed(f Failure) (wait int64, retry bool)
	// Stops says, after the failure that ended the call, whether a server that made the call and fails with it tells
	// its own client not to retry.
	Stops() bool
	// Succeeded is the end of the call, by the attempt with this number, from 1, which took so long.
	Succeeded(latency int64, number int)
}

// Admission decides which requests a server takes.
type Admission interface {
	// Arrive asks for a request that has remaining until its deadline. If it is admitted, Leave is called once, with
	// the place.
	Arrive(now, remaining int64) (place any, admitted bool)
	// Leave is the end of a request that was admitted at began.
	Leave(now, began int64, place any, e Ending)
}

// Ending is how an admitted request left.
type Ending uint8

// The ways to leave.
const (
	Served   Ending = iota // answered in time
	TimedOut               // its deadline came first
	Vain                   // it failed, or its caller went away
)
