package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const raw = `date: 2026-01-02 03:04 UTC
commit: 0123456789ab
goos: linux
cpu: Some Processor
BenchmarkPick/policy=evenkeel_round_robin/n=3/filter=none/ctx=plain/par=1-2   100  40.0 ns/op  0 B/op  0 allocs/op
BenchmarkPick/policy=evenkeel_round_robin/n=3/filter=none/ctx=plain/par=1-2   100  20.0 ns/op  0 B/op  0 allocs/op
BenchmarkPick/policy=evenkeel_round_robin/n=3/filter=none/ctx=plain/par=1-2   100  22.0 ns/op  0 B/op  0 allocs/op
BenchmarkPick/policy=grpc_round_robin/n=3/filter=none/ctx=plain/par=1-2       100  5.0 ns/op  0 B/op  0 allocs/op
BenchmarkPick/policy=grpc_round_robin/n=3/filter=none/ctx=plain/par=1-2       100  4.0 ns/op  0 B/op  0 allocs/op
BenchmarkConverge/policy=evenkeel_round_robin/n=4000-2   1  40000000 ns/op
BenchmarkConverge/policy=grpc_round_robin/n=4000-2   1  1000000000 ns/op
BenchmarkMemory/policy=channel_only/n=1000/filters=0-2   1  200 B/endpoint
BenchmarkMemory/policy=grpc_round_robin/n=1000/filters=0-2   1  1200 B/endpoint
BenchmarkMemory/policy=evenkeel_round_robin/n=1000/filters=0-2   1  1300 B/endpoint
PASS
ok  	github.com/evenkeel/evenkeel/bench	1.0s
`

func parse(t *testing.T, text string) *Run {
	t.Helper()
	r, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.File = "x.txt"
	return r
}

func TestParse(t *testing.T) {
	r := parse(t, raw)
	if got := r.Facts["commit"]; got != "0123456789ab" {
		t.Errorf("commit = %q", got)
	}
	s := r.Find("ns/op", "Pick", "policy=evenkeel_round_robin n=3 par=1")
	if len(s) != 3 || s.Median() != 22 || s.Min() != 20 || s.Max() != 40 {
		t.Errorf("round_robin at 3: %v, want 40, 20 and 22", s)
	}
	if m, least, most := s.Ratio(r.Find("ns/op", "Pick", "policy=grpc_round_robin")); m != 22/4.5 || least != 4 || most != 10 {
		t.Errorf("ratio = %v [%v, %v], want 22/4.5 [4, 10]", m, least, most)
	}
	if s := r.Find("ns/op", "Pick", "policy=evenkeel_round_robin n=30"); s != nil {
		t.Errorf("n=30 finds %v, want nothing: n=3 is another size", s)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":   "goos: linux\nPASS\n",
		"a failure": strings.Replace(raw, "PASS", "--- FAIL: BenchmarkPick/policy=x", 1),
		"a panic":   raw + "panic: no\n",
		"half":      "BenchmarkPick/n=3-2  100  40.0\nBenchmarkPick/n=3-2  100  40.0 ns/op 3\n",
		"no number": "BenchmarkPick/n=3-2  100  forty ns/op\n",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%s: no error, want one", name)
		} else {
			t.Log(err)
		}
	}
}

func TestRender(t *testing.T) {
	got := render([]*Run{parse(t, raw)}, map[string]string{"converge": "It is known why."})
	for _, want := range []string{
		"| pick + done, random and round_robin | at most 30 ns | 22.0 ns (round_robin, n = 3) | reached |",
		"| convergence at 4,000, by grpc's round_robin | at most 0.03× | 0.0400× (round_robin) | **not reached** |",
		"| memory for an endpoint, by grpc's round_robin | at most 1.1× | 1.10× (n = 1,000) | reached |",
		"| peak_ewma, by go-zero's p2c | at most 0.5× |  | not measured |",
		"| evenkeel_round_robin | 22.0 [20.0, 40.0] | 0 |",
		"| evenkeel_round_robin / grpc_round_robin | 4.89× [4.00, 10.0] |",
		"| commit | 0123456789ab |",
		"measured 0.0400× (round_robin)\n\nIt is known why.\n",
		"| evenkeel_round_robin, 0 | 1,100 | 1.10× [1.10, 1.10] |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %s in\n%s", want, got)
		}
	}
}

func TestRunKeepsTheProse(t *testing.T) {
	dir := t.TempDir()
	readme, results := filepath.Join(dir, "README.md"), filepath.Join(dir, "x.txt")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(results, strings.Replace(raw, "PASS", "BenchmarkPick/policy=grpc_round_robin/n=9/filter=none/ctx=plain/par=1-2 1 6 ns/op", 1))
	write(readme, "before\n"+begin+"old\n"+end+"after\n")
	write(filepath.Join(dir, "missed.md"), "For people.\n\n## converge\n\nIt is known why.\n")
	for range 2 { // what it wrote it can replace
		if err := run(dir, []string{results}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); !strings.HasPrefix(s, "before\n"+begin) || !strings.HasSuffix(s, end+"after\n") ||
		strings.Contains(s, "old") || strings.Count(s, "## Goals beside") != 1 || !strings.Contains(s, "It is known why.") {
		t.Errorf("README is\n%s", s)
	}
	if _, err := os.Stat(filepath.Join(dir, "cost.svg")); err != nil {
		t.Error(err)
	}
	write(readme, "no markers")
	if err := run(dir, []string{results}); err == nil {
		t.Error("no error without markers, want one")
	}
	if err := run(dir, []string{filepath.Join(dir, "missing.txt")}); err == nil {
		t.Error("no error without results, want one")
	}
}

// TestSections checks that what people write about a goal is found, and that text for no goal is an error.
func TestSections(t *testing.T) {
	notes, err := sections("Preface.\n\n## pick, pick-deadline\n\nOne.\n\nTwo.\n\n## labels-time\nThree.\n")
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{"pick": "One.\n\nTwo.", "pick-deadline": "One.\n\nTwo.", "labels-time": "Three."} {
		if notes[id] != want {
			t.Errorf("section %s = %q, want %q", id, notes[id], want)
		}
	}
	if _, err := sections("## pick-dedline\n\nText.\n"); err == nil {
		t.Error("no error for a goal that does not exist, want one")
	}
	text, err := os.ReadFile(filepath.Join("..", "missed.md"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sections(string(text)); err != nil {
		t.Errorf("missed.md: %v", err)
	}
}

// TestGoals has every goal of a kind judged by rows on which it is known.
func TestGoals(t *testing.T) {
	ids := make(map[string]bool)
	for _, g := range goals {
		if ids[g.id] {
			t.Errorf("two goals are %s", g.id)
		}
		ids[g.id] = true
	}
	var text strings.Builder
	row := func(name string, ns, allocs float64) {
		fmt.Fprintf(&text, "Benchmark%s-2 100 %v ns/op 0 B/op %v allocs/op\n", name, ns, allocs)
	}
	for _, ctx := range []string{"plain", "deadline"} {
		row("Wrapper/wrapper="+three+"/impl=evenkeel/ctx="+ctx, 300, 3)
		row("Wrapper/wrapper="+three+"/impl=failsafe_go/ctx="+ctx, 1500, 25)
		row("Wrapper/wrapper="+three+"/impl=libraries/ctx="+ctx, 150, 1)
		row("Wrapper/wrapper=retry/impl=evenkeel/ctx="+ctx, 70, 1)
		row("Wrapper/wrapper=breaker/impl=evenkeel/ctx="+ctx, 140, 2)
		row("Wrapper/wrapper=breaker/impl=gobreaker/ctx="+ctx, 100, 1)
		row("Wrapper/wrapper=trace/impl=evenkeel_no_tracer/ctx="+ctx, 20, 0)
		row("Wrapper/wrapper=trace/impl=evenkeel_unsampled/ctx="+ctx, 120, 0)
	}
	for _, n := range []int{3, 1000, 10000} {
		at := fmt.Sprintf("/n=%d/filter=none/ctx=plain/par=1", n)
		row("Pick/policy=go_zero_p2c"+at, 200, 1)
		row("Pick/policy=evenkeel_keel"+at, 100+float64(n)/100, 0)
		row("Pick/policy=evenkeel_prequal"+at, 90, 0)
		row("Pick/policy=grpc_ring_hash"+at, 100, 1)
		row("Pick/policy=evenkeel_hash"+at, 40, 0)
		row("Pick/policy=evenkeel_hash_metadata"+at, 80, 1)
		row("Pick/policy=evenkeel_weighted_orca"+at, 60, 0)
		row("Pick/policy=grpc_weighted_round_robin_orca"+at, 120, 1)
		for i, o := range []string{"", "_without_outliers", "_slow_outliers", "_zone", "_slow_start"} {
			row("PickWith/policy=evenkeel_round_robin"+o+at, 40+40*float64(i), 0)
		}
	}
	text.WriteString("BenchmarkWhole/stack=evenkeel_full/ctx=plain-2 1 50000 ns/op 1.01 by-plain 5.996 more-allocs/op\n")
	text.WriteString("BenchmarkWhole/stack=evenkeel_full/ctx=deadline-2 1 50000 ns/op 1.02 by-plain 4.003 more-allocs/op\n")
	verdicts := make(map[string]verdict)
	for _, v := range judge([]*Run{parse(t, text.String())}) {
		verdicts[v.id] = v
	}
	for _, want := range []struct {
		id, measured string
		reached      bool
	}{
		{"stack-failsafe", "0.200× (no deadline)", true},
		{"stack-libraries", "2.00× (no deadline)", false},
		{"stack-allocs", "3.00 (no deadline)", false},
		{"retry", "70.0 ns (no deadline)", true},
		{"retry-allocs", "1.00 (no deadline)", true},
		{"breaker", "1.40× (no deadline)", true},
		{"breaker-allocs", "1.00 (no deadline)", false},
		{"ratelimit", "", false},
		{"trace", "120 ns (unsampled, no deadline)", false},
		{"trace-allocs", "0 (no tracer, no deadline)", true},
		{"whole-allocs", "6.00 (no deadline)", false},
		{"whole-time", "1.02× (with a deadline)", true},
		{"pick", "", false},
		{"pick-allocs", "0 (all)", true},
		{"keel", "1.00× (n = 10,000)", false},
		{"prequal", "0.450× (n = 3)", true},
		{"hash", "0.400× (n = 3)", true},
		{"hash-metadata", "0.800× (n = 3)", false},
		{"busy-size", "2.00× (keel)", true},
		{"weighted-orca", "0.500× (n = 3)", true},
		{"outliers", "-40.0 ns (round_robin, n = 3)", true},
		{"slow-outliers", "80.0 ns (round_robin, n = 3)", false},
		{"zone", "120 ns (round_robin, n = 3)", false},
		{"slow-start", "160 ns (round_robin, n = 3)", false},
	} {
		if v := verdicts[want.id]; v.measured != want.measured || v.reached != want.reached {
			t.Errorf("%s: %q, reached %t, want %q, %t", want.id, v.measured, v.reached, want.measured, want.reached)
		}
	}
}

// TestChart checks that the chart is well-formed and that no two names in a panel cover each other.
func TestChart(t *testing.T) {
	var text strings.Builder
	for i, s := range shown {
		for _, n := range []int{3, 1000} {
			fmt.Fprintf(&text, "BenchmarkPick/policy=%s/n=%d/filter=none/ctx=plain/par=1-2 100 %v ns/op\n", s.policy, n, 40+i/5)
		}
	}
	svg := chart([]*Run{parse(t, raw), parse(t, text.String())})
	var names []float64
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Local != "text" || !strings.HasPrefix(e.Attr[0].Value, "name") {
			continue
		}
		for _, a := range e.Attr {
			if a.Name.Local == "y" {
				y, err := strconv.ParseFloat(a.Value, 64)
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, y)
			}
		}
	}
	slices.Sort(names)
	if len(names) != len(shown) {
		t.Fatalf("%d names, want %d", len(names), len(shown))
	}
	for i := 1; i < len(names); i++ {
		if names[i]-names[i-1] < labelStep-0.2 { // coordinates have one decimal
			t.Errorf("names at %v and %v, want %d between them", names[i-1], names[i], labelStep)
		}
	}
	if got := chart([]*Run{parse(t, "BenchmarkMemory/policy=x-2 1 1 B/endpoint\n")}); got != "" {
		t.Errorf("a chart of nothing:\n%s", got)
	}
}

// TestBesides has policies put beside what they can be compared with.
func TestBesides(t *testing.T) {
	all := []string{"evenkeel_round_robin", "evenkeel_round_robin_zone", "evenkeel_weighted", "evenkeel_hash"}
	for policy, want := range map[string][]string{
		"evenkeel_round_robin":      {reference},
		"evenkeel_round_robin_zone": {reference, "evenkeel_round_robin"},
		"evenkeel_weighted_orca":    {reference, "grpc_weighted_round_robin_orca", "evenkeel_weighted"},
		"evenkeel_hash":             {reference, "grpc_ring_hash"},
		"evenkeel_hash_metadata":    {reference, "grpc_ring_hash", "evenkeel_hash"},
	} {
		if got := besides(policy, all); !slices.Equal(got, want) {
			t.Errorf("%s is put beside %q, want %q", policy, got, want)
		}
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", -41.6: "-41.6", 0.0143: "0.0143", 0.4: "0.400", 5.258: "5.26", 41.6: "41.6", 431.28: "431", 1234567: "1,234,567",
	} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %s, want %s", v, got, want)
		}
	}
}
