package filters

import "fmt"

// made is what a constructor returns for a node or the reason why there is none.
func made(constructor string, n *node, err error) Filter {
	if err != nil {
		return broken(fmt.Errorf("filters: %s: %w", constructor, err))
	}
	return intern(n)
}

// combined makes a filter of filters; of the first broken one, if there is any.
func combined(constructor string, fs []Filter, combine func([]*node) (*node, error)) Filter {
	ns := make([]*node, len(fs))
	for i, f := range fs {
		if f.Err() != nil {
			return f
		}
		ns[i] = f.n
	}
	n, err := combine(ns)
	return made(constructor, n, err)
}

// Label is met by instances whose label k is v: k=v. The keys id, version and zone mean the fields, for which see
// [ID], [Version] and [Zone]; Label("version", "1.4.0") compares as docs/filters.md says, so that v1.4.0 is equal.
func Label(k, v string) Filter {
	if f, ok := quick(k, v); ok {
		return f
	}
	n, err := newIn(k, []string{v}, false)
	return made("Label", n, err)
}

// quick finds a filter k=v that exists: handlers that call Label for every request pay one lookup and no more.
func quick(k, v string) (Filter, bool) {
	n := find(k + "=" + quoted(v))
	// A strange key could spell another filter, as in Label("a=1,b", "2").
	if n == nil || n.key != k {
		return Filter{}, false
	}
	return Filter{n}, true
}

// LabelIn is met by instances whose label k is one of vs: k in (vs…). Without vs it is broken.
func LabelIn(k string, vs ...string) Filter {
	n, err := newIn(k, vs, false)
	return made("LabelIn", n, err)
}

// HasLabel is met by instances that have the label k, even an empty one. For id, version and zone it means that the
// field is not empty.
func HasLabel(k string) Filter {
	n, err := newHas(k, false)
	return made("HasLabel", n, err)
}

// Version is met by instances whose version is in the range rng, which is one of, or several with || between them:
//
//	1.4.2               that version
//	1.4.x, 1.4, 1.x, 1  that line: 1.4.0 and later, before 1.5.0 and its pre-releases
//	^1.4.2              1.4.2 and later, before 2.0.0 and its pre-releases (^0.4.2: before 0.5.0)
//	~1.4.2              1.4.2 and later, before 1.5.0 and its pre-releases
//	>=1.4.0 <2          all of these hold, with spaces or a comma between; also > <= = !=
//
// An instance whose version is empty, or not a semantic version, is in no range. The filter is an ordinary one, of
// the conditions on version that [Parse] knows; docs/filters.md has the rules.
func Version(rng string) Filter {
	n, err := parseRange(rng)
	return made("Version", n, err)
}

// Zone is met by instances that run in one of zones: zone in (zones…). Without zones it is broken.
func Zone(zones ...string) Filter {
	n, err := newIn("zone", zones, false)
	return made("Zone", n, err)
}

// ID is met by the instances with these IDs: id in (ids…). Without ids it is broken.
func ID(ids ...string) Filter {
	n, err := newIn("id", ids, false)
	return made("ID", n, err)
}

// Serves is met by instances that serve the gRPC service of that full name, and by those that do not say which
// services they serve.
func Serves(service string) Filter {
	n, err := newServes(service)
	return made("Serves", n, err)
}

// Func is met by instances for which the function registered under name returns true. A name that [Register] was
// not called with before makes it broken: a package's variables are set before its init functions run, so call Func
// in a function.
func Func(name string) Filter {
	n, err := newFunc(name)
	return made("Func", n, err)
}

// All is met by instances that meet all of fs; All() is the zero filter.
func All(fs ...Filter) Filter { return combined("All", fs, newAll) }

// Any is met by instances that meet one of fs. Any() is broken, and so is Any with a [Prefer] in it.
func Any(fs ...Filter) Filter { return combined("Any", fs, newAny) }

// Not is met by instances that do not meet f. Not of the zero filter is broken, since a filter that nothing can
// meet is a mistake; and so is Not of a filter with a [Prefer] in it.
func Not(f Filter) Filter {
	return combined("Not", []Filter{f}, func(ns []*node) (*node, error) { return newNot(ns[0]) })
}

// Prefer is the order in which to try alternatives: the first that has a usable instance is used, and all instances
// if none has. It may stand alone or in an [All]; as an alternative, or in an [Any] or [Not], it makes them broken.
// The zero filter as an alternative is "all", and ends the list. [Filter.Tiers] is how to read it.
func Prefer(first Filter, next ...Filter) Filter {
	return combined("Prefer", append([]Filter{first}, next...), newPrefer)
}
