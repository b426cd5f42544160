package balancer

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/balancer/load"
)

// TestReportedWeight steps one endpoint through gRFC A58's rules.
func TestReportedWeight(t *testing.T) {
	says := func(qps, utilization, eps float64) *load.Report {
		return &load.Report{QPS: qps, Utilization: utilization, EPS: eps}
	}
	const s = time.Second
	type step struct {
		at     time.Duration
		report *load.Report // nil for none
		newly  bool         // it reconnected before
		want   float64
	}
	for _, tt := range []struct {
		name  string
		cfg   Weighted
		steps []step
	}{
		{"blackout", Weighted{}, []step{
			{at: 0}, {at: 0, report: says(100, 0.5, 0)}, {at: 5 * s, report: says(100, 0.25, 0)}, {at: 10*s - 1},
			{at: 10 * s, want: 400}, {at: 11 * s, report: says(100, 0.5, 0), want: 200}}},
		{"no blackout", Weighted{Blackout: 1}, []step{{at: 0, report: says(100, 0.5, 0)}, {at: 1, want: 200}}},
		{"expiration", Weighted{Expiration: 20 * s}, []step{
			{at: 0, report: says(10, 1, 0)}, {at: 20*s - 1, want: 10}, {at: 20 * s},
			{at: 21 * s, report: says(10, 1, 0)}, {at: 31*s - 1}, {at: 31 * s, want: 10}}},
		{"reconnect", Weighted{}, []step{
			{at: 0, report: says(10, 1, 0)}, {at: 15 * s, want: 10}, {at: 20 * s, report: says(20, 1, 0), newly: true},
			{at: 30*s - 1}, {at: 30 * s, want: 20}}},
		{"errors count", Weighted{Blackout: 1}, []step{
			{at: 0, report: says(100, 0.5, 50)}, {at: 1, want: 100}}},
		{"errors count twice", Weighted{Blackout: 1, ErrorPenalty: 2}, []step{
			{at: 0, report: says(100, 0.5, 50)}, {at: 1, want: 100 / 1.5}}},
		{"what says nothing", Weighted{Blackout: 1}, []step{
			{at: 0, report: says(0, 1, 0)}, {at: 1}, {at: 2, report: says(10, 0, 0)}, {at: 3},
			{at: 4, report: says(1e200, 1e-200, 0)}, {at: 5}, {at: 6, report: says(1e-300, 1e300, 0)}, {at: 7},
			{at: 8, report: says(10, 1, 0)}, {at: 9, want: 10}, {at: 10, report: says(0, 5, 0), want: 10}}},
		{"the clock goes backwards", Weighted{}, []step{
			{at: 100 * s, report: says(10, 1, 0)}, {at: 50 * s}, {at: 110 * s, want: 10}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := members(1)[0]
			e.conn.Store(new(connection))
			strategy := reported{tt.cfg}
			for i, step := range tt.steps {
				now := start + int64(step.at)
				if step.newly {
					e.conn.Store(new(connection))
				}
				if step.report != nil {
					strategy.Record(e, load.Sample{Now: now, Reported: true, Report: *step.report})
				}
				strategy.Record(e, load.Sample{Now: now}) // says nothing
				if got := strategy.Load(e, now); math.Abs(got-step.want) > 1e-9 {
					t.Fatalf("step %d: the weight is %v, want %v", i, got, step.want)
				}
			}
		})
	}
}

func TestBlend(t *testing.T) {
	const unknown = 0
	for _, tt := range []struct {
		name     string
		reported []float64
		registry []uint32
		want     []float64 // relative to the first
	}{
		{"nothing is known", []float64{unknown, unknown}, []uint32{1, 3}, []float64{1, 3}},
		{"one is", []float64{unknown, 99}, []uint32{1, 3}, []float64{1, 3}},
		{"all are, and the registry is wrong", []float64{100, 200, 50}, []uint32{4, 1, 1}, []float64{1, 2, 0.5}},
		{"the third is usual", []float64{100, 300, unknown}, []uint32{1, 1, 1}, []float64{1, 3, 2}},
		{"and twice as large", []float64{100, 100, unknown}, []uint32{1, 1, 2}, []float64{1, 1, 2}},
		{"bounds", []float64{100, 100, 100, 1e9, 1e-9}, same(5, 1), []float64{1, 1, 1, 10, 0.01}},
		{"the widest there are", []float64{1e99, 1e-99, unknown}, []uint32{1, math.MaxUint32, 1}, nil},
		{"one", []float64{5}, []uint32{7}, []float64{1}},
	} {
		got := blend(slices.Clone(tt.reported), members(tt.registry...))
		for i, w := range got {
			if w < 1 || w > 1<<32 {
				t.Errorf("%s: weight %d is %d, want 1 to 2^32", tt.name, i, w)
			}
			if tt.want == nil {
				continue
			}
			if r := float64(w) / float64(got[0]); math.Abs(r/tt.want[i]-1) > 1e-6 {
				t.Errorf("%s: weights are %d, want in proportion to %v", tt.name, got, tt.want)
			}
		}
	}
}

// backend is a server whose utilization follows from the calls that it got.
type backend struct {
	capacity float64 // calls a second that it can handle
	calls    int
	errors   float64 // of its calls
}

// second makes so many calls in one second of virtual time, after which the backends know how busy they were.
func (r *rig) second(n int, backends map[string]*backend) map[string]int {
	r.t.Helper()
	got := make(map[string]int)
	reports := make(map[string]*orcapb.OrcaLoadReport)
	for id, b := range backends {
		qps := max(float64(b.calls), 0.1)
		reports[id] = &orcapb.OrcaLoadReport{RpsFractional: qps, Eps: b.errors * qps, CpuUtilization: qps / b.capacity}
		b.calls = 0
	}
	for range n {
		id, done, err := r.begin(ask{})
		if err != nil {
			r.t.Fatal(err)
		}
		got[id]++
		info := ended(nil)
		if b := backends[id]; b != nil {
			b.calls++
			info.ServerLoad = reports[id]
		}
		done(info)
		r.advance(time.Second / time.Duration(n))
	}
	return got
}

// TestReportedFollowsCapacity: servers of which the registry says that they are alike get calls by what they can handle,
// once their reports count, so that all are equally busy; one that fails cheaply gets no more for it; and one that
// does not report gets what is usual.
func TestReportedFollowsCapacity(t *testing.T) {
	r := newRig(t, Config{Strategy: Weighted{Load: "orca"}}, fleet(5))
	backends := map[string]*backend{
		"i0": {capacity: 100}, "i1": {capacity: 200}, "i2": {capacity: 400},
		"i3": {capacity: 1000, errors: 0.9}, // utilization 0.1 at 100 calls, and 0.9 for the errors
	}
	for range 9 {
		for id, n := range r.second(100, backends) {
			if n < 17 || n > 23 {
				t.Fatalf("before the reports count, %s got %d calls of 100, want 20", id, n)
			}
		}
	}
	total := make(map[string]int)
	for second := range 40 {
		got := r.second(100, backends)
		if second < 20 { // its errors weigh by its share of the calls, so this one takes a while to settle
			continue
		}
		for id, n := range got {
			total[id] += n
		}
	}
	if r1, r2 := float64(total["i1"])/float64(total["i0"]), float64(total["i2"])/float64(total["i0"]); math.Abs(r1-2) > 0.1 || math.Abs(r2-4) > 0.2 {
		t.Errorf("capacities of 100, 200 and 400 got %v, want 1 to 2 to 4", total)
	}
	if total["i3"] > total["i0"] {
		t.Errorf("who fails at nearly no cost got %v, want less than the smallest of the others", total)
	}
	if usual := (total["i0"] + total["i1"]) / 2; math.Abs(float64(total["i4"]-usual)) > float64(usual)/2 {
		t.Errorf("who does not report got %v, want about %d", total, usual)
	}
	var figures []string
	for _, e := range r.p.describe().Endpoints {
		figures = append(figures, fmt.Sprintf("%.0f", e.Load))
	}
	if want := []string{"100", "200", "400"}; !slices.Equal(figures[:3], want) {
		t.Errorf("Channels shows the weights %v, want %v and two more", figures, want)
	}
}

// TestReportedUpdates: weights change once a period, not with the reports, with the set or with a pick; a set that nobody
// calls is left alone; and a switch to registry weights and back keeps the turn.
func TestReportedUpdates(t *testing.T) {
	c := Config{Strategy: Weighted{Load: "orca", Blackout: 1, Update: 10 * time.Second}}
	r := newRig(t, c, fleet(2))
	backends := map[string]*backend{"i0": {capacity: 100}, "i1": {capacity: 300}}
	shares := func() *weightedChooser { return r.p.byConfig.set.chooser.(*reportedChooser).shares.Load() }
	first := shares()
	for range 8 {
		r.second(40, backends)
	}
	if shares() != first {
		t.Error("the weights changed before the period was over")
	}
	r.advance(2 * time.Second)
	second := shares()
	if second == first {
		t.Fatal("the weights are the same after the period")
	}
	r.advance(30 * time.Second)
	if shares() != second {
		t.Error("the weights were laid again although nobody called")
	}
	if got := r.second(400, backends); math.Abs(float64(got["i0"])-100) > 5 {
		t.Errorf("calls go to %v, want 1 to 3", got)
	}
	r.update(Config{Strategy: Weighted{}}, fleet(2))
	if got := r.second(400, nil); math.Abs(float64(got["i0"])-200) > 5 {
		t.Errorf("by the registry's weights calls go to %v, want 1 to 1", got)
	}
	r.update(c, fleet(2)) // what they reported is still known
	if got := r.second(400, nil); math.Abs(float64(got["i0"])-100) > 5 {
		t.Errorf("back again, calls go to %v, want 1 to 3", got)
	}
}

// TestReportedAllocatesNothing for a call that brings a report.
func TestReportedAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool drops what it is given, at random")
	}
	r := newRig(t, Config{Strategy: Weighted{Load: "orca"}}, fleet(3))
	end := gbalancer.DoneInfo{BytesSent: true, BytesReceived: true, ServerLoad: &orcapb.OrcaLoadReport{
		RpsFractional: 10, CpuUtilization: 0.1, NamedMetrics: map[string]float64{"rif": 1, "latency_ns": 1e6},
	}}
	p, info := r.cc.Picker(), gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/orders.Orders/Get"}
	call := func() {
		res, err := p.Pick(info)
		if err != nil {
			t.Fatal(err)
		}
		res.Done(end)
	}
	for range 10 {
		call() // the first report of each makes its place
	}
	if n := testing.AllocsPerRun(1000, call); n > 0 {
		t.Errorf("%v allocations a call, want none", n)
	}
}

func TestWeightedConfig(t *testing.T) {
	for js, want := range map[string]string{
		`{"load":"cpu"}`:                       `load = "cpu", want "orca" or none`,
		`{"load":"orca","update":"99ms"}`:      "update = 99ms, want 100ms to 8760h0m0s",
		`{"load":"orca","blackout":"-1s"}`:     "blackout = -1s, want 1ns to 8760h0m0s",
		`{"load":"orca","expiration":"9000h"}`: "expiration = 9000h0m0s, want 1ns to 8760h0m0s",
		`{"load":"orca","errorPenalty":-0.5}`:  "errorPenalty = -0.5, want 0 to 1000",
		`{"blackout":"1s"}`:                    `load = "" with other fields set, want "orca"`,
		`{"load":"orca","errorUtilization":1}`: `unknown field "errorUtilization", want one of load, blackout, expiration, update, errorPenalty`,
	} {
		_, err := parseConfig(json.RawMessage(`{"strategy":{"weighted":` + js + `}}`))
		if want = "evenkeel: strategy weighted: " + want; err == nil || err.Error() != want {
			t.Errorf("%s:\n\t%v, want\n\t%s", js, err, want)
		}
	}
	full := Weighted{Load: "orca", Blackout: time.Minute, Expiration: time.Hour, Update: time.Second, ErrorPenalty: 2}
	s := mustParse(t, Config{Strategy: full})
	if got, ok := s.strategy.(reported); !ok || got.Weighted != full || s.measurer == nil {
		t.Errorf("the strategy is %#v, want %#v, which measures", s.strategy, full)
	}
	if s := mustParse(t, Config{Strategy: Weighted{}}); s.measurer != nil || !s.plain {
		t.Error("weights of the registry cost calls a measurement")
	}
}
