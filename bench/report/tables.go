package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// render writes what stands between the markers. notes are what is known about goals that are missed.
func render(runs []*Run, notes map[string]string) string {
	var w strings.Builder
	all := judge(runs)
	writeGoals(&w, all)
	writeMissed(&w, all, notes)
	for _, r := range runs {
		fmt.Fprintf(&w, "## The run in `results/%s`\n\n", r.File)
		writeFacts(&w, r)
		writePicks(&w, r)
		writeConverge(&w, r)
		writeChange(&w, r)
		writeMemory(&w, r)
		writeWrappers(&w, r)
		writeWhole(&w, r)
	}
	return w.String()
}

func writeFacts(w *strings.Builder, r *Run) {
	w.WriteString("| | |\n|---|---|\n")
	for _, f := range []struct{ key, name string }{
		{"date", "date"}, {"commit", "commit"}, {"go", "Go"}, {"grpc", "grpc-go"}, {"versions", "beside"}, {"goos", "system"}, {"cpu", "processor"}, {"cores", "cores"},
		{"load", "load"}, {"command", "command"},
	} {
		v := r.Facts[f.key]
		switch {
		case v == "":
			continue
		case f.key == "command":
			v = "`" + v + "`"
		}
		fmt.Fprintf(w, "| %s | %s |\n", f.name, v)
	}
	w.WriteString("\n")
}

// table is a table of markdown.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w *strings.Builder) {
	fmt.Fprintf(w, "| %s |\n|---|%s\n", strings.Join(t.head, " | "), strings.Repeat("---:|", len(t.head)-1))
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(r, " | "))
	}
	w.WriteString("\n")
}

// pickRatio says beside which others each of ours is put.
var pickRatio = map[string][]string{
	"evenkeel_least_request":  {"grpc_least_request"},
	"evenkeel_weighted":       {"grpc_weighted_round_robin"},
	"evenkeel_weighted_heavy": {"grpc_weighted_round_robin_heavy"},
	"evenkeel_weighted_orca":  {"grpc_weighted_round_robin_orca"},
	"evenkeel_peak_ewma":      {"go_zero_p2c", "kratos_p2c"},
	"evenkeel_keel":           {"grpc_least_request", "go_zero_p2c", "kratos_p2c"},
	"evenkeel_prequal":        {"grpc_least_request", "go_zero_p2c", "kratos_p2c"},
	"evenkeel_hash":           {"grpc_ring_hash"},
	"evenkeel_hash_metadata":  {"grpc_ring_hash"},
}

const reference = "grpc_round_robin"

// writePicks writes a pair of tables for every kind of pick: costs, and ratios.
func writePicks(w *strings.Builder, r *Run) {
	for _, s := range []struct{ title, bench, keys string }{
		{"A pick and its end, no deadline", "Pick", "filter=none ctx=plain par=1"},
		{"The same, with a deadline", "Pick", "filter=none ctx=deadline par=1"},
		{"No deadline, from all cores at once", "Pick", "filter=none ctx=plain par=all"},
		{"With a filter that one in ten meets", "Pick", "filter=one_in_ten ctx=plain par=1"},
		{"With a filter and a deadline", "Pick", "filter=one_in_ten ctx=deadline par=1"},
		{"With a filter, from all cores at once", "Pick", "filter=one_in_ten ctx=plain par=all"},
		{"With a filter, while 64 others are in use", "PickOf64", ""},
		{"With an option, no deadline", "PickWith", ""},
	} {
		sizes := r.Each("n", s.bench, s.keys)
		if len(sizes) == 0 {
			continue
		}
		fmt.Fprintf(w, "### %s\n\nNanoseconds; median [least, most] of the repetitions.\n\n", s.title)
		costs := &table{head: []string{"policy"}}
		ratios := &table{head: []string{"ratio"}}
		for _, n := range sizes {
			costs.head = append(costs.head, "n = "+thousands(n))
			ratios.head = append(ratios.head, "n = "+thousands(n))
		}
		costs.head = append(costs.head, "allocs")
		for _, p := range r.Each("policy", s.bench, s.keys) {
			keys := s.keys + " policy=" + p
			row := []string{p}
			for _, n := range sizes {
				row = append(row, cell(r.Find("ns/op", s.bench, keys+" n="+n)))
			}
			costs.rows = append(costs.rows, append(row, worst(r, "allocs/op", s.bench, keys)))
			ratios.rows = append(ratios.rows, ratioRows(r, s.bench, s.keys, p, sizes)...)
		}
		costs.write(w)
		if len(ratios.rows) > 0 {
			ratios.write(w)
		}
	}
}

// ratioRows are the rows of ratios of one policy: to the reference, and to those of the same kind, where they are there.
func ratioRows(r *Run, bench, keys, policy string, sizes []string) [][]string {
	if !strings.HasPrefix(policy, "evenkeel_") {
		return nil
	}
	var rows [][]string
	for _, peer := range besides(policy, r.Each("policy", bench, keys)) {
		row, found := []string{policy + " / " + peer}, false
		for _, n := range sizes {
			a := r.Find("ns/op", bench, keys+" n="+n+" policy="+policy)
			b := r.Find("ns/op", bench, keys+" n="+n+" policy="+peer)
			if len(a) == 0 || len(b) == 0 {
				row = append(row, "")
				continue
			}
			found = true
			row = append(row, times(a, b))
		}
		if found {
			rows = append(rows, row)
		}
	}
	return rows
}

// besides are those of all beside which a policy is put: the reference, what does the same, and for one with an option the
// one without.
func besides(policy string, all []string) []string {
	peers := append([]string{reference}, pickRatio[policy]...)
	for _, p := range all {
		if option, ok := strings.CutPrefix(policy, p+"_"); ok && slices.Contains(options, option) {
			peers = append(peers, p)
		}
	}
	return peers
}

// options are the ends of the names of policies that differ by an option.
var options = []string{"without_outliers", "slow_outliers", "zone", "slow_start", "orca", "heavy", "metadata"}

func worst(r *Run, unit, bench, keys string) string {
	var all Sample
	for _, row := range r.Rows {
		if row.Bench == bench && row.has(keys) {
			all = append(all, row.Values[unit]...)
		}
	}
	if len(all) == 0 {
		return ""
	}
	return figure(all.Max())
}

func writeConverge(w *strings.Builder, r *Run) {
	sizes := r.Each("n", "Converge", "")
	if len(sizes) == 0 {
		return
	}
	w.WriteString("### From the first update to a picker over all endpoints\n\nMilliseconds.\n\n")
	t := &table{head: []string{"policy"}}
	for _, n := range sizes {
		t.head = append(t.head, "n = "+thousands(n))
	}
	policies := r.Each("policy", "Converge", "")
	for _, p := range policies {
		row := []string{p}
		for _, n := range sizes {
			row = append(row, cell(scale(r.Find("ns/op", "Converge", "policy="+p+" n="+n), 1e-6)))
		}
		t.rows = append(t.rows, row)
	}
	for _, p := range policies {
		t.rows = append(t.rows, ratioRows(r, "Converge", "", p, sizes)...)
	}
	t.write(w)
}

func writeChange(w *strings.Builder, r *Run) {
	if len(r.Each("n", "Change", "")) == 0 {
		return
	}
	w.WriteString("### One endpoint of 10,000 changes\n\nA ratio is to round_robin with the same change; it has no filters.\n\n")
	t := &table{head: []string{"change, policy, filters in use", "ms", "KB", "time / round_robin"}}
	for _, row := range r.Rows {
		if row.Bench != "Change" {
			continue
		}
		ratio := ""
		if ref := r.Find("ns/op", "Change", "kind="+row.Keys["kind"]+" policy="+reference); len(ref) > 0 && row.Keys["policy"] != reference {
			ratio = times(row.Values["ns/op"], ref)
		}
		t.add(fmt.Sprintf("%s, %s, %s", row.Keys["kind"], row.Keys["policy"], row.Keys["filters"]),
			cell(scale(row.Values["ns/op"], 1e-6)), cell(scale(row.Values["B/op"], 1e-3)), ratio)
	}
	t.write(w)
}

func writeMemory(w *strings.Builder, r *Run) {
	sizes := r.Each("n", "Memory", "")
	if len(sizes) == 0 {
		return
	}
	w.WriteString("### Memory for each endpoint\n\nBytes, without the fake channel's own, which is the first row.\n\n")
	t := &table{head: []string{"policy, filters in use"}}
	for _, n := range sizes {
		t.head = append(t.head, "n = "+thousands(n))
		t.head = append(t.head, "/ round_robin")
	}
	for _, p := range r.Each("policy", "Memory", "") {
		for _, f := range r.Each("filters", "Memory", "policy="+p) {
			row := []string{p + ", " + f}
			for _, n := range sizes {
				s := memory(r, n, p, f)
				ratio := ""
				if ref := memory(r, n, reference, "0"); len(ref) > 0 && len(s) > 0 && p != reference && p != channelOnly {
					ratio = times(s, ref)
				}
				row = append(row, cell(s), ratio)
			}
			t.rows = append(t.rows, row)
		}
	}
	t.write(w)
}

const channelOnly = "channel_only"

// memory is what a policy holds for an endpoint beyond the channel.
func memory(r *Run, n, policy, filters string) Sample {
	s := r.Find("B/endpoint", "Memory", "n="+n+" policy="+policy+" filters="+filters)
	base := r.Find("B/endpoint", "Memory", "n="+n+" policy="+channelOnly)
	if len(s) == 0 || len(base) == 0 {
		return nil
	}
	if policy == channelOnly {
		return s
	}
	return s.Minus(base)
}

func scale(s Sample, by float64) Sample {
	out := make(Sample, len(s))
	for i, v := range s {
		out[i] = v * by
	}
	return out
}

// cell is a sample in a table.
func cell(s Sample) string {
	switch {
	case len(s) == 0:
		return ""
	case figure(s.Min()) == figure(s.Max()):
		return figure(s.Median())
	}
	return fmt.Sprintf("%s [%s, %s]", figure(s.Median()), figure(s.Min()), figure(s.Max()))
}

// times is a ratio in a table.
func times(a, b Sample) string {
	m, least, most := a.Ratio(b)
	return fmt.Sprintf("%s× [%s, %s]", figure(m), figure(least), figure(most))
}

// figure prints three significant digits, and no exponent.
func figure(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 0
	for limit := 100.0; digits < 4 && math.Abs(v) < limit; limit /= 10 {
		digits++
	}
	if digits == 0 {
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// thousands puts commas into the digits of an integer.
func thousands(s string) string {
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
