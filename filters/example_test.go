package filters_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
)

// spare is registered in an init function, as a program that uses it would do.
func init() {
	filters.Register("spare", func(in *registry.Instance) bool { return in.Weight < 10 })
}

// A handler sends its calls to the canary of one service; the others that it calls are not filtered.
func ExampleNewContext() {
	handle := func(ctx context.Context) {
		ctx = filters.NewContext(ctx, filters.Label("track", "canary"), "orders")
		for _, service := range []string{"orders", "stock"} {
			f, bound := filters.FromContext(ctx, service)
			fmt.Printf("%s: %q %v\n", service, f, bound)
		}
	}
	handle(context.Background())
	// Output:
	// orders: "track=canary" true
	// stock: "" false
}

func ExampleFromContext() {
	ctx := filters.NewContext(context.Background(), filters.Zone("eu-1"))
	ctx = filters.NewContext(ctx, filters.Filter{}, "orders") // for orders: every instance
	fmt.Println(filters.FromContext(ctx, "stock"))
	fmt.Println(filters.FromContext(ctx, "orders"))
	// Output:
	// zone=eu-1 true
	//  true
}

func ExampleParse() {
	f, err := filters.Parse("zone in (eu-2, eu-1), track = canary, not(deprecated)")
	fmt.Println(f, err)

	_, err = filters.Parse("track=canary, cpu > 3")
	fmt.Println(err)
	if pe, ok := errors.AsType[*filters.ParseError](err); ok {
		fmt.Println("at column", pe.Column)
	}
	// Output:
	// !deprecated,track=canary,zone in (eu-1,eu-2) <nil>
	// filters: column 19 of "track=canary, cpu > 3": got ">" after the key "cpu", want = != in or notin: only version has an order
	// at column 19
}

func ExampleMustParse() {
	f := filters.MustParse("b=2,a=1")
	fmt.Println(f == filters.MustParse("a=1,b=2"))
	// Output: true
}

func ExampleFilter_Match() {
	canary := &registry.Instance{ID: "i-1", Version: "1.5.0-rc.1", Labels: map[string]string{"track": "canary"}}
	fmt.Println(filters.Label("track", "canary").Match(canary))
	fmt.Println(filters.Version("1.4.x").Match(canary))
	fmt.Println(filters.Filter{}.Match(canary))
	// Output:
	// true
	// false
	// true
}

func ExampleFilter_Tiers() {
	f := filters.All(filters.HasLabel("gpu"), filters.Prefer(filters.Zone("eu-1"), filters.Zone("eu-2")))
	for _, tier := range f.Tiers() {
		fmt.Println(tier)
	}
	// Output:
	// gpu,zone=eu-1
	// gpu,zone=eu-2
	// gpu
}

func ExampleFilter_Err() {
	f := filters.All(filters.Label("track", "canary"), filters.HasLabel("no spaces"))
	fmt.Println(f.Err())
	// Output: filters: HasLabel: key = "no spaces", want 1 to 64 of A-Z a-z 0-9 _ -
}

func ExampleFilter_MarshalText() {
	text, err := json.Marshal(map[string]filters.Filter{"filter": filters.Label("track", "canary")})
	fmt.Println(string(text), err)
	// Output: {"filter":"track=canary"} <nil>
}

func ExampleLabel() {
	fmt.Println(filters.Label("track", "canary"))
	fmt.Println(filters.Label("team", "Zürich West"))
	// Output:
	// track=canary
	// team="Zürich West"
}

func ExampleLabelIn() {
	fmt.Println(filters.LabelIn("track", "stable", "canary"))
	// Output: track in (canary,stable)
}

func ExampleHasLabel() {
	fmt.Println(filters.HasLabel("gpu"), filters.Not(filters.HasLabel("gpu")))
	// Output: gpu !gpu
}

func ExampleVersion() {
	for _, rng := range []string{"1.4.2", "1.4.x", "^1.4.2", "~1.4.2", ">=1.4.0 <2.0.0", "1.x || 3.x"} {
		fmt.Printf("%-14s  %s\n", rng, filters.Version(rng))
	}
	// Output:
	// 1.4.2           version=1.4.2
	// 1.4.x           version<1.5.0-0,version>=1.4.0
	// ^1.4.2          version<2.0.0-0,version>=1.4.2
	// ~1.4.2          version<1.5.0-0,version>=1.4.2
	// >=1.4.0 <2.0.0  version<2.0.0,version>=1.4.0
	// 1.x || 3.x      any(version<2.0.0-0,version>=1.0.0; version<4.0.0-0,version>=3.0.0)
}

func ExampleZone() {
	fmt.Println(filters.Zone("eu-2", "eu-1"))
	// Output: zone in (eu-1,eu-2)
}

func ExampleID() {
	fmt.Println(filters.ID("orders-7f9c"))
	// Output: id=orders-7f9c
}

func ExampleServes() {
	f := filters.Serves("shop.Orders")
	fmt.Println(f, f.Match(&registry.Instance{Services: []string{"shop.Stock"}}), f.Match(&registry.Instance{}))
	// Output: serves(shop.Orders) false true
}

func ExampleAll() {
	fmt.Println(filters.All(filters.Zone("eu-1"), filters.Label("track", "canary")))
	// Output: track=canary,zone=eu-1
}

func ExampleAny() {
	fmt.Println(filters.Any(filters.Zone("eu-1"), filters.Label("track", "canary")))
	// Output: any(track=canary; zone=eu-1)
}

func ExampleNot() {
	fmt.Println(filters.Not(filters.Label("track", "canary")))
	fmt.Println(filters.Not(filters.MustParse("track=canary,zone=eu-1")))
	// Output:
	// track!=canary
	// not(track=canary,zone=eu-1)
}

// Calls stay in eu-1 while it has a usable instance, then go to eu-2, and then anywhere.
func ExamplePrefer() {
	fmt.Println(filters.Prefer(filters.Zone("eu-1"), filters.Zone("eu-2")))
	// Output: prefer(zone=eu-1; zone=eu-2)
}

func ExampleFunc() {
	// In an init function: filters.Register("spare", func(in *registry.Instance) bool { return in.Weight < 10 })
	f := filters.Func("spare")
	fmt.Println(f, f.Match(&registry.Instance{Weight: 5}), f.Match(&registry.Instance{Weight: 50}))
	// Output: func(spare) true false
}

func ExampleRegister() {
	// Register itself is called in an init function.
	f, err := filters.Parse("func(spare),track=stable")
	fmt.Println(f, err)
	// Output: func(spare),track=stable <nil>
}
