package report

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// result has one step for each of the latencies, all calls of which took so many milliseconds.
func result(policy string, seed uint64, latencies ...int64) *scenario.Result {
	r := &scenario.Result{Scenario: "X", Policy: policy, Seed: seed}
	for i, l := range latencies {
		st := scenario.StepResult{Name: fmt.Sprint("step ", i), Jain: 0.5, Shares: []float64{0.25, 0.75}}
		for range 1000 {
			st.Latency.Record(l * int64(time.Millisecond))
		}
		st.Codes[codes.OK] = 990
		st.Codes[codes.Unavailable] = 10
		st.Attempts, st.Probes = 1500, 3000
		st.Series = []scenario.Bin{{Calls: 500, Failed: 10}, {Calls: 500}}
		r.Steps = append(r.Steps, st)
	}
	return r
}

func steps(n int) scenario.Scenario {
	s := scenario.Scenario{Name: "X", Title: "a <title>", Question: "Which?", Clients: 7, Deadline: 2 * time.Second,
		Servers: []scenario.Group{{Name: "fast", Count: 3}, {Name: "slow", Count: 2, Server: server.Config{Cores: 1}}}}
	for i := range n {
		s.Steps = append(s.Steps, scenario.Step{Name: fmt.Sprint("step ", i), Load: 0.5})
	}
	return s
}

// TestAgainst: A beats B only if the interval of the paired differences excludes 0.
func TestAgainst(t *testing.T) {
	for name, c := range map[string]struct {
		a, b []int64 // p99 by seed
		want string  // a regular expression
	}{
		"always better by a tenth":       {[]int64{90, 180, 45}, []int64{100, 200, 50}, `^\*\*-10\.0 %\*\* \[-10\.\d, -(9\.\d|10\.0)\]$`},
		"always worse":                   {[]int64{120, 241, 60}, []int64{100, 200, 50}, `^\*\*\+20\.2 %\*\* \[`},
		"pairs count, not the means":     {[]int64{90, 900, 9000}, []int64{100, 1000, 10000}, `^\*\*-10\.`},
		"better on average, not surely":  {[]int64{50, 101, 99}, []int64{100, 100, 100}, `^-16\.7 % \[-\d+\.\d, \+\d+\.\d\]$`},
		"two seeds say nothing for sure": {[]int64{90, 90}, []int64{100, 100}, `^-10\.0 %$`},
		"the same":                       {[]int64{100, 200, 50}, []int64{100, 200, 50}, `^\+0\.0 % \[[+-]0\.0, [+-]0\.0\]$`},
	} {
		var a, b policy
		a.name, b.name = "a", "b"
		for i := range c.a {
			a.results = append(a.results, result("a", uint64(i), c.a[i]))
			b.results = append(b.results, result("b", uint64(i), c.b[i]))
		}
		if got := a.against(b, 0, p99); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%s: %q, want it to match %s", name, got, c.want)
		}
		if got := a.against(a, 0, p99); got != "." {
			t.Errorf("%s: against itself: %q", name, got)
		}
	}
	// Results of different seeds did not meet the same world and are no pair.
	a := policy{"a", []*scenario.Result{result("a", 1, 90)}}
	b := policy{"b", []*scenario.Result{result("b", 2, 100)}}
	if got := a.against(b, 0, p99); got != "?" {
		t.Errorf("different seeds are compared: %q", got)
	}
}

func TestTables(t *testing.T) {
	s := steps(2)
	s.Attempts = 3
	s.Steps[1].Events = []scenario.Event{{Do: scenario.Crash(1)}}
	var results []*scenario.Result
	for seed := range uint64(3) {
		results = append(results, result("a", seed, 90, 5), result("b", seed, 100, 5))
	}
	b := &bytes.Buffer{}
	if err := Markdown(b, s, results, "b"); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"### X: a <title>", "5 servers, 7 clients, deadline 2s, 3 seeds.", "**step 0**", "**step 1**", "| p99 against b |",
		"attempts a call | to fast | to slow |", "last error after",
		"| a | 90 | 90 | 90 | 90 | 1.00 % | 0 | 3.00 | 0.500 | 1.500 | 25.00 % | 75.00 % | **-10.0 %** [",
		"| b | 5.00 | 5.00 |", "| 0.1 s |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	rows(t, text)
	b.Reset()
	s.Attempts = 0
	if err := Markdown(b, s, results, ""); err != nil || !strings.Contains(b.String(), "attempts a call") {
		t.Errorf("error %v, and nothing about half an attempt more for each call:\n%s", err, b)
	}
	b.Reset()
	if err := Markdown(b, s, results, "nobody"); err != nil || strings.Contains(b.String(), "against") {
		t.Errorf("error %v, and a comparison with a policy that was not run:\n%s", err, b)
	}
	b.Reset()
	if err := Markdown(b, s, nil, "b"); err != nil || !strings.Contains(b.String(), "No results") {
		t.Errorf("error %v, without results:\n%s", err, b)
	}
}

// rows checks that the rows of each table have as many cells as its head.
func rows(t *testing.T, text string) {
	t.Helper()
	head := 0
	for _, l := range strings.Split(text, "\n") {
		n := strings.Count(l, "|")
		switch {
		case n == 0:
			head = 0
		case head == 0:
			head = n
		case n != head:
			t.Errorf("a row of %d cells in a table of %d: %s", n, head, l)
		}
	}
}

// TestMatrices: many steps are columns.
func TestMatrices(t *testing.T) {
	s := steps(many)
	b := &bytes.Buffer{}
	if err := Markdown(b, s, []*scenario.Result{result("a", 1, 11, 20, 30, 40, 50), result("b", 1, 5000, 2, 3, 4, 5)}, ""); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"**p99.9**", "| policy | step 0 | step 1 |", "| a | 11 | 20 | 30 | 40 | 50 |",
		"| b | 5000 | 2.00 |", "**errors**"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
	rows(t, b.String())
}

// TestChart: each policy and step is drawn, in the order of the values, and names cannot break the file.
func TestChart(t *testing.T) {
	for n, want := range map[int]string{2: "<circle", many: "<polyline"} {
		latencies := []int64{1, 10, 100, 1000, 5000}[:n]
		s := steps(n)
		svg := string(Chart(s, []*scenario.Result{result("a<b>", 1, latencies...), result("b", 1, latencies...)}))
		if !strings.HasPrefix(svg, "<svg") || !strings.HasSuffix(svg, "</svg>\n") || strings.Contains(svg, "NaN") ||
			strings.Contains(svg, "Inf") || strings.Contains(svg, "a<b>") || !strings.Contains(svg, "a&lt;b&gt;") {
			t.Errorf("%d steps: not a chart:\n%s", n, svg)
		}
		marks := map[string]int{"<circle": 4 * 2 * n, "<polyline": 2}[want]
		if got := strings.Count(svg, want); got != marks {
			t.Errorf("%d steps: %d of %s, want %d", n, got, want, marks)
		}
	}
	// Without any latency above 0 there is still an axis.
	if svg := string(Chart(steps(1), []*scenario.Result{result("a", 1, 0)})); strings.Contains(svg, "NaN") {
		t.Errorf("a chart of nothing:\n%s", svg)
	}
	axis := scale{low: 0, high: 5, a: 10, b: 20}
	if axis.at(1) != 10 || axis.at(0) != 10 || axis.at(2) <= axis.at(1) || axis.at(100) <= axis.at(10) {
		t.Error("the axis does not grow with the value")
	}
}

func TestCell(t *testing.T) {
	s := steps(2)
	results := []*scenario.Result{result("a", 1, 90, 11), result("a", 2, 110, 11), result("b", 1, 7, 8)}
	for _, c := range []struct{ policy, step, figure, want string }{
		{"a", "step 0", "p99", "100"}, {"a", "step 1", "p99.9", "11"}, {"b", "step 1", "errors", "1.00 %"},
		{"b", "step 0", "to slow", "75.00 %"}, {"b", "step 0", "max/mean", "0.00"}, {"c", "step 0", "p99", "?"},
	} {
		if got, err := Cell(s, results, c.policy, c.step, c.figure); err != nil || got != c.want {
			t.Errorf("%s of %s at %s: %q, %v; want %q", c.figure, c.policy, c.step, got, err, c.want)
		}
	}
	if _, err := Cell(s, results, "a", "step 9", "p99"); err == nil {
		t.Error("a step that is not there has a figure")
	}
	if _, err := Cell(s, results, "a", "step 0", "beauty"); err == nil {
		t.Error("a figure that is not known has a value")
	}
}

// TestCheck: a figure that nobody knows is an error before and after the simulation, and names those that there are.
func TestCheck(t *testing.T) {
	s := scenario.Scenario{Name: "x", Show: []string{"goodput", "badput"}}
	want := `scenario "x": show[1] = "badput", want one of ["accepted" "affinity"`
	for _, err := range []error{Check(s), Markdown(io.Discard, s, nil, "")} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	for _, s := range scenario.Catalogue() {
		if err := Check(s); err != nil {
			t.Error(err)
		}
	}
}
