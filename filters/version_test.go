package filters

import (
	"math/big"
	"regexp"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

// semver is the expression that semver.org suggests, with the optional v.
var semver = regexp.MustCompile(`^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?` +
	`(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$`)

// partial is a version without its patch or minor.
var partial = regexp.MustCompile(`^v?(0|[1-9]\d*)(\.(0|[1-9]\d*))?$`)

// slowCompare is the twin of version.compare: regular expression, big numbers, slices.
func slowCompare(a, b string) int {
	x, y := semver.FindStringSubmatch(a), semver.FindStringSubmatch(b)
	num := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 10); return n }
	for i := 1; i <= 3; i++ {
		if c := num(x[i]).Cmp(num(y[i])); c != 0 {
			return c
		}
	}
	switch {
	case x[4] == "" && y[4] == "":
		return 0
	case x[4] == "":
		return 1
	case y[4] == "":
		return -1
	}
	p, q := strings.Split(x[4], "."), strings.Split(y[4], ".")
	isNum := func(s string) bool { return strings.Trim(s, "0123456789") == "" }
	for i := 0; i < len(p) && i < len(q); i++ {
		c := strings.Compare(p[i], q[i])
		switch {
		case isNum(p[i]) && isNum(q[i]):
			c = num(p[i]).Cmp(num(q[i]))
		case isNum(p[i]):
			c = -1
		case isNum(q[i]):
			c = 1
		}
		if c != 0 {
			return c
		}
	}
	return len(p) - len(q)
}

func sign(n int) int { return min(max(n, -1), 1) }

func TestVersionPrecedence(t *testing.T) {
	// In order; the middle is the example of semver.org, item 11.
	ordered := []string{
		"0.0.0-0", "0.0.0", "0.9.0", "0.10.0", "1.0.0-0", "1.0.0-1", "1.0.0-2", "1.0.0-11", "1.0.0--", "1.0.0-0a",
		"1.0.0-a-b", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
		"1.0.0-rc.1", "v1.0.0+build.001", "1.4.0-rc.1", "v1.4.0-rc.2", "1.4.0", "2.0.0-rc.1", "2.0.0", "10.0.0",
		"99999999999999999999999.0.0", "100000000000000000000000.0.0",
	}
	for i, a := range ordered {
		for j, b := range ordered {
			x, okX := parseVersion(a)
			y, okY := parseVersion(b)
			if !okX || !okY {
				t.Fatalf("parseVersion(%q), parseVersion(%q) = %v, %v", a, b, okX, okY)
			}
			if got := x.compare(y); got != sign(i-j) || got != sign(slowCompare(a, b)) {
				t.Errorf("%s compares to %s as %d, want %d (twin %d)", a, b, got, sign(i-j), slowCompare(a, b))
			}
		}
	}
}

func TestVersionSyntax(t *testing.T) {
	for _, s := range []string{
		"1.4.0", "v1.4.0", "vv1.4.0", "V1.4.0", "1.4", "1", "", "v", "1.4.0.0", "01.4.0", "1.04.0", "1.4.00",
		"1.4.0-", "1.4.0-rc", "1.4.0-rc..1", "1.4.0-01", "1.4.0-0a", "1.4.0-0", "1.4.0-rc_1", "1.4.0-a.", "1.4.0-é",
		"1.4.0+", "1.4.0+001", "1.4.0+a..b", "1.4.0-a+b-c", "1.4.0+b-c", "1.4.0+b+c",
		"1.4.0 ", " 1.4.0", "1.4.x", "-1.4.0", "1.-4.0", "1..0", ".1.4", "1.4.", "20240101", "foo",
	} {
		if _, ok := parseVersion(s); ok != semver.MatchString(s) {
			t.Errorf("parseVersion(%q) = %v, semver.org says %v", s, ok, !ok)
		}
	}
}

func TestVersionRanges(t *testing.T) {
	for _, tt := range []struct{ rng, want, in, out string }{
		{"1.4.2", "version=1.4.2", "1.4.2 v1.4.2 1.4.2+b", "1.4.3 1.4.2-rc.1 1.4 foo"},
		{"v1.4.2+b", "version=1.4.2", "1.4.2 v1.4.2", "1.4.3"},
		{"1.4.2-rc.1", "version=1.4.2-rc.1", "1.4.2-rc.1", "1.4.2 1.4.2-rc.2"},
		{"1.4.x", "version<1.5.0-0,version>=1.4.0",
			"1.4.0 1.4.99 1.4.1-rc.1", "1.3.9 1.4.0-rc.1 1.5.0 1.5.0-rc.1 1.4 foo"},
		{"1.4.*", "version<1.5.0-0,version>=1.4.0", "1.4.0", "1.5.0"},
		{"1.4", "version<1.5.0-0,version>=1.4.0", "1.4.0 1.4.99", "1.5.0 1.5.0-alpha"},
		{"1.x", "version<2.0.0-0,version>=1.0.0", "1.0.0 1.99.0", "0.9.0 2.0.0 2.0.0-rc.1 2.0.0-0 1.0.0-rc.1"},
		{"1.x.x", "version<2.0.0-0,version>=1.0.0", "1.0.0", "2.0.0"},
		{"1", "version<2.0.0-0,version>=1.0.0", "1.0.0 1.99.0", "2.0.0-rc.1"},
		{"v9", "version<10.0.0-0,version>=9.0.0", "9.9.9", "10.0.0 10.0.0-rc.1"},
		{"^1.4.2", "version<2.0.0-0,version>=1.4.2", "1.4.2 1.5.0 1.99.99", "1.4.1 1.4.2-rc.1 2.0.0 2.0.0-rc.1"},
		{"^1.4.2-rc.1", "version<2.0.0-0,version>=1.4.2-rc.1", "1.4.2-rc.1 1.4.2", "1.4.2-alpha"},
		{"^1.4", "version<2.0.0-0,version>=1.4.0", "1.4.0 1.9.0", "1.3.0 2.0.0"},
		{"^1.x", "version<2.0.0-0,version>=1.0.0", "1.4.0", "2.0.0"},
		{"^0.4.2", "version<0.5.0-0,version>=0.4.2", "0.4.2 0.4.9", "0.5.0 0.5.0-rc.1"},
		{"^0.0.3", "version<0.0.4-0,version>=0.0.3", "0.0.3", "0.0.4"},
		{"^0.0", "version<0.1.0-0,version>=0.0.0", "0.0.9", "0.1.0"},
		{"^0", "version<1.0.0-0,version>=0.0.0", "0.9.0", "1.0.0"},
		{"~1.4.2", "version<1.5.0-0,version>=1.4.2", "1.4.2 1.4.9", "1.4.1 1.5.0 1.5.0-rc.1"},
		{"~1.4", "version<1.5.0-0,version>=1.4.0", "1.4.0", "1.5.0"},
		{"~1", "version<2.0.0-0,version>=1.0.0", "1.9.0", "2.0.0"},
		{">=1.4.0 <2", "version<2.0.0-0,version>=1.4.0", "1.4.0 1.9.9", "1.4.0-rc.1 2.0.0-rc.1 2.0.0"},
		{" >= 1.4.0 ,\t< 2.0.0 ", "version<2.0.0,version>=1.4.0", "1.4.0 2.0.0-rc.1", "2.0.0"},
		{">1.4", "version>1.4.0", "1.4.1", "1.4.0"},
		{"<=2", "version<=2.0.0", "2.0.0 2.0.0-rc.1", "2.0.1"},
		{">=2.0.0-0", "version>=2.0.0-0", "2.0.0-0 2.0.0-rc.1 2.0.0", "1.99.0"},
		{"==1.4.2", "version=1.4.2", "1.4.2", "1.4.3"},
		{">=1 !=1.4.2", "version!=1.4.2,version>=1.0.0", "1.4.1", "1.4.2 foo"},
		{"1.4.x || >=3, <4", "any(version<1.5.0-0,version>=1.4.0; version<4.0.0-0,version>=3.0.0)",
			"1.4.1 3.0.0", "2.0.0 4.0.0"},
		{"1.4.2||1.4.2", "version=1.4.2", "1.4.2", "1.4.3"},
		{"99999999999999999999.9.x", "version<99999999999999999999.10.0-0,version>=99999999999999999999.9.0",
			"99999999999999999999.9.1", "99999999999999999998.9.1 1.0.0"},
	} {
		f := Version(tt.rng)
		if f.String() != tt.want {
			t.Errorf("Version(%q) = %q, want %q", tt.rng, f, tt.want)
		}
		if again, err := Parse(f.String()); again != f {
			t.Errorf("Version(%q): Parse(%q) = %q, %v", tt.rng, f, again, err)
		}
		for _, v := range strings.Fields(tt.in) {
			if !f.Match(&registry.Instance{Version: v}) {
				t.Errorf("Version(%q) does not match %q", tt.rng, v)
			}
		}
		for _, v := range append(strings.Fields(tt.out), "") {
			if f.Match(&registry.Instance{Version: v}) {
				t.Errorf("Version(%q) matches %q", tt.rng, v)
			}
		}
	}
}

func TestVersionRangeErrors(t *testing.T) {
	for rng, has := range map[string]string{
		"":            `version = ""`,
		" ":           `version = ""`,
		"x":           `version = "x"`,
		"*":           `version = "*"`,
		"foo":         `version = "foo"`,
		"1.x.3":       `version = "1.x.3"`,
		"1.2.3.x":     `version = "1.2.3.x"`,
		"1.2.3.4":     `version = "1.2.3.4"`,
		"1.2-rc":      `version = "1.2-rc"`,
		"1.2-rc.x":    `version = "1.2-rc.x"`,
		"01.2":        `version = "01.2"`,
		">=1.x":       `version = "1.x"`,
		"=1.x":        `version = "1.x"`,
		"!=foo":       `version = "foo"`,
		"=>1.2":       `operator = "=>"`,
		"<>1.2":       `operator = "<>"`,
		"1.2 - 1.4":   `version = "-"`,
		">=1.4.0,":    `version = ""`,
		",1.4.0":      `version = ""`,
		"1.4,,1.5":    `version = ""`,
		"<2||":        `version = ""`,
		"|| 1":        `version = ""`,
		"1 | 2":       `version = "|"`,
		">=":          `version = ""`,
		"version>1.2": `version = "version"`,
	} {
		f := Version(rng)
		if f.Err() == nil || !strings.Contains(f.Err().Error(), has) || !strings.Contains(f.Err().Error(), "want ") {
			t.Errorf("Version(%q) = %s: error %v, want one with %s", rng, f, f.Err(), has)
		}
	}
}
