// Package peers measures the policies of others whose dependencies are not ours, beside evenkeel's in the same run and
// by the harness of package bench.
//
//	cd bench/peers && go test -run '^$' -bench . -count 6 .
//
// It is a module of its own, so that nobody who uses evenkeel downloads what only a comparison needs (ADR-0002). For
// now it has grpc-go's weighted_round_robin, which needs the protocol buffers of load reports.
//
// weighted_round_robin takes its weights from the load reports that servers attach to their answers. Here the calls
// before a measurement end with one, and make weights from 1 to 4 like those that evenkeel's weighted reads from the
// registry; or, as heavy, one endpoint's weight is a hundred times the mean.
package peers

import (
	"fmt"
	"os"
	"testing"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc/balancer/weightedroundrobin"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench"
)

func TestMain(m *testing.M) { os.Exit(bench.Main(m)) }

// weightedRoundRobin believes reports at once and for good, and makes a schedule only with a new picker: by default it
// does so every second, which would be work beside whatever else is being measured.
func weightedRoundRobin() bench.Policy {
	return bench.Policy{
		Label:  "grpc_weighted_round_robin",
		Name:   weightedroundrobin.Name,
		Config: `{"blackoutPeriod":"0s","weightExpirationPeriod":"36000s","weightUpdatePeriod":"36000s"}`,
		Report: reports(1),
	}
}

// reports are answers' load reports that make weights of 1 to 4, the first endpoint's times first.
func reports(first float64) func(int) any {
	byWeight := make([]*v3orcapb.OrcaLoadReport, 4)
	for i := range byWeight {
		byWeight[i] = report(float64(i + 1))
	}
	heavy := report(first)
	return func(index int) any {
		if index == 0 {
			return heavy
		}
		return byWeight[index%len(byWeight)]
	}
}

// report makes a weight: the rate of queries by the utilisation.
func report(weight float64) *v3orcapb.OrcaLoadReport {
	return &v3orcapb.OrcaLoadReport{RpsFractional: 100 * weight, ApplicationUtilization: 1}
}

func heavy(p bench.Policy) bench.Policy {
	p.Label, p.Heavy = p.Label+"_heavy", true
	if p.Report != nil {
		p.Report = reports(250)
	}
	return p
}

// BenchmarkPick is the benchmark of package bench with these policies, and under the same names.
func BenchmarkPick(b *testing.B) {
	weighted := bench.Evenkeel(balancer.Weighted{})
	policies := []bench.Policy{
		weighted, weightedRoundRobin(), heavy(weighted), heavy(weightedRoundRobin()), bench.GRPCRoundRobin(),
	}
	for _, n := range []int{3, 100, 1000, 10000} {
		rigs := bench.NewRigs(n)
		for _, par := range []string{"1", "all"} {
			for _, p := range policies {
				b.Run(fmt.Sprintf("policy=%s/n=%d/filter=none/ctx=plain/par=%s", p.Label, n, par), func(b *testing.B) {
					r := rigs.Of(b, p)
					if par == "all" {
						r.PickParallel(b, bench.Context{})
					} else {
						r.Pick(b, bench.Context{})
					}
				})
			}
		}
		rigs.Close()
	}
}

// TestWeights makes sure that both weigh here: what would be measured otherwise is round robin.
func TestWeights(t *testing.T) {
	const n = 40 // 250 and some hundred for all the others together
	for _, p := range []bench.Policy{heavy(weightedRoundRobin()), heavy(bench.Evenkeel(balancer.Weighted{}))} {
		r, err := bench.NewWorn(p, n)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		share, err := r.Share(5000)
		if err != nil {
			t.Fatal(err)
		}
		if share < 0.65 || share > 0.77 {
			t.Errorf("%s: the first endpoint gets %.3f of the calls, want about 0.71", p.Label, share)
		}
	}
}
