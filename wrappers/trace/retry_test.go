package trace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// With the real retry below: its attempts are spans, and the end of each is reported once.

func retrier(t *testing.T, p retry.Policy) *retry.Retrier {
	t.Helper()
	p.Idempotent = true
	r, err := retry.New(retry.Config{Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRealHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var served atomic.Int64
		r := newRig(t, setup{
			unaryBelow: []grpc.UnaryClientInterceptor{retrier(t, retry.Policy{Hedge: retry.Hedge{Delay: 10 * time.Millisecond}}).UnaryClientInterceptor()},
			do: func(ctx context.Context) error {
				if served.Add(1) == 1 {
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}})
		if err := call(t.Context(), r.cc, "Unary"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantTree(t, r.tracer, `
client /test.Kinds/Unary OK
  client attempt /test.Kinds/Unary CANCELLED #1
    server /test.Kinds/Unary CANCELLED
  client attempt /test.Kinds/Unary OK #2
    server /test.Kinds/Unary OK
`)
		var names []string
		for _, l := range logs(r.only(Client, 0)) {
			names = append(names, strings.Fields(l)[0])
		}
		if want := []string{"hedge", "hedge_won"}; !slices.Equal(names, want) {
			t.Errorf("the call's logs %q, want %q", names, want)
		}
		if s := r.only(Client, 2); s.Tag(TagHedge) != true || s.Tag(TagPeer) != "bufconn" {
			t.Errorf("the hedge's tags %v, want %s and the peer that the retry reports", s.Tags(), TagHedge)
		}
		r.stop()
		r.closed(1, 2, 2)
	})
}

func TestRealRetryOfEachKind(t *testing.T) {
	for _, kind := range kinds {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " down ", down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					re := retrier(t, retry.Policy{})
					r := newRig(t, setup{unaryBelow: []grpc.UnaryClientInterceptor{re.UnaryClientInterceptor()},
						streamBelow: []grpc.StreamClientInterceptor{re.StreamClientInterceptor()}})
					if down {
						r.srv.Stop()
					}
					err := call(t.Context(), r.cc, kind)
					if got := status.Code(err); (got == codes.Unavailable) != down || !down && err != nil {
						t.Fatalf("got %v with a server that is down: %v", err, down)
					}
					synctest.Wait()
					s := r.client.State().Client
					if s.Open != 0 || s.Attempts == 0 || s.Started != s.Attempts+1 {
						t.Errorf("state %+v, want one call, its attempts, and nothing open:\n%s", s, tree(r.tracer))
					}
					if n := uint64(r.only(Client, 0).Tag(TagAttempts).(int)); n != s.Attempts || down && kind == "Unary" && n != 3 {
						t.Errorf("%d attempts by the tag, %d by the spans, want the same, and 3 for a unary call that fails", n, s.Attempts)
					}
					r.stop()
				})
			})
		}
	}
}
