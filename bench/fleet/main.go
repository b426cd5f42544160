// Command fleet puts load-balancing policies to the test on real processes: six servers on loopback, of which one takes
// ten times as long, one fails fast in half of its calls, and one is frozen for 200 ms once a second.
//
//	go run ./bench/fleet
//
// It prints a table in markdown: for each strategy of this library, for two of them with slow instances made lighter (+slow),
// and for grpc's own round_robin and least_request, the median and the 99th percentile of the calls that succeeded, the part
// that failed, and the part of the calls that each of the three odd servers got. Calls begin at random moments (a Poisson
// process, the same for all policies), whether earlier ones have ended or not, and their latency counts from the moment at
// which they were due. Each has one of a thousand keys, at which hash looks. There is no retry.
//
// Policies take turns in several rounds, each with a client of its own that has a second to learn; the table has the median
// round. Flags change the policies and the load; -h lists them. The programs share the machine, so
// what the servers take is time and not the processor: they wait for a timer, with four calls at a time. They tell their load
// (server.Load), which only the strategies that want to know it ask for.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/balancer"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := serve(role, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "fleet:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		stop()
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	policies []string
	rounds   int
	length   time.Duration // of a round, beyond warmUp
	warmUp   time.Duration
	rate     float64 // calls a second
	deadline time.Duration
	pause    time.Duration // how long the server that pauses does, once a second
}

func parse(args []string, errs io.Writer) (options, error) {
	o := options{warmUp: time.Second, deadline: time.Second}
	f := flag.NewFlagSet("fleet", flag.ContinueOnError)
	f.SetOutput(errs)
	policies := f.String("policies", strings.Join(all(), ","), "which policies, in this order")
	f.IntVar(&o.rounds, "rounds", 3, "how often each policy has its turn")
	f.DurationVar(&o.length, "time", 5*time.Second, "how long a turn is, after a second to learn")
	f.Float64Var(&o.rate, "rate", 400, "calls a second")
	f.DurationVar(&o.pause, "pause", 200*time.Millisecond, "how long the server that is frozen once a second is; 0 for never")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q is not a flag", f.Arg(0))
	}
	o.policies = strings.Split(*policies, ",")
	for _, p := range o.policies {
		if !slices.Contains(all(), p) {
			return o, fmt.Errorf("-policies: %q, want some of %s", p, strings.Join(all(), ","))
		}
	}
	if o.rounds < 1 || o.length <= 0 || o.rate <= 0 || o.pause < 0 || o.pause >= time.Second {
		return o, fmt.Errorf("-rounds %d -time %v -rate %v -pause %v, want positive numbers, and a pause below 1s", o.rounds, o.length, o.rate, o.pause)
	}
	return o, nil
}

// all lists the policies that can be asked for: grpc's, each strategy of ours, and two that do not look at load with
// "outliers" that do.
func all() []string {
	names := []string{"grpc_round_robin", "grpc_least_request"}
	for _, s := range balancer.Strategies() {
		names = append(names, "evenkeel_"+s)
	}
	return append(names, "evenkeel_random"+lighterSuffix, "evenkeel_round_robin"+lighterSuffix)
}

func run(ctx context.Context, args []string, out, errs io.Writer) error {
	o, err := parse(args, errs)
	if err != nil {
		return err
	}
	servers, err := launch(ctx)
	if err != nil {
		return err
	}
	defer servers.stop()
	results := make(map[string][]result)
	for round := range o.rounds {
		for _, name := range o.policies {
			fmt.Fprintf(errs, "round %d of %d: %s\n", round+1, o.rounds, name)
			r, err := measure(ctx, name, servers, o, uint64(round))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			results[name] = append(results[name], r)
		}
	}
	table(out, o, results)
	return nil
}

// table prints the median round of each policy, by its 99th percentile.
func table(out io.Writer, o options, results map[string][]result) {
	fmt.Fprintf(out, "%v calls a second to 6 servers, %d rounds of %v; a sixth is 16.7 %%\n\n", o.rate, o.rounds, o.length)
	fmt.Fprint(out, "| policy | p50 | p99 | failed |")
	for _, r := range odd {
		fmt.Fprintf(out, " to %s |", r)
	}
	fmt.Fprint(out, "\n|---|---:|---:|---:|", strings.Repeat("---:|", len(odd)), "\n")
	for _, name := range o.policies {
		rs := results[name]
		slices.SortFunc(rs, func(a, b result) int { return int(a.p99 - b.p99) })
		r := rs[len(rs)/2]
		fmt.Fprintf(out, "| `%s` | %.1f ms | %.0f ms | %.2f %% |", name, r.p50.Seconds()*1e3, r.p99.Seconds()*1e3, 100*r.failed)
		for _, role := range odd {
			fmt.Fprintf(out, " %.1f %% |", 100*r.share[role])
		}
		fmt.Fprintln(out)
	}
}
