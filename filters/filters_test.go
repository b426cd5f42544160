package filters

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

func init() {
	Register("heavy", func(in *registry.Instance) bool { return in.Weight >= 10 })
}

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

func TestBroken(t *testing.T) {
	bad := Label("bad key!", "x")
	for _, tt := range []struct {
		f   Filter
		has string
	}{
		{bad, `filters: Label: key = "bad key!", want 1 to 64`},
		{All(Label("a", "1"), bad), `Label: key = "bad key!"`},
		{Any(Filter{}, bad), `Label: key = "bad key!"`},
		{Not(bad), `Label: key = "bad key!"`},
		{Prefer(Label("a", "1"), bad), `Label: key = "bad key!"`},
		{Label("", "x"), `key = ""`},
		{Label("a=1,b", "2"), `key = "a=1,b"`},
		{Label("k", "\xff"), `value = "\xff", want UTF-8`},
		{Label("version", "1.x"), "wildcard"},
		{LabelIn("k"), "LabelIn: values = none"},
		{HasLabel("a b"), `HasLabel: key = "a b"`},
		{Zone(), "Zone: values = none"},
		{ID(), "ID: values = none"},
		{Serves(""), "Serves: service"},
		{Serves("\xff"), "Serves: service"},
		{Func("nope"), `Func: func = "nope", want one that was registered: `},
		{Any(), "Any: alternatives = 0"},
		{Not(Filter{}), "Not: filter"},
		{Any(Prefer(HasLabel("a"))), "Any: filter"},
		{Any(Filter{}, All(HasLabel("x"), Prefer(HasLabel("a")))), "Any: filter"},
		{Not(Prefer(HasLabel("a"))), "Not: filter"},
		{Prefer(Prefer(HasLabel("a"))), "Prefer: filter"},
		{Prefer(Filter{}, Prefer(HasLabel("a"))), "Prefer: filter"},
	} {
		err := tt.f.Err()
		if err == nil || !strings.Contains(err.Error(), tt.has) || !strings.HasPrefix(err.Error(), "filters: ") {
			t.Errorf("%s: error %v, want %s", tt.f, err, tt.has)
			continue
		}
		if tt.f.Match(&registry.Instance{ID: "a", Labels: map[string]string{"a": "1"}}) || tt.f.IsZero() {
			t.Errorf("%s: broken, and yet it matches", tt.f)
		}
		if f, err := Parse(tt.f.String()); err == nil {
			t.Errorf("Parse(%s) = %s, want an error", tt.f, f)
		}
		if _, err := tt.f.MarshalText(); err == nil {
			t.Errorf("MarshalText of %s: no error", tt.f)
		}
	}
}

// TestKeyThatSpellsAFilter: a key that makes k=v spell some other filter is a bad key, though that filter exists.
func TestKeyThatSpellsAFilter(t *testing.T) {
	for _, tt := range []struct{ text, key, value string }{
		{"a=1,b=2", "a=1,b", "2"},
		{"k!=v", "k!", "v"},
		{"version>=1.4.0", "version>", "1.4.0"},
	} {
		exists := MustParse(tt.text)
		if f := Label(tt.key, tt.value); f.Err() == nil || f == exists {
			t.Errorf("Label(%q, %q) = %q, want a broken filter", tt.key, tt.value, f)
		}
	}
}

func TestConstructorsAreParse(t *testing.T) {
	a, b := Label("a", "1"), Label("b", "2")
	for _, tt := range []struct {
		f    Filter
		text string
	}{
		{Filter{}, ""},
		{All(), ""},
		{All(Filter{}, All()), ""},
		{Any(a, Filter{}), ""},
		{Prefer(Filter{}, a), ""},
		{a, "a=1"},
		{Label("zone", "x"), "zone=x"},
		{Label("version", "v1.4.0"), "version=1.4.0"},
		{LabelIn("k", "y", "x", "y"), "k in (x,y)"},
		{HasLabel("k"), "k"},
		{HasLabel("version"), "version"},
		{Not(HasLabel("k")), "!k"},
		{Zone("b", "a"), "zone in (a,b)"},
		{ID("x"), "id(x)"},
		{ID("a b"), `id="a b"`},
		{Serves("shop.Orders"), "serves(shop.Orders)"},
		{Func("heavy"), "func(heavy)"},
		{Version(">=1.4.0 <2"), "version>=1.4.0,version<2"},
		{All(b, a), "a=1,b=2"},
		{All(All(b, Zone("x")), All(a)), "a=1,b=2,zone=x"},
		{Any(b, a), "any(a=1;b=2)"},
		{Any(a, All(a, b)), "any(a=1;a=1,b=2)"},
		{Not(All(a, b)), "not(a=1,b=2)"},
		{Not(Not(Any(a, b))), "any(a=1;b=2)"},
		{Prefer(b, a), "prefer(b=2;a=1)"},
		{Prefer(b, Filter{}, a), "prefer(b=2)"},
		{All(Prefer(b), a), "a=1,prefer(b=2)"},
		{All(Prefer(b), All(a, Prefer(a))), "a=1,prefer(b=2),prefer(a=1)"},
	} {
		if p, err := Parse(tt.text); p != tt.f || err != nil {
			t.Errorf("Parse(%q) = %q, %v, want %q", tt.text, p, err, tt.f)
		}
	}
	if All(Prefer(a), Prefer(b)) == All(Prefer(b), Prefer(a)) {
		t.Error("the order of two prefers is their importance, and was lost")
	}
}

func TestMatch(t *testing.T) {
	in := &registry.Instance{
		ID: "i-1", Version: "v1.4.0", Zone: "eu-1", Weight: 20, Services: []string{"shop.Orders"},
		Labels: map[string]string{"track": "canary", "empty": "", "odd": `a"b`},
	}
	bare := &registry.Instance{ID: "i-2"}
	for _, tt := range []struct {
		text     string
		in, bare bool
	}{
		{"", true, true},
		{"track=canary", true, false},
		{"track!=canary", false, true},
		{"track in (canary,x)", true, false},
		{"track notin (canary,x)", false, true},
		{"track", true, false},
		{"!track", false, true},
		{"empty", true, false},
		{`empty=""`, true, false},
		{`none=""`, false, false},
		{`none!=""`, true, true},
		{`odd="a\"b"`, true, false},
		{"id=i-1", true, false},
		{"id", true, true},
		{"zone", true, false},
		{"!zone", false, true},
		{`zone=""`, false, true},
		{`zone!=""`, true, false},
		{"zone!=eu-2", true, true},
		{"version", true, false},
		{"version=1.4.0", true, false},
		{"version=v1.4.0", true, false},
		{"version=1.4", true, false},
		{"version!=1.4.0", false, true},
		{"version>=1.4,version<2", true, false},
		{"version<1", false, false},
		{"not(version<1)", true, true},
		{"version>=1", true, false},
		{"serves(shop.Orders)", true, true},
		{"serves(shop.Stock)", false, true},
		{"not(serves(shop.Stock))", true, false},
		{"func(heavy)", true, false},
		{"any(zone=x; track=canary)", true, false},
		{"any(zone=x; track=x)", false, false},
		{"not(zone=eu-1,track=x)", true, true},
		{"track=canary,zone=x", false, false},
		{"prefer(zone=x)", true, true},
		{"track=canary,prefer(zone=x)", true, false},
	} {
		f := MustParse(tt.text)
		if got := f.Match(in); got != tt.in {
			t.Errorf("%q matches the full instance: %v, want %v", tt.text, got, tt.in)
		}
		if f.Match(nil) != f.Match(&registry.Instance{}) {
			t.Errorf("%q: nil is not the instance of which nothing is known", tt.text)
		}
		if got := f.Match(bare); got != tt.bare {
			t.Errorf("%q matches the bare instance: %v, want %v", tt.text, got, tt.bare)
		}
	}
}

func TestTiers(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []string
	}{
		{"", []string{""}},
		{"x", []string{"x"}},
		{"prefer(a)", []string{"a", ""}},
		{"prefer(a;b)", []string{"a", "b", ""}},
		{"x,prefer(a;b)", []string{"a,x", "b,x", "x"}},
		{"x=1,x=2,prefer(y=1,z=1;a)", []string{"x=1,x=2,y=1,z=1", "a,x=1,x=2", "x=1,x=2"}},
		{"prefer(a),prefer(b)", []string{"a,b", "a", "b", ""}},
		{"prefer(b),prefer(a)", []string{"a,b", "b", "a", ""}},
		{"x,prefer(a;b),prefer(c)", []string{"a,c,x", "a,x", "b,c,x", "b,x", "c,x", "x"}},
		{"a,prefer(a;b)", []string{"a"}},          // all that have a, then fewer of them
		{"a,prefer(b;a;c)", []string{"a,b", "a"}}, // a,c cannot match if a does not
		{"prefer(a),prefer(a;b)", []string{"a", "a,b", "b", ""}},
	} {
		var got []string
		for _, f := range MustParse(tt.text).Tiers() {
			got = append(got, f.String())
			if len(f.Tiers()) != 1 || f.Tiers()[0] != f {
				t.Errorf("%q: the tier %q has tiers %v", tt.text, f, f.Tiers())
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("Tiers of %q = %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestJSON(t *testing.T) {
	type config struct {
		Filter  Filter `json:"filter,omitzero"`
		Require Filter `json:"require"`
	}
	c := config{Filter: MustParse(`b="ü <&>",a=1`)}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back config
	if err := json.Unmarshal(text, &back); err != nil || back != c {
		t.Errorf("Unmarshal(%s) = %v, %v, want %v", text, back, err, c)
	}
	if text, err = json.Marshal(config{}); err != nil || string(text) != `{"require":""}` {
		t.Errorf("Marshal of the zero config = %s, %v", text, err)
	}
	err = json.Unmarshal([]byte(`{"filter":"a=="}`), &back)
	if pe, ok := errors.AsType[*ParseError](err); !ok || pe.Column != 4 {
		t.Errorf("Unmarshal of a bad filter: %v, want a *ParseError for column 4", err)
	}
	if back.Filter != c.Filter {
		t.Errorf("after an error the filter is %q, want it unchanged", back.Filter)
	}
	if _, err := json.Marshal(config{Filter: Any()}); err == nil {
		t.Error("Marshal of a broken filter: no error")
	}
}

func TestMustParsePanics(t *testing.T) {
	defer func() {
		if _, ok := recover().(*ParseError); !ok {
			t.Error("MustParse of a bad text: want a panic with a *ParseError")
		}
	}()
	MustParse("a=")
}

func TestRegisterPanics(t *testing.T) {
	yes := func(*registry.Instance) bool { return true }
	for name, fn := range map[string]func(*registry.Instance) bool{
		"": yes, "heavy": yes, "a b": yes, "ü": yes, "a)": yes, "nil": nil, strings.Repeat("a", 65): yes,
	} {
		func() {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "filters: Register: ") {
					t.Errorf("Register(%q): panic %q, want one that says why", name, s)
				}
			}()
			Register(name, fn)
		}()
	}
	if Func("nil").Err() == nil {
		t.Error("a refused name was registered")
	}
}
