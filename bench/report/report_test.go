package main

import (
	"os"
	"path/filepath"
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
	got := render([]*Run{parse(t, raw)})
	for _, want := range []string{
		"| pick + done, random and round_robin | at most 30 ns | 22.0 ns (round_robin, n = 3) | reached |",
		"| convergence at 4,000, by grpc's round_robin | at most 0.03× | 0.0400× (round_robin) | **not reached** |",
		"| memory for an endpoint, by grpc's round_robin | at most 1.1× | 1.10× (n = 1,000) | reached |",
		"| peak_ewma, by go-zero's p2c | at most 0.5× |  | not measured |",
		"| evenkeel_round_robin | 22.0 [20.0, 40.0] | 0 |",
		"| evenkeel_round_robin / grpc_round_robin | 4.89× [4.00, 10.0] |",
		"| commit | 0123456789ab |",
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
	write(results, raw)
	write(readme, "before\n"+begin+"old\n"+end+"after\n")
	for range 2 { // what it wrote it can replace
		if err := run(readme, []string{results}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); !strings.HasPrefix(s, "before\n"+begin) || !strings.HasSuffix(s, end+"after\n") ||
		strings.Contains(s, "old") || strings.Count(s, "## Goals") != 1 {
		t.Errorf("README is\n%s", s)
	}
	write(readme, "no markers")
	if err := run(readme, []string{results}); err == nil {
		t.Error("no error without markers, want one")
	}
	if err := run(readme, []string{filepath.Join(dir, "missing.txt")}); err == nil {
		t.Error("no error without results, want one")
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0143: "0.0143", 0.4: "0.400", 5.258: "5.26", 41.6: "41.6", 431.28: "431", 1234567: "1,234,567",
	} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %s, want %s", v, got, want)
		}
	}
}
