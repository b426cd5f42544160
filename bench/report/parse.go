package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Run is the output of one go test -bench.
type Run struct {
	File  string
	Facts map[string]string // the lines "key: value" before the results
	Rows  []*Row            // in the order of the output
}

// Row is one benchmark with its repetitions.
type Row struct {
	Bench  string            // such as "Pick"
	Keys   map[string]string // of key=value in the name
	Values map[string]Sample // by unit
}

// Sample is the repetitions of one measurement.
type Sample []float64

var (
	factLine = regexp.MustCompile(`^([a-z][a-z0-9-]*): (.*)$`)
	procs    = regexp.MustCompile(`-\d+$`)
	failLine = regexp.MustCompile(`^(--- )?FAIL\b|^panic:`)
)

// Parse reads the output of go test -bench. A failed run is an error: its figures would be of what did not fail.
func Parse(r io.Reader) (*Run, error) {
	run := &Run{Facts: make(map[string]string)}
	rows := make(map[string]*Row)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20) // a measured library may log in between, and a line of a log can be long
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if failLine.MatchString(line) {
			return nil, fmt.Errorf("line %d: %q, want a run without failures", n, line)
		}
		if m := factLine.FindStringSubmatch(line); m != nil {
			run.Facts[m[1]] = strings.TrimSpace(m[2])
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		row := rows[fields[0]]
		if row == nil {
			row = newRow(fields[0])
			rows[fields[0]] = row
			run.Rows = append(run.Rows, row)
		}
		if err := row.add(fields[2:]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(run.Rows) == 0 {
		return nil, errors.New("results = none, want the output of go test -bench")
	}
	return run, nil
}

// newRow takes a name apart: BenchmarkPick/policy=x/n=3-2 is Pick with the keys policy and n, on 2 processors.
func newRow(name string) *Row {
	parts := strings.Split(procs.ReplaceAllString(strings.TrimPrefix(name, "Benchmark"), ""), "/")
	row := &Row{Bench: parts[0], Keys: make(map[string]string), Values: make(map[string]Sample)}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		row.Keys[k] = v
	}
	return row
}

// add adds a repetition: pairs of a value and its unit.
func (r *Row) add(pairs []string) error {
	if len(pairs)%2 != 0 {
		return fmt.Errorf("results = %q, want pairs of a value and its unit", pairs)
	}
	for i := 0; i < len(pairs); i += 2 {
		v, err := strconv.ParseFloat(pairs[i], 64)
		if err != nil {
			return fmt.Errorf("value = %q, want a number", pairs[i])
		}
		r.Values[pairs[i+1]] = append(r.Values[pairs[i+1]], v)
	}
	return nil
}

// Find returns what the one row with these keys has in a unit; nil if there is none. keys is "key=value key=value".
func (r *Run) Find(unit, bench, keys string) Sample {
	for _, row := range r.Rows {
		if row.Bench == bench && row.has(keys) {
			return row.Values[unit]
		}
	}
	return nil
}

func (r *Row) has(keys string) bool {
	for _, kv := range strings.Fields(keys) {
		k, v, _ := strings.Cut(kv, "=")
		if r.Keys[k] != v {
			return false
		}
	}
	return true
}

// Each lists the different values that a key has among the rows of a benchmark with these keys, in order.
func (r *Run) Each(key, bench, keys string) []string {
	var all []string
	for _, row := range r.Rows {
		if v := row.Keys[key]; row.Bench == bench && row.has(keys) && v != "" && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// Median is the middle one; of an even number, the mean of the two. It is NaN-free: ask only a Sample with values.
func (s Sample) Median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	m := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[m]
	}
	return (sorted[m-1] + sorted[m]) / 2
}

// Min is the smallest.
func (s Sample) Min() float64 { return slices.Min(s) }

// Max is the largest.
func (s Sample) Max() float64 { return slices.Max(s) }

// Ratio is s by o: of the medians, and what the extremes allow.
func (s Sample) Ratio(o Sample) (median, least, most float64) {
	return s.Median() / o.Median(), s.Min() / o.Max(), s.Max() / o.Min()
}

// Minus is s less the median of o.
func (s Sample) Minus(o Sample) Sample {
	out := make(Sample, len(s))
	for i, v := range s {
		out[i] = v - o.Median()
	}
	return out
}
