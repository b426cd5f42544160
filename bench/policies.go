package bench

import (
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/probe"
)

// Options are evenkeel's with a strategy and an option each that may cost a pick something. The first is [Evenkeel], which
// looks for outliers by failures; the second looks for none, the third by latency too. Then come one that prefers a zone,
// and one of which an instance in ten is in its slow start all the time.
func Options(s balancer.Strategy) []Policy {
	with := func(name string, c balancer.Config) Policy {
		p := Evenkeel(s)
		c.Strategy = s
		p.Label, p.Option = p.Label+name, configOf(c)
		return p
	}
	slowly := with("_slow_start", balancer.Config{SlowStart: balancer.SlowStart{Window: ejectionTime}})
	slowly.Newcomers = true
	return []Policy{
		Evenkeel(s),
		with("_without_outliers", balancer.Config{Outliers: balancer.Outliers{Disabled: true}}),
		with("_slow_outliers", balancer.Config{Outliers: balancer.Outliers{Slow: 3}}),
		with("_zone", balancer.Config{Zone: balancer.Zone{Local: "eu-0"}}),
		slowly,
	}
}

// WeightedByReports is evenkeel's weighted by the load reports that calls end with. They are believed at once and for
// good.
func WeightedByReports(report func(index int) any) Policy {
	p := Evenkeel(balancer.Weighted{Load: "orca", Blackout: time.Nanosecond, Expiration: ejectionTime})
	p.Label, p.Report, p.Reporting = p.Label+"_orca", report, true
	return p
}

// answers are what servers say of themselves, with package server's Load, when they are asked; reports is the same with
// the end of a call, as grpc-go hands it over. They differ as those of a fleet do that has something to do.
var answers, reports = func() (answers [16]load.Report, reports [16]any) {
	for i := range answers {
		r := load.Report{
			RIF: int64(i%5 + 1), Latency: int64(i%7+1) * int64(time.Millisecond), Utilization: 0.5, QPS: 500,
		}
		answers[i] = r
		reports[i] = &orcapb.OrcaLoadReport{
			RpsFractional: r.QPS, ApplicationUtilization: r.Utilization,
			NamedMetrics: map[string]float64{probe.RIF: float64(r.RIF), probe.Latency: float64(r.Latency)},
		}
	}
	return answers, reports
}()

func answerOf(index int) load.Report { return answers[index%len(answers)] }
func reportOf(index int) any         { return reports[index%len(reports)] }
