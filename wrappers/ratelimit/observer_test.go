package ratelimit

import (
	"context"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// watcher keeps what a trace would be told.
type watcher struct{ events []callctx.Event }

func (w *watcher) Attempt(ctx context.Context, _ callctx.Attempt) context.Context { return ctx }
func (w *watcher) Event(e callctx.Event)                                          { w.events = append(w.events, e) }

// Who watches a call is told that it was refused, or held back.
func TestObserverIsTold(t *testing.T) {
	for _, row := range []struct {
		wait bool
		want callctx.EventKind
	}{{false, callctx.Limited}, {true, callctx.Waited}} {
		synctest.Test(t, func(t *testing.T) {
			l, err := New(Config{Policy: Policy{Rate: 1, Burst: 1, Wait: row.wait}})
			if err != nil {
				t.Fatal(err)
			}
			w := new(watcher)
			ctx := callctx.With(t.Context(), callctx.Record{Observer: w})
			call := l.UnaryClientInterceptor()
			for range 2 { // the second finds no token; with Wait it comes through later
				_ = call(ctx, "/shop.Orders/Get", nil, nil, nil,
					func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil })
			}
			if len(w.events) != 1 || w.events[0].Kind != row.want || w.events[0].Delay <= 0 {
				t.Errorf("wait = %v: told of %+v, want one %v with a delay", row.wait, w.events, row.want)
			}
		})
	}
}
