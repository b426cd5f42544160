package filters

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

// spec is a filter as somebody thinks of it, before any canonical form. It can be built by the constructors,
// written as text in many spellings, and judged by eval, the slow and obviously right twin of Match.
type spec struct {
	op   string // = != in notin has hasnot < <= > >= serves func all any not prefer
	key  string
	vals []string
	kids []spec
}

func (s spec) eval(in *registry.Instance) bool {
	value, there := in.Labels[s.key]
	switch s.key {
	case "id":
		value, there = in.ID, true
	case "version":
		value, there = in.Version, true
	case "zone":
		value, there = in.Zone, true
	}
	isOne := there && slices.ContainsFunc(s.vals, func(want string) bool {
		return value == want || s.key == "version" && semver.MatchString(value) &&
			(semver.MatchString(want) || partial.MatchString(want)) && slowCompare(value, padded(want)) == 0
	})
	switch s.op {
	case "=", "in":
		return isOne
	case "!=", "notin":
		return !isOne
	case "has", "hasnot":
		if s.key == "id" || s.key == "version" || s.key == "zone" {
			there = value != ""
		}
		return there == (s.op == "has")
	case "<", "<=", ">", ">=":
		return semver.MatchString(value) && ordered(s.op, value, s.vals[0])
	case "serves":
		return len(in.Services) == 0 || slices.Contains(in.Services, s.vals[0])
	case "func":
		return in.Weight >= 10
	case "all":
		return !slices.ContainsFunc(s.kids, func(k spec) bool { return !k.eval(in) })
	case "any":
		return slices.ContainsFunc(s.kids, func(k spec) bool { return k.eval(in) })
	case "not":
		return !s.kids[0].eval(in)
	case "prefer":
		return true
	}
	panic("no op " + s.op)
}

// padded completes a version that lacks its minor or patch.
func padded(v string) string {
	if !semver.MatchString(v) {
		v += strings.Repeat(".0", 2-strings.Count(v, "."))
	}
	return v
}

func ordered(op, have, want string) bool {
	c := slowCompare(have, padded(want))
	if op == "<" && !semver.MatchString(want) {
		c = slowCompare(have, padded(want)+"-0")
	}
	return op[0] == '<' && c < 0 || op[0] == '>' && c > 0 || len(op) == 2 && c == 0
}

// build makes the filter with the constructors.
func (s spec) build() Filter {
	var kids []Filter
	for _, k := range s.kids {
		kids = append(kids, k.build())
	}
	switch s.op {
	case "=":
		return Label(s.key, s.vals[0])
	case "!=":
		return Not(Label(s.key, s.vals[0]))
	case "in":
		return LabelIn(s.key, s.vals...)
	case "notin":
		return Not(LabelIn(s.key, s.vals...))
	case "has":
		return HasLabel(s.key)
	case "hasnot":
		return Not(HasLabel(s.key))
	case "<", "<=", ">", ">=":
		return Version(s.op + s.vals[0])
	case "serves":
		return Serves(s.vals[0])
	case "func":
		return Func(s.vals[0])
	case "all":
		return All(kids...)
	case "any":
		return Any(kids...)
	case "not":
		return Not(kids[0])
	case "prefer":
		return Prefer(kids[0], kids[1:]...)
	}
	panic("no op " + s.op)
}

// write writes the filter as text, in a random spelling.
func (s spec) write(r *rand.Rand) string {
	sp := func() string { return []string{"", "", " ", "\n\t "}[r.IntN(4)] }
	val := func(v string) string {
		if quoted(v) == v && r.IntN(4) > 0 {
			return v
		}
		if r.IntN(2) == 0 {
			return strconv.QuoteToASCII(v)
		}
		return strconv.Quote(v)
	}
	join := func(sep string) string {
		var parts []string
		for _, v := range s.vals {
			parts = append(parts, sp()+val(v)+sp())
		}
		for _, k := range s.kids {
			parts = append(parts, sp()+k.write(r)+sp())
		}
		return strings.Join(parts, sep)
	}
	list := func(open, sep string) string { return open + sp() + "(" + join(sep) + ")" }
	switch s.op {
	case "=":
		if s.key == "id" && r.IntN(2) == 0 {
			return list("id", ",")
		}
		return s.key + sp() + []string{"=", "=="}[r.IntN(2)] + sp() + val(s.vals[0])
	case "!=", "<", "<=", ">", ">=":
		return s.key + sp() + s.op + sp() + val(s.vals[0])
	case "in", "notin":
		return list(s.key+" "+s.op, ",")
	case "has":
		return s.key
	case "hasnot":
		return "!" + sp() + s.key
	case "all":
		return join(",")
	}
	return list(s.op, ";")
}

var (
	keys   = []string{"a", "b", "in", "any", "broken", "id", "version", "version", "zone"}
	values = []string{"", "x", "y", "a b", "é", "\u2028", `q"\`, "a,b;(c)", "foo",
		"1.4.0", "v1.4.0", "1.4", "v1", "1.4.0-rc.1", "1.4.0+b"}
	bounds = []string{"1", "1.4", "v1.4", "1.4.0", "v1.4.0", "1.4.0-rc.1", "1.4.0-rc.2", "1.4.0+b",
		"2", "2.0.0", "2.0.0-0"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// condition makes a random filter without prefer. degenerate allows what text cannot say, the empty All among them.
func condition(r *rand.Rand, depth int, degenerate bool) spec {
	ops := []string{"=", "!=", "in", "notin", "has", "hasnot", "<", "<=", ">", ">=", "serves", "func"}
	if depth > 0 {
		ops = append(ops, "all", "any", "not", "all", "any", "not")
	}
	s := spec{op: pick(r, ops), key: pick(r, keys)}
	kids := func(n int) {
		for range n {
			s.kids = append(s.kids, condition(r, depth-1, degenerate))
		}
	}
	switch s.op {
	case "=", "!=":
		s.vals = []string{pick(r, values)}
	case "in", "notin":
		for range 1 + r.IntN(3) {
			s.vals = append(s.vals, pick(r, values))
		}
	case "<", "<=", ">", ">=":
		s.key, s.vals = "version", []string{pick(r, bounds)}
	case "serves":
		s.key, s.vals = "", []string{pick(r, []string{"p.A", "p.B", "p q"})}
	case "func":
		s.key, s.vals = "", []string{"heavy"}
	case "all":
		if degenerate {
			kids(r.IntN(3))
		} else {
			kids(1 + r.IntN(3))
		}
	case "any":
		kids(1 + r.IntN(3))
	case "not":
		kids(1)
		if s.kids[0].build().IsZero() {
			return condition(r, depth, degenerate)
		}
	}
	return s
}

// preference makes a conjunction with prefers in it.
func preference(r *rand.Rand, degenerate bool) spec {
	s := spec{op: "all"}
	for range r.IntN(3) {
		s.kids = append(s.kids, condition(r, 2, degenerate))
	}
	for range 1 + r.IntN(2) {
		p := spec{op: "prefer"}
		for range 1 + r.IntN(3) {
			p.kids = append(p.kids, condition(r, 1, degenerate))
		}
		s.kids = slices.Insert(s.kids, r.IntN(len(s.kids)+1), p)
	}
	return s
}

func instances(r *rand.Rand, n int) []*registry.Instance {
	var ins []*registry.Instance
	for range n {
		in := &registry.Instance{
			ID: pick(r, values), Version: pick(r, slices.Concat(values, bounds)), Zone: pick(r, values),
			Weight:   uint32(r.IntN(20)),
			Services: pick(r, [][]string{nil, {"p.A"}, {"p.B", "p q"}}),
			Labels:   map[string]string{},
		}
		for _, k := range keys[:5] {
			if r.IntN(2) == 0 {
				in.Labels[k] = pick(r, values)
			}
		}
		ins = append(ins, in)
	}
	return ins
}

// TestProperties holds the filters against their twin: text and constructors agree, canonical strings round-trip,
// Match is what eval says, and one filter never stands for two different conditions.
func TestProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ins := instances(r, 100)
	verdicts := map[Filter]string{}
	matched, total := 0, 0
	for i := range 4000 {
		degenerate := i%2 == 0
		s := condition(r, 3, degenerate)
		if i%5 == 0 {
			s = preference(r, degenerate)
		}
		f := s.build()
		if f.Err() != nil {
			t.Fatalf("%+v: %v", s, f.Err())
		}
		if again, err := Parse(f.String()); again != f || err != nil {
			t.Fatalf("%+v: Parse(%q) = %q, %v", s, f, again, err)
		}
		if g := reparse(t, f.String()); g != f.String() {
			t.Fatalf("%q is parsed to %q", f, g)
		}
		if !degenerate {
			text := s.write(r)
			if p, err := Parse(text); p != f || err != nil {
				t.Fatalf("Parse(%q) = %q, %v, want %q", text, p, err, f)
			}
		}
		verdict := make([]byte, len(ins))
		for j, in := range ins {
			want := s.eval(in)
			if got := f.Match(in); got != want {
				t.Fatalf("%q matches %+v: %v, want %v of %+v", f, in, got, want, s)
			}
			if verdict[j] = '0'; want {
				verdict[j] = '1'
				matched++
			}
			total++
		}
		if v, ok := verdicts[f]; ok && v != string(verdict) {
			t.Fatalf("%q stands for two conditions", f)
		}
		verdicts[f] = string(verdict)
	}
	if matched < total/10 || matched > total*9/10 {
		t.Errorf("%d of %d matched: the test does not test", matched, total)
	}
}

// reparse goes round the table of filters that exist: it parses, truly, what Parse might only look up.
func reparse(t *testing.T, text string) string {
	t.Helper()
	n, err := parse(text)
	if err != nil {
		t.Fatalf("parse(%q): %v", text, err)
	}
	if n == nil {
		return ""
	}
	return n.str
}

// TestTiersProperty compares which instances are used with the twin's answer, which goes through every combination
// of every alternative.
func TestTiersProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	fellBack := map[int]int{}
	for range 3000 {
		s := preference(r, r.IntN(2) == 0)
		f := s.build()
		ins := instances(r, 1+r.IntN(5))
		want := used(s, ins)
		var got []int
		for i, tier := range f.Tiers() {
			if tier.n.prefers() {
				t.Fatalf("%q: the tier %q has a prefer", f, tier)
			}
			if got = matching(tier.Match, ins); len(got) > 0 {
				fellBack[i]++
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q with tiers %q uses %v, want %v of %+v", f, f.Tiers(), got, want, s)
		}
	}
	if fellBack[0] == 0 || fellBack[1] == 0 || fellBack[2] == 0 {
		t.Errorf("tiers that won: %v, want all of the first three", fellBack)
	}
}

// used says by brute force which instances a preference leads to.
func used(s spec, ins []*registry.Instance) []int {
	var conds, prefs []spec
	for _, k := range s.kids {
		if k.op == "prefer" {
			prefs = append(prefs, k)
		} else {
			conds = append(conds, k)
		}
	}
	var try func(conds, prefs []spec) []int
	try = func(conds, prefs []spec) []int {
		if len(prefs) == 0 {
			return matching(spec{op: "all", kids: conds}.eval, ins)
		}
		for _, alt := range prefs[0].kids {
			if got := try(append(slices.Clone(conds), alt), prefs[1:]); len(got) > 0 {
				return got
			}
		}
		return try(conds, prefs[1:])
	}
	return try(conds, prefs)
}

func matching(match func(*registry.Instance) bool, ins []*registry.Instance) (got []int) {
	for i, in := range ins {
		if match(in) {
			got = append(got, i)
		}
	}
	return got
}
