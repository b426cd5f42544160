package filters

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

func init() {
	Register("heavy", func(in *registry.Instance) bool { return in.Weight >= 10 })
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
