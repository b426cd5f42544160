package filters

import (
	"math/rand/v2"
	"testing"
)

// FuzzParse: whatever the text, Parse says where it is wrong, or makes a filter that its own string makes again, that
// its negation contradicts, and whose tiers only narrow it.
func FuzzParse(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		f.Add(condition(r, 3, false).write(r))
		f.Add(preference(r, false).write(r))
	}
	for _, text := range []string{
		"", "a==", `a="x`, "any(;)", "version<1.4.x", "not(prefer(a))", "a=\xff", "func(nope)", `broken("x")`,
	} {
		f.Add(text)
	}
	ins := instances(r, 20)
	f.Fuzz(func(t *testing.T, text string) {
		x, err := Parse(text)
		if err != nil {
			pe, ok := err.(*ParseError)
			if !ok || pe.Column < 1 || pe.Column > len(text)+1 || pe.Got == "" || pe.Want == "" {
				t.Fatalf("Parse(%q): %#v", text, err)
			}
			if x.Err() == nil || x.Match(ins[0]) {
				t.Fatalf("Parse(%q) = %q, want a broken filter", text, x)
			}
			return
		}
		if again, err := Parse(x.String()); again != x || err != nil || reparse(t, x.String()) != x.String() {
			t.Fatalf("Parse(%q) = %q, whose string is parsed to %q, %v", text, x, again, err)
		}
		not := Not(x)
		for _, in := range ins {
			m := x.Match(in)
			if not.Err() == nil && not.Match(in) == m {
				t.Fatalf("%q and %q both say %v of %+v", x, not, m, in)
			}
			for _, tier := range x.Tiers() {
				if tier.Err() != nil || tier.Match(in) && !m {
					t.Fatalf("%q does not match %+v, but its tier %q (%v) does", x, in, tier, tier.Err())
				}
			}
		}
		last := x.Tiers()[len(x.Tiers())-1]
		for _, in := range ins {
			if last.Match(in) != x.Match(in) {
				t.Fatalf("%q ends in the tier %q, which says another thing of %+v", x, last, in)
			}
		}
	})
}
