package filters

import "strings"

// version is a semantic version (semver.org 2.0.0) without its build metadata, which do not count in an order. The
// numbers are kept as text: they may be of any length, and an instance's version is parsed without allocating.
type version struct {
	num [3]string // major, minor, patch: digits without a leading zero
	pre string    // the pre-release, empty for a release
}

// String returns the canonical text.
func (v version) String() string {
	s := v.num[0] + "." + v.num[1] + "." + v.num[2]
	if v.pre != "" {
		s += "-" + v.pre
	}
	return s
}

// parseVersion parses a complete version, with or without a leading v.
func parseVersion(s string) (version, bool) {
	v, parts, ok := parseBound(s)
	return v, ok && parts == 3
}

// parseBound parses a version that may lack its minor and patch, which are then 0, and returns how many of the three
// were there. A pre-release or build metadata want all three.
func parseBound(s string) (v version, parts int, ok bool) {
	s = strings.TrimPrefix(s, "v")
	s, build, hasBuild := strings.Cut(s, "+")
	core, pre, hasPre := strings.Cut(s, "-")
	for parts < 3 {
		num, rest, more := strings.Cut(core, ".")
		if !number(num) {
			return version{}, 0, false
		}
		v.num[parts] = num
		parts++
		if core = rest; !more {
			break
		}
		if parts == 3 {
			return version{}, 0, false
		}
	}
	for i := parts; i < 3; i++ {
		v.num[i] = "0"
	}
	switch {
	case (hasPre || hasBuild) && parts < 3,
		hasPre && !identifiers(pre, true), hasBuild && !identifiers(build, false):
		return version{}, 0, false
	}
	v.pre = pre
	return v, parts, true
}

// digits reports whether s is one digit or more.
func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// number reports whether s is a number as semver wants it, without a leading zero.
func number(s string) bool { return digits(s) && (s[0] != '0' || len(s) == 1) }

// identifiers reports whether s is identifiers with dots between them; in a pre-release, numbers among them have no
// leading zero.
func identifiers(s string, prerelease bool) bool {
	for more := true; more; {
		var id string
		id, s, more = strings.Cut(s, ".")
		if id == "" || prerelease && digits(id) && !number(id) {
			return false
		}
		for i := range len(id) {
			if c := id[i]; !plain(c) || c == '_' || c == '/' {
				return false
			}
		}
	}
	return true
}

// compare returns -1, 0 or 1 by the precedence of semver.org, item 11.
func (v version) compare(o version) int {
	for i := range v.num {
		if c := compareNumbers(v.num[i], o.num[i]); c != 0 {
			return c
		}
	}
	switch {
	case v.pre == o.pre:
		return 0
	case v.pre == "":
		return 1 // 11.3: a pre-release comes before its release
	case o.pre == "":
		return -1
	}
	return comparePre(v.pre, o.pre)
}

// compareNumbers compares digits without leading zeros: the longer is the larger.
func compareNumbers(a, b string) int {
	switch {
	case len(a) < len(b):
		return -1
	case len(a) > len(b):
		return 1
	}
	return strings.Compare(a, b)
}

// comparePre compares pre-releases identifier by identifier, item 11.4.
func comparePre(a, b string) int {
	for {
		x, restA, moreA := strings.Cut(a, ".")
		y, restB, moreB := strings.Cut(b, ".")
		var c int
		switch numX, numY := digits(x), digits(y); {
		case numX && numY:
			c = compareNumbers(x, y)
		case numX:
			c = -1
		case numY:
			c = 1
		default:
			c = strings.Compare(x, y)
		}
		switch {
		case c != 0:
			return c
		case !moreA && !moreB:
			return 0
		case !moreA:
			return -1
		case !moreB:
			return 1
		}
		a, b = restA, restB
	}
}

// cmp is an operator on versions that wants an order.
type cmp uint8

const (
	less cmp = iota
	lessEqual
	greater
	greaterEqual
)

// String returns the operator.
func (c cmp) String() string { return [...]string{"<", "<=", ">", ">="}[c] }

// holds reports whether the operator holds for what compare returned.
func (c cmp) holds(order int) bool {
	switch c {
	case less:
		return order < 0
	case lessEqual:
		return order <= 0
	case greater:
		return order > 0
	}
	return order >= 0
}

// equalVersion returns the canonical text of what a version is compared with by = and its like. A complete version
// loses its v and build metadata, which do not matter; any other text is left alone, because it may be just what an
// instance says; but a wildcard, which an equality does not know, is refused rather than never met.
func equalVersion(s string) (string, error) {
	if v, ok := parseVersion(s); ok {
		return v.String(), nil
	}
	if core, wild := wildcard(s); wild && core != "" {
		return "", &argError{"version", short(s), "no wildcard, but a range such as version>=1.4,version<1.5"}
	}
	return s, nil
}

// wildcard cuts .x, .X and .* from the end of s, and reports whether there were any and s is then a version.
func wildcard(s string) (core string, wild bool) {
	core = s
	for n := len(core); n > 2 && core[n-2] == '.' && strings.IndexByte("xX*", core[n-1]) >= 0; n = len(core) {
		core, wild = core[:n-2], true
	}
	if !wild {
		return s, false
	}
	_, parts, ok := parseBound(core)
	// 1.x and 1.4.x and 1.x.x, not 1.4.2.x
	return core, ok && parts < 3 && strings.Count(s, ".") <= 2
}
