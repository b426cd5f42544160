package filters

import (
	"runtime"
	"sync"
	"weak"
)

// interned maps a canonical string to the one node that has it, as a weak.Pointer[node], so that the table keeps
// no filter alive. An entry leaves it when its node is collected. ADR-0003.
var interned sync.Map

// entry is what a collected node leaves behind for its cleanup.
type entry struct {
	str string
	ptr weak.Pointer[node]
}

// find returns the live node with the canonical string str, or nil.
func find(str string) *node {
	v, ok := interned.Load(str)
	if !ok {
		return nil
	}
	return v.(weak.Pointer[node]).Value()
}

// intern returns the filter with n's canonical string: n, or the one that is there already.
func intern(n *node) Filter {
	if n == nil {
		return Filter{}
	}
	if old := find(n.str); old != nil {
		return Filter{old}
	}
	// n may be part of other filters, so that another goroutine reads it: what a Filter needs goes into a copy.
	m := *n
	m.self[0] = Filter{&m}
	m.tiers = tiers(&m)
	e := entry{m.str, weak.Make(&m)}
	for {
		v, loaded := interned.LoadOrStore(m.str, e.ptr)
		if !loaded {
			runtime.AddCleanup(&m, forget, e)
			return Filter{&m}
		}
		if old := v.(weak.Pointer[node]).Value(); old != nil {
			return Filter{old}
		}
		interned.CompareAndDelete(m.str, v) // collected, its cleanup yet to run
	}
}

// forget drops the entry of a collected node, unless a new one has taken its place.
func forget(e entry) { interned.CompareAndDelete(e.str, e.ptr) }

// tiers returns what Tiers of n is, nil if n has no prefer.
func tiers(n *node) []Filter {
	if !n.prefers() {
		return nil
	}
	var conds, prefs []*node
	for _, k := range n.conjuncts() {
		if k.op == opPrefer {
			prefs = append(prefs, k)
		} else {
			conds = append(conds, k)
		}
	}
	last := intern(must(newAll(conds)))
	var list []Filter
	seen := map[Filter]bool{}
	var combine func(chosen []*node, rest []*node)
	combine = func(chosen []*node, rest []*node) {
		if len(rest) > 0 {
			for _, alt := range rest[0].kids {
				combine(append(chosen[:len(chosen):len(chosen)], alt), rest[1:])
			}
			combine(chosen, rest[1:])
			return
		}
		// What comes after last could only match fewer.
		if f := intern(must(newAll(chosen))); !seen[f] && !seen[last] {
			seen[f] = true
			list = append(list, f)
		}
	}
	combine(conds, prefs)
	return list
}

// must drops an error that cannot be: a tier is made of parts of a filter that was within all bounds.
func must(n *node, err error) *node {
	if err != nil {
		panic("filters: a tier is larger than its filter: " + err.Error())
	}
	return n
}

// broken returns the filter that matches nothing because of err.
func broken(err error) Filter {
	return intern(&node{op: opBroken, err: err, str: "broken(" + err.Error() + ")"})
}
