package memory

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// afterRestart lets the time pass, in a bubble, in which every record is put back.
func afterRestart() {
	<-time.After(putBackAfter + putBackSpread)
	synctest.Wait()
}

func TestRestartEmptiesThenFills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		for i, id := range []string{"c", "a", "b"} {
			register(t, r, instance(id, i+1))
		}
		r.PutForeign(orders, instance("dead", 9))
		h := follow(t, r, nil)
		h.want(t, "c a b dead")
		start := time.Now()
		r.Restart()
		h.want(t, "")
		afterRestart()
		h.want(t, "c", "c a", "c a b")
		if d := time.Since(start); d > 60*time.Millisecond {
			t.Errorf("took %v, want the documented 60ms or less", d)
		}
	})
}

func TestLateWatcherStillSeesTheRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		register(t, r, instance("a", 1))
		gate := make(chan struct{})
		h := follow(t, r, func() { <-gate })
		h.want(t, "a") // and it is busy with it
		r.Restart()
		afterRestart()
		r.Restart()
		afterRestart()
		close(gate)
		h.want(t, "", "a")
	})
}

func TestRestartOfAnEmptyServiceIsNoChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		h := follow(t, r, nil)
		h.want(t, "")
		r.Restart()
		h.want(t)
	})
}

func TestWritesWhileARecordIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		a, b := register(t, r, instance("a", 1)), register(t, r, instance("b", 2))
		h := follow(t, r, nil)
		h.want(t, "a b")
		r.Restart()
		h.want(t, "")
		next := instance("b", 2)
		next.Draining = true
		if err := b.Update(t.Context(), next); err != nil {
			t.Error(err)
		}
		h.want(t, "b") // an update writes the record, so it need not wait
		r.Restart()
		h.want(t, "")
		if err := b.Update(t.Context(), next); err != nil {
			t.Error(err)
		}
		h.want(t, "b")              // even one that changes nothing
		b.(*registration).putBack() // a timer that fires while it is being stopped comes too late
		h.want(t)
		closeAll(t, a)
		afterRestart()
		h.want(t)
		if !h.last[0].Draining {
			t.Errorf("put back: %+v, want the last update", h.last[0])
		}
	})
}

func TestOutage(t *testing.T) {
	first, second := errors.New("first reason"), errors.New("second reason")
	synctest.Test(t, func(t *testing.T) {
		r := New()
		a, b := register(t, r, instance("a", 1)), register(t, r, instance("b", 2))
		h := follow(t, r, nil)
		h.want(t, "a b")
		r.Fail(first)
		if err := <-h.ended; !errors.Is(err, first) {
			t.Errorf("running Watch = %v, want %v", err, first)
		}
		r.Fail(second)
		late := follow(t, r, nil)
		if err := <-late.ended; !errors.Is(err, second) {
			t.Errorf("new Watch = %v, want %v", err, second)
		}
		late.want(t)

		if err := b.Close(t.Context()); !errors.Is(err, second) {
			t.Errorf("Close = %v, want %v", err, second)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Errorf("second Close = %v, want nil", err)
		}
		next := instance("a", 1)
		next.Zone = "z"
		if err := a.Update(t.Context(), next); err != nil {
			t.Errorf("Update = %v", err)
		}
		register(t, r, instance("c", 3))
		r.Recover()
		r.Recover()
		h = follow(t, r, nil)
		h.want(t, "a c")
		if h.last[0].Zone != "z" {
			t.Errorf("after the outage: %+v, want its last update", h.last[0])
		}
	})
}

func TestShortOutageEndsEveryWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		h := follow(t, r, nil)
		reason := errors.New("reason")
		r.Fail(reason)
		r.Recover() // before the watch had a chance to look
		if err := <-h.ended; !errors.Is(err, reason) {
			t.Errorf("Watch = %v, want %v", err, reason)
		}
	})
}

func TestRestartDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		a, b, c := register(t, r, instance("a", 1)), register(t, r, instance("b", 2)), register(t, r, instance("c", 3))
		r.Restart()
		r.Fail(nil)
		afterRestart() // its timers run into the outage
		r.Recover()
		h := follow(t, r, nil)
		h.want(t, "") // nobody could put a record back before
		afterRestart()
		h.want(t, "a", "a b", "a b c")
		r.Fail(nil)
		r.Restart()
		next := instance("a", 1)
		next.Version = "2.0.0"
		if err := a.Update(t.Context(), next); err != nil {
			t.Errorf("Update = %v", err)
		}
		if err := b.Close(t.Context()); err == nil {
			t.Error("Close in an outage = nil, want an error")
		}
		afterRestart()
		r.Recover()
		h = follow(t, r, nil)
		h.want(t, "")
		afterRestart()
		h.want(t, "a", "a c")
		if h.last[0].Version != "2.0.0" {
			t.Errorf("put back: %+v, want its last update", h.last[0])
		}
		closeAll(t, a, c)
	})
}

func TestForeignRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		h := follow(t, r, nil)
		h.want(t, "")
		removeDead := r.PutForeign(orders, instance("dead", 1))
		h.want(t, "dead")
		mine := register(t, r, instance("mine", 2))
		h.want(t, "dead mine")
		remove := r.PutForeign(orders, registry.Instance{ID: "mine", Addr: "malformed"}) // overwritten by somebody
		h.want(t, "dead")
		remove()
		remove()
		taken := r.PutForeign(orders, instance("mine", 3))
		h.want(t, "dead mine")
		closeAll(t, mine) // which removes its own record only
		h.want(t)
		taken()
		h.want(t, "dead")
		removeDead()
		h.want(t, "")
		again := r.PutForeign(orders, instance("dead", 1))
		removeDead() // an old remove
		h.want(t, "dead")
		r.Restart()
		h.want(t, "")
		again()
		afterRestart()
		h.want(t)
	})
}

func TestMalformedRecordIsLoggedOnce(t *testing.T) {
	var buf bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&buf, nil)))
	defer slog.SetDefault(old)
	logged := func(t *testing.T, want int) {
		t.Helper()
		synctest.Wait()
		if n := strings.Count(buf.String(), "malformed record left out"); n != want {
			t.Errorf("logged %d times, want %d:\n%s", n, want, buf.String())
		}
	}
	synctest.Test(t, func(t *testing.T) {
		r := New()
		h := follow(t, r, nil)
		remove := r.PutForeign(orders, registry.Instance{ID: "foreign", Addr: "no port"})
		logged(t, 1)
		for _, part := range []string{"level=WARN", "service=orders", "id=foreign", "Addr"} {
			if !strings.Contains(buf.String(), part) {
				t.Errorf("log %q, want %q in it", buf.String(), part)
			}
		}
		for i := range 10 {
			register(t, r, instance(string(rune('a'+i)), i+1))
			synctest.Wait()
		}
		logged(t, 1)
		remove()
		logged(t, 1)
		r.PutForeign(orders, registry.Instance{ID: "foreign", Addr: "no port"})
		logged(t, 2)
		h.cancel()
		<-h.ended
	})
}
