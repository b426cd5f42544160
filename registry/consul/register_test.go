package consul

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// TestTakeover has a registration closed while another takes its ID over, again and again: the newer one's record
// stays, whatever the order.
func TestTakeover(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	// Beats this rare cannot hide that a record was removed.
	r := newRegistry(t, Config{Address: s.Addr(), Check: Check{TTL: time.Hour, Interval: time.Minute}})
	g := register(t, r, "takeover", registry.Instance{ID: "a", Addr: "h:1"})
	for i := range 50 {
		var wg sync.WaitGroup
		old := g
		wg.Go(func() {
			if err := old.Close(background(t)); err != nil {
				t.Error(err)
			}
		})
		g = register(t, r, "takeover", registry.Instance{ID: "a", Addr: fmt.Sprint("h:", i+1)})
		wg.Wait()
		got, _, err := s.Client().Agent().Service("takeover:a", nil)
		if err != nil || got.Port != i+1 {
			t.Fatalf("round %d: the record is %+v, %v, want port %d", i, got, err, i+1)
		}
	}
	if err := g.Close(background(t)); err != nil {
		t.Error(err)
	}
	if got, _, err := s.Client().Agent().Service("takeover:a", nil); err == nil {
		t.Errorf("after the last Close: %+v", got)
	}
}
