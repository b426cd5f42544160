package filters

import (
	"context"
	"testing"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/registry"
)

func BenchmarkMatch(b *testing.B) {
	in := &registry.Instance{ID: "i-1", Version: "1.4.2", Zone: "eu-1", Labels: map[string]string{"track": "canary"}}
	for _, bm := range []struct{ name, text string }{
		{"label", "track=canary"},
		{"set", "zone in (eu-1,eu-2,eu-3)"},
		{"version", "version>=1.4.0,version<2"},
		{"mixed", "any(track=stable; track=canary,version>=1.4),!deprecated,zone!=eu-2"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			f := MustParse(bm.text)
			b.ReportAllocs()
			for b.Loop() {
				if !f.Match(in) {
					b.Fatal("no match")
				}
			}
		})
	}
}

func BenchmarkFromRecord(b *testing.B) {
	f := Label("track", "canary")
	rec := callctx.From(NewContext(NewContext(context.Background(), f, "orders"), Filter{}, "stock"))
	b.ReportAllocs()
	for b.Loop() {
		if g, ok := FromRecord(rec, "orders"); g != f || !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkNewContext(b *testing.B) {
	f := Label("track", "canary")
	b.ReportAllocs()
	for b.Loop() {
		NewContext(context.Background(), f, "orders")
	}
}

// BenchmarkLabel is what a handler pays that makes its filter anew for every call, while the balancer holds it.
func BenchmarkLabel(b *testing.B) {
	keep := Label("track", "canary")
	b.ReportAllocs()
	for b.Loop() {
		if Label("track", "canary") != keep {
			b.Fatal("not the same")
		}
	}
}

func BenchmarkParse(b *testing.B) {
	const (
		spelled   = "zone in (eu-1, eu-2), track == canary, !deprecated"
		canonical = "!deprecated,track=canary,zone in (eu-1,eu-2)"
	)
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if n, err := parse(spelled); err != nil || n.str != canonical {
				b.Fatal(err)
			}
		}
	})
	keep := MustParse(canonical)
	b.Run("other spelling of a live one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if MustParse(spelled) != keep {
				b.Fatal("not the same")
			}
		}
	})
	b.Run("canonical text of a live one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if MustParse(canonical) != keep {
				b.Fatal("not the same")
			}
		}
	})
}
