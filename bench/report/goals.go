package main

import "strings"

// goal is a goal of the issue "The hot path".
type goal struct {
	id         string // of its section in missed.md
	path, want string
	// measure returns the value to judge, at which row it was worst, and whether the run has the rows.
	measure func(*Run) (value float64, where string, ok bool)
	limit   float64 // the value must not be above it
	unit    string
}

var goals = []goal{
	{"pick", "pick + done, random and round_robin", "at most 30 ns", picks("ctx=plain", "random", "round_robin"), 30, " ns"},
	{"pick-deadline", "the same with a deadline", "at most 60 ns",
		picks("ctx=deadline", "random", "round_robin"), 60, " ns"},
	{"pick-size", "the same at n = 10,000, by n = 3", "at most 2×", spreadOver("random", "round_robin"), 2, "×"},
	{"pick-allocs", "allocations of any of evenkeel's picks, but for keys in metadata", "0", allocations, 0, ""},
	{"least-request", "least_request, by grpc's", "at most 0.4×", against("least_request", "grpc_least_request"), 0.4, "×"},
	{"peak-ewma", "peak_ewma, by go-zero's p2c", "at most 0.5×", against("peak_ewma", "go_zero_p2c"), 0.5, "×"},
	{"keel", "keel with its probes, by the same", "at most 0.5×", against("keel", "go_zero_p2c"), 0.5, "×"},
	{"prequal", "prequal with its probes, by the same", "at most 0.5×", against("prequal", "go_zero_p2c"), 0.5, "×"},
	{"hash", "hash, by grpc's ring_hash", "at most 0.7×", against("hash", "grpc_ring_hash"), 0.7, "×"},
	{"hash-metadata", "hash with the key in metadata, by the same", "at most 0.7×",
		against("hash_metadata", "grpc_ring_hash"), 0.7, "×"},
	{"busy-size", "keel, prequal and hash at n = 10,000, by n = 3", "at most 2×", spreadOver("keel", "prequal", "hash"), 2, "×"},
	{"weighted", "weighted, by grpc's weighted_round_robin", "at most 0.7×",
		against("weighted", "grpc_weighted_round_robin"), 0.7, "×"},
	{"weighted-orca", "weighted by load reports, by the same with reports", "at most 0.7×",
		against("weighted_orca", "grpc_weighted_round_robin_orca"), 0.7, "×"},
	{"weighted-heavy", "weighted with one weight of 100 times the mean, by without", "1×, or 1.2× with noise", heavy, 1.2, "×"},
	{"filter", "a filter at n = 10,000, over the same pick without at 3", "at most 60 ns", filterCost("Pick"), 60, " ns"},
	{"filter-64", "the same while 64 other filters are in use", "at most 60 ns", filterCost("PickOf64"), 60, " ns"},
	{"outliers", "looking for outliers, over the same pick without", "at most 5 ns", option("", "_without_outliers"), 5, " ns"},
	{"slow-outliers", "looking for slow ones, over the same pick without", "at most 60 ns", option("_slow_outliers", ""), 60, " ns"},
	{"zone", "a preferred zone, over the same pick without", "at most 60 ns", option("_zone", ""), 60, " ns"},
	{"slow-start", "slow start of one in ten, over the same pick without", "at most 60 ns", option("_slow_start", ""), 60, " ns"},
	{"parallel", "all cores at once, time by that of one", "below 1×", parallel, 1, "×"},
	{"converge-4000", "convergence, 4,000 by 1,000", "at most 5×", growth("1000", "4000"), 5, "×"},
	{"converge-10000", "convergence, 10,000 by 4,000", "at most 3×", growth("4000", "10000"), 3, "×"},
	{"converge", "convergence at 4,000, by grpc's round_robin", "at most 0.03×", convergence, 0.03, "×"},
	{"state-time", "a changed state, 64 filters", "at most 1 ms", change("state", "ns/op", 1e-6), 1, " ms"},
	{"state-bytes", "a changed state, 64 filters", "at most 200 KB", change("state", "B/op", 1e-3), 200, " KB"},
	{"labels-time", "changed labels, 64 filters", "at most 1 ms", change("labels", "ns/op", 1e-6), 1, " ms"},
	{"labels-bytes", "changed labels, 64 filters", "at most 200 KB", change("labels", "B/op", 1e-3), 200, " KB"},
	{"memory", "memory for an endpoint, by grpc's round_robin", "at most 1.1×", memoryRatio, 1.1, "×"},
	{"stack-failsafe", "retry + breaker + ratelimit, by failsafe-go's", "at most 0.3×", wrapped(three, "failsafe_go"), 0.3, "×"},
	{"stack-libraries", "the same, by gobreaker + x/time/rate by hand", "at most 1.5×", wrapped(three, "libraries"), 1.5, "×"},
	{"stack-allocs", "allocations of the same", "at most 2", wrapperRow(three, "evenkeel", "allocs/op"), 2, ""},
	{"retry", "retry alone", "at most 80 ns", wrapperRow("retry", "evenkeel", "ns/op"), 80, " ns"},
	{"retry-allocs", "allocations of retry alone", "at most 1", wrapperRow("retry", "evenkeel", "allocs/op"), 1, ""},
	{"breaker", "breaker alone, by gobreaker", "at most 1.5×", wrapped("breaker", "gobreaker"), 1.5, "×"},
	{"breaker-allocs", "allocations of breaker beyond gobreaker's", "0", beyond("breaker", "gobreaker"), 0, ""},
	{"ratelimit", "ratelimit alone, by x/time/rate", "at most 1.5×", wrapped("ratelimit", "x_time_rate"), 1.5, "×"},
	{"ratelimit-allocs", "allocations of ratelimit beyond x/time/rate's", "0", beyond("ratelimit", "x_time_rate"), 0, ""},
	{"trace", "trace without a tracer, and unsampled", "at most 100 ns", traced("ns/op"), 100, " ns"},
	{"trace-allocs", "allocations of the same", "0", traced("allocs/op"), 0, ""},
	{"whole-allocs", "whole call, allocations beyond plain round_robin", "at most 4", wholeWorst("more-allocs/op"), 4, ""},
	{"whole-time", "whole call, time by plain round_robin's", "at most 1.03×", wholeWorst("by-plain"), 1.03, "×"},
}

const evenkeel = "evenkeel_"

// most remembers the worst of several values.
type most struct {
	value float64
	where string
	ok    bool
}

func (m *most) add(v float64, where string) {
	if !m.ok || v > m.value {
		*m = most{v, where, true}
	}
}

func (m *most) result() (float64, string, bool) { return m.value, m.where, m.ok }

func picks(ctx string, strategies ...string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, s := range strategies {
			for _, n := range r.Each("n", "Pick", "filter=none par=1 "+ctx) {
				if v := r.Find("ns/op", "Pick", "filter=none par=1 "+ctx+" policy="+evenkeel+s+" n="+n); len(v) > 0 {
					m.add(v.Median(), s+", n = "+thousands(n))
				}
			}
		}
		return m.result()
	}
}

func spreadOver(strategies ...string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, s := range strategies {
			keys := "filter=none par=1 ctx=plain policy=" + evenkeel + s
			small, large := r.Find("ns/op", "Pick", keys+" n=3"), r.Find("ns/op", "Pick", keys+" n=10000")
			if len(small) > 0 && len(large) > 0 {
				m.add(large.Median()/small.Median(), s)
			}
		}
		return m.result()
	}
}

func allocations(r *Run) (float64, string, bool) {
	var m most
	for _, row := range r.Rows {
		if v := row.Values["allocs/op"]; strings.HasPrefix(row.Bench, "Pick") && len(v) > 0 &&
			strings.HasPrefix(row.Keys["policy"], evenkeel) && !strings.HasSuffix(row.Keys["policy"], "_metadata") {
			m.add(v.Max(), strings.TrimPrefix(row.Keys["policy"], evenkeel))
		}
	}
	if m.ok && m.value == 0 {
		m.where = "all"
	}
	return m.result()
}

func against(strategy, peer string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		const keys = "filter=none par=1 ctx=plain policy="
		for _, n := range r.Each("n", "Pick", keys+peer) {
			ours := r.Find("ns/op", "Pick", keys+evenkeel+strategy+" n="+n)
			theirs := r.Find("ns/op", "Pick", keys+peer+" n="+n)
			if len(ours) > 0 && len(theirs) > 0 {
				m.add(ours.Median()/theirs.Median(), "n = "+thousands(n))
			}
		}
		return m.result()
	}
}

func heavy(r *Run) (float64, string, bool) {
	var m most
	const keys = "filter=none par=1 ctx=plain policy=" + evenkeel + "weighted"
	for _, n := range r.Each("n", "Pick", keys+"_heavy") {
		with, without := r.Find("ns/op", "Pick", keys+"_heavy n="+n), r.Find("ns/op", "Pick", keys+" n="+n)
		if len(with) > 0 && len(without) > 0 {
			m.add(with.Median()/without.Median(), "n = "+thousands(n))
		}
	}
	return m.result()
}

func filterCost(bench string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, p := range r.Each("policy", bench, "filter=one_in_ten ctx=plain par=1 n=10000") {
			with := r.Find("ns/op", bench, "filter=one_in_ten ctx=plain par=1 n=10000 policy="+p)
			without := r.Find("ns/op", "Pick", "filter=none ctx=plain par=1 n=3 policy="+p)
			if len(with) > 0 && len(without) > 0 {
				m.add(with.Median()-without.Median(), strings.TrimPrefix(p, evenkeel))
			}
		}
		return m.result()
	}
}

// option judges what a pick with an option costs over the one without.
func option(with, without string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, s := range []string{"round_robin", "least_request"} {
			keys := "policy=" + evenkeel + s
			for _, n := range r.Each("n", "PickWith", keys+with) {
				a := r.Find("ns/op", "PickWith", keys+with+" n="+n)
				b := r.Find("ns/op", "PickWith", keys+without+" n="+n)
				if len(a) > 0 && len(b) > 0 {
					m.add(a.Median()-b.Median(), s+", n = "+thousands(n))
				}
			}
		}
		return m.result()
	}
}

// parallel judges at 1,000 endpoints: with a few, every pick writes to the same few counters, whoever makes it.
func parallel(r *Run) (float64, string, bool) {
	var m most
	const keys = "filter=none ctx=plain n=1000 policy="
	for _, p := range r.Each("policy", "Pick", "filter=none ctx=plain n=1000 par=all") {
		one, all := r.Find("ns/op", "Pick", keys+p+" par=1"), r.Find("ns/op", "Pick", keys+p+" par=all")
		if strings.HasPrefix(p, evenkeel) && len(one) > 0 && len(all) > 0 {
			m.add(all.Median()/one.Median(), strings.TrimPrefix(p, evenkeel)+", n = 1,000")
		}
	}
	return m.result()
}

func growth(from, to string) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		for _, p := range r.Each("policy", "Converge", "") {
			keys := "policy=" + p + " n="
			a, b := r.Find("ns/op", "Converge", keys+from), r.Find("ns/op", "Converge", keys+to)
			if strings.HasPrefix(p, evenkeel) && len(a) > 0 && len(b) > 0 {
				m.add(b.Median()/a.Median(), strings.TrimPrefix(p, evenkeel))
			}
		}
		return m.result()
	}
}

func convergence(r *Run) (float64, string, bool) {
	var m most
	b := r.Find("ns/op", "Converge", "n=4000 policy="+reference)
	for _, p := range r.Each("policy", "Converge", "n=4000") {
		if a := r.Find("ns/op", "Converge", "n=4000 policy="+p); strings.HasPrefix(p, evenkeel) && len(a) > 0 && len(b) > 0 {
			m.add(a.Median()/b.Median(), strings.TrimPrefix(p, evenkeel))
		}
	}
	return m.result()
}

func change(kind, unit string, by float64) func(*Run) (float64, string, bool) {
	return func(r *Run) (float64, string, bool) {
		var m most
		if v := r.Find(unit, "Change", "filters=64 kind="+kind+" policy="+evenkeel+"round_robin"); len(v) > 0 {
			m.add(v.Median()*by, "round_robin")
		}
		return m.result()
	}
}

func memoryRatio(r *Run) (float64, string, bool) {
	var m most
	for _, n := range r.Each("n", "Memory", "") {
		a, b := memory(r, n, evenkeel+"round_robin", "0"), memory(r, n, reference, "0")
		if len(a) > 0 && len(b) > 0 {
			m.add(a.Median()/b.Median(), "n = "+thousands(n))
		}
	}
	return m.result()
}
