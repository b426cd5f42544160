package main

import (
	"fmt"
	"math"
	"strings"
)

// three is the chain of three wrappers in the benchmarks' names.
const three = "retry+breaker+ratelimit"

const full = evenkeel + "full"

func wrapperFind(r *Run, unit, wrapper, impl, ctx string) Sample {
	return r.Find(unit, "Wrapper", "wrapper="+wrapper+" impl="+impl+" ctx="+ctx)
}

// wrapped is what a wrapper costs by what the same of another library does. Contexts have no deadline here: the
// libraries do not look at one.
func wrapped(wrapper, peer string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		ours := wrapperFind(r, "ns/op", wrapper, "evenkeel", "plain")
		theirs := wrapperFind(r, "ns/op", wrapper, peer, "plain")
		if len(ours) > 0 && len(theirs) > 0 {
			m.add(ours.Median()/theirs.Median(), "no deadline")
		}
		return m.result()
	}
}

func wrapperRow(wrapper, impl, unit string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, ctx := range []string{"plain", "deadline"} {
			if unit == "ns/op" && ctx == "deadline" {
				continue
			}
			if s := wrapperFind(r, unit, wrapper, impl, ctx); len(s) > 0 {
				m.add(s.Median(), contexts[ctx])
			}
		}
		return m.result()
	}
}

// beyond is how many allocations a wrapper makes beyond the library that it builds on.
func beyond(wrapper, peer string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, ctx := range []string{"plain", "deadline"} {
			ours := wrapperFind(r, "allocs/op", wrapper, "evenkeel", ctx)
			theirs := wrapperFind(r, "allocs/op", wrapper, peer, ctx)
			if len(ours) > 0 && len(theirs) > 0 {
				m.add(ours.Max()-theirs.Median(), contexts[ctx])
			}
		}
		return m.result()
	}
}

func traced(unit string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, impl := range []string{"no_tracer", "unsampled"} {
			for _, ctx := range []string{"plain", "deadline"} {
				if s := wrapperFind(r, unit, "trace", evenkeel+impl, ctx); len(s) > 0 {
					m.add(s.Median(), strings.ReplaceAll(impl, "_", " ")+", "+contexts[ctx])
				}
			}
		}
		return m.result()
	}
}

func wholeWorst(unit string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, ctx := range r.Each("ctx", "Whole", "stack="+full) {
			if s := r.Find(unit, "Whole", "stack="+full+" ctx="+ctx); len(s) > 0 {
				v := s.Median()
				if unit == "more-allocs/op" {
					v = math.Round(v) // of thousands of calls some coincide with a collection of garbage
				}
				m.add(v, contexts[ctx])
			}
		}
		return m.result()
	}
}

// contexts are what the names of contexts mean.
var contexts = map[string]string{"plain": "no deadline", "deadline": "with a deadline"}

func writeWrappers(w *strings.Builder, r *Run) {
	kinds := r.Each("wrapper", "Wrapper", "")
	if len(kinds) == 0 {
		return
	}
	w.WriteString("### Wrappers around a call that does nothing\n\nNanoseconds; median [least, most] of the repetitions. " +
		"A ratio is evenkeel's time by that of the row.\n\n")
	t := &table{head: []string{"wrapper, whose", "no deadline", "allocs", "evenkeel / it", "with a deadline", "allocs", "evenkeel / it"}}
	for _, kind := range kinds {
		for _, impl := range r.Each("impl", "Wrapper", "wrapper="+kind) {
			row := []string{kind + ", " + impl}
			for _, ctx := range []string{"plain", "deadline"} {
				s, ours := wrapperFind(r, "ns/op", kind, impl, ctx), wrapperFind(r, "ns/op", kind, "evenkeel", ctx)
				ratio := ""
				if len(s) > 0 && len(ours) > 0 && impl != "evenkeel" {
					ratio = times(ours, s)
				}
				row = append(row, cell(s), cell(wrapperFind(r, "allocs/op", kind, impl, ctx)), ratio)
			}
			t.rows = append(t.rows, row)
		}
	}
	t.write(w)
}

func writeWhole(w *strings.Builder, r *Run) {
	stacks := r.Each("stack", "Whole", "")
	if len(stacks) == 0 {
		return
	}
	w.WriteString("### A whole call over loopback\n\nMicroseconds for a call of the stack and for one of a plain client, made in " +
		"turns; the ratio is of the medians of each repetition.\n\n")
	t := &table{head: []string{"stack, context", "µs", "plain round_robin µs", "ratio", "allocations more"}}
	for _, s := range stacks {
		for _, ctx := range r.Each("ctx", "Whole", "stack="+s) {
			keys := "stack=" + s + " ctx=" + ctx
			t.add(fmt.Sprintf("%s, %s", s, contexts[ctx]), cell(scale(r.Find("ns/op", "Whole", keys), 1e-3)),
				cell(scale(r.Find("plain-ns/op", "Whole", keys), 1e-3)), cell(r.Find("by-plain", "Whole", keys)),
				rounded(r.Find("more-allocs/op", "Whole", keys)))
		}
	}
	t.write(w)
}

// rounded is the median of a count, without the fractions that a collection of garbage now and then adds.
func rounded(s Sample) string {
	if len(s) == 0 {
		return ""
	}
	return fmt.Sprintf("%+.0f", math.Round(s.Median())+0) // + 0, because -0 is a number too
}
