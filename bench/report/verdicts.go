package main

import (
	"fmt"
	"strings"
)

// verdict is a goal with what was measured.
type verdict struct {
	goal
	measured string // empty if no run has the rows
	reached  bool
}

// judge puts every goal beside the first run that has its rows.
func judge(runs []*Run) []verdict {
	var all []verdict
	for _, g := range goals {
		v := verdict{goal: g}
		for _, r := range runs {
			value, where, ok := g.measure(r)
			if !ok {
				continue
			}
			v.measured = fmt.Sprintf("%s%s (%s)", figure(value), g.unit, where)
			v.reached = value < g.limit || value == g.limit && !strings.HasPrefix(g.want, "below")
			break
		}
		all = append(all, v)
	}
	return all
}

// writeGoals writes every goal with what was measured.
func writeGoals(w *strings.Builder, all []verdict) {
	w.WriteString("## Goals beside what was measured\n\n")
	w.WriteString("Worst of the rows that a goal is about, by medians; one policy against another in the same run. " +
		"What is not reached has a section below.\n\n")
	t := &table{head: []string{"path", "goal", "measured", ""}}
	reached, measured := 0, 0
	for _, v := range all {
		word := "not measured"
		switch {
		case v.reached:
			word = "reached"
			reached++
		case v.measured != "":
			word = "**not reached**"
		}
		if v.measured != "" {
			measured++
		}
		t.add(v.path, v.want, v.measured, word)
	}
	t.write(w)
	fmt.Fprintf(w, "Reached: %d of %d. Not measured here: %d.\n\n", reached, len(all), len(all)-measured)
}

// writeMissed writes for every goal that was not reached what people have written about it, by the goal's id.
func writeMissed(w *strings.Builder, all []verdict, notes map[string]string) {
	first := true
	for _, v := range all {
		if v.reached || v.measured == "" {
			continue
		}
		if first {
			w.WriteString("## Goals that are not reached, and why\n\n")
			first = false
		}
		text := notes[v.id]
		if text == "" {
			text = "Nobody has written down yet why."
		}
		fmt.Fprintf(w, "### %s: %s, measured %s\n\n%s\n\n", v.path, v.want, v.measured, text)
	}
}

// sections reads missed.md: text below headings "## id" or "## id, id". It is an error if an id is no goal's, since
// nobody would see the text.
func sections(text string) (map[string]string, error) {
	known := make(map[string]bool)
	for _, g := range goals {
		known[g.id] = true
	}
	notes := make(map[string]string)
	for _, part := range strings.Split("\n"+text, "\n## ")[1:] {
		ids, body, _ := strings.Cut(part, "\n")
		for id := range strings.SplitSeq(ids, ",") {
			id = strings.TrimSpace(id)
			if !known[id] {
				return nil, fmt.Errorf("heading %q: id = %q, want that of a goal", ids, id)
			}
			notes[id] = strings.TrimSpace(body)
		}
	}
	return notes, nil
}
