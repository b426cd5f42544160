package filters

import (
	"fmt"
	"strconv"
	"strings"
)

// parseRange parses what Version takes.
func parseRange(s string) (*node, error) {
	if len(s) > maxLength {
		return nil, &argError{"range", strconv.Itoa(len(s)) + " bytes", strconv.Itoa(maxLength) + " or fewer"}
	}
	var alts []*node
	for _, alt := range strings.Split(s, "||") {
		n, err := parseComparators(alt)
		if err != nil {
			return nil, fmt.Errorf("range = %s: %w", short(s), err)
		}
		alts = append(alts, n)
		if len(alts) > maxTerms {
			return nil, &argError{"range", "more than " + strconv.Itoa(maxTerms) + " alternatives", "fewer"}
		}
	}
	return newAny(alts)
}

// parseComparators parses what stands between two ||, the conjunction of comparators.
func parseComparators(s string) (*node, error) {
	const space = " \t\n\r"
	var conds []*node
	comma := false
	for rest := strings.Trim(s, space); rest != "" || comma || len(conds) == 0; {
		opLen := len(rest) - len(strings.TrimLeft(rest, "<>=!^~"))
		operator := rest[:opLen]
		rest = strings.TrimLeft(rest[opLen:], space)
		end := strings.IndexAny(rest, space+",<>=!^~")
		if end < 0 {
			end = len(rest)
		}
		n, err := parseComparator(operator, rest[:end])
		if err != nil {
			return nil, err
		}
		if conds = append(conds, n); len(conds) > maxTerms {
			return nil, &argError{"range", "more than " + strconv.Itoa(maxTerms) + " comparators", "fewer"}
		}
		rest = strings.TrimLeft(rest[end:], space)
		rest, comma = strings.CutPrefix(rest, ",")
		rest = strings.TrimLeft(rest, space)
	}
	return newAll(conds)
}

// parseComparator makes the condition of one operator and one version.
func parseComparator(operator, s string) (*node, error) {
	const want = "a version such as 1.4.2, 1.4 or 1.4.x"
	switch operator {
	case "=", "==":
		return checkedEqual(s, false)
	case "!=":
		return checkedEqual(s, true)
	case "<":
		return newOrder(less, s)
	case "<=":
		return newOrder(lessEqual, s)
	case ">":
		return newOrder(greater, s)
	case ">=":
		return newOrder(greaterEqual, s)
	case "", "^", "~":
	default:
		return nil, &argError{"operator", short(operator), "one of = != < <= > >= ^ ~ or none"}
	}
	core, wild := wildcard(s)
	v, parts, ok := parseBound(core)
	switch {
	case !ok || core != s && !wild:
		return nil, &argError{"version", short(s), want}
	case operator == "" && parts == 3:
		return newIn("version", []string{s}, false)
	}
	return newAll([]*node{orderNode(greaterEqual, v), orderNode(less, v.next(bumped(operator, v, parts)))})
}

// checkedEqual is version=s or version!=s, for an s that is a version: a range of anything else is a mistake.
func checkedEqual(s string, neg bool) (*node, error) {
	if _, _, ok := parseBound(s); !ok {
		return nil, &argError{"version", short(s), "a semantic version such as 1.4.0"}
	}
	return newIn("version", []string{s}, neg)
}

// bumped says which number of v a range may not change: the last that was given, for ~ at most the minor, for ^ the
// first that is not 0.
func bumped(operator string, v version, parts int) int {
	switch operator {
	case "^":
		for i := range parts {
			if v.num[i] != "0" {
				return i
			}
		}
	case "~":
		return min(parts-1, 1)
	}
	return parts - 1
}

// next returns the lowest version, pre-releases counted, in which number i is one higher.
func (v version) next(i int) version {
	n := version{num: [3]string{"0", "0", "0"}, pre: "0"}
	copy(n.num[:i], v.num[:i])
	n.num[i] = increment(v.num[i])
	return n
}

// increment adds 1 to a number of any length.
func increment(s string) string {
	b := []byte(s)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != '9' {
			b[i]++
			return string(b)
		}
		b[i] = '0'
	}
	return "1" + string(b)
}
