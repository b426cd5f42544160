// Package peers measures the policies of others whose dependencies are not ours, beside evenkeel's in the same run and
// by the harness of package bench.
//
//	cd bench/peers && go test -run '^$' -bench . -count 6 .
//
// It is a module of its own, so that nobody who uses evenkeel downloads what only a comparison needs (ADR-0002): kratos,
// go-zero and others, and what grpc-go's ring_hash needs that nothing else does.
//
// weighted_round_robin takes its weights from the load reports that servers attach to their answers. Here the calls
// before a measurement end with one, and make weights from 1 to 4 like those that evenkeel's weighted reads from the
// registry; or, as heavy, one endpoint's weight is a hundred times the mean.
package peers

import (
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"github.com/zeromicro/go-zero/core/logx"
	"google.golang.org/grpc/balancer/weightedroundrobin"
	"google.golang.org/grpc/grpclog"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench"
)

func TestMain(m *testing.M) {
	setKratosSelector()
	logx.Disable() // go-zero would report on itself in the middle of the results
	// go-zero makes itself grpc-go's log, and says yes when it is asked whether anybody wants details: then grpc-go's own
	// policies would be measured with three texts made and thrown away for each load report.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	os.Exit(bench.Main(m, "github.com/go-kratos/kratos/v2", "github.com/zeromicro/go-zero",
		"github.com/failsafe-go/failsafe-go", "github.com/grpc-ecosystem/go-grpc-middleware/v2",
		"github.com/sony/gobreaker/v2", "golang.org/x/time"))
}

// What go-zero brings, if it is there.
var (
	goZeroPolicies []bench.Policy
	goZeroStacks   []bench.Stack
)

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

// reporting is p with calls that end with a report when they are timed as well, as they do in operation.
func reporting(p bench.Policy) bench.Policy {
	p.Label, p.Reporting = p.Label+"_orca", true
	return p
}

func heavy(p bench.Policy) bench.Policy {
	p.Label, p.Heavy = p.Label+"_heavy", true
	if p.Report != nil {
		p.Report = reports(250)
	}
	return p
}

// policies are those for a number of endpoints, each beside the one of evenkeel's that does the same. The policies that
// are built on grpc-go's package base are measured with up to 4,000: they make everything anew with every connection, so
// that one of them would be busy for a minute until it has 10,000.
func policies(n int) []bench.Policy {
	busy := []bench.Policy{
		bench.Evenkeel(balancer.PeakEWMA{}), bench.Evenkeel(balancer.Keel{}), bench.Evenkeel(balancer.Prequal{}),
	}
	ewma := slices.Concat(busy, goZeroPolicies, []bench.Policy{kratosP2C()})
	weighted := bench.Evenkeel(balancer.Weighted{})
	others := []bench.Policy{
		bench.GRPCRoundRobin(), bench.Evenkeel(balancer.RoundRobin{}), bench.Evenkeel(balancer.Random{}),
		bench.Evenkeel(balancer.LeastRequest{}), bench.GRPCLeastRequest(),
		weighted, weightedRoundRobin(), heavy(weighted), heavy(weightedRoundRobin()),
		bench.Evenkeel(balancer.Hash{}),
	}
	switch n {
	case 4000:
		return ewma
	case 10000:
		return append(others, busy...)
	}
	return append(others, ewma...)
}

// serial are those that are measured on one core only, after policies.
func serial(n int) []bench.Policy {
	all := []bench.Policy{hashByMetadata(), bench.WeightedByReports(reports(1)), reporting(weightedRoundRobin())}
	switch {
	case n == 4000:
		return nil
	case n <= ringHashLimit:
		all = append(all, ringHash())
	}
	return all
}

// filtered are those that have filters, and the one of evenkeel's beside them.
func filtered(n int) []bench.Policy {
	ours := bench.Evenkeel(balancer.PeakEWMA{})
	switch {
	case n < 10: // nobody is one in ten of three
		return nil
	case n > 4000:
		return []bench.Policy{ours}
	}
	return []bench.Policy{ours, kratosP2C()}
}

// BenchmarkPick is the benchmark of package bench with these policies, and under the same names.
func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 100, 1000, 4000, 10000} {
		rigs := bench.NewRigs(n)
		for _, par := range []string{"1", "all"} {
			for _, p := range policies(n) {
				pick(b, rigs, p, n, bench.Context{}, par)
			}
			if par == "1" {
				for _, p := range serial(n) {
					pick(b, rigs, p, n, bench.Context{}, par)
				}
			}
		}
		for _, p := range filtered(n) {
			pick(b, rigs, p, n, bench.Context{Filtered: true}, "1")
		}
		rigs.Close()
	}
}

func pick(b *testing.B, rigs *bench.Rigs, p bench.Policy, n int, c bench.Context, par string) {
	filter := "none"
	if c.Filtered {
		filter = "one_in_ten"
	}
	b.Run(fmt.Sprintf("policy=%s/n=%d/filter=%s/ctx=%v/par=%s", p.Label, n, filter, c, par), func(b *testing.B) {
		if r := rigs.Of(b, p); par == "all" {
			r.PickParallel(b, c)
		} else {
			r.Pick(b, c)
		}
	})
}

// BenchmarkConverge is the benchmark of package bench with these policies.
func BenchmarkConverge(b *testing.B) {
	all := slices.Concat([]bench.Policy{bench.Evenkeel(balancer.RoundRobin{}), weightedRoundRobin()},
		goZeroPolicies, []bench.Policy{kratosP2C()})
	for _, n := range []int{100, 1000, 4000} {
		for _, p := range all {
			b.Run(fmt.Sprintf("policy=%s/n=%d", p.Label, n), func(b *testing.B) { bench.Converge(b, p, n) })
		}
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
