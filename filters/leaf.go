package filters

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/evenkeel/evenkeel/registry"
)

// plain reports whether c stands in a value without quotes.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '.' || c == '_' || c == '/' || c == '-'
}

// quoted returns a value as it stands in canonical text.
func quoted(v string) string {
	for i := range len(v) {
		if !plain(v[i]) {
			return strconv.Quote(v)
		}
	}
	if v == "" {
		return `""`
	}
	return v
}

func checkKey(key string) error {
	if !field(key) && registry.CheckLabelKey(key) != nil {
		return &argError{"key", short(key), "1 to 64 of A-Z a-z 0-9 _ -"}
	}
	return nil
}

func checkValue(v string) error {
	if !utf8.ValidString(v) {
		return &argError{"value", short(v), "UTF-8"}
	}
	return nil
}

// newIn is key in (values), or key notin (values); of one value, key=value or key!=value.
func newIn(key string, values []string, neg bool) (*node, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, &argError{"values", "none", "1 or more"}
	}
	vs := slices.Clone(values)
	for i, v := range vs {
		if err := checkValue(v); err != nil {
			return nil, err
		}
		if key == "version" {
			c, err := equalVersion(v)
			if err != nil {
				return nil, err
			}
			vs[i] = c
		}
	}
	slices.Sort(vs)
	vs = slices.Compact(vs)
	n := &node{op: opIn, key: key, values: vs, neg: neg, terms: len(vs)}
	if key == "version" {
		for _, v := range vs {
			if b, _, ok := parseBound(v); ok {
				n.bounds = append(n.bounds, b)
			}
		}
	}
	n.str = inString(key, vs, neg)
	return checked(n)
}

func inString(key string, vs []string, neg bool) string {
	if len(vs) == 1 {
		if neg {
			return key + "!=" + quoted(vs[0])
		}
		return key + "=" + quoted(vs[0])
	}
	var b strings.Builder
	b.WriteString(key)
	if neg {
		b.WriteString(" notin (")
	} else {
		b.WriteString(" in (")
	}
	for i, v := range vs {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quoted(v))
	}
	b.WriteByte(')')
	return b.String()
}

// newHas is key, or !key.
func newHas(key string, neg bool) (*node, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	n := &node{op: opHas, key: key, neg: neg, str: key, terms: 1}
	if neg {
		n.str = "!" + key
	}
	return n, nil
}

// newOrder is version<bound and its like.
func newOrder(c cmp, bound string) (*node, error) {
	v, parts, ok := parseBound(bound)
	if !ok {
		return nil, &argError{"version", short(bound), "a semantic version such as 1.4.0 or 1.4"}
	}
	if c == less && parts < 3 {
		v.pre = "0" // the whole 2.0.0 line is not below 2, its release candidates included
	}
	return checked(orderNode(c, v))
}

func orderNode(c cmp, v version) *node {
	str := "version" + c.String() + v.String()
	return &node{op: opOrder, key: "version", cmp: c, bounds: []version{v}, terms: 1, str: str}
}

// newServes is serves(service).
func newServes(service string) (*node, error) {
	if service == "" || !utf8.ValidString(service) {
		return nil, &argError{"service", short(service), "the full name of a gRPC service, such as shop.Orders"}
	}
	return checked(&node{op: opServes, values: []string{service}, terms: 1, str: "serves(" + quoted(service) + ")"})
}

// newFunc is func(name).
func newFunc(name string) (*node, error) {
	fn, known := registered(name)
	if fn == nil {
		return nil, &argError{"func", short(name), "one that was registered: " + known}
	}
	return checked(&node{op: opFunc, fn: fn, values: []string{name}, terms: 1, str: "func(" + quoted(name) + ")"})
}
