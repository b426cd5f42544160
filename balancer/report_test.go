package balancer

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/balancer/load"
)

func TestReportOf(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	silent := load.Report{RIF: -1}
	for _, tt := range []struct {
		name string
		said any
		want load.Report
		ok   bool
	}{
		{"nothing", nil, load.Report{}, false},
		{"gRPC's nothing", (*orcapb.OrcaLoadReport)(nil), load.Report{}, false},
		{"another library's", "busy", load.Report{}, false},
		{"empty", &orcapb.OrcaLoadReport{}, silent, true},
		{"all", &orcapb.OrcaLoadReport{
			ApplicationUtilization: 1.5, CpuUtilization: 0.2, RpsFractional: 100, Eps: 3,
			NamedMetrics: map[string]float64{"rif": 7, "latency_ns": 2e6, "other": 1},
		}, load.Report{RIF: 7, Latency: 2e6, Utilization: 1.5, QPS: 100, EPS: 3}, true},
		{"the processor's, if the application says nothing", &orcapb.OrcaLoadReport{CpuUtilization: 0.2},
			load.Report{RIF: -1, Utilization: 0.2}, true},
		{"none in flight", &orcapb.OrcaLoadReport{NamedMetrics: map[string]float64{"rif": 0}}, load.Report{}, true},
		{"negative", &orcapb.OrcaLoadReport{
			ApplicationUtilization: -1, CpuUtilization: -1, RpsFractional: -1, Eps: -1,
			NamedMetrics: map[string]float64{"rif": -2, "latency_ns": -1},
		}, silent, true},
		{"not numbers", &orcapb.OrcaLoadReport{
			ApplicationUtilization: nan, CpuUtilization: nan, RpsFractional: nan, Eps: nan,
			NamedMetrics: map[string]float64{"rif": nan, "latency_ns": nan},
		}, silent, true},
		{"infinite", &orcapb.OrcaLoadReport{
			ApplicationUtilization: inf, CpuUtilization: inf, RpsFractional: inf, Eps: inf,
			NamedMetrics: map[string]float64{"rif": inf, "latency_ns": inf},
		}, silent, true},
		{"a simulation's", &load.Report{RIF: 3, QPS: 1}, load.Report{RIF: 3, QPS: 1}, true},
	} {
		if got, ok := reportOf(tt.said); got != tt.want || ok != tt.ok {
			t.Errorf("%s: the report is %+v, %v, want %+v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func init() {
	RegisterStrategy("test-listener", func(json.RawMessage) (Strategy, error) { return listener{}, nil })
}

// listener is a strategy that remembers at each endpoint what it was told last.
type listener struct{ RoundRobin }

type heard struct{ last load.Sample }

func (listener) Name() string { return "test-listener" }

func (listener) heardAt(e *Endpoint) *heard {
	return e.Slot(listener{}, func() any { return new(heard) }).(*heard)
}

func (l listener) Record(e *Endpoint, s load.Sample) { l.heardAt(e).last = s }

// TestReportsReachTheStrategy from calls that succeed, that fail and that have a deadline, and a call without a report
// is told from one with an empty report.
func TestReportsReachTheStrategy(t *testing.T) {
	r := newRig(t, Config{Strategy: listener{}}, fleet(1))
	said := &orcapb.OrcaLoadReport{CpuUtilization: 0.5, RpsFractional: 10, NamedMetrics: map[string]float64{"rif": 4}}
	want := load.Report{RIF: 4, Utilization: 0.5, QPS: 10}
	for name, tt := range map[string]struct {
		a    ask
		err  error
		said any
		want load.Report
	}{
		"success":   {said: said, want: want},
		"deadline":  {a: ask{ctx: r.deadline(time.Hour)}, said: said, want: want},
		"failure":   {err: fails(codes.Unavailable), said: said, want: want},
		"nothing":   {said: (*orcapb.OrcaLoadReport)(nil)},
		"unlinked":  {},
		"no answer": {err: fails(codes.DeadlineExceeded)},
	} {
		_, done, err := r.begin(tt.a)
		if err != nil {
			t.Fatal(err)
		}
		done(gbalancer.DoneInfo{Err: tt.err, BytesSent: true, BytesReceived: true, ServerLoad: tt.said})
		got := listener{}.heardAt(endpoint(r, "i0")).last
		if reported := tt.want != (load.Report{}); got.Report != tt.want || got.Reported != reported {
			t.Errorf("%s: the strategy is told %+v, want the report %+v", name, got, tt.want)
		}
	}
}
