package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/registry"
)

// Every test that runs in a bubble also shows that Close leaves no goroutine: the bubble would not end.

func expect(t *testing.T, c *fakeConn, want string) {
	t.Helper()
	synctest.Wait()
	if got := c.took(); got != want {
		t.Errorf("gRPC was told %q, want %q", got, want)
	}
}

func TestStateCarriesTheInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		in := registry.Instance{ID: "i", Addr: "10.0.0.1:80", AltAddrs: []string{"[::1]:80"}, Labels: map[string]string{"k": "v"}}
		w.set, w.known = []registry.Instance{in}, true
		cc := &fakeConn{lights: true}
		r := build(t, NewBuilder(w, WithServiceConfig(`{"some":"config"}`),
			WithServerName(func(in registry.Instance) string { return in.ID + ".example" })), cc)
		defer cc.close(r)
		synctest.Wait()
		st, _ := cc.last()
		if len(st.Endpoints) != 1 || len(st.Endpoints[0].Addresses) != 2 || len(st.Addresses) != 1 {
			t.Fatalf("state = %+v, want one endpoint with two addresses, and one address", st)
		}
		for i, want := range []string{"10.0.0.1:80", "[::1]:80"} {
			if a := st.Endpoints[0].Addresses[i]; a.Addr != want || a.ServerName != "i.example" {
				t.Errorf("address %d = %v, want %s named i.example", i, a, want)
			}
		}
		if st.Addresses[0].Addr != in.Addr {
			t.Errorf("address for base policies = %v, want %s", st.Addresses[0], in.Addr)
		}
		if got := registry.FromEndpoint(st.Endpoints[0]); got == nil || !got.Equal(in) {
			t.Errorf("instance = %+v, want %+v", got, in)
		}
		if got := st.ServiceConfig.Config.(parsedConfig).json; got != `{"some":"config"}` {
			t.Errorf("service config = %q", got)
		}
	})
}

func TestWithoutOptionsNoServiceConfigAndNoServerName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a")
		cc := &fakeConn{lights: true}
		r := build(t, NewBuilder(w, WithServerName(nil), WithLogger(nil)), cc)
		defer cc.close(r)
		synctest.Wait()
		st, _ := cc.last()
		if st.ServiceConfig != nil {
			t.Errorf("service config = %v, want none, so that the app's own stays", st.ServiceConfig)
		}
		if name := st.Endpoints[0].Addresses[0].ServerName; name != "" {
			t.Errorf("server name = %q, want none", name)
		}
	})
}

func TestConnectionsShareOneWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a b")
		b := NewBuilder(w)
		one, two := &fakeConn{lights: true}, &fakeConn{lights: true}
		r1 := build(t, b, one)
		expect(t, one, "a b")
		r2 := build(t, b, two)
		expect(t, two, "a b")
		w.put("a b c")
		expect(t, one, "a b c")
		expect(t, two, "a b c")
		if n, _ := w.counts(); n != 1 {
			t.Errorf("%d watches, want 1", n)
		}
		one.close(r1)
		if _, n := w.counts(); n != 1 {
			t.Errorf("%d watches run with one connection left, want 1", n)
		}
		w.put("a b")
		expect(t, two, "a b")
		expect(t, one, "")
		two.close(r2)
		if _, n := w.counts(); n != 0 {
			t.Errorf("%d watches run after the last Close, want 0", n)
		}
		r2.Close() // a second Close does nothing
	})
}

func TestServicesAreWatchedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a")
		b := NewBuilder(w)
		one, two := &fakeConn{lights: true}, &fakeConn{lights: true}
		r1 := build(t, b, one)
		r2, err := b.Build(target(t, "lb:///stock"), two, gresolver.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n, _ := w.counts(); n != 2 {
			t.Errorf("%d watches, want 2", n)
		}
		one.close(r1)
		w.put("a b")
		expect(t, two, "a | a b")
		two.close(r2)
	})
}

func TestAnIdenticalSetIsNotSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		cc := &fakeConn{lights: true}
		r := build(t, NewBuilder(w), cc)
		defer cc.close(r)
		for _, set := range []string{"a b", "a b", "b a", "a b"} {
			w.put(set)
			synctest.Wait()
			r.(*connection).wake() // nor because somebody was woken twice
			synctest.Wait()
		}
		expect(t, cc, "a b")
	})
}

// What was known survives that all connections close, as gRPC's idle mode closes them.
func TestTheLastSetSurvivesIdleMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a b")
		b := NewBuilder(w, WithLogger(slog.New(new(journal))))
		cc := &fakeConn{lights: true}
		r := build(t, b, cc)
		expect(t, cc, "a b")
		cc.close(r)

		time.Sleep(time.Hour)
		w.fail(errors.New("refused"))
		cc = &fakeConn{lights: true}
		r = build(t, b, cc)
		expect(t, cc, "a b") // at once, the registry being down
		w.put("a b c")
		time.Sleep(10 * time.Second)
		expect(t, cc, "a b c")
		cc.close(r)

		time.Sleep(time.Hour)
		w.put("x y z") // all of them were replaced meanwhile, and their addresses may be somebody else's
		cc = &fakeConn{lights: true}
		r = build(t, b, cc)
		expect(t, cc, "x y z")
		cc.close(r)
	})
}

func TestASilentRegistryAfterIdleModeDelaysTheLastSetByTheHeadStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a b")
		b := NewBuilder(w)
		cc := &fakeConn{lights: true}
		r := build(t, b, cc)
		expect(t, cc, "a b")
		cc.close(r)
		w.mu.Lock()
		w.known = false
		w.mu.Unlock()
		cc = &fakeConn{lights: true}
		r = build(t, b, cc)
		defer cc.close(r)
		second := &fakeConn{lights: true}
		r2 := build(t, b, second)
		defer second.close(r2)
		time.Sleep(headStart - 1)
		expect(t, cc, "")
		expect(t, second, "")
		time.Sleep(time.Nanosecond)
		expect(t, cc, "a b")
		expect(t, second, "a b")
	})
}

func TestAServiceWithoutInstancesIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		b := NewBuilder(w, WithHold(-1), WithLogger(slog.New(new(journal)))).(*builder)
		for _, set := range []string{"", "a"} {
			w.put(set)
			cc := &fakeConn{lights: true}
			r := build(t, b, cc)
			synctest.Wait()
			cc.close(r)
			if got, want := len(b.services), len(parse(set)); got != want {
				t.Errorf("after %q: %d services remembered, want %d", set, got, want)
			}
		}
	})
}

func TestASlowConnectionHoldsUpNoOtherAndSkipsStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a")
		b := NewBuilder(w)
		slow, fast := &fakeConn{lights: true, hold: make(chan struct{})}, &fakeConn{lights: true}
		rs, rf := build(t, b, slow), build(t, b, fast)
		expect(t, fast, "a")
		for _, set := range []string{"a b", "a b c", "a b c d"} {
			w.put(set)
			expect(t, fast, set)
		}
		expect(t, slow, "a")
		close(slow.hold)
		expect(t, slow, "a b c d")
		slow.close(rs)
		fast.close(rf)
	})
}

// A set that is known to be empty, and then an outage: a connection that was busy meanwhile does not go on with the
// instances of before.
func TestASlowConnectionLearnsOfTheEmptySetBeforeTheOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		w.put("a")
		b := NewBuilder(w, WithHold(-1))
		slow, fast := &fakeConn{lights: true, hold: make(chan struct{})}, &fakeConn{lights: true}
		rs, rf := build(t, b, slow), build(t, b, fast)
		expect(t, slow, "a")
		expect(t, fast, "a")
		w.put("")
		expect(t, fast, "none")
		w.fail(errors.New("gone"))
		synctest.Wait()
		close(slow.hold)
		synctest.Wait()
		if got := slow.took(); !strings.HasPrefix(got, "none | error: ") {
			t.Errorf("the slow connection was told %q, want the empty set, then why", got)
		}
		slow.close(rs)
		fast.close(rf)
	})
}

func TestCloseWaitsForUpdateState(t *testing.T) {
	for range 20 { // with a state to send and a close, a select that had both would choose either
		synctest.Test(t, func(t *testing.T) {
			w := new(script)
			w.put("a")
			cc := &fakeConn{lights: true, hold: make(chan struct{})}
			r := build(t, NewBuilder(w), cc)
			expect(t, cc, "a")
			w.put("a b") // is not delivered any more
			closed := make(chan struct{})
			go func() {
				cc.close(r)
				close(closed)
			}()
			synctest.Wait()
			select {
			case <-closed:
				t.Error("Close returned while UpdateState ran")
			default:
			}
			close(cc.hold)
			<-closed
			expect(t, cc, "")
		})
	}
}

// A connection that comes while the last watch still ends waits for it: a registry never sees two for one service.
func TestWatchesOfOneServiceDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most, begun atomic.Int32
		w := watchFunc(func(ctx context.Context, _ string, update func([]registry.Instance)) error {
			begun.Add(1)
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			update(nil)
			<-ctx.Done()
			time.Sleep(time.Second) // slow to end
			return ctx.Err()
		})
		b := NewBuilder(w)
		old, young := &fakeConn{lights: true}, &fakeConn{lights: true}
		r1 := build(t, b, old)
		expect(t, old, "none")
		closed := make(chan struct{})
		go func() {
			old.close(r1)
			close(closed)
		}()
		synctest.Wait()
		r2 := build(t, b, young)
		<-closed // and has not taken the service of the young one away, though it knew no instance
		expect(t, young, "none")
		third := &fakeConn{lights: true}
		r3 := build(t, b, third)
		expect(t, third, "none")
		third.close(r3)
		young.close(r2)
		if begun.Load() != 2 || most.Load() != 1 || running.Load() != 0 {
			t.Errorf("%d watches, %d at a time, %d left, want 2, 1 and 0", begun.Load(), most.Load(), running.Load())
		}
	})
}

func TestOutageAndCollapseThroughTheShell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, j := new(script), new(journal)
		cc := &fakeConn{lights: true}
		r := build(t, NewBuilder(w, WithLogger(slog.New(j)), WithHold(10*time.Second)), cc)
		defer cc.close(r)
		w.put("a b c")
		expect(t, cc, "a b c")
		w.fail(errors.New("refused"))
		time.Sleep(time.Minute)
		expect(t, cc, "")
		if n, _ := w.counts(); n < 8 || n > 60 {
			t.Errorf("%d watches in an outage of a minute, want backoff up to 10 s", n)
		}
		if n := j.count("WARN", msgOutage, "service=orders", "error=refused", "instances=3"); n != 1 || len(j.lines) != 1 {
			t.Errorf("want one line for the outage, got\n%s", j)
		}
		w.put("")
		time.Sleep(10 * time.Second) // by now the watch has begun again
		synctest.Wait()
		if j.count("INFO", msgBack) != 1 || j.count("WARN", msgCollapse, "held=3", "reported=0", "hold=10s") != 1 {
			t.Errorf("want the return and the collapse in the log, got\n%s", j)
		}
		time.Sleep(10 * time.Second)
		expect(t, cc, "none")
		if j.count("WARN", msgHoldOver, "returned=0", "removed=3", "instances=0") != 1 || len(j.lines) != 4 {
			t.Errorf("want one more line for the end of the hold, got\n%s", j)
		}
	})
}

func TestAnAppThatStartsInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, j := new(script), new(journal)
		cc := &fakeConn{lights: true}
		w.fail(fmt.Errorf("consul: %w", status.Error(codes.PermissionDenied, "refused")))
		r := build(t, NewBuilder(w, WithLogger(slog.New(j))), cc)
		defer cc.close(r)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := cc.took(); !strings.HasPrefix(got, "error: ") || strings.Contains(got, " | ") || !strings.Contains(got, `"orders"`) || !strings.Contains(got, "refused") {
			t.Errorf("gRPC was told %q, want one error with the service and the reason", got)
		}
		if _, err := cc.last(); status.Code(err) != codes.Unknown {
			t.Errorf("the error is a status: %v; gRPC would fail wait-for-ready calls with it", err)
		}
		if j.count("WARN", msgNothing) != 1 {
			t.Errorf("want one line, got\n%s", j)
		}
		w.put("a")
		time.Sleep(10 * time.Second)
		expect(t, cc, "a")
	})
}

func TestAWatchThatEndsWithoutAnErrorIsAnOutage(t *testing.T) {
	for name, w := range map[string]registry.Watcher{
		"nil":    watchFunc(func(context.Context, string, func([]registry.Instance)) error { return nil }),
		"goexit": watchFunc(func(context.Context, string, func([]registry.Instance)) error { runtime.Goexit(); return nil }),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cc := new(fakeConn)
				r := build(t, NewBuilder(w, WithLogger(slog.New(new(journal)))), cc)
				synctest.Wait()
				if _, err := cc.last(); err == nil || !strings.Contains(err.Error(), "ended without an error") {
					t.Errorf("got %v", err)
				}
				cc.close(r)
			})
		})
	}
}

type watchFunc func(context.Context, string, func([]registry.Instance)) error

func (f watchFunc) Watch(ctx context.Context, s string, u func([]registry.Instance)) error {
	return f(ctx, s, u)
}

func TestResolveNowBringsTheNextWatchForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(script)
		cc := new(fakeConn)
		b := NewBuilder(w, WithLogger(slog.New(new(journal)))).(*builder)
		r := build(t, b, cc)
		defer cc.close(r)
		synctest.Wait()
		b.services["orders"].core.rand = func() float64 { return 0.999 } // the run waits, so nobody reads it
		w.fail(errors.New("refused"))
		time.Sleep(2 * time.Minute)
		before, _ := w.counts()
		time.Sleep(9 * time.Second) // whichever wait this is in, it is one of 9.99 s
		mid, _ := w.counts()
		if mid > before+1 {
			t.Fatalf("%d watches in 9 s, want at most 1", mid-before)
		}
		for range 100 {
			r.ResolveNow(gresolver.ResolveNowOptions{})
		}
		time.Sleep(time.Second)
		after, _ := w.counts()
		if after != mid+1 {
			t.Errorf("%d watches in the second after ResolveNow, want 1", after-mid)
		}
	})
}

func TestWarnsOnceThatEvenkeelDoesNotBalance(t *testing.T) {
	for _, tc := range []struct {
		name   string
		lights bool
		set    string
		opts   gresolver.BuildOptions
		config bool
		early  bool // closed before the second is over
		want   int
		mend   string
	}{
		{name: "another policy", set: "a b", want: 1, mend: "resolver.WithServiceConfig(balancer.ServiceConfig"},
		{name: "evenkeel", set: "a b", lights: true},
		{name: "no instances", set: ""},
		{name: "closed at once", set: "a b", early: true},
		{name: "another policy in WithServiceConfig", set: "a", config: true, want: 1, mend: "evenkeel"},
		{name: "config disabled", set: "a", config: true, opts: gresolver.BuildOptions{DisableServiceConfig: true},
			want: 1, mend: "grpc.WithDisableServiceConfig"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, j := new(script), new(journal)
				opts := []Option{WithLogger(slog.New(j))}
				if tc.config {
					opts = append(opts, WithServiceConfig(`{}`))
				}
				b := NewBuilder(w, opts...)
				w.put(tc.set)
				for range 3 {
					cc := &fakeConn{lights: tc.lights}
					r, err := b.Build(target(t, "lb:///orders"), cc, tc.opts)
					if err != nil {
						t.Fatal(err)
					}
					if tc.early {
						time.Sleep(darkTime / 2)
					} else {
						time.Sleep(2 * darkTime)
					}
					if st, _ := cc.last(); tc.opts.DisableServiceConfig && st.ServiceConfig != nil {
						t.Error("a service config was sent although the app disabled it")
					}
					cc.close(r)
				}
				if n := j.count("WARN", "pick_first", "service=orders", tc.mend); n != tc.want || len(j.lines) != tc.want {
					t.Errorf("want %d warning, got\n%s", tc.want, j)
				}
			})
		})
	}
}

// Connections come and go while the registry changes, fails and returns. Nothing may race, hang, be told to a closed
// connection, or be left over; and at the end everybody has the last set.
func TestConnectionsComeAndGoUnderChange(t *testing.T) {
	w := new(script)
	b := NewBuilder(w, WithHold(time.Millisecond), WithLogger(slog.New(new(journal)))).(*builder)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 1))
		for {
			select {
			case <-stop:
				return
			default:
			}
			if rnd.IntN(4) == 0 {
				w.fail(errors.New("refused"))
			} else {
				w.put(randomSet(rnd))
			}
			runtime.Gosched()
		}
	})
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			for n := range 150 {
				cc := &fakeConn{lights: true}
				r, err := b.Build(target(t, fmt.Sprintf("lb:///orders%d", (i+n)%2)), cc, gresolver.BuildOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				r.ResolveNow(gresolver.ResolveNowOptions{})
				if n%3 == 0 {
					waitUntil(t, "told something", func() bool { return cc.total() > 0 })
				}
				go r.ResolveNow(gresolver.ResolveNowOptions{})
				cc.close(r)
				defer func() {
					if cc.late > 0 {
						t.Errorf("%d calls after Close", cc.late)
					}
				}()
			}
		})
	}
	workers.Wait()
	close(stop)
	wg.Wait()
	if _, n := w.counts(); n != 0 {
		t.Errorf("%d watches left, want 0", n)
	}
	w.put("z")
	cc := &fakeConn{lights: true}
	r := build(t, b, cc)
	waitUntil(t, "the last set", func() bool { return strings.HasSuffix(cc.took(), "z") })
	cc.close(r)
	noGoroutines(t)
}

// waitUntil polls, for tests that run in real time.
func waitUntil(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Errorf("not seen within 20 s: %s", what)
			return
		}
	}
}

// noGoroutines waits until no goroutine of this package's own is left.
func noGoroutines(t *testing.T) {
	t.Helper()
	var left string
	waitUntil(t, "no goroutine of the resolver left", func() bool {
		buf := make([]byte, 1<<20)
		left = ""
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "resolver.(*service)") || strings.Contains(g, "resolver.(*connection)") {
				left = g
			}
		}
		return left == ""
	})
	if left != "" {
		t.Log(left)
	}
}
