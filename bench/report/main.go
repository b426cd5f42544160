// Command report writes the tables of bench/README.md from the raw output of the benchmarks.
//
//	go run ./bench/report [-readme bench/README.md] [bench/results/latest.txt ...]
//
// Without arguments it reads every bench/results/*.txt, from the root of the repository. Each file is one run: a ratio
// is never made of two runs. What stands in README.md between the two lines
//
//	<!-- report: begin -->
//	<!-- report: end -->
//
// is replaced, everything else is kept. A cell is the median of the run's repetitions, with the smallest and the
// largest in brackets. The spread of a ratio is what the extremes of both sides allow, so it is wider than what a
// statistical test would say, and it cannot flatter.
//
// The goals that are printed beside the measured values are those of the issue "The hot path", in goals.go. A goal is
// judged by medians; one for which the run has no rows is reported as not measured, never left out.
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
	readme := flag.String("readme", filepath.Join("bench", "README.md"), "the file to write the tables into")
	flag.Parse()
	if err := run(*readme, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(readme string, files []string) error {
	if len(files) == 0 {
		var err error
		if files, err = filepath.Glob(filepath.Join("bench", "results", "*.txt")); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return errors.New("files = none, want raw output in bench/results; run from the root of the repository")
	}
	slices.Sort(files)
	var runs []*Run
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		r, err := Parse(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.File = filepath.Base(name)
		runs = append(runs, r)
	}
	old, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	text, err := splice(string(old), render(runs))
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, []byte(text), 0o644)
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
