package breaker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/leak"
)

func (r *rig) update(c Config) {
	r.t.Helper()
	r.listen(&c)
	if err := r.Update(c); err != nil {
		r.t.Fatal(err)
	}
}

// TestUpdateWhileCalling: policies are replaced while 8 callers run; no call fails, and the new policy holds.
func TestUpdateWhileCalling(t *testing.T) {
	leak.Check(t)
	r := newRig(t, Config{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			m := fmt.Sprintf("/a.B/C%d", i%3)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := r.unaryClient(context.Background(), m, nil, nil, nil, nothing); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
			}
		})
	}
	for i := range 500 {
		p := Policy{ConsecutiveFailures: 1 + i%5, Key: Key(i % 3), MaxConcurrent: 8 + i%2, Probes: i % 4,
			Window: time.Duration(10+i%3) * sec, SlowCall: time.Duration(i%2) * time.Hour, DryRun: i%7 == 0}
		c := Config{Policy: p, MaxBreakers: 100}
		if i%2 == 0 {
			c.Methods = map[string]Policy{"/a.B/C1": p, "/a.B/*": {Disabled: i%4 == 0}}
		}
		r.update(c)
		if i%50 == 0 {
			r.State()
		}
	}
	close(stop)
	wg.Wait()
	r.update(Config{Policy: Policy{ConsecutiveFailures: 2}})
	r.idle()
	for range 2 {
		r.call(errDown, 0)
	}
	if passed, _ := r.call(nil, 0); passed {
		t.Error("2 failures do not open it, want the new policy to hold")
	}
}

// TestUpdateKeepsState says what becomes of a breaker in each state.
func TestUpdateKeepsState(t *testing.T) {
	one := Policy{ConsecutiveFailures: 1}
	for name, x := range map[string]struct {
		before func(r *rig)
		c      Config
		after  func(t *testing.T, r *rig)
	}{
		"closed: counts stay, thresholds are new": {
			func(r *rig) { r.call(errDown, 0); r.call(errDown, 0) },
			Config{Policy: Policy{ConsecutiveFailures: 3}},
			func(t *testing.T, r *rig) {
				if r.call(errDown, 0); r.phase() != Open {
					t.Errorf("%v, want open: the third failure in a row", r.phase())
				}
			}},
		"closed: a new window begins empty": {
			func(r *rig) { r.call(errDown, 0); r.call(errDown, 0) },
			Config{Policy: Policy{ConsecutiveFailures: 3, Window: 20 * sec}},
			func(t *testing.T, r *rig) {
				if s := r.one(); s.Failures != 0 {
					t.Errorf("%d failures, want 0", s.Failures)
				}
			}},
		"open: stays so": {
			func(r *rig) { r.update(Config{Policy: one}); r.call(errDown, 0) },
			Config{Policy: Policy{ConsecutiveFailures: 9, NoRamp: true}},
			func(t *testing.T, r *rig) {
				if passed, _ := r.call(nil, 0); passed {
					t.Error("a call passed")
				}
				sleep(6 * sec)
				if passed, _ := r.call(nil, 0); !passed || r.phase() != Closed {
					t.Errorf("after 6 s: passed %v, %v; want closed, without a ramp", passed, r.phase())
				}
			}},
		"open: for longer": {
			func(r *rig) { r.update(Config{Policy: one}); r.call(errDown, 0); sleep(sec) },
			Config{Policy: Policy{OpenFor: 20 * sec}}, // whose limits the failures so far would not reach
			func(t *testing.T, r *rig) {
				if s := r.one(); s.Phase != Open || time.Until(s.Until) != 20*sec || time.Since(s.Since) != sec {
					t.Errorf("%v until %v, want open for 20 s from now, and since 1 s ago", s, s.Until)
				}
				sleep(19 * sec)
				if passed, _ := r.call(nil, 0); passed {
					t.Error("a call passed after 19 s")
				}
				sleep(2 * sec)
				if passed, _ := r.call(nil, 0); !passed {
					t.Error("no call passed after 21 s")
				}
			}},
		"open: an hour by mistake, mended": {
			func(r *rig) {
				r.update(Config{Policy: Policy{ConsecutiveFailures: 1, OpenFor: time.Hour}})
				r.call(errDown, 0)
			},
			Config{Policy: Policy{OpenFor: sec}},
			func(t *testing.T, r *rig) {
				if passed, _ := r.call(nil, 0); passed {
					t.Error("a call passed at once")
				}
				sleep(2 * sec)
				if passed, _ := r.call(nil, 0); !passed {
					t.Error("no call passed after 2 s")
				}
			}},
		"half-open: new settings follow": {
			func(r *rig) {
				r.update(Config{Policy: Policy{ConsecutiveFailures: 1, Probes: 2}})
				r.trip()
				r.call(nil, 0)
			},
			Config{Policy: Policy{ConsecutiveFailures: 1, NoRamp: true, Window: 60 * sec}},
			func(t *testing.T, r *rig) {
				if p := r.phase(); p != HalfOpen {
					t.Errorf("%v, want half-open still", p)
				}
				r.call(nil, 0)
				for b := range r.index.Load().all() {
					if g := b.gate.Load(); r.phase() != Closed || g.window != 60*sec {
						t.Errorf("%v with a window of %v, want closed with 1m0s", r.phase(), g.window)
					}
				}
			}},
		"slow calls are counted from now on": {
			func(r *rig) { r.call(nil, 5*sec) },
			Config{Policy: Policy{SlowCall: sec, MinCalls: 2}},
			func(t *testing.T, r *rig) {
				r.call(nil, 2*sec)
				if r.call(nil, 2*sec); r.phase() != Open {
					t.Errorf("%v, want open", r.phase())
				}
			}},
		"calls that were not slow are forgotten with the window": {
			func(r *rig) {
				r.update(Config{Policy: Policy{SlowCall: sec}})
				for range 9 {
					r.call(nil, 0)
				}
			},
			Config{Policy: Policy{SlowCall: sec, Window: 20 * sec, MinCalls: 2}},
			func(t *testing.T, r *rig) {
				r.call(nil, sec)
				if r.call(nil, sec); r.phase() != Open {
					t.Errorf("%v, want open: 2 of 2 calls were slow", r.phase())
				}
			}},
		"another key: forgotten": {
			func(r *rig) { r.update(Config{Policy: one}); r.call(errDown, 0) },
			Config{Policy: Policy{ConsecutiveFailures: 1, Key: Service}},
			func(t *testing.T, r *rig) {
				if n := len(r.State().Breakers); n != 0 {
					t.Errorf("%d breakers, want none", n)
				}
				if passed, _ := r.call(nil, 0); !passed || r.one().Name != "/a.B/*" {
					t.Errorf("passed %v, %v", passed, r.one())
				}
			}},
		"disabled: forgotten": {
			func(r *rig) { r.update(Config{Policy: one}); r.call(errDown, 0) },
			Config{Policy: Policy{Disabled: true}},
			func(t *testing.T, r *rig) {
				if passed, _ := r.call(nil, 0); !passed || len(r.State().Breakers) != 0 {
					t.Errorf("passed %v, %v", passed, r.State())
				}
			}},
		"an entry of its own: another breaker": {
			func(r *rig) { r.update(Config{Policy: one}); r.call(errDown, 0) },
			Config{Policy: one, Methods: map[string]Policy{method: {}}},
			func(t *testing.T, r *rig) {
				if passed, _ := r.call(nil, 0); !passed {
					t.Error("no call passed")
				}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 5}})
				x.before(r)
				r.update(x.c)
				x.after(t, r)
				r.idle()
			})
		})
	}
}

// TestUpdateRefused: an invalid configuration changes nothing.
func TestUpdateRefused(t *testing.T) {
	r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
	if err := r.Update(Config{Policy: Policy{Probes: -1}}); err == nil {
		t.Fatal("no error")
	}
	if r.call(errDown, 0); r.phase() != Open {
		t.Errorf("%v, want open: the old policy holds", r.phase())
	}
}

// TestKeys: which calls share a breaker.
func TestKeys(t *testing.T) {
	leak.Check(t)
	call := func(r *rig, method string, opts ...grpc.CallOption) {
		_ = r.unaryClient(context.Background(), method, nil, nil, nil, fails, opts...)
	}
	conn, err := grpc.NewClient("passthrough:///orders", grpc.WithTransportCredentials(insecureCreds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, x := range map[string]struct {
		c    Config
		want string
	}{
		"method": {Config{}, "/a.B/C; /a.B/C on passthrough:///orders; /a.B/C on this server; /a.B/D; /x.Y/Z; key k"},
		"service": {Config{Policy: Policy{Key: Service}},
			"/a.B/*; /a.B/* on passthrough:///orders; /a.B/* on this server; /x.Y/*; key k"},
		"target": {Config{Policy: Policy{Key: Target}}, "; key k; passthrough:///orders; this server"},
		"scopes": {Config{Policy: Policy{Key: Target}, Methods: map[string]Policy{"/a.B/D": {Key: Service}, "/x.Y/*": {}}},
			"; /a.B/* under /a.B/D; /x.Y/Z under /x.Y/*; key k; passthrough:///orders; this server"},
		"some disabled": {Config{Policy: Policy{Disabled: true}, Methods: map[string]Policy{"/x.Y/*": {Key: Service}}},
			"/x.Y/*"},
	} {
		r := newRig(t, x.c)
		call(r, "/a.B/C")
		call(r, "/a.B/D")
		call(r, "/x.Y/Z")
		call(r, "/a.B/C", WithKey("k"))
		call(r, "/a.B/C", Bypass(), WithKey("never"))
		call(r, "/grpc.health.v1.Health/Check")
		call(r, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
		_ = r.unaryClient(context.Background(), "/a.B/C", nil, nil, conn, fails)
		_, _ = r.unaryServer(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/a.B/C"},
			func(context.Context, any) (any, error) { return nil, errDown })
		var names []string
		for _, s := range r.State().Breakers {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, "; "); got != x.want {
			t.Errorf("%s: %s\nwant %s", name, got, x.want)
		}
	}
}

// TestTable: the number of breakers is bounded, and idle ones are removed.
func TestTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}, MaxBreakers: 3, IdleAfter: time.Minute})
		call := func(m string, err error, takes time.Duration) (passed bool) {
			_ = r.unaryClient(context.Background(), m, nil, nil, nil,
				func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
					passed = true
					time.Sleep(takes)
					return err
				})
			return passed
		}
		names := func() (s string) {
			for _, b := range r.State().Breakers {
				s += strings.TrimPrefix(b.Name, "/s/")
			}
			return s
		}
		for i, x := range []struct {
			at   time.Duration
			call string // lower case: succeeds, upper case: fails
			want string
		}{
			{0, "a", "a"}, {1 * sec, "b", "ab"}, {2 * sec, "c", "abc"},
			{3 * sec, "a", "abc"},
			{4 * sec, "d", "acd"}, // b was idle for longest
			{5 * sec, "A", "acd"}, // opens a
			{6 * sec, "e", "ade"}, // c; a is open and stays
			{7 * sec, "D", "ade"}, {8 * sec, "E", "ade"},
			{9 * sec, "f", "ade"}, // no room: passes without
			{9*sec + 1, "g", "ade"},
			{60 * sec, "", "ade"},
			{70 * sec, "h", "h"}, // all the others have been idle for a minute, and their time is over
			{131 * sec, "", ""},
		} {
			time.Sleep(x.at - time.Since(epoch))
			var err error
			if x.call != strings.ToLower(x.call) {
				err = errDown
			}
			if x.call != "" && !call("/s/"+strings.ToLower(x.call), err, 0) {
				t.Errorf("step %d: turned away", i)
			}
			if got := names(); got != x.want {
				t.Errorf("step %d at %v: breakers %s, want %s", i, x.at, got, x.want)
			}
		}
		if n := r.State().Unguarded; n != 2 {
			t.Errorf("%d calls were unguarded, want 2", n)
		}
		// One with a call in flight is never idle.
		var wg sync.WaitGroup
		wg.Go(func() { call("/s/z", nil, time.Hour) })
		synctest.Wait()
		time.Sleep(30 * time.Minute)
		if got := names(); got != "z" {
			t.Errorf("breakers %s, want z, which has a call", got)
		}
		wg.Wait()
	})
}

// epoch is when synctest's time begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// TestTableUnderConcurrency: calls of more methods than there is room for, while breakers come and go.
func TestTableUnderConcurrency(t *testing.T) {
	r := newRig(t, Config{MaxBreakers: 4, IdleAfter: 1})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				m := fmt.Sprintf("/s/%d", (g+i)%16)
				if err := r.unaryClient(context.Background(), m, nil, nil, nil, nothing); err != nil {
					t.Errorf("a call failed: %v", err)
				}
				if i%100 == 0 {
					r.State()
				}
			}
		})
	}
	wg.Wait()
	r.idle()
	if n := len(r.State().Breakers); n > 4 {
		t.Errorf("%d breakers, want 4 at most", n)
	}
}

// TestEventsInOrder: with many callers and fast changes each event begins where the last one ended.
func TestEventsInOrder(t *testing.T) {
	r := newRig(t, Config{})
	last, busy := Closed, false // without a lock: the race detector checks that events come one at a time
	err := r.Update(Config{Policy: Policy{ConsecutiveFailures: 1, OpenFor: time.Microsecond, Ramp: time.Microsecond},
		OnStateChange: func(e StateChange) {
			if busy || e.From != last {
				t.Errorf("%v>%v after one to %v, two at once %v", e.From, e.To, last, busy)
			}
			busy, last = true, e.To
			busy = false
		}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				var err error
				if (i+g)%3 == 0 {
					err = status.Error(codes.Unavailable, "")
				}
				r.call(err, 0)
			}
		})
	}
	wg.Wait()
	r.idle()
}

// TestStale: what a goroutine does that was overtaken by an Update, or by the removal of its breaker.
func TestStale(t *testing.T) {
	r := newRig(t, Config{})
	r.call(nil, 0)
	old, b := r.rules.Load(), r.index.Load().find(0, "", method)
	r.update(Config{Policy: Policy{Window: time.Minute}})
	fresh := b.rule.Load()
	b.adopt(old.byScope[0])
	if g := b.gate.Load(); b.rule.Load() != fresh || g.window != time.Minute {
		t.Errorf("an old policy was adopted: a window of %v, want 1m0s", g.window)
	}
	if br, again := r.create(old, old.byScope[0], key{name: "/x.Y/Z"}); br != nil || !again {
		t.Errorf("create with an old configuration = %v, %v, want to be told to look again", br, again)
	}
	b.places.enter(0)
	if b.remove() || b.gone.Load() {
		t.Error("a breaker with a call in flight was removed")
	}
	b.places.leave()
	r.update(Config{Policy: Policy{Key: Target}})
	if !b.gone.Load() {
		t.Error("a breaker that Update took out is not marked")
	}
}

// TestRemovedWhileEntering: a call that has found its breaker just before that is removed takes the next one.
func TestRemovedWhileEntering(t *testing.T) {
	r := newRig(t, Config{})
	r.call(nil, 0)
	old := r.index.Load().find(0, "", method)
	r.whileLocked(func() { // as whoever removes it
		old.gone.Store(true)
		old.used.Store(false)
	}, func() {
		r.call(errDown, 0)
	}, func() bool { return old.used.Load() }, func() {
		r.index.Store(new(table))
	})
	if s := r.one(); s.Failures != 1 || old.gate.Load().cb.Counts().TotalFailures != 0 || old.places.n.Load() != 0 {
		t.Errorf("%v, the removed one has %+v, want the failure in the new one", s, old.gate.Load().cb.Counts())
	}
	r.idle()
}

// whileLocked holds the table's lock, starts call, waits until ready, and lets go after then.
func (r *rig) whileLocked(first, call func(), ready func() bool, then func()) {
	var wg sync.WaitGroup
	defer wg.Wait()
	r.Breakers.mu.Lock()
	defer r.Breakers.mu.Unlock()
	first()
	wg.Go(call)
	for deadline := time.Now().Add(10 * sec); !ready(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatal("the call has not begun within 10 s")
		}
	}
	then()
}

// TestTableFull: with a call in flight everywhere, others pass unguarded, and are guarded once there is room again.
func TestTableFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{MaxBreakers: 1, Policy: Policy{ConsecutiveFailures: 1}})
		var wg sync.WaitGroup
		wg.Go(func() { r.call(nil, 10*sec) })
		synctest.Wait()
		other := func() { _ = r.unaryClient(context.Background(), "/s/other", nil, nil, nil, nothing) }
		for i, x := range []struct {
			at   time.Duration
			do   func()
			want uint64
		}{
			{0, other, 1},
			{9500 * time.Millisecond, other, 2},
			{10100 * time.Millisecond, wg.Wait, 2},
			{10200 * time.Millisecond, other, 3}, // there is room, but nobody looks for a second
			{11 * sec, other, 3},
		} {
			time.Sleep(x.at - time.Since(epoch))
			x.do()
			if n := r.State().Unguarded; n != x.want {
				t.Errorf("step %d: %d unguarded, want %d", i, n, x.want)
			}
		}
		wg.Go(func() { _ = r.unaryClient(context.Background(), "/s/other", nil, nil, nil, fails) })
		wg.Wait() // open, and so it stays
		r.call(nil, 0)
		r.update(Config{MaxBreakers: 2})
		r.call(nil, 0)
		if s := r.State(); s.Unguarded != 4 || len(s.Breakers) != 2 {
			t.Errorf("%d unguarded, %d breakers, want 4 and 2: Update made room", s.Unguarded, len(s.Breakers))
		}
	})
}

// TestIdleButOpen: a breaker that is open for longer than IdleAfter is not forgotten meanwhile.
func TestIdleButOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{IdleAfter: sec, Policy: Policy{ConsecutiveFailures: 1, OpenFor: time.Hour}})
		r.call(errDown, 0)
		for range 3 {
			time.Sleep(19 * time.Minute)
			if s := r.one(); s.Phase != Open {
				t.Errorf("%v, want open", s)
			}
		}
		time.Sleep(4 * time.Minute)
		if n := len(r.State().Breakers); n != 0 {
			t.Errorf("%d breakers, want none once its time is over", n)
		}
	})
}
