package balancer

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// TestOneSeedOneHistory: whatever happens to several endpoints or filters at the same moment happens in the same order
// in every run with one seed. Else a simulation could not be repeated: each draws random numbers.
func TestOneSeedOneHistory(t *testing.T) {
	first := chronicle(t)
	for range 3 {
		again := chronicle(t)
		for i := range first {
			if i >= len(again) || first[i] != again[i] {
				t.Fatalf("with one seed, entry %d is once\n\t%s\nand then\n\t%s", i, first[i], again[min(i, len(again)-1)])
			}
		}
	}
}

// chronicle is a history in which much happens at once.
func chronicle(t *testing.T) []string {
	var log []string
	r := newRig(t, Config{Blacklist: Blacklist{MaxEjectedPercent: 100, ProbeTimeout: time.Second}}, fleet(9))
	note := func() {
		for _, e := range r.p.describe().Endpoints {
			log = append(log, fmt.Sprint(e.Instance.ID, e.Ejected, e.Probing, e.Remaining))
		}
	}
	var byFilter []ask
	for i := range 7 {
		byFilter = append(byFilter, ask{ctx: bind(t, fmt.Sprintf("id(i%d,i8)", i))})
		log = append(log, r.call(byFilter[i])) // from now on the filter is known
	}
	// Eight endpoints go out in one moment, and their probing calls hang until another one.
	for i := range 8 {
		r.answers[fmt.Sprint("i", i)] = fails(codes.Unavailable)
	}
	r.calls(100, ask{})
	note()
	r.advance(40 * time.Second)
	var open []func(gbalancer.DoneInfo)
	for range 100 {
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, id)
		open = append(open, done)
	}
	r.advance(2 * time.Second)
	note()
	for _, done := range open {
		done(ended(nil))
	}
	// All filters get choosers of another strategy, which begin anywhere; and the blacklist is emptied.
	r.update(Config{Strategy: Weighted{}, Blacklist: Blacklist{Disabled: true}}, fleet(9))
	for _, a := range byFilter {
		for range 3 {
			log = append(log, r.call(a))
		}
	}
	return log
}

// TestEldestFiltersGoFirst, where all that are remembered are in use.
func TestEldestFiltersGoFirst(t *testing.T) {
	r := bareRig(t, lbtest.New())
	r.update(Config{}, fleet(1))
	ctx := func(i int) context.Context { return bind(t, fmt.Sprintf("!l%d", i)) }
	for i := range maxRoutes {
		r.call(ask{ctx: ctx(i)})
	}
	r.call(ask{ctx: ctx(maxRoutes)})
	var left []string
	r.p.mu.Lock()
	for f := range r.p.routes {
		left = append(left, f.String())
	}
	r.p.mu.Unlock()
	if len(left) != maxRoutes*3/4+1 || slices.Contains(left, "!l0") || !slices.Contains(left, fmt.Sprintf("!l%d", maxRoutes-1)) {
		t.Errorf("%d filters are left, !l0 among them: %v", len(left), slices.Contains(left, "!l0"))
	}
}
