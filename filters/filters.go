// Package filters says which instances of a service may serve a call.
//
// A [Filter] is a condition on a [registry.Instance]: on its labels, version, zone, ID and the gRPC services it
// serves. It is written in the language of Kubernetes label selectors, with a few calls added:
//
//	track=canary,zone in (eu-1,eu-2),!deprecated
//	version>=1.4.0,version<2
//	any(track=canary; zone=eu-1)    not(serves(shop.Orders))    prefer(zone=eu-1; zone=eu-2)
//
// or made in Go by [Label], [Version], [All], [Prefer] and the other constructors; both ways lead to the same
// values. The zero Filter is "every instance". No constructor returns an error, so that filters can be composed in
// one expression: a filter made of bad arguments is broken, says why by [Filter.Err], and matches nothing, because
// a canary rule with a typing error in it must not send the whole traffic to the canary.
//
// The life of a filter: an application makes it once, at start, and either writes it into the balancer's
// configuration or binds it to a call's context by [NewContext], for the services it names. When a call is placed,
// the balancer asks [FromRecord] which filter was bound, and finds by it the set of instances that it computed when
// it last heard of a change. So a filter costs a map lookup per call, and [Filter.Match] runs once per instance,
// filter and change. A call's own filter replaces the configuration's Filter, never its Require.
//
// That lookup is why filters are comparable: a Filter is one pointer, and two filters with the same canonical
// string ([Filter.String]) are ==, however they were made ("b=2,a=1" and "a=1,b=2" are one filter). Filters that
// nobody holds any more are collected; ADR-0003 has the reasons and the costs. A context costs one lookup, whoever
// put what into it.
//
// [Prefer] is not a condition but an order: use these if one of them is usable, else those, else all. It narrows
// nothing, and is read through [Filter.Tiers], not through Match. Do not use it for what must hold (that is a plain
// filter, or Require), and do not write a filter per user or per request ID: every distinct filter is a distinct
// set of instances in the balancer. To keep a user on one instance is the business of a strategy.
//
// Everything in this package is safe for concurrent use. docs/filters.md has the whole grammar.
package filters

import (
	"fmt"

	"github.com/evenkeel/evenkeel/registry"
)

// Filter is a condition that an instance meets or not. The zero value is met by every instance.
//
// A Filter is immutable, safe for concurrent use, one pointer in size and comparable: two filters are == exactly if
// their canonical strings are the same. Most callers make one with [Parse] or [Label] and hand it to [NewContext] or
// to the balancer's configuration, and never call its methods.
type Filter struct{ n *node }

var (
	everything = []Filter{{}}        // what the zero filter's Tiers returns
	unknown    = registry.Instance{} // what Match takes nil for
)

// String returns the canonical string, for which [Parse] returns f again; "" for the zero filter. A broken filter
// gives broken(the reason), which Parse refuses.
func (f Filter) String() string {
	if f.n == nil {
		return ""
	}
	return f.n.str
}

// IsZero reports whether f is the zero filter, which every instance meets.
func (f Filter) IsZero() bool { return f.n == nil }

// Err says why f, made of bad arguments, is unusable; nil if it is not. It is a [*ParseError] if f came from text.
func (f Filter) Err() error {
	if f.n == nil {
		return nil
	}
	return f.n.err
}

// Match reports whether in meets f. It allocates nothing, unless a function given to [Register] does. A [Prefer] in
// f restricts nothing here, because it ends in "all"; a broken filter is met by no instance. A nil in is an instance
// of which nothing is known, as the endpoints of a foreign resolver are.
func (f Filter) Match(in *registry.Instance) bool {
	if in == nil {
		in = &unknown
	}
	return f.n == nil || f.n.match(in)
}

// Tiers returns the filters to try one after the other, none of which has a [Prefer] in it: the first that has a
// usable instance is the one to use, and if none has, the last. It is f alone for a filter without Prefer; a, b and
// the zero filter for Prefer(a, b); and x&&a, x&&b and x for All(x, Prefer(a, b)). Several Prefers in one All
// combine with the first as the most important: a&&b, a, b, all. There are never more than 64.
//
// The slice is computed when the filter is made, and must not be modified.
func (f Filter) Tiers() []Filter {
	switch {
	case f.n == nil:
		return everything
	case f.n.tiers != nil:
		return f.n.tiers
	}
	return f.n.self[:]
}

// MarshalText returns the canonical string, so that a filter in JSON is a string. A broken filter is an error.
func (f Filter) MarshalText() ([]byte, error) {
	if err := f.Err(); err != nil {
		return nil, err
	}
	return []byte(f.String()), nil
}

// UnmarshalText sets f to [Parse] of text; after an error f is what it was.
func (f *Filter) UnmarshalText(text []byte) error {
	p, err := Parse(string(text))
	if err != nil {
		return err
	}
	*f = p
	return nil
}

// argError says what is wrong with an argument. The constructors and the parser put their own context around it.
type argError struct{ field, got, want string }

func (e *argError) Error() string { return fmt.Sprintf("%s = %s, want %s", e.field, e.got, e.want) }
