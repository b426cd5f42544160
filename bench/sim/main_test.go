package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/scenario"
)

// TestRun: one command writes the table, the chart and the section of a readme, and the same command writes the same.
func TestRun(t *testing.T) {
	write := func() (table, chart, readme string) {
		dir := t.TempDir()
		file := filepath.Join(dir, "README.md")
		if err := os.WriteFile(file, []byte("before\n<!-- begin S6 -->\nold\n<!-- end S6 -->\nafter\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args := strings.Fields("-scenario S6 -seeds 3 -size 0.03 -length 0.02 -out " + filepath.Join(dir, "results") +
			" -readme " + file)
		args = append(args, "-steps", "well,ten times as slow", "-policies", "random,prequal,evenkeel/least_request")
		if err := run(args, os.Stdout, &strings.Builder{}); err != nil {
			t.Fatal(err)
		}
		read := func(name string) string {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		return read("results/S6.md"), read("results/S6.svg"), read("README.md")
	}
	table, chart, readme := write()
	for _, want := range []string{"| random |", "| evenkeel/least_request |", "**ten times as slow**", "p99 against prequal",
		"-seeds 3 -size 0.03 -length 0.02"} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	if !strings.HasPrefix(chart, "<svg") || strings.Contains(chart, "NaN") || !strings.Contains(chart, "evenkeel/least_request") {
		t.Errorf("not a chart:\n%s", chart)
	}
	if !strings.HasPrefix(readme, "before\n<!-- begin S6 -->\n### S6") || !strings.HasSuffix(readme, "(results/S6.svg)\n<!-- end S6 -->\nafter\n") ||
		strings.Contains(readme, "old") {
		t.Errorf("the readme became\n%s", readme)
	}
	table2, chart2, _ := write()
	if table != table2 || chart != chart2 {
		t.Error("the same command gave other results")
	}
}

// TestNobodyBeatsTheOmniscient: the column that the others are measured against is below them, in a fleet of which half is
// slow and the neighbours take turns.
func TestNobodyBeatsTheOmniscient(t *testing.T) {
	at := slices.IndexFunc(scenario.Catalogue(), func(s scenario.Scenario) bool { return s.Name == "S2" })
	s := scenario.Catalogue()[at].Scaled(0.1)
	s.Steps = s.Steps[1:]
	s.Steps[0].Settle, s.Steps[0].Measure = 7*time.Second, 3*time.Second
	p99 := make(map[string]int64)
	for _, m := range policies() {
		switch m.Name {
		case "omniscient", "c3", "prequal", "evenkeel/keel":
			r, err := scenario.Run(s, m, 1)
			if err != nil {
				t.Fatal(err)
			}
			p99[m.Name] = r.Steps[0].Latency.Quantile(0.99)
		}
	}
	for name, got := range p99 {
		if bound := p99["omniscient"]; got < bound || len(p99) != 4 {
			t.Errorf("%d policies; %s has a p99 of %v, and the omniscient one of %v", len(p99), name, time.Duration(got),
				time.Duration(bound))
		}
	}
}

func TestErrorsNameWhatIsKnown(t *testing.T) {
	for args, want := range map[string]string{
		"-scenario S99":                  `scenario "S99" is not known; known are: S1, S2`,
		"-scenario S2 -policies quantum": `policy "quantum" is not known; known are:`,
		"-scenario S2 -steps 71":         `scenario S2: step "71" is not known; known are: 70 %, 90 %`,
		"-seeds 0":                       "-seeds = 0, want more than 0",
		"-size -1":                       "-size = -1, want more than 0",
		"S2":                             `"S2" is not a flag`,
		"-scenario ,":                    `-scenario "," names none`,
		"-scenario S10":                  "it is run by -subsets",
		"-subsets -scenario S2":          "-scenario is no choice with -subsets",
		"-scoreboard -policies random":   "-policies is no choice with -subsets and -scoreboard",
		"-against foo":                   `-against "foo" is none of the policies of S2, which are: evenkeel/hash, `,
		"-policies random -against c3":   `-against "c3" is none of the policies of S2, which are: random`,
		"-policies all -against foo":     `-against "foo" is none of the policies of S2`,
		"-readme nowhere.md":             "-readme nowhere.md: open nowhere.md:",
		"-readme main.go":                `-readme main.go: want the lines "<!-- begin S2 -->"`,
		"-subsets -readme main.go":       `-readme main.go: want the lines "<!-- begin S10 -->"`,
		"-scoreboard -readme main.go":    `-readme main.go: want the lines "<!-- begin scoreboard -->"`,
		"-nonsense":                      "flag provided but not defined",
	} {
		err := run(strings.Fields(args), &strings.Builder{}, &strings.Builder{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", args, err, want)
		}
	}
	if _, err := section([]byte("no marks"), "S1", nil); err == nil {
		t.Error("a section without marks is replaced")
	}
}

// TestNamesCountOnce: who names something twice gets it once.
func TestNamesCountOnce(t *testing.T) {
	if got := split(" S6, S6,,S2 "); !slices.Equal(got, []string{"S6", "S2"}) {
		t.Errorf("%q", got)
	}
}

// TestScoreboard: every line of the table of scores can be made: its scenario, step, policies and figure are there.
func TestScoreboard(t *testing.T) {
	for _, b := range boards() {
		p, err := b.plan(options{seeds: 1, size: 0.02, length: 0.01})
		if err != nil {
			t.Errorf("%s: %v", b.scenario, err)
			continue
		}
		if err := b.rows(io.Discard, p.scenario, nil); err != nil {
			t.Errorf("%s: %v", b.scenario, err)
		}
		if b.scenario == "S1" && (p.scenario.Steps[0].Name != "0.75" || p.scenario.Steps[2].Name != "1.74") {
			t.Errorf("the steps of the ramp are %v", p.scenario.Steps)
		}
		if b.scenario == "S1" && p.scenario.Clients != 100 || b.scenario == "S2" && p.scenario.Clients == 100 {
			t.Errorf("%s has %d clients: the ramp needs all of them, the others do not", b.scenario, p.scenario.Clients)
		}
		if len(b.own()) == 0 {
			t.Errorf("%s: nothing of ours", b.scenario)
		}
	}
	b := board{"S6", []score{{"9", "what", "nothing", "well", "p99", []string{"random"}}}, []string{"evenkeel/random"}, false, false}
	p, err := b.plan(options{seeds: 1, size: 0.02, length: 0.02, parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	results, err := scenario.All(p.jobs, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := &strings.Builder{}
	if err := b.rows(text, p.scenario, results); err != nil || !regexp.MustCompile(
		`^\| 9 \| what \| nothing \| random \d+ \| random \d+ \| S6 \|\n$`).MatchString(text.String()) {
		t.Errorf("error %v, the line is %s", err, text)
	}
}

func TestPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte("a\n<!-- begin X -->\nold\n<!-- end X -->\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := place([]byte("new\n"), "X", options{readme: file}, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "a\n<!-- begin X -->\nnew\n<!-- end X -->\nb\n" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if err := place([]byte("new\n"), "Y", options{readme: file}, nil); err == nil {
		t.Error("a section that is not there is replaced")
	}
}

func TestList(t *testing.T) {
	b := &strings.Builder{}
	if err := run([]string{"-list"}, b, b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"S14", "prequal q=0.75", "evenkeel/peak_ewma"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

// TestDefaultsAreKnown: what a scenario is about by default exists.
func TestDefaultsAreKnown(t *testing.T) {
	for _, s := range []string{"S1", "S3", "S4", "S5", "S7", "S9", "S11", "S12", "S13", "S15"} {
		if _, err := pick("policy", about(s), policies(), policyName); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}
