// Package probe is the name of the service by which a client asks a server how busy it is.
//
// The balancer calls it, package server answers it, and the wrappers let it pass as they do health checks: a probe that
// a limiter turns away, or that counts as load, would be a wrong answer to the question that it asks. None of the three
// may import another, so the name stands here.
//
// The request is google.protobuf.Empty, and the reply the report that gRPC servers send in trailers as well
// (xds.data.orca.v3.OrcaLoadReport, gRFC A51), with the named metrics below. Any server that answers so can be probed,
// in whatever language it is written.
package probe

const (
	// Service is the gRPC service.
	Service = "evenkeel.v1.Load"
	// Name is its one method.
	Name = "Probe"
	// Method is the full name of that.
	Method = "/" + Service + "/" + Name
)

// The named metrics of a report that gRPC has no field for.
const (
	// RIF is how many requests are in flight.
	RIF = "rif"
	// Latency is how long a request takes that arrives now, in nanoseconds.
	Latency = "latency_ns"
)
