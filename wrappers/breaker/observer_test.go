package breaker

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// watcher keeps what a trace would be told.
type watcher struct{ events []callctx.Event }

func (w *watcher) Attempt(ctx context.Context, _ callctx.Attempt) context.Context { return ctx }
func (w *watcher) Event(e callctx.Event)                                          { w.events = append(w.events, e) }

// Who watches a call is told of a refusal and of a fallback that answered.
func TestObserverIsTold(t *testing.T) {
	b, err := New(Config{Policy: Policy{
		ConsecutiveFailures: 1,
		Fallback:            func(context.Context, string, any, any, error) error { return nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	w := new(watcher)
	ctx := callctx.With(t.Context(), callctx.Record{Observer: w})
	call := b.UnaryClientInterceptor()
	fails := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		return status.Error(codes.Unavailable, "down")
	}
	for range 2 { // the first opens the breaker, the second is refused; both are answered
		if err := call(ctx, "/shop.Orders/Get", nil, nil, nil, fails); err != nil {
			t.Fatal(err)
		}
	}
	var kinds []callctx.EventKind
	for _, e := range w.events {
		kinds = append(kinds, e.Kind)
	}
	if len(kinds) != 3 || kinds[0] != callctx.Fallback || kinds[1] != callctx.BreakerRefused || kinds[2] != callctx.Fallback {
		t.Fatalf("told of %v, want a fallback, a refusal and a fallback", kinds)
	}
	if e := w.events[1]; e.Detail == "" || e.Delay <= 0 || e.Err == nil {
		t.Errorf("the refusal says %+v, want the breaker, for how long, and why", e)
	}
}
