// Sim runs balancing policies on simulated servers and prints how they compare.
//
//	go run ./bench/sim -scenario S2 -policies random,round_robin,omniscient -seeds 5 -size 0.2
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	name := fs.String("scenario", "S2", "")
	names := fs.String("policies", "random,round_robin,omniscient", "")
	seeds := fs.Int("seeds", 1, "")
	size := fs.Float64("size", 1, "")
	length := fs.Float64("length", 1, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var jobs []scenario.Job
	for _, s := range scenario.Catalogue() {
		if s.Name != *name {
			continue
		}
		s = s.Scaled(*size).Stretched(*length)
		for _, p := range strings.Split(*names, ",") {
			m, ok := find(p)
			if !ok {
				return fmt.Errorf("no policy %q", p)
			}
			for seed := range *seeds {
				jobs = append(jobs, scenario.Job{Scenario: s, Policy: m, Seed: uint64(seed + 1)})
			}
		}
	}
	began := time.Now()
	results, err := scenario.All(jobs, runtime.GOMAXPROCS(0), nil)
	if err != nil {
		return err
	}
	var events uint64
	for _, r := range results {
		events += r.Events
		for i := range r.Steps {
			st := &r.Steps[i]
			q := func(p float64) float64 { return float64(st.Latency.Quantile(p)) / 1e6 }
			fmt.Printf("%s %-14s %d %-6s n=%7d p50 %6.0f p90 %6.0f p99 %6.0f p99.9 %6.0f err %.3f%% probes %.2f rif99 %d jain %.3f %x\n",
				r.Scenario, r.Policy, r.Seed, st.Name, st.Calls(), q(.5), q(.9), q(.99), q(.999), st.Errors()*100,
				float64(st.Probes)/float64(st.Attempts), st.RIF.Quantile(.99), st.Jain, r.Hash)
		}
	}
	d := time.Since(began)
	fmt.Printf("%d events in %v: %.2f M/s\n", events, d, float64(events)/d.Seconds()/1e6)
	return nil
}

func find(name string) (lb.Maker, bool) {
	for _, m := range policies() {
		if m.Name == name {
			return m, true
		}
	}
	return lb.Maker{}, false
}
