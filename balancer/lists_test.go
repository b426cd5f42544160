package balancer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// TestListsAgainstTwin gives the policy random lists, shuffled, with duplicates, some left out and some restarted, and
// compares what it knows with what two maps made anew say: of two records with one address the last, at the place of
// the first; and an endpoint lives as long as its instance is listed.
func TestListsAgainstTwin(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	r := newRig(t, Config{}, nil)
	lives := make(map[string]*Endpoint) // by address
	list := fleet(12)
	for round := range 400 {
		switch rnd.IntN(5) {
		case 0:
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		case 1:
			list = slices.Delete(list, 0, min(1, len(list)))
		case 2:
			list = append(list, fleet(12)[rnd.IntN(12)])
		case 3:
			if len(list) > 0 {
				i := rnd.IntN(len(list))
				list = slices.Clone(list)
				list[i].ID = fmt.Sprintf("%s-%d", list[i].ID[:2], round)
			}
		case 4:
			list = slices.Insert(slices.Clone(list), rnd.IntN(len(list)+1), fleet(12)[rnd.IntN(12)])
		}
		var order []string
		last := make(map[string]registry.Instance)
		for _, in := range list {
			if _, ok := last[in.Addr]; !ok {
				order = append(order, in.Addr)
			}
			last[in.Addr] = in
		}
		r.updateEndpoints(Config{}, lbtest.Endpoints(slices.Clone(list)...))
		if len(r.p.known) != len(order) || len(r.p.children) != len(order) {
			t.Fatalf("round %d: %d known, %d children, want %d", round, len(r.p.known), len(r.p.children), len(order))
		}
		next := make(map[string]*Endpoint)
		for i, e := range r.p.known {
			addr := order[i]
			if in := *e.Instance(); !in.Equal(last[addr]) || e.child != r.p.children[addr] || e.child.e != e {
				t.Fatalf("round %d: number %d is %+v, want %+v", round, i, in, last[addr])
			}
			if old := lives[addr]; old != nil && (old == e) != (old.id.ID == e.id.ID) {
				t.Fatalf("round %d: %s, which was %s, is the same endpoint: %t", round, e.id.ID, old.id.ID, old == e)
			}
			next[addr] = e
		}
		for addr, e := range lives {
			if next[addr] == nil && (!e.gone() || e.conn.Load() != nil) {
				t.Fatalf("round %d: %s has left and lives on", round, e.id.ID)
			}
		}
		if len(order) > 0 {
			if got := r.cc.State().String(); got != "READY" {
				t.Fatalf("round %d: the channel is %s", round, got)
			}
		}
		lives = maps.Clone(next)
	}
}
