// Command report writes the tables of bench/README.md, and the chart beside it, from the raw output of the benchmarks.
//
//	go run ./bench/report [-dir bench] [bench/results/latest.txt ...]
//
// Without arguments it reads every results/*.txt of the directory, which is bench from the root of the repository. Each
// file is one run: a ratio is never made of two runs. What stands in README.md between the two lines
//
//	<!-- report: begin -->
//	<!-- report: end -->
//
// is replaced, everything else is kept. A cell is the median of the run's repetitions, with the smallest and the
// largest in brackets. The spread of a ratio is what the extremes of both sides allow, so it is wider than what a
// statistical test would say, and it cannot flatter.
//
// The goals that are printed beside the measured values are those of the issue "The hot path", in goals.go. A goal is
// judged by medians; one for which the run has no rows is reported as not measured, never left out. One that is not
// reached gets a section with the text that missed.md has under its id; people write that.
//
// The chart, cost.svg, shows cost against the number of endpoints, in chart.go.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	dir := flag.String("dir", "bench", "where README.md, missed.md, cost.svg and results are")
	flag.Parse()
	if err := run(*dir, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(dir string, files []string) error {
	if len(files) == 0 {
		var err error
		if files, err = filepath.Glob(filepath.Join(dir, "results", "*.txt")); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return errors.New("files = none, want raw output in bench/results; run from the root of the repository")
	}
	runs, err := read(files)
	if err != nil {
		return err
	}
	missed := filepath.Join(dir, "missed.md")
	text, err := os.ReadFile(missed)
	if err != nil {
		return err
	}
	notes, err := sections(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", missed, err)
	}
	if svg := chart(runs); svg != "" {
		if err := os.WriteFile(filepath.Join(dir, "cost.svg"), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	readme := filepath.Join(dir, "README.md")
	old, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	all, err := splice(string(old), render(runs, notes))
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, []byte(all), 0o644)
}

func read(files []string) ([]*Run, error) {
	slices.Sort(files)
	var runs []*Run
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		r, err := Parse(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		r.File = filepath.Base(name)
		runs = append(runs, r)
	}
	return runs, nil
}

const (
	begin = "<!-- report: begin -->\n"
	end   = "<!-- report: end -->\n"
)

// splice puts the tables between the markers of old.
func splice(old, tables string) (string, error) {
	head, rest, ok := strings.Cut(old, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("markers = missing, want %q and after it %q", begin, end)
	}
	return head + begin + "\n" + strings.TrimSpace(tables) + "\n\n" + end + tail, nil
}
