// Sim runs balancing policies on simulated servers and shows how they compare: a markdown table and a chart for each
// scenario.
//
//	go run ./bench/sim -list
//	go run ./bench/sim -scenario S2 -policies random,round_robin,omniscient -seeds 5 -size 0.2
//	go run ./bench/sim -scenario S1,S2 -policies all -seeds 20 -out bench/sim/results
//	go run ./bench/sim -scenario all -seeds 5 -out bench/sim/results -readme bench/sim/README.md
//	go run ./bench/sim -subsets
//	go run ./bench/sim -scoreboard -seeds 5 -size 0.5 -readme bench/sim/README.md
//
// -size scales servers and clients, -length how long each step is measured; -steps picks steps by name. Loads are parts
// of what the servers can do, so a small fleet is loaded like a large one. It is not the same fleet: with few servers,
// chance matters more, and so do a policy's habits with few.
//
// Without -out the tables go to standard output. With it they go to files, SCENARIO.md and SCENARIO.svg; with -readme
// the tables also replace what stands between the lines "<!-- begin SCENARIO -->" and "<!-- end SCENARIO -->" of a file.
// Progress goes to standard error. The same flags give the same bytes, on the same kind of processor.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
)

func main() {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // our policy logs each ejection, of thousands
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	scenarios, policies, steps []string
	seeds, parallel            int
	size, length               float64
	against, out, readme       string
	list, scoreboard, subsets  bool
	againstSet                 bool // by hand
}

func parse(args []string, errOut io.Writer) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(errOut)
	scenarios := fs.String("scenario", "S2", "`names` of scenarios, separated by commas, or all")
	policies := fs.String("policies", "", "`names` of policies, or all; empty means those that the scenario is about")
	steps := fs.String("steps", "", "`names` of the steps to run; empty means all")
	fs.IntVar(&o.seeds, "seeds", 5, "how `many` seeds, from 1 on")
	fs.IntVar(&o.parallel, "parallel", runtime.GOMAXPROCS(0), "how `many` simulations run side by side")
	fs.Float64Var(&o.size, "size", 1, "`times` the servers and clients of the scenario")
	fs.Float64Var(&o.length, "length", 1, "`times` the measured time of each step")
	fs.StringVar(&o.against, "against", "prequal", "the `policy` that the others are compared with")
	fs.StringVar(&o.out, "out", "", "a `directory` for the tables and charts")
	fs.StringVar(&o.readme, "readme", "", "a `file` whose marked sections get the tables")
	fs.BoolVar(&o.list, "list", false, "list scenarios and policies, and do nothing")
	fs.BoolVar(&o.scoreboard, "scoreboard", false, "run what the table of scores is made of, and write that table only")
	fs.BoolVar(&o.subsets, "subsets", false, "compare rules for subsets (S10), and do nothing else")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%q is not a flag", fs.Arg(0))
	}
	for name, v := range map[string]float64{"seeds": float64(o.seeds), "parallel": float64(o.parallel), "size": o.size,
		"length": o.length} {
		if !(v > 0) {
			return o, fmt.Errorf("-%s = %v, want more than 0", name, v)
		}
	}
	o.scenarios, o.policies, o.steps = split(*scenarios), split(*policies), split(*steps)
	if len(o.scenarios) == 0 {
		return o, fmt.Errorf("-scenario %q names none", *scenarios)
	}
	var fixed error
	fs.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "against":
			o.againstSet = true
		case "scenario", "policies", "steps":
			if o.subsets || o.scoreboard {
				fixed = fmt.Errorf("-%s is no choice with -subsets and -scoreboard, which have theirs", f.Name)
			}
		}
	})
	return o, fixed
}

// split is a list as flags have it, each name once.
func split(s string) []string {
	var out []string
	for _, name := range strings.Split(s, ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func run(args []string, out, errOut io.Writer) error {
	o, err := parse(args, errOut)
	if err != nil {
		return err
	}
	switch {
	case o.list:
		return list(out)
	case o.subsets:
		return compareSubsets(o, out)
	case o.scoreboard:
		return scoreboard(o, out, errOut)
	}
	if slices.Contains(o.scenarios, "S10") {
		return errors.New("S10 compares subsets and simulates no calls: it is run by -subsets")
	}
	scenarios, err := pick("scenario", o.scenarios, scenario.Catalogue(), func(s scenario.Scenario) string { return s.Name })
	if err != nil {
		return err
	}
	var all []plan
	for _, s := range scenarios {
		p, err := newPlan(s, o)
		if err := errors.Join(err, o.hasPlace(s.Name)); err != nil {
			return err
		}
		all = append(all, p)
	}
	progress := newProgress(errOut, all)
	for _, p := range all {
		results, err := scenario.All(p.jobs, o.parallel, progress.done)
		if err != nil {
			return err
		}
		if err := p.write(results, o, out); err != nil {
			return err
		}
	}
	progress.end()
	return nil
}

// pick finds values by their names; "all" is all of them.
func pick[T any](what string, names []string, known []T, name func(T) string) ([]T, error) {
	if slices.Equal(names, []string{"all"}) {
		return known, nil
	}
	var out []T
	for _, n := range names {
		i := slices.IndexFunc(known, func(k T) bool { return name(k) == n })
		if i < 0 {
			var all []string
			for _, k := range known {
				all = append(all, name(k))
			}
			return nil, fmt.Errorf("%s %q is not known; known are: %s", what, n, strings.Join(all, ", "))
		}
		out = append(out, known[i])
	}
	return out, nil
}

func policyName(m lb.Maker) string { return m.Name }

func list(out io.Writer) error {
	b := &strings.Builder{}
	b.WriteString("scenarios:\n")
	for _, s := range scenario.Catalogue() {
		var steps []string
		for _, st := range s.Steps {
			steps = append(steps, st.Name)
		}
		fmt.Fprintf(b, "  %-4s %s. %s\n       steps: %s\n", s.Name, s.Title, s.Question, strings.Join(steps, ", "))
	}
	b.WriteString("policies:\n")
	for _, m := range policies() {
		fmt.Fprintf(b, "  %s\n", m.Name)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// progress tells how far it is, every few seconds.
type progress struct {
	out          io.Writer
	total, count int
	events       uint64
	began, said  time.Time
}

func newProgress(out io.Writer, plans []plan) *progress {
	p := &progress{out: out, began: time.Now(), said: time.Now()}
	for _, pl := range plans {
		p.total += len(pl.jobs)
	}
	return p
}

// done is called after each simulation, by one goroutine at a time.
func (p *progress) done(_ int, r *scenario.Result) {
	p.count++
	p.events += r.Events
	if time.Since(p.said) < 3*time.Second {
		return
	}
	p.said = time.Now()
	spent := time.Since(p.began)
	left := spent * time.Duration(p.total-p.count) / time.Duration(p.count)
	fmt.Fprintf(p.out, "%d of %d simulations, %v, about %v left (%s %s seed %d)\n", p.count, p.total,
		spent.Round(time.Second), left.Round(time.Second), r.Scenario, r.Policy, r.Seed)
}

func (p *progress) end() {
	spent := time.Since(p.began)
	fmt.Fprintf(p.out, "%d simulations, %d million events, %v: %.1f million events a second\n", p.count, p.events/1e6,
		spent.Round(100*time.Millisecond), float64(p.events)/1e6/spent.Seconds())
}
