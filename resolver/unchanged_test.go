package resolver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// reported is a registry's answer: n records, all memory of their own, in each answer anew.
func reported(n int) []registry.Instance {
	set := make([]registry.Instance, n)
	for i := range set {
		set[i] = registry.Instance{
			ID: "i" + strconv.Itoa(i), Addr: fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255), Version: "1.4.2",
			Labels: map[string]string{"track": "stable", "slot": strconv.Itoa(i % 10)},
		}
	}
	return set
}

// TestUnchangedIsTheSame: what a registry reports again is handed on as the very record that was handed on before, so
// that a balancer need not compare ten thousand of them. What did change is a record of its own, and the old one is
// left as it was, because somebody may be reading it.
func TestUnchangedIsTheSame(t *testing.T) {
	c := core{hold: time.Minute, rand: func() float64 { return 0.5 }}
	c.start(1)
	c.update(2, reported(50))
	before, _, _ := c.view()
	want := *before[7]
	want.Labels = maps.Clone(want.Labels)

	next := reported(50)
	next[7].Labels["track"] = "canary"
	slices.Reverse(next) // a registry promises no order
	if e := c.update(3, next); !e.publish {
		t.Fatal("a changed label is not published")
	}
	after, _, _ := c.view()
	for i := range before {
		if same := before[i] == after[i]; same != (i != 7) {
			t.Errorf("instance %d: the same record = %t after the labels of number 7 changed", i, same)
		}
	}
	if after[7].Labels["track"] != "canary" || !before[7].Equal(want) {
		t.Errorf("number 7 is %v and was %v, want a record of its own with the new label", after[7], before[7])
	}
	if e := c.update(4, reported(50)[:0:0]); e.publish && len(c.served) == 0 {
		t.Error("a collapse was believed")
	}
}

// BenchmarkUpdate is what one answer of the registry costs, once for all connections of a service: one of n records has
// changed, and all are new in memory.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run("n="+strconv.Itoa(n), func(b *testing.B) {
			c := core{hold: time.Minute, rand: func() float64 { return 0.5 }}
			c.start(1)
			sets := [2][]registry.Instance{reported(n), reported(n)}
			sets[1][0].Labels["track"] = "canary"
			c.update(2, sets[0])
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if e := c.update(3, sets[(i+1)%2]); !e.publish {
					b.Fatal("the change is not published")
				}
			}
		})
	}
}
