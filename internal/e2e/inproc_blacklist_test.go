package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/outcome"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// Every error counts against the instance: what the default classifier is there to avoid.
func init() {
	outcome.Register("e2e-everything", func(string, error, time.Duration) outcome.Class { return outcome.Failure })
}

// ejection is short, so that a test sees several.
const ejection = 50 * time.Millisecond

// sinkhole starts five instances of which the first fails at once and the others take their time.
func sinkhole(t *testing.T, code codes.Code, c balancer.Config) ([]*local, *grpc.ClientConn) {
	t.Helper()
	reg := memory.New()
	ls := fleet(t, reg, 5, func(i int) spec {
		if i == 0 {
			return spec{work: fails(status.Error(code, "told to fail"))}
		}
		return spec{work: takes(2 * time.Millisecond)}
	})
	conn := dial(t, reg, c)
	ready(t, conn, ls)
	return ls, conn
}

// One instance fails everything, and is the fastest. It gets exactly three calls before it is out, and one after
// each return; without a blacklist it gets its full share.
func TestFailingInstance(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown} {
		for _, s := range []balancer.Strategy{balancer.RoundRobin{}, balancer.Random{}, balancer.LeastRequest{}} {
			t.Run(fmt.Sprintf("%v/%s", code, s.Name()), func(t *testing.T) {
				t.Parallel()
				c := balancer.Config{Strategy: s, Blacklist: balancer.Blacklist{BaseEjection: ejection}}
				ls, conn := sinkhole(t, code, c)
				oneCaller(t, ls[0], conn, code)
				ls, conn = sinkhole(t, code, c)
				eightCallers(t, ls[0], conn)
				c.Blacklist = balancer.Blacklist{Disabled: true}
				ls, conn = sinkhole(t, code, c)
				without(t, ls, conn, s)
			})
		}
	}
}

// oneCaller calls until the fourth ejection. After each failure it must be clear whether the instance is out.
func oneCaller(t *testing.T, bad *local, conn *grpc.ClientConn, code codes.Code) {
	t.Helper()
	calls, failed := 0, 0
	var last time.Time // when the failing call before began
	for deadline := time.Now().Add(time.Minute); failed < 6; calls++ {
		began := time.Now()
		if began.After(deadline) {
			t.Fatalf("%d calls, %d failed in a minute, want 6 failures", calls, failed)
		}
		_, err := greeter.Hello(t.Context(), conn, "you")
		if err == nil {
			continue
		}
		failed++
		if got := status.Code(err); got != code {
			t.Fatalf("failure %d: %v, want %v", failed, err, code)
		}
		out := max(0, failed-2)
		if got := ejections(t, bad); got != out {
			t.Errorf("after %d failures: %d ejections, want %d", failed, got, out)
		}
		// The ejection before had number out-1, so many times the base, less the jitter.
		if least := time.Duration(out-1) * ejection * 9 / 10; out > 1 && time.Since(last) < least {
			t.Errorf("failure %d came %v after the one before, want %v at least", failed, time.Since(last), least)
		}
		last = began
	}
	if got := bad.calls.Load(); got != int64(failed) {
		t.Errorf("%d calls reached the instance, want the %d that failed", got, failed)
	}
	t.Logf("one caller: %d of %d calls failed: 3, then 1 after each of 3 returns", failed, calls)
}

// eightCallers call until the fourth ejection.
func eightCallers(t *testing.T, bad *local, conn *grpc.ClientConn) {
	t.Helper()
	const callers = 8
	var failed, calls atomic.Int64
	var over atomic.Bool
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for !over.Load() {
				if c := call(t.Context(), conn, 1); len(c.errs) > 0 {
					failed.Add(1)
				}
				calls.Add(1)
			}
		})
	}
	eventually(t, time.Minute, func() error {
		if n := ejections(t, bad); n < 4 {
			return fmt.Errorf("%d ejections, want 4", n)
		}
		return nil
	})
	over.Store(true)
	wg.Wait()
	returns := int64(ejections(t, bad) - 1)
	got := bad.calls.Load()
	if got < 3+returns || got > 3+callers-1+returns {
		t.Errorf("%d calls reached the instance, want 3 and %d for the returns, and at most the %d in flight besides",
			got, returns, callers-1)
	}
	if got != failed.Load() {
		t.Errorf("%d calls failed, want the %d that reached the instance", failed.Load(), got)
	}
	t.Logf("eight callers: %d of %d calls failed in %d ejections", got, calls.Load(), returns+1)
}

// without counts what the blacklist saves.
func without(t *testing.T, ls []*local, conn *grpc.ClientConn, s balancer.Strategy) {
	t.Helper()
	const n = 250
	warm(t, conn, ls)
	c := call(t.Context(), conn, n)
	counts := []int{len(c.errs)}
	for _, l := range ls[1:] {
		counts = append(counts, c.by[l.id])
	}
	t.Logf("switched off: %d of %d calls failed", len(c.errs), n)
	if _, exact := s.(balancer.RoundRobin); exact && len(c.errs) != n/5 {
		t.Errorf("%v, want a failure of every fifth call", c)
	}
	even(t, "switched off", counts)
}

// A strategy that goes by latency takes the fast failures for what they are: it sends fewer calls there, not more.
func TestFastFailuresAttractNobody(t *testing.T) {
	t.Parallel()
	ls, conn := sinkhole(t, codes.Unavailable, balancer.Config{
		Strategy: balancer.PeakEWMA{}, Blacklist: balancer.Blacklist{Disabled: true},
	})
	const n = 500
	c := call(t.Context(), conn, n)
	t.Logf("%d of %d calls failed with the blacklist switched off; by chance it would be %d", len(c.errs), n, n/5)
	if ls[0].calls.Load() == 0 || len(c.errs) > n/10 {
		t.Errorf("%v, want some failures, and far fewer than %d", c, n/5)
	}
}

// What says nothing about the instance never takes it out; counted as a failure, the same answers do.
func TestBusinessErrors(t *testing.T) {
	for _, row := range []struct {
		name string
		call func(*testing.T, []*local, *grpc.ClientConn, int) (failed int)
	}{
		{"not found", notFound}, {"cancelled", cancelled},
	} {
		for _, off := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/off=%v", row.name, off), func(t *testing.T) {
				t.Parallel()
				var c balancer.Config
				if off {
					c.Blacklist.Classifier = "e2e-everything"
				}
				reg := memory.New()
				ls := fleet(t, reg, 3, nil)
				conn := dial(t, reg, c)
				warm(t, conn, ls)
				const n = 2400
				failed := row.call(t, ls, conn, n)
				out := ejections(t, ls[0])
				t.Logf("%d calls, %d ended with an error, %d ejections", n, failed, out)
				switch {
				case !off && (out > 0 || failed < n/3):
					t.Errorf("%d errors made %d ejections, want at least %d and none", failed, out, n/3)
				case off && out == 0:
					t.Error("no ejection though every error counts: this test proves nothing")
				}
			})
		}
	}
}

// notFound has one instance answer NOT_FOUND to everything.
func notFound(t *testing.T, ls []*local, conn *grpc.ClientConn, n int) int {
	ls[0].does(fails(status.Error(codes.NotFound, "no such order")))
	c := call(t.Context(), conn, n)
	for _, err := range c.errs {
		if status.Code(err) != codes.NotFound {
			t.Fatalf("%v, want NOT_FOUND", err)
		}
	}
	return len(c.errs)
}

// cancelled has the caller give every call up once a handler has it.
func cancelled(t *testing.T, ls []*local, conn *grpc.ClientConn, n int) (failed int) {
	begun := make(chan struct{}, 1)
	for _, l := range ls {
		l.does(func(ctx context.Context, _ string) error {
			begun <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
	}
	for range n {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := greeter.Hello(ctx, conn, "you")
			ended <- err
		}()
		<-begun
		cancel()
		if err := <-ended; status.Code(err) != codes.Canceled {
			t.Fatalf("%v, want CANCELLED", err)
		}
		failed++
	}
	return failed
}

// Every instance fails. At least half of them go on getting calls at all times, and the balancer refuses none; with
// all of them allowed out the calls gather on fewer.
func TestEveryInstanceFails(t *testing.T) {
	for _, row := range []struct {
		name    string
		percent int
	}{{"half", 0}, {"switched off", 100}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			const instances, n = 5, 3000
			reg := memory.New()
			ls := fleet(t, reg, instances, nil)
			conn := dial(t, reg, balancer.Config{
				Blacklist: balancer.Blacklist{BaseEjection: ejection, MaxEjectedPercent: row.percent},
			})
			warm(t, conn, ls)
			var mu sync.Mutex
			order := make([]int, 0, n) // who got the calls
			for i, l := range ls {
				l.does(func(context.Context, string) error {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, i)
					return status.Error(codes.Unavailable, "told to fail")
				})
			}
			for i, err := range call(t.Context(), conn, n).errs {
				if !strings.Contains(err.Error(), "told to fail") {
					t.Fatalf("call %d: %v, want it to reach a handler", i, err)
				}
			}
			if len(order) != n {
				t.Errorf("%d calls reached a handler, want %d", len(order), n)
			}
			out := ejections(t, ls[0])
			fewest := fewestServing(order, 30)
			t.Logf("%d calls, %d ejections, never fewer than %d of %d instances serve", n, out, fewest, instances)
			switch {
			case out < 3:
				t.Errorf("%d ejections, want 3 at least: this test proves nothing", out)
			case row.percent == 0 && fewest < (instances+1)/2:
				t.Errorf("only %d of %d instances served at one time, want half of them at least", fewest, instances)
			case row.percent == 100 && fewest >= (instances+1)/2:
				t.Error("half of the instances served at all times though all may be out: this test proves nothing")
			}
		})
	}
}

// fewestServing is the smallest number of different instances in any run of so many calls.
func fewestServing(order []int, run int) int {
	fewest := len(order)
	for i := 0; i+run <= len(order); i++ {
		seen := make(map[int]bool)
		for _, who := range order[i : i+run] {
			seen[who] = true
		}
		fewest = min(fewest, len(seen))
	}
	return fewest
}

// A handler returns a plain error, which is UNKNOWN, for one call in ten, sometimes three times in a row. That is
// the answer of a healthy instance and takes nobody out; UNAVAILABLE in its place does.
func TestPlainErrors(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
	}{{"plain", errors.New("no such order")}, {"switched off", status.Error(codes.Unavailable, "told to fail")}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			const instances, n = 5, 10_000
			reg := memory.New()
			ls := fleet(t, reg, instances, nil)
			conn := dial(t, reg, balancer.Config{})
			warm(t, conn, ls)
			seed := uint64(0)
			for _, l := range ls {
				seed = fairSeed(seed+1, n/instances)
				var mu sync.Mutex
				d := newDice(seed)
				l.does(func(context.Context, string) error {
					mu.Lock()
					defer mu.Unlock()
					if d.fails() {
						return row.err
					}
					return nil
				})
			}
			off := status.Code(row.err) == codes.Unavailable
			calls, failed, out := 0, 0, 0
			for calls < n && !(off && out > 0) {
				failed += len(call(t.Context(), conn, 500).errs)
				calls += 500
				out = ejections(t, ls[0])
			}
			t.Logf("%d calls, %d failed, %d ejections", calls, failed, out)
			switch {
			case failed < calls/20:
				t.Errorf("%d of %d calls failed, want about one in ten", failed, calls)
			case !off && out > 0:
				t.Errorf("%d ejections, want none", out)
			case off && out == 0:
				t.Error("no ejection by UNAVAILABLE: this test proves nothing")
			}
		})
	}
}

// dice decides which calls of an instance fail.
type dice struct{ r *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 10))} }

func (d dice) fails() bool { return d.r.IntN(10) == 0 }

// fairSeed returns the first seed from the given one on with which the first n calls have a run of three failures
// or more, so that the rule has something to decide, but never one in which half of the last 20 outcomes, or of
// those there are, have failed: that would be an ejection by the rule.
func fairSeed(seed uint64, n int) uint64 {
	for ; ; seed++ {
		var last []bool
		d, run, runs, trips := newDice(seed), 0, 0, false
		for range n {
			failed := d.fails()
			last = append(last, failed)
			last = last[max(0, len(last)-20):]
			if run++; !failed {
				run = 0
			}
			if run < 3 {
				continue
			}
			runs++
			bad := 0
			for _, f := range last {
				if f {
					bad++
				}
			}
			trips = trips || 2*bad >= len(last)
		}
		if runs > 0 && !trips {
			return seed
		}
	}
}
