package callctx_test

import (
	"context"
	"testing"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

func TestNestedCalls(t *testing.T) {
	dead, alive := &callctx.Endpoint{Addr: "a:1"}, &callctx.Endpoint{Addr: "b:1"}
	tried := new(callctx.Tried)
	tried.Add(dead)
	ctx := callctx.With(context.Background(), callctx.Record{HashKey: "k", HasHashKey: true})
	ctx, outer := callctx.Begin(ctx, callctx.Stream, tried)
	ctx, inner := callctx.Begin(ctx, callctx.UnknownKind, nil)

	rec := callctx.From(ctx)
	if rec.Call != inner || !rec.HasHashKey || rec.HashKey != "k" {
		t.Errorf("the record is %+v, want the inner call and what the context carried before", rec)
	}
	if inner.Kind != callctx.Stream || !inner.Tried.Has(dead) {
		t.Errorf("the inner call is of kind %v and has %d tried endpoints, want those of the outer one",
			inner.Kind, inner.Tried.Len())
	}
	inner.SetPicked(alive)
	if outer.Picked() != alive || inner.Picked() != alive {
		t.Errorf("picked: %v and %v, want both calls to know %v", outer.Picked(), inner.Picked(), alive)
	}
	if _, c := callctx.Begin(ctx, callctx.Unary, new(callctx.Tried)); c.Kind != callctx.Unary || c.Tried.Len() != 0 {
		t.Errorf("a call with a kind and a set of its own has kind %v and %d tried, want what it was given",
			c.Kind, c.Tried.Len())
	}
}

func TestRoom(t *testing.T) {
	var room callctx.Room
	ctx, call := room.Begin(context.Background(), callctx.Unary, nil)
	if rec := callctx.From(ctx); rec == nil || rec.Call != call || room.Call() != call {
		t.Errorf("the context carries %+v, want the room's call", rec)
	}
	if room.Observer() != nil {
		t.Error("somebody watches, want nobody")
	}
	n := testing.AllocsPerRun(100, func() { callctx.Begin(context.Background(), callctx.Unary, nil) })
	if n != 1 {
		t.Errorf("Begin allocates %v times, want once", n)
	}
}
