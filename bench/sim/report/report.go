// Package report shows the results of simulations: a markdown table to read, a chart to see.
//
// Numbers are means over the seeds. The last column of a table compares the 99th percentile with that of one policy,
// seed by seed: both met the same calls on the same machines, so most of what differs between seeds cancels. It is the
// mean of the differences in percent and its 95 % interval, and bold if the interval excludes 0; if it does not, nothing
// is said about which of the two is better.
//
// A scenario of a few steps has a table for each, one of many steps a table for each figure, with a column for each
// step. [Markdown] and [Chart] choose; both depend on nothing but their arguments, so the same results give the same text.
package report

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/metrics"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
)

// many steps are a ramp or a sweep.
const many = 5

// policy is the results of one policy, in the order of the seeds.
type policy struct {
	name    string
	results []*scenario.Result
}

// byPolicy keeps the order in which policies first appear.
func byPolicy(results []*scenario.Result) []policy {
	var out []policy
	at := make(map[string]int)
	for _, r := range results {
		i, ok := at[r.Policy]
		if !ok {
			i = len(out)
			at[r.Policy] = i
			out = append(out, policy{name: r.Policy})
		}
		out[i].results = append(out[i].results, r)
	}
	return out
}

// figure is one number of a step.
type figure struct {
	name string
	of   func(*scenario.StepResult) float64
	text func(float64) string
}

func quantile(q float64) func(*scenario.StepResult) float64 {
	return func(r *scenario.StepResult) float64 { return float64(r.Latency.Quantile(q)) / 1e6 }
}

func ms(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func percent(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.0001:
		return fmt.Sprintf("%.4f %%", 100*v)
	}
	return fmt.Sprintf("%.2f %%", 100*v)
}

func number(format string) func(float64) string {
	return func(v float64) string { return fmt.Sprintf(format, v) }
}

func each(n, of uint64) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

var (
	p50    = figure{"p50", quantile(0.5), ms}
	p90    = figure{"p90", quantile(0.9), ms}
	p99    = figure{"p99", quantile(0.99), ms}
	p999   = figure{"p99.9", quantile(0.999), ms}
	failed = figure{"errors", (*scenario.StepResult).Errors, percent}
	rif    = figure{"RIF p99", func(r *scenario.StepResult) float64 { return float64(r.RIF.Quantile(0.99)) }, number("%.0f")}
	probes = figure{"probes a call", func(r *scenario.StepResult) float64 { return each(r.Probes, r.Calls()) }, number("%.2f")}
	tries  = figure{"attempts a call", func(r *scenario.StepResult) float64 { return each(r.Attempts, r.Calls()) }, number("%.3f")}
	jain   = figure{"Jain", func(r *scenario.StepResult) float64 { return r.Jain }, number("%.3f")}
	clean  = figure{"last error after", func(r *scenario.StepResult) float64 { return r.Clean().Seconds() }, number("%.1f s")}
)

// shown are the figures that a scenario can ask for by name ([scenario.Scenario.Show]).
var shown = map[string]figure{
	"goodput":   {"goodput", (*scenario.StepResult).Goodput, percent},
	"accepted":  {"p99 of the accepted", func(r *scenario.StepResult) float64 { return float64(r.Accepted.Quantile(0.99)) / 1e6 }, ms},
	"settled":   {"goodput below 90 % until", func(r *scenario.StepResult) float64 { return r.Settled().Seconds() }, number("%.0f s")},
	"cross":     {"cross-zone", func(r *scenario.StepResult) float64 { return r.Cross }, percent},
	"busiest":   {"busiest zone", func(r *scenario.StepResult) float64 { return r.Busiest }, percent},
	"max/mean":  {"calls max/mean", func(r *scenario.StepResult) float64 { return r.MaxMean }, number("%.2f")},
	"held":      {"in flight max/mean", func(r *scenario.StepResult) float64 { return r.HeldMaxMean }, number("%.2f")},
	"affinity":  {"to the key's server", func(r *scenario.StepResult) float64 { return r.Affinity }, percent},
	"amplified": {"attempts at the last layer a call", func(r *scenario.StepResult) float64 { return each(r.Sent[len(r.Sent)-1], r.Calls()) }, number("%.2f")},
	"failures":  {"failed calls", func(r *scenario.StepResult) float64 { return float64(r.Calls() - r.Accepted.Count()) }, number("%.0f")},
}

// always are the figures that every scenario has, by the names that [Cell] takes beside those that are shown on demand.
var always = map[string]figure{"p50": p50, "p90": p90, "p99": p99, "p99.9": p999, "errors": failed, "probes": probes,
	"clean": clean}

// Cell is one figure of one policy at one step, as the tables print it: its mean over the seeds. The names of figures are
// p50, p90, p99, p99.9, errors, probes, clean (the last error after), "to NAME" (what a group gets) and those of
// [scenario.Scenario.Show]. It is "?" without results of the policy, and an error for what the scenario has not.
func Cell(s scenario.Scenario, results []*scenario.Result, policy, step, name string) (string, error) {
	f, ok := always[name]
	if !ok {
		f, ok = shown[name]
	}
	for _, g := range shares(s) {
		if g.name == name {
			f, ok = g, true
		}
	}
	if !ok {
		return "", fmt.Errorf("report: figure %q is not known", name)
	}
	at := slices.IndexFunc(s.Steps, func(st scenario.Step) bool { return st.Name == step })
	if at < 0 {
		return "", fmt.Errorf("report: scenario %s has no step %q", s.Name, step)
	}
	for _, p := range byPolicy(results) {
		if p.name == policy {
			return p.cell(at, f), nil
		}
	}
	return "?", nil
}

// Check returns an error if a scenario wants to show what no figure is called.
func Check(s scenario.Scenario) error {
	for i, name := range s.Show {
		if _, ok := shown[name]; !ok {
			return fmt.Errorf("scenario %q: show[%d] = %q, want one of %q", s.Name, i, name, slices.Sorted(maps.Keys(shown)))
		}
	}
	return nil
}

// more are those that a scenario asks for.
func more(s scenario.Scenario) []figure {
	var out []figure
	for _, name := range s.Show {
		out = append(out, shown[name])
	}
	return out
}

// values are a figure's, one for each seed.
func (p policy) values(step int, f figure) []float64 {
	out := make([]float64, len(p.results))
	for i, r := range p.results {
		out[i] = f.of(&r.Steps[step])
	}
	return out
}

func (p policy) cell(step int, f figure) string { return f.text(metrics.Mean(p.values(step, f))) }

// against compares a policy with another by a figure.
func (p policy) against(o policy, step int, f figure) string {
	if p.name == o.name {
		return "."
	}
	a, b := p.values(step, f), o.values(step, f)
	var differences []float64
	for i := range min(len(a), len(b)) {
		if p.results[i].Seed == o.results[i].Seed && b[i] > 0 {
			differences = append(differences, 100*(a[i]/b[i]-1))
		}
	}
	if len(differences) == 0 {
		return "?"
	}
	text := fmt.Sprintf("%+.1f %%", metrics.Mean(differences))
	low, high := metrics.Interval(differences)
	if math.IsInf(low, 0) {
		return text
	}
	if low > 0 || high < 0 {
		text = "**" + text + "**"
	}
	return fmt.Sprintf("%s [%+.1f, %+.1f]", text, low, high)
}

// Markdown writes the tables of one scenario. against is the policy that the others are compared with; without results
// of it there is no such column. Results with other scenarios' steps are a programmer's error; what the scenario wants to show
// and nobody knows is an error ([Check]).
func Markdown(w io.Writer, s scenario.Scenario, results []*scenario.Result, against string) error {
	if err := Check(s); err != nil {
		return err
	}
	b := &strings.Builder{}
	policies := byPolicy(results)
	fmt.Fprintf(b, "### %s: %s\n\n%s\n\n", s.Name, s.Title, s.Question)
	if len(policies) == 0 {
		fmt.Fprintf(b, "No results.\n")
	} else {
		fmt.Fprintf(b, "%d servers, %d clients, deadline %v, %s. Latencies in ms.\n",
			servers(s), s.Clients, deadline(s), count(len(policies[0].results), "seed"))
		if len(s.Steps) >= many {
			matrices(b, s, policies)
		} else {
			tables(b, s, policies, against)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func servers(s scenario.Scenario) int {
	n := 0
	for _, g := range s.Servers {
		n += g.Count
	}
	return n
}

func deadline(s scenario.Scenario) time.Duration {
	if s.Deadline == 0 {
		return 5 * time.Second
	}
	return s.Deadline
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// tables are one for each step.
func tables(b *strings.Builder, s scenario.Scenario, policies []policy, against string) {
	var reference *policy
	for i := range policies {
		if policies[i].name == against {
			reference = &policies[i]
		}
	}
	for step := range s.Steps {
		figures := []figure{p50, p90, p99, p999, failed, rif, probes, jain}
		if s.Attempts > 1 || retried(s, policies, step) {
			figures = append(figures, tries)
		}
		if len(s.Steps[step].Events) > 0 {
			figures = append(figures, clean)
		}
		figures = append(figures, more(s)...)
		if !s.Chain {
			figures = append(figures, shares(s)...)
		}
		fmt.Fprintf(b, "\n**%s**\n\n| policy |", s.Steps[step].Name)
		for _, f := range figures {
			fmt.Fprintf(b, " %s |", f.name)
		}
		if reference != nil {
			fmt.Fprintf(b, " p99 against %s |", against)
		}
		columns := len(figures)
		if reference != nil {
			columns++
		}
		fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---:|", columns))
		for _, p := range policies {
			fmt.Fprintf(b, "| %s |", p.name)
			for _, f := range figures {
				fmt.Fprintf(b, " %s |", p.cell(step, f))
			}
			if reference != nil {
				fmt.Fprintf(b, " %s |", p.against(*reference, step, p99))
			}
			b.WriteByte('\n')
		}
	}
}

// retried reports whether some policy tried calls again, by a rule of its own.
func retried(s scenario.Scenario, policies []policy, step int) bool {
	if s.Streams.Part > 0 || s.Chain { // there are other reasons for more attempts than calls
		return false
	}
	return slices.ContainsFunc(policies, func(p policy) bool {
		// Calls at the end of a measurement are tried again after it, and the other way round.
		return metrics.Mean(p.values(step, tries)) > 1.0005
	})
}

// shares are of what the groups get, if there are several.
func shares(s scenario.Scenario) []figure {
	var out []figure
	for i, g := range s.Servers {
		if len(s.Servers) > 1 {
			out = append(out, figure{"to " + g.Name, func(r *scenario.StepResult) float64 { return r.Shares[i] }, percent})
		}
	}
	return out
}

// matrices are one for each figure, with a column for each step.
func matrices(b *strings.Builder, s scenario.Scenario, policies []policy) {
	figures := []figure{p50, p90, p99, p999, failed}
	if slices.ContainsFunc(s.Steps, func(st scenario.Step) bool { return len(st.Events) > 0 }) {
		figures = append(figures, clean)
	}
	for _, f := range append(figures, more(s)...) {
		fmt.Fprintf(b, "\n**%s**\n\n| policy |", f.name)
		for _, st := range s.Steps {
			fmt.Fprintf(b, " %s |", st.Name)
		}
		fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---:|", len(s.Steps)))
		for _, p := range policies {
			fmt.Fprintf(b, "| %s |", p.name)
			for step := range s.Steps {
				fmt.Fprintf(b, " %s |", p.cell(step, f))
			}
			b.WriteByte('\n')
		}
	}
}
