package bench

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/evenkeel/evenkeel/balancer"
)

func TestMain(m *testing.M) {
	os.Exit(Main(m, "github.com/sony/gobreaker/v2", "golang.org/x/time"))
}

// BenchmarkPick is what a call pays for being balanced. Policies are the innermost loop, so that those which are
// compared run one right after the other.
func BenchmarkPick(b *testing.B) {
	peers := []Policy{GRPCRoundRobin(), GRPCLeastRequest()}
	for _, n := range []int{3, 100, 1000, 10000} {
		w := NewRigs(n)
		for _, c := range []Context{{}, {Deadline: true}, {Filtered: true}, {Filtered: true, Deadline: true}} {
			policies := slices.Concat(Strategies(), peers)
			filter := "none"
			if c.Filtered {
				if n < 10 { // nobody is one in ten of three
					continue
				}
				policies, filter = Strategies(), "one_in_ten" // nobody else has filters
			}
			for _, par := range []string{"1", "all"} {
				if c.Deadline && par == "all" {
					continue
				}
				for _, p := range policies {
					name := fmt.Sprintf("policy=%s/n=%d/filter=%s/ctx=%v/par=%s", p.Label, n, filter, c, par)
					b.Run(name, func(b *testing.B) {
						if r := w.Of(b, p); par == "all" {
							r.PickParallel(b, c)
						} else {
							r.Pick(b, c)
						}
					})
				}
			}
		}
		w.Close()
	}
}

// BenchmarkPickOf64 is BenchmarkPick with a filter while 64 others are in use. How a set of candidates is found is the
// same for all strategies, so two of them will do.
func BenchmarkPickOf64(b *testing.B) {
	const n = 10000
	w := NewRigs(n)
	defer w.Close()
	c := Context{Filtered: true}
	for _, p := range []Policy{Evenkeel(balancer.RoundRobin{}), Evenkeel(balancer.LeastRequest{})} {
		b.Run(fmt.Sprintf("policy=%s/n=%d/filter=one_in_ten/ctx=%v/par=1", p.Label, n, c), func(b *testing.B) {
			r := w.Of(b, p)
			if err := r.Use(MaxFilters); err != nil {
				b.Fatal(err)
			}
			r.Pick(b, c)
		})
	}
}

// BenchmarkPickWith is BenchmarkPick with an option each, beside the same pick without.
func BenchmarkPickWith(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		w := NewRigs(n)
		for _, s := range []balancer.Strategy{balancer.RoundRobin{}, balancer.LeastRequest{}} {
			for _, p := range Options(s) {
				name := fmt.Sprintf("policy=%s/n=%d/filter=none/ctx=%v/par=1", p.Label, n, Context{})
				b.Run(name, func(b *testing.B) { w.Of(b, p).Pick(b, Context{}) })
			}
		}
		w.Close()
	}
}

// keeping are evenkeel's with those strategies that keep something of their own at endpoints or for a candidate set, after
// one that keeps nothing.
func keeping() []Policy {
	var all []Policy
	for _, s := range []balancer.Strategy{balancer.RoundRobin{}, balancer.Keel{}, balancer.Hash{}} {
		all = append(all, Evenkeel(s))
	}
	return all
}

// BenchmarkConverge is how long a client needs that starts, or that finds its whole service replaced.
func BenchmarkConverge(b *testing.B) {
	for _, n := range []int{100, 1000, 4000, 10000} {
		for _, p := range append(keeping(), GRPCRoundRobin()) {
			if n > 4000 && !p.ours() {
				continue // it would take ten seconds
			}
			b.Run(fmt.Sprintf("policy=%s/n=%d", p.Label, n), func(b *testing.B) { Converge(b, p, n) })
		}
	}
}

// BenchmarkChange is what each change in a large service costs every one of its clients.
func BenchmarkChange(b *testing.B) {
	const n = 10000
	ours := Evenkeel(balancer.RoundRobin{})
	for _, k := range []Kind{State, Labels} {
		for _, row := range []struct {
			p     Policy
			inUse int
		}{{ours, 0}, {ours, MaxFilters}, {GRPCRoundRobin(), 0}} {
			var c *Changer
			b.Run(fmt.Sprintf("policy=%s/n=%d/kind=%s/filters=%d", row.p.Label, n, k, row.inUse), func(b *testing.B) {
				if c == nil {
					var err error
					if c, err = NewChanger(row.p, n, row.inUse, k); err != nil {
						b.Fatal(err)
					}
				}
				c.Change(b)
			})
			if c != nil {
				c.Close()
			}
		}
	}
}

// BenchmarkMemory is what an endpoint costs as long as it is there.
func BenchmarkMemory(b *testing.B) {
	ours := keeping()
	for _, n := range []int{1000, 10000} {
		for _, row := range []struct {
			p     Policy
			inUse int
		}{
			{ChannelOnly(), 0}, {PickFirstOnly(), 0}, {GRPCRoundRobin(), 0}, {ours[0], 0}, {ours[0], MaxFilters},
			{ours[1], 0}, {ours[2], 0},
		} {
			b.Run(fmt.Sprintf("policy=%s/n=%d/filters=%d", row.p.Label, n, row.inUse), func(b *testing.B) {
				Memory(b, row.p, n, row.inUse)
			})
		}
	}
}

// BenchmarkWhole is a call from end to end, beside a plain one.
func BenchmarkWhole(b *testing.B) {
	w, err := NewWhole()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for _, c := range []Context{{}, {Deadline: true}} {
		for _, s := range []Stack{Plain(), Full()} { // the first shows what a difference of nothing looks like
			b.Run(fmt.Sprintf("stack=%s/ctx=%v", s.Label, c), func(b *testing.B) { w.Compare(b, s, c) })
		}
	}
}
