package callctx

import (
	"context"
	"sync"
	"testing"
)

type otherKey struct{}

func TestRecord(t *testing.T) {
	ctx := context.WithValue(t.Context(), otherKey{}, "kept")
	if From(ctx) != nil {
		t.Error("there is a record in a context that nobody put one into")
	}
	if rec := Copy(ctx); rec != (Record{}) {
		t.Errorf("Copy of nothing is %+v, want an empty record", rec)
	}

	outer := With(ctx, Record{HashKey: "k", HasHashKey: true, Filters: &Binding{Filter: 1}})
	rec := Copy(outer)
	rec.Call = new(Call)
	inner := With(context.WithValue(outer, otherKey{}, "newer"), rec)
	if r := From(outer); r == nil || r.HashKey != "k" || r.Call != nil || r.Filters.Filter != 1 {
		t.Errorf("the outer record is %+v, want it unchanged", r)
	}
	if r := From(inner); r == nil || r.HashKey != "k" || r.Call != rec.Call || r.Filters != From(outer).Filters {
		t.Errorf("the inner record is %+v, want the outer one and the call", r)
	}
	if outer.Value(otherKey{}) != "kept" || inner.Value(otherKey{}) != "newer" || inner.Value("absent") != nil {
		t.Error("other values are not passed on")
	}
}

// TestContext: deadline and cancellation are those of the context below.
func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ctx = With(ctx, Record{})
	if ctx.Err() != nil {
		t.Fatal(ctx.Err())
	}
	derived, stop := context.WithCancel(ctx)
	defer stop()
	cancel()
	<-derived.Done()
	if ctx.Err() != context.Canceled {
		t.Errorf("after cancel: %v", ctx.Err())
	}
}

func TestAllocations(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { From(With(ctx, Record{HashKey: "k"})) }); n > 1 {
		t.Errorf("With and From allocate %v times, want once", n)
	}
	deep := With(ctx, Record{})
	for range 5 {
		deep = context.WithValue(deep, otherKey{}, 1)
	}
	if n := testing.AllocsPerRun(100, func() { From(deep) }); n > 0 {
		t.Errorf("From allocates %v times, want never", n)
	}
}

func TestCall(t *testing.T) {
	var c Call
	if c.Picked() != nil || c.Kind != UnknownKind || c.Tried.Has(nil) {
		t.Error("the zero Call knows something")
	}
	a, b := &Endpoint{ID: "a"}, &Endpoint{ID: "b"}
	c.SetPicked(a)
	c.SetPicked(b)
	if c.Picked() != b {
		t.Errorf("Picked is %+v, want the last one", c.Picked())
	}
}

func TestTried(t *testing.T) {
	var none *Tried
	a, b, likeA := &Endpoint{ID: "a"}, &Endpoint{ID: "b"}, &Endpoint{ID: "a"}
	if none.Has(a) || none.Len() != 0 {
		t.Error("a nil set has something in it")
	}
	var s Tried
	s.Add(nil)
	s.Add(a)
	s.Add(a)
	if s.Len() != 1 || !s.Has(a) || s.Has(b) || s.Has(likeA) {
		t.Errorf("after adding a twice: %d, a %t, b %t, another life of a %t; want 1, true, false, false", s.Len(), s.Has(a), s.Has(b), s.Has(likeA))
	}
}

func TestTriedConcurrently(t *testing.T) {
	var s Tried
	var c Call
	eps := make([]*Endpoint, 16)
	for i := range eps {
		eps[i] = new(Endpoint)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range eps {
				e := eps[(i+g)%len(eps)]
				s.Add(e)
				c.SetPicked(e)
				if !s.Has(e) || c.Picked() == nil {
					t.Error("an endpoint that was added is not there")
				}
			}
		})
	}
	wg.Wait()
	if s.Len() != len(eps) {
		t.Errorf("%d in the set, want %d", s.Len(), len(eps))
	}
}
