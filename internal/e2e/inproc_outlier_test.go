package e2e

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// everyThird fails a third of its calls, never two in a row.
func everyThird(code codes.Code) workFunc {
	var calls atomic.Int64
	return func(context.Context, string) error {
		if calls.Add(1)%3 == 0 {
			return status.Error(code, "told to fail")
		}
		return nil
	}
}

// One of five real servers fails a third of its calls, so that no run of three failures ever comes. It is found by
// comparison with the others, and calls go on elsewhere without an error; without the comparison it stays in service.
func TestPartlyFailingInstance(t *testing.T) {
	for _, tt := range []struct {
		name     string
		outliers balancer.Outliers
		calls    int // to make before a look; 0 for until it is found
		want     string
	}{
		{"ours", balancer.Outliers{}, 0, "1 ejections, 0 spared, asked false, calls fail false"},
		{"dry run", balancer.Outliers{DryRun: true}, 0, "0 ejections, 1 spared, asked true, calls fail true"},
		{"runs only", balancer.Outliers{Disabled: true}, 1000, "0 ejections, 0 spared, asked true, calls fail true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			reg := memory.New()
			ls := fleet(t, reg, 5, func(i int) spec {
				if i == 0 {
					return spec{work: everyThird(codes.Unavailable)}
				}
				return spec{}
			})
			// For longer than the test takes on any machine.
			conn := dial(t, reg, balancer.Config{Outliers: tt.outliers, Blacklist: balancer.Blacklist{BaseEjection: time.Hour}})
			ready(t, conn, ls)
			calls, failed := 0, 0
			call := func() {
				calls++
				if _, err := greeter.Hello(t.Context(), conn, "you"); err != nil {
					failed++
				}
			}
			for deadline := time.Now().Add(time.Minute); ; call() {
				c := counters(t, ls[0])
				if c.Ejections+c.WouldEject > 0 || tt.calls > 0 && calls == tt.calls {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("nobody is found in a minute and %d calls, of which %d failed", calls, failed)
				}
			}
			t.Logf("%d of %d calls failed", failed, calls)
			before := ls[0].calls.Load()
			failed = 0
			for range 200 {
				call()
			}
			c := counters(t, ls[0])
			if got := fmt.Sprintf("%d ejections, %d spared, asked %t, calls fail %t", c.Ejections, c.WouldEject,
				ls[0].calls.Load() > before, failed > 0); got != tt.want {
				t.Errorf("%s; want %s", got, tt.want)
			}
		})
	}
}

// counters are those of the channel that knows l.
func counters(t *testing.T, l *local) balancer.Counters {
	t.Helper()
	c, err := channelOf(l)
	if err != nil {
		t.Fatal(err)
	}
	return c.Counters
}
