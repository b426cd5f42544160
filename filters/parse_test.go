package filters

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

func TestParseCanonical(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{" \t\r\n", ""},
		{"track=canary", "track=canary"},
		{"track == canary", "track=canary"},
		{"track!=canary", "track!=canary"},
		{"b=2,a=1", "a=1,b=2"},
		{"a=1,b=2,a=1", "a=1,b=2"},
		{"deprecated", "deprecated"},
		{"! deprecated", "!deprecated"},
		{"zone in (b,a,b)", "zone in (a,b)"},
		{"zone in (a)", "zone=a"},
		{"zone notin(b,a)", "zone notin (a,b)"},
		{"zone notin (a,a)", "zone!=a"},
		{`k="canary"`, "k=canary"},
		{`k=""`, `k=""`},
		{`k="a b"`, `k="a b"`},
		{`k in ("a,b",c)`, `k in ("a,b",c)`},
		{`k="\u00e9"`, `k="é"`},
		{`k="é(;)"`, `k="é(;)"`},
		{"k=-._/x", "k=-._/x"},
		{"id(x)", "id=x"},
		{"id(b,a)", "id in (a,b)"},
		{"id=a", "id=a"},
		{"in in (in)", "in=in"},
		{"any,not,in,notin", "any,in,not,notin"},
		{"any=1,not!=1", "any=1,not!=1"},
		{"any(b;a)", "any(a; b)"},
		{"any(a;a)", "a"},
		{"any(any(c;b);a=2,a1=1)", "any(a1=1,a=2; b; c)"},
		{"not(not(a))", "a"},
		{"not(a)", "!a"},
		{"not(!a)", "a"},
		{"not(a=1)", "a!=1"},
		{"not(a!=1)", "a=1"},
		{"not(a in (x,y))", "a notin (x,y)"},
		{"not(a notin (x,y))", "a in (x,y)"},
		{"not(b,a)", "not(a,b)"},
		{"not(any(b;a))", "not(any(a; b))"},
		{"not(version<2.0.0)", "not(version<2.0.0)"},
		{"not(serves(a.B))", "not(serves(a.B))"},
		{"serves( shop.Orders )", "serves(shop.Orders)"},
		{"func(heavy)", "func(heavy)"},
		{"prefer(b;a;b)", "prefer(b; a)"},
		{"prefer(a),x", "x,prefer(a)"},
		{"prefer(b),x,prefer(a),prefer(b)", "x,prefer(b),prefer(a)"},
		{"version>=v1.4", "version>=1.4.0"},
		{"version>1.4", "version>1.4.0"},
		{"version<=2", "version<=2.0.0"},
		{"version<2", "version<2.0.0-0"},
		{"version<2.1", "version<2.1.0-0"},
		{"version<2.1.0", "version<2.1.0"},
		{`version>="1.4.0+build.7"`, "version>=1.4.0"},
		{"version=v1.4.0", "version=1.4.0"},
		{`version in ("1.4.0+b",v1.4.0)`, "version=1.4.0"},
		{"version=1.4", "version=1.4"},
		{"version=foo", "version=foo"},
	} {
		f, err := Parse(tt.in)
		if err != nil || f.String() != tt.want {
			t.Errorf("Parse(%q) = %q, %v, want %q", tt.in, f, err, tt.want)
			continue
		}
		if again, err := Parse(f.String()); again != f || err != nil {
			t.Errorf("Parse(%q) = %q, %v: not the same filter", f.String(), again, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, tt := range []struct {
		in  string
		col int
		has string
	}{
		{"a=", 3, "the end"},
		{"a=1,", 5, "the end"},
		{",a", 1, `","`},
		{"a,,b", 3, `","`},
		{"a=1 b=2", 5, `"b"`},
		{"a=1;b=2", 4, `";"`},
		{"a=ü", 3, "quotes"},
		{"ä=1", 1, `"ä"`},
		{"é", 1, `"é"`},
		{`a="é",b~1`, 8, `"~"`},
		{"a.b=1", 1, "1 to 64"},
		{"a, b.c", 4, "1 to 64"},
		{strings.Repeat("k", 65), 1, "1 to 64"},
		{`"a"=1`, 1, "a condition"},
		{`a="x`, 3, "does not end"},
		{`a="\q"`, 3, "bad escape"},
		{`a="\xff"`, 3, "UTF-8"},
		{"a=`x`", 3, "a value"},
		{"a=\xff", 3, "UTF-8"},
		{"a=1+b", 4, `"+"`},
		{"a in", 5, "the end"},
		{"a in b", 6, `"b"`},
		{"a in ()", 7, `")"`},
		{"a in (b", 8, "the end"},
		{"a in (b,)", 9, `")"`},
		{"a in (b c)", 9, `"c"`},
		{"a notin", 8, "the end"},
		{"a like b", 3, `"like"`},
		{"a<3", 2, "only version has an order"},
		{"  track >= 1.4", 9, "only version has an order"},
		{"version<", 9, "the end"},
		{"version<foo", 9, `"foo"`},
		{"version<1.4.x", 9, `"1.4.x"`},
		{"version<1.04", 9, `"1.04"`},
		{"version<1-rc.1", 9, `"1-rc.1"`},
		{"version=1.4.x", 9, "wildcard"},
		{`version!="1.*"`, 10, "wildcard"},
		{"version in (1.4.0,1.x)", 1, "wildcard"},
		{"!", 2, "the end"},
		{"!!a", 2, `"!"`},
		{"!a=1", 3, `"="`},
		{"!any(a)", 5, "not(any("},
		{"!a.b", 2, "1 to 64"},
		{"any()", 5, `")"`},
		{"any(;)", 5, `";"`},
		{"any(a;)", 7, `")"`},
		{"any(a", 6, "the end"},
		{"any(a b)", 7, `"b"`},
		{"not()", 5, `")"`},
		{"not(a;b)", 6, `";"`},
		{"prefer()", 8, `")"`},
		{"prefer(prefer(a))", 8, "without prefer"},
		{"any(a;prefer(a))", 7, "without prefer"},
		{"not(a,prefer(a))", 5, "without prefer"},
		{"id()", 4, `")"`},
		{"serves()", 8, `")"`},
		{`serves("")`, 8, "full name"},
		{"serves(a,b)", 9, `","`},
		{"func(nope)", 6, "heavy"},
		{"foo(a)", 1, `"foo"`},
		{"(a)", 1, `"("`},
		{"a)", 2, `")"`},
		{`broken("x")`, 1, `"broken"`},
		{strings.Repeat("a", maxLength+1), maxLength + 1, "65536"},
		{strings.Repeat("not(a,", 33) + "b" + strings.Repeat(")", 33), 32*6 + 1, "nesting 33"},
		{"prefer(a;b;c),prefer(d;e;f),prefer(a),prefer(b;c)", 1, "combinations"},
	} {
		f, err := Parse(tt.in)
		pe, ok := errors.AsType[*ParseError](err)
		switch {
		case !ok:
			t.Errorf("Parse(%q) = %q, %v, want a *ParseError", tt.in, f, err)
		case pe.Column != tt.col || !strings.Contains(err.Error(), tt.has) || pe.Input != tt.in:
			t.Errorf("Parse(%q): %v, want column %d and %s", tt.in, err, tt.col, tt.has)
		case f.Err() == nil || f.Match(&registry.Instance{}) || len(f.Tiers()) != 1 || f.Tiers()[0] != f:
			t.Errorf("Parse(%q) = %q: want a broken filter, which matches nothing", tt.in, f)
		case len(err.Error()) > 600:
			t.Errorf("Parse: an error of %d bytes", len(err.Error()))
		}
	}
}

func TestLimits(t *testing.T) {
	deep := strings.Repeat("not(a,", maxDepth) + "b" + strings.Repeat(")", maxDepth)
	long := "k=" + strings.Repeat("a", maxLength-2)
	many := make([]string, maxTerms)
	for i := range many {
		many[i] = fmt.Sprint("v", i)
	}
	for _, f := range []Filter{
		MustParse(deep), MustParse(long), LabelIn("k", many...), Any(LabelIn("k", many[1:]...), HasLabel("x")),
	} {
		if again, err := Parse(f.String()); f.Err() != nil || again != f {
			t.Errorf("at the limit: Parse of %s: %v", short(f.String()), err)
		}
	}
	wide := make([]Filter, 64)
	for i := range wide {
		wide[i] = Label("k", fmt.Sprint(i))
	}
	if f := Prefer(wide[0], wide[1:63]...); f.Err() != nil || len(f.Tiers()) != 64 {
		t.Errorf("63 alternatives: %d tiers, %v, want 64", len(f.Tiers()), f.Err())
	}
	for what, f := range map[string]Filter{
		"depth":        Not(All(HasLabel("z"), MustParse(deep))),
		"length":       All(HasLabel("a"), MustParse(long)),
		"quoting":      Label("k", strings.Repeat("\x00", maxLength/4)),
		"key":          Label(strings.Repeat("k", maxLength), ""),
		"bad value":    Label("k", strings.Repeat("\xff", maxLength)),
		"bad version":  Version(strings.Repeat("k", maxLength)),
		"bad service":  Serves(strings.Repeat("\xff", maxLength)),
		"terms":        All(HasLabel("a"), LabelIn("k", many...)),
		"alternatives": Prefer(wide[0], wide[1:]...),
		"range":        Version(strings.Repeat("1 ", maxLength)),
		"alternation":  Version(strings.Repeat("1.2.3||", 5000)),
		"comparators":  Version(strings.Repeat("1.2.3,", 5000)),
	} {
		if f.Err() == nil || f.Match(&registry.Instance{ID: "a"}) || len(f.String()) > 1000 {
			t.Errorf("%s beyond the limit: %s, want a broken filter with a short reason", what, short(f.String()))
		}
	}
}
