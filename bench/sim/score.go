package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/evenkeel/evenkeel/bench/sim/report"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/subsets"
)

// score is one line of the table of scores: a figure of one scenario, of those who are to be beaten and of ours.
type score struct {
	area, what, published string
	step, figure          string
	references            []string
}

// board is what one simulated scenario has to say.
type board struct {
	scenario string
	scores   []score
	ours     []string // nil for all strategies
	whole    bool     // steps have a course of their own and are not shortened
	fleet    bool     // it is about the servers that there are few of, and is not scaled down
}

// boards are the lines of the research's table, as far as they are about what a simulation shows.
func boards() []board {
	p2c, probing := []string{"least_request", "gozero_p2c", "kratos_p2c"}, []string{"prequal q=0.75", "c3"}
	same := func(step, published string) []score {
		return []score{
			{"1", "p99 at " + step + ", ms", "least request " + published, step, "p99", p2c},
			{"2", "p99 at " + step + ", ms", map[string]string{"70 %": "Prequal 281, C3 299", "90 %": "Prequal 286, C3 304"}[step],
				step, "p99", probing},
			{"2", "probes a call at " + step, "Prequal 3", step, "probes", probing},
		}
	}
	return []board{
		{"S1", []score{
			{"2", "p99.9 at 0.75 of the allocation, ms (the baseline)", "325", "0.75", "p99.9", []string{"prequal"}},
			{"2", "p99.9 at 1.74, ms", "Prequal 700, 2.15 times its baseline", "1.74", "p99.9", []string{"prequal"}},
			{"2", "errors at 1.74", "Prequal 0", "1.74", "errors", []string{"prequal", "least_request"}},
			{"3", "errors at 1.03", "WRR 0.07 to 0.26 %", "1.03", "errors", []string{"wrr", "wrr_smoothed"}},
			{"3", "errors at 1.74", "WRR 26 to 28 %", "1.74", "errors", []string{"wrr", "wrr_smoothed"}},
		}, nil, false, true},
		{"S2", append(same("70 %", "569"), same("90 %", "1918")...), nil, false, false},
		{"S14", []score{
			{"1", "calls to the slow tenth of 1000 servers, 10 calls a second", "go-zero 16 %, random 10 %", "10 calls a second",
				"to slow", []string{"gozero_p2c", "random"}},
		}, nil, false, false},
		{"S13", []score{
			{"4", "most/mean, all keys as popular", "ring_hash 1.95", "Zipf 0", "max/mean", []string{"ring_hash"}},
			{"4", "p99 at Zipf 1.1, ms", "none", "Zipf 1.1", "p99", []string{"ring_hash"}},
		}, []string{"evenkeel/hash"}, false, false},
		{"S5", []score{
			{"5", "last error after a tenth of the servers hangs", "A50 10 s", "10 % hang", "clean", []string{"kratos_p2c", "prequal"}},
			{"5", "last error after 40 % hang", "A50 never", "40 % hang", "clean", []string{"kratos_p2c", "prequal"}},
			{"5", "errors as 40 % hang", "A50 all of them", "40 % hang", "errors", []string{"kratos_p2c", "prequal"}},
		}, nil, false, false},
		{"S9", []score{
			{"7", "calls that leave their zone", "Envoy 15 % (62.5 % of zone a stay)", "steady", "cross", []string{"envoy_zone", "same_zone", "least_request"}},
			{"7", "p99 in the surge, ms", "within 10 % of least request", "zone a calls three times as often", "p99", []string{"envoy_zone", "same_zone", "least_request"}},
			{"7", "errors in the surge", "0", "zone a calls three times as often", "errors", []string{"envoy_zone", "same_zone", "least_request"}},
		}, nil, false, false},
		{"S11", []score{
			{"9", "attempts at the last of four layers a call, all fail", "1.1 and less", "the last layer fails at once", "amplified",
				[]string{"no_retry", "retry_unthrottled", "retry_a6_throttle", "retry_finagle_budget"}},
			{"9", "last error after an outage of 30 s", "2 s and less", "after: the last layer fails at once", "clean",
				[]string{"no_retry", "retry_unthrottled", "retry_a6_throttle", "retry_finagle_budget"}},
		}, []string{"evenkeel_retry", "evenkeel_retry+chain_stop", "evenkeel_retry+chain_stop+10%", "evenkeel_retry+hedge"}, true, false},
		{"S7", []score{
			{"11", "goodput at three times the capacity", "95 % and more", "3 x", "goodput",
				[]string{"no_limit", "limit_aimd", "limit_vegas", "limit_gradient2"}},
			{"11", "p99 of the accepted there, ms", "twice that of 0.5 x and less", "3 x", "accepted",
				[]string{"no_limit", "limit_aimd", "limit_vegas", "limit_gradient2"}},
			{"11", "errors at 0.7 x", "0", "0.7 x", "errors", []string{"no_limit", "limit_aimd", "limit_vegas", "limit_gradient2"}},
		}, []string{"evenkeel_limit"}, true, false},
		{"S12", []score{
			{"12", "calls that a canary fails which fails a fifth", "Flagger: those of 10 minutes", "one call in five fails", "failures",
				[]string{"random", "prequal"}},
		}, nil, false, false},
	}
}

// own are the policies of ours that a board is about.
func (b board) own() []string {
	if b.ours != nil {
		return b.ours
	}
	var out []string
	for _, name := range about(b.scenario) {
		if strings.HasPrefix(name, "evenkeel/") {
			out = append(out, name)
		}
	}
	return out
}

// names are all policies and steps of a board, each once.
func (b board) names() (policies, steps []string) {
	add := func(to *[]string, name string) {
		for _, n := range *to {
			if n == name {
				return
			}
		}
		*to = append(*to, name)
	}
	for _, s := range b.scores {
		add(&steps, s.step)
		for _, r := range s.references {
			add(&policies, r)
		}
	}
	return append(policies, b.own()...), steps
}

// plan is what is run for a board, with the size, length and seeds of the flags.
func (b board) plan(o options) (plan, error) {
	o.policies, o.steps = b.names()
	if b.whole {
		o.length = max(o.length, 1)
	}
	if b.fleet {
		o.size = max(o.size, 1)
	}
	scenarios, err := pick("scenario", []string{b.scenario}, scenario.Catalogue(), func(s scenario.Scenario) string { return s.Name })
	if err != nil {
		return plan{}, err
	}
	order := make(map[string]int)
	for i, st := range scenarios[0].Steps {
		order[st.Name] = i
	}
	slices.SortFunc(o.steps, func(a, b string) int { return order[a] - order[b] }) // a ramp goes up
	return newPlan(scenarios[0], o)
}

// scoreboard runs all boards and writes the table.
func scoreboard(o options, out, errOut io.Writer) error {
	if err := o.hasPlace("scoreboard"); err != nil {
		return err
	}
	var plans []plan
	for _, b := range boards() {
		p, err := b.plan(o)
		if err != nil {
			return err
		}
		plans = append(plans, p)
	}
	text := &bytes.Buffer{}
	text.WriteString("| area | figure | published, or the goal | here: others | here: ours | by |\n|---:|---|---|---|---|---|\n")
	commands := &bytes.Buffer{}
	progress := newProgress(errOut, plans)
	for i, b := range boards() {
		results, err := scenario.All(plans[i].jobs, o.parallel, progress.done)
		if err != nil {
			return err
		}
		if err := b.rows(text, plans[i].scenario, results); err != nil {
			return err
		}
		fmt.Fprintf(commands, "- %s: `%s`\n", b.scenario, plans[i].command)
	}
	progress.end()
	fmt.Fprintf(text, "\nEach line is of one of these commands, all together of `go run ./bench/sim -scoreboard -seeds %d -size %v -length %v`:\n\n%s",
		o.seeds, o.size, o.length, commands)
	return place(text.Bytes(), "scoreboard", o, out)
}

// rows writes the lines of one board.
func (b board) rows(w io.Writer, s scenario.Scenario, results []*scenario.Result) error {
	for _, sc := range b.scores {
		list := func(policies []string) (string, error) {
			var cells []string
			for _, p := range policies {
				cell, err := report.Cell(s, results, p, sc.step, sc.figure)
				if err != nil {
					return "", err
				}
				cells = append(cells, strings.TrimPrefix(p, "evenkeel/")+" "+cell)
			}
			return strings.Join(cells, "; "), nil
		}
		others, err := list(sc.references)
		if err != nil {
			return err
		}
		ours, err := list(b.own())
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", sc.area, sc.what, sc.published, others, ours, b.scenario)
	}
	return nil
}

// compareSubsets writes the tables of scenario S10. Churn in the large one is counted over 20 of the clients.
func compareSubsets(o options, out io.Writer) error {
	if err := o.hasPlace("S10"); err != nil {
		return err
	}
	b := &bytes.Buffer{}
	b.WriteString("### S10: subsets\n\nHow evenly do the clients of a large fleet spread over it, and how many connections move?\n")
	if err := subsets.Markdown(b, subsets.Shapes(), 20); err != nil {
		return err
	}
	b.WriteString("\n`go run ./bench/sim -subsets`\n")
	return place(b.Bytes(), "S10", o, out)
}
