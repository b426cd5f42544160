package balancer

import (
	"math"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	_ "google.golang.org/grpc/orca" // DoneInfo.ServerLoad is nil unless it is linked

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/probe"
)

// reportOf reads what gRPC hands over at the end of a call as the server's load: a report of gRFC A51 from the call's
// trailer, nil if there was none; or a [*load.Report], which is read and not kept, where a simulation stands for gRPC.
// It is false if the server said nothing. What makes no sense counts as not said, since whoever answers calls can put
// anything into a trailer.
func reportOf(said any) (load.Report, bool) {
	switch said := said.(type) {
	case *orcapb.OrcaLoadReport:
		if said == nil { // gRPC's parser puts a nil of this type into the interface
			return load.Report{}, false
		}
		return fromORCA(said), true
	case *load.Report:
		return *said, true
	}
	return load.Report{}, false
}

func fromORCA(r *orcapb.OrcaLoadReport) load.Report {
	out := load.Report{
		RIF:         -1,
		Utilization: sensible(r.GetApplicationUtilization()),
		QPS:         sensible(r.GetRpsFractional()),
		EPS:         sensible(r.GetEps()),
	}
	if out.Utilization == 0 { // gRFC A58
		out.Utilization = sensible(r.GetCpuUtilization())
	}
	if v, ok := r.GetNamedMetrics()[probe.RIF]; ok && v >= 0 && v <= most {
		out.RIF = int64(v)
	}
	if v := r.GetNamedMetrics()[probe.Latency]; v <= most {
		out.Latency = int64(sensible(v))
	}
	return out
}

// most is more than any number of requests, or of nanoseconds that a request takes: it fits any integer.
const most = 1 << 62

// sensible is v, or 0 if it is no finite number above 0.
func sensible(v float64) float64 {
	if v > 0 && !math.IsInf(v, 1) {
		return v
	}
	return 0
}
