package filters

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/evenkeel/evenkeel/registry"
)

// The bounds of a filter. They hold for text and for filters made in Go alike, because every filter has to be
// parseable from its canonical string; and they bound what one line of configuration can cost.
const (
	maxLength = 64 << 10 // bytes of text, and of the canonical string
	maxDepth  = 32       // any(…), not(…) and prefer(…) inside each other
	maxTerms  = 4096     // conditions, where each value of a set counts
	maxTiers  = 64       // what Tiers returns
)

type op uint8

const (
	opIn     op = iota // key has one of values; neg: it has not
	opHas              // key is there; neg: it is not
	opOrder            // the version compares to bounds[0] as cmp says
	opServes           // serves values[0]
	opFunc             // fn says so
	opAll              // all kids; kids that are opPrefer come last, in the order of their importance
	opAny              // one of kids
	opNot              // not kids[0]
	opPrefer           // kids in order, then all
	opBroken           // err
)

// node is a filter, or a part of one, in canonical form. A nil *node is the zero filter. A node is immutable once
// made; tiers and self are set by intern, and so only in the nodes that a Filter points to.
type node struct {
	str    string // canonical, and the node's identity
	op     op
	neg    bool
	cmp    cmp
	key    string
	values []string  // sorted, without duplicates
	bounds []version // what values mean as versions, where they do
	fn     func(*registry.Instance) bool
	kids   []*node
	err    error

	depth, terms int

	tiers []Filter  // nil unless there is a prefer
	self  [1]Filter // Tiers of a filter without prefer
}

// match is Filter.Match for a node that is not nil.
func (n *node) match(in *registry.Instance) bool {
	switch n.op {
	case opIn:
		return n.in(in) != n.neg
	case opHas:
		v, ok := lookup(in, n.key)
		if field(n.key) {
			ok = v != ""
		}
		return ok != n.neg
	case opOrder:
		v, ok := parseVersion(in.Version)
		return ok && n.cmp.holds(v.compare(n.bounds[0]))
	case opServes:
		return len(in.Services) == 0 || slices.Contains(in.Services, n.values[0])
	case opFunc:
		return n.fn(in)
	case opAll:
		for _, k := range n.kids {
			if !k.match(in) {
				return false
			}
		}
		return true
	case opAny:
		for _, k := range n.kids {
			if k.match(in) {
				return true
			}
		}
		return false
	case opNot:
		return !n.kids[0].match(in)
	case opPrefer:
		return true
	}
	return false
}

// in reports whether the instance has one of the node's values at its key.
func (n *node) in(in *registry.Instance) bool {
	v, ok := lookup(in, n.key)
	if !ok {
		return false
	}
	if _, found := slices.BinarySearch(n.values, v); found {
		return true
	}
	if len(n.bounds) == 0 {
		return false
	}
	ver, ok := parseVersion(v)
	return ok && slices.ContainsFunc(n.bounds, func(b version) bool { return b.compare(ver) == 0 })
}

// field reports whether key means a field of the instance rather than a label.
func field(key string) bool { return key == "id" || key == "version" || key == "zone" }

// lookup returns what the instance has at key. A field is always there, if perhaps empty.
func lookup(in *registry.Instance, key string) (string, bool) {
	switch key {
	case "id":
		return in.ID, true
	case "version":
		return in.Version, true
	case "zone":
		return in.Zone, true
	}
	v, ok := in.Labels[key]
	return v, ok
}

// prefers reports whether there is a prefer in n. In canonical form it is n, or n's last kid.
func (n *node) prefers() bool {
	return n != nil && (n.op == opPrefer || n.op == opAll && n.kids[len(n.kids)-1].op == opPrefer)
}

// conjuncts is what n is the conjunction of.
func (n *node) conjuncts() []*node {
	if n.op == opAll {
		return n.kids
	}
	return []*node{n}
}

// checked returns n, or why it is too large.
func checked(n *node) (*node, error) {
	switch {
	case len(n.str) > maxLength:
		return nil, &argError{"length", strconv.Itoa(len(n.str)) + " bytes", strconv.Itoa(maxLength) + " or fewer"}
	case n.depth > maxDepth:
		return nil, &argError{"nesting", strconv.Itoa(n.depth), strconv.Itoa(maxDepth) + " or less"}
	case n.terms > maxTerms:
		return nil, &argError{"conditions", strconv.Itoa(n.terms), strconv.Itoa(maxTerms) + " or fewer"}
	}
	return n, nil
}

// compound returns the node op(kids…), whose kids are already in canonical form and order.
func compound(o op, kids []*node) (*node, error) {
	n := &node{op: o, kids: kids}
	name, sep := "", ","
	switch o {
	case opAny:
		name, sep = "any", "; "
	case opPrefer:
		name, sep = "prefer", "; "
	case opNot:
		name = "not"
	}
	var b strings.Builder
	b.WriteString(name)
	if name != "" {
		n.depth = 1
		b.WriteByte('(')
	}
	below := 0
	for i, k := range kids {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(k.str)
		below = max(below, k.depth)
		n.terms += k.terms
		if b.Len() > maxLength {
			break // checked refuses it; no need to write the rest
		}
	}
	if name != "" {
		b.WriteByte(')')
	}
	n.str, n.depth = b.String(), n.depth+below
	return checked(n)
}

// newAll is the conjunction. Its conditions are sorted, but prefers keep their order, which is their importance.
func newAll(parts []*node) (*node, error) {
	var conds, prefs []*node
	tiers := 1
	for _, part := range parts {
		if part == nil {
			continue // "every instance" adds no condition
		}
		for _, p := range part.conjuncts() {
			switch {
			case p.op != opPrefer:
				conds = append(conds, p)
			case !slices.ContainsFunc(prefs, p.same):
				prefs = append(prefs, p)
				tiers *= len(p.kids) + 1
			}
			if tiers > maxTiers {
				return nil, &argError{"prefer", "in combinations, more than " + strconv.Itoa(maxTiers) + " tiers",
					"fewer alternatives, or fewer prefers"}
			}
		}
	}
	kids := append(sorted(conds), prefs...)
	switch len(kids) {
	case 0:
		return nil, nil
	case 1:
		return kids[0], nil
	}
	return compound(opAll, kids)
}

// newAny is the disjunction of one part or more. "Every instance" as a part makes the whole every instance.
func newAny(parts []*node) (*node, error) {
	if len(parts) == 0 {
		return nil, &argError{"alternatives", "0", "1 or more"}
	}
	var kids []*node
	every := false
	for _, p := range parts {
		switch {
		case p == nil:
			every = true
		case p.prefers():
			return nil, refusePrefer(p)
		case p.op == opAny:
			kids = append(kids, p.kids...)
		default:
			kids = append(kids, p)
		}
	}
	if every {
		return nil, nil
	}
	if kids = sorted(kids); len(kids) == 1 {
		return kids[0], nil
	}
	return compound(opAny, kids)
}

// newNot is the negation. Only what has an opposite for every instance is turned into it: not(version<2) is not
// version>=2, because an instance whose version is unknown is neither.
func newNot(p *node) (*node, error) {
	switch {
	case p == nil:
		return nil, &argError{"filter", "the one that every instance meets", "one with a condition"}
	case p.prefers():
		return nil, refusePrefer(p)
	case p.op == opNot:
		return p.kids[0], nil
	case p.op == opIn:
		return newIn(p.key, p.values, !p.neg)
	case p.op == opHas:
		return newHas(p.key, !p.neg)
	}
	return compound(opNot, []*node{p})
}

// newPrefer is the order of one alternative or more. What follows "every instance" can never be reached.
func newPrefer(alts []*node) (*node, error) {
	var kids []*node
	ended := false
	for _, a := range alts {
		switch {
		case a == nil:
			ended = true
		case a.prefers():
			return nil, refusePrefer(a)
		case !ended && !slices.ContainsFunc(kids, a.same):
			kids = append(kids, a)
		}
		if len(kids)+1 > maxTiers {
			return nil, &argError{"alternatives", "more than " + strconv.Itoa(maxTiers-1), "fewer"}
		}
	}
	if len(kids) == 0 {
		return nil, nil
	}
	return compound(opPrefer, kids)
}

func refusePrefer(p *node) error {
	return &argError{"filter", short(p.str),
		"one without prefer, which is allowed only at the top and in a conjunction there"}
}

func (n *node) same(o *node) bool { return n.str == o.str }

// sorted sorts by canonical string and drops duplicates.
func sorted(ns []*node) []*node {
	slices.SortFunc(ns, func(a, b *node) int { return strings.Compare(a.str, b.str) })
	return slices.CompactFunc(ns, (*node).same)
}

// short quotes text for a message, cut where it would fill the screen.
func short(s string) string {
	most := 120
	if len(s) <= most {
		return strconv.Quote(s)
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return strconv.Quote(s[:most]) + "…"
}
