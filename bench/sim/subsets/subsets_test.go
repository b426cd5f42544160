package subsets

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// TestRules: each client has as many different servers as it wants, and the same ones again.
func TestRules(t *testing.T) {
	ids := servers(60)
	for _, r := range Rules() {
		for client := range 30 {
			got := slices.Clone(r.Choose(ids, client, 30, 12))
			if again := r.Choose(ids, client, 30, 12); !slices.Equal(got, again) {
				t.Fatalf("%s: client %d has %v, and then %v", r.Name, client, got, again)
			}
			slices.Sort(got)
			if n := len(slices.Compact(got)); n != 12 || got[0] < 0 || got[len(got)-1] >= len(ids) {
				t.Fatalf("%s: client %d has %d servers of 0 to 59, want 12: %v", r.Name, client, n, got)
			}
		}
	}
}

// TestFigures: what is published about each rule comes out.
func TestFigures(t *testing.T) {
	between := func(name string, got, low, high float64) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: %.4f, want %v to %v", name, got, low, high)
		}
	}
	published := Shape{300, 300, 10}
	a68 := Compare(A68(), published, 100)
	between("A68 max/mean", a68.MaxMean, 1.6, 2.2)
	between("A68 churn by one", a68.One, 0, 2*a68.Least[0])
	between("A68 churn by a tenth", a68.More, 0.7*a68.Least[1], 1.3*a68.Least[1])
	between("A68 churn by a client", a68.Client, 0, 0)
	sre := Compare(SRE(), published, 100)
	between("SRE max/mean", sre.MaxMean, 1, 1.001)
	between("SRE churn by one", sre.One, 0.3, 1)
	aperture := Compare(Aperture(), published, 100)
	between("aperture max/mean", aperture.MaxMean, 1, 1.001)
	between("aperture churn by a client", aperture.Client, 0.01, 1)
	ours := Compare(Ours(), published, 20)
	between("ours max/mean", ours.MaxMean, 1, 1.25)
	between("ours churn by one", ours.One, 0, 0.03)
	between("ours churn by a tenth", ours.More, 0, 2*ours.Least[1])
}

// TestEvenWhereNumbersAreSmall: with two clients an instance in the mean, as in the large fleet of the tables, and with a
// tenth more and fewer instances, no instance has more than 1.25 times the mean.
func TestEvenWhereNumbersAreSmall(t *testing.T) {
	for _, n := range []int{1800, 1900, 2000, 2100, 2200} {
		counts, all := Ours().Counts(servers(n), 200, 20), 0
		for _, c := range counts {
			all += c
		}
		if most := float64(slices.Max(counts)) * float64(n) / float64(all); most > 1.25 {
			t.Errorf("%d instances: the most is %.2f times the mean, want 1.25 at most", n, most)
		}
	}
}

func TestMarkdown(t *testing.T) {
	b := &bytes.Buffer{}
	if err := Markdown(b, []Shape{{40, 20, 10}}, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"**40 servers, 20 clients of 10 each** (200 connections instead of 800)",
		"| A68 (rendezvous) |", "| SRE book (rounds) | 1.00 |", "| evenkeel (matching) |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}
