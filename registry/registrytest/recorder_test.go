package registrytest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// script is a watcher that fails as often as it has errors, and then watches.
type script struct {
	registry.Watcher
	errs []error
}

func (s *script) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		return err
	}
	return s.Watcher.Watch(ctx, service, update)
}

func TestRecorderInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := memory.New()
		first, second := errors.New("first"), errors.New("second")
		start := time.Now()
		rec := Record(t, &script{reg, []error{first, second}}, "orders", time.Hour)
		if err := rec.AwaitError("the first failure"); err != first {
			t.Errorf("AwaitError = %v, want %v", err, first)
		}
		if got := rec.Await("an empty set", has()); len(got) != 0 {
			t.Errorf("Await = %+v, want what it waited for", got)
		}
		if d := time.Since(start); d != 2*retryAfter {
			t.Errorf("two failures took %v, want a pause of %v after each", d, retryAfter)
		}
		if errs := rec.Errors(); len(errs) != 2 || errs[1] != second {
			t.Errorf("Errors = %v, want both", errs)
		}
		in := registry.Instance{ID: "a", Addr: "127.0.0.1:1"}
		g, err := reg.Register(t.Context(), "orders", in)
		if err != nil {
			t.Fatal(err)
		}
		rec.Await("the instance", has(in))
		if n := len(rec.Updates()); n != 2 || !has(in)(rec.Last()) {
			t.Errorf("%d updates, the last %+v; want 2, the last with the instance", n, rec.Last())
		}
		for _, part := range []string{"2 updates", "1 instances", "127.0.0.1:1", "2 errors", "second"} {
			if !strings.Contains(rec.String(), part) {
				t.Errorf("String = %q, want %q in it", rec, part)
			}
		}
		rec.Stop()
		rec.Stop()
		if err := g.Close(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := len(rec.Updates()); n != 2 {
			t.Errorf("%d updates after Stop, want the 2 from before", n)
		}
	})
}
