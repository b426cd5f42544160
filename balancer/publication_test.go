package balancer

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/internal/lbtest"
)

func TestWindow(t *testing.T) {
	const ms = int64(time.Millisecond)
	type event struct {
		at   int64
		do   string // "change", "hurry", "expire", or "publish" that began at at and took cost
		cost int64
		want int64 // the wait of change and hurry; 1 if expire publishes
	}
	for _, tt := range []struct {
		name   string
		events []event
	}{
		{"at once after a quiet time, then at the window's end", []event{
			{at: 100 * ms, do: "change", want: 0}, {at: 100 * ms, do: "publish"},
			{at: 100*ms + 1, do: "change", want: ms - 1}, {at: 100*ms + 2, do: "change", want: -1},
			{at: 101 * ms, do: "expire", want: 1}, {at: 101 * ms, do: "publish"},
			{at: 103 * ms, do: "change", want: 0},
		}},
		{"a dear publication has a long window", []event{
			{at: 0, do: "publish", cost: 3 * ms}, {at: 32 * ms, do: "change", want: ms}, {at: 33 * ms, do: "expire", want: 1},
			{at: 33 * ms, do: "publish", cost: 1}, {at: 34*ms + 1, do: "change", want: 0},
		}},
		{"one that lost the processor for a second keeps nobody waiting for ten", []event{
			{at: 0, do: "publish", cost: 1000 * ms}, {at: 1001 * ms, do: "change", want: 249 * ms},
		}},
		{"what is urgent does not wait, but not twice in a row where publishing is dear", []event{
			{at: 0, do: "publish", cost: ms}, {at: 2 * ms, do: "hurry", want: 0}, {at: 2 * ms, do: "publish", cost: ms},
			{at: 4 * ms, do: "hurry", want: 9 * ms}, {at: 5 * ms, do: "hurry", want: -1}, {at: 6 * ms, do: "change", want: -1},
			{at: 13 * ms, do: "expire", want: 1}, {at: 13 * ms, do: "publish", cost: ms},
			{at: 15 * ms, do: "hurry", want: 0}, {at: 15 * ms, do: "publish", cost: ms},
		}},
		{"what is urgent never waits where publishing is cheap", []event{
			{at: 0, do: "publish"}, {at: 1, do: "hurry", want: 0}, {at: 1, do: "publish", cost: ms / 10},
			{at: 2, do: "hurry", want: 0}, {at: 2, do: "publish", cost: ms / 10}, {at: 3, do: "hurry", want: 0},
		}},
		{"urgent after a quiet time is nothing special", []event{
			{at: 5 * ms, do: "hurry", want: 0}, {at: 5 * ms, do: "publish"},
			{at: 5*ms + 1, do: "hurry", want: 0}, {at: 5*ms + 1, do: "publish"},
			{at: 5*ms + 2, do: "change", want: ms - 1},
		}},
		{"an urgent one takes along what waits", []event{
			{at: 0, do: "publish"}, {at: 1, do: "change", want: ms - 1}, {at: 2, do: "hurry", want: 0}, {at: 2, do: "publish"},
			{at: ms, do: "expire", want: 0}, {at: ms, do: "change", want: 2},
		}},
		{"the clock goes backwards", []event{
			{at: 100 * ms, do: "publish"}, {at: 50 * ms, do: "change", want: ms}, {at: 51 * ms, do: "expire", want: 1},
			{at: 51 * ms, do: "publish"}, {at: 51*ms + 1, do: "change", want: ms - 1},
		}},
		{"the clock goes backwards while publishing", []event{
			{at: 100 * ms, do: "publish", cost: -50 * ms}, {at: 50*ms + 1, do: "change", want: ms - 1},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w window
			for i, e := range tt.events {
				var got int64
				switch e.do {
				case "change":
					got = w.changed(e.at)
				case "hurry":
					got = w.hurry(e.at)
				case "expire":
					if w.expired() {
						got = 1
					}
				case "publish":
					w.published(e.at, e.at+e.cost)
				}
				if got != e.want {
					t.Errorf("event %d, %s at %d: %d, want %d", i, e.do, e.at, got, e.want)
				}
			}
		})
	}
}

// TestBurst: many endpoints that become READY one after another within a moment cost few pickers.
func TestBurst(t *testing.T) {
	const n = 500
	r := bareRig(t, lbtest.New())
	if err := lbtest.Update(r.p, mustParse(t, Config{}), lbtest.Endpoints(fleet(n)...)); err != nil {
		t.Fatal(err)
	}
	if got := r.cc.Updates(); got != 1 {
		t.Fatalf("%d pickers when the update returns, want 1", got)
	}
	steps := 0
	for r.cc.Step() {
		if steps++; r.cc.State() != connectivity.Ready && r.p.states[connectivity.Ready] > 0 {
			t.Fatalf("the first connection is not published at once")
		}
	}
	r.flush()
	if got := r.cc.Updates(); steps < 2*n || got > 4 {
		t.Errorf("%d pickers for %d changes, want 4 at most", got, steps)
	}
	for _, in := range fleet(n) {
		r.ids[in.Addr] = in.ID
	}
	if got := r.calls(n, ask{}); len(got) != n {
		t.Errorf("the last picker has %d endpoints, want %d", len(got), n)
	}

	// Spread over 100 ms they cost one per window.
	r.cc.Refuse = func(string) error { return errRefused }
	before := r.cc.Updates()
	for i, in := range fleet(n)[1:] {
		r.cc.Conn(in.Addr).Move(connectivity.Idle, nil)
		if i%5 == 4 {
			r.advance(time.Millisecond)
		}
	}
	if got := r.cc.Updates() - before; got > 2*n/5 {
		t.Errorf("%d pickers in %d windows, want two in each at most", got, n/5)
	}
}

// TestPublishedBeforeUpdateReturns has an update whose effect the very next pick sees.
func TestPublishedBeforeUpdateReturns(t *testing.T) {
	r := newRig(t, Config{}, fleet(3))
	for i := range 20 {
		ins := fleet(3)
		ins[i%3].Draining = true
		before := r.cc.Updates()
		if err := lbtest.Update(r.p, mustParse(t, Config{}), lbtest.Endpoints(ins...)); err != nil {
			t.Fatal(err)
		}
		if r.cc.Updates() != before+1 {
			t.Fatalf("update %d published %d pickers, want 1", i, r.cc.Updates()-before)
		}
		if got := r.calls(30, ask{}); got[ins[i%3].ID] > 0 || len(got) != 2 {
			t.Fatalf("after update %d calls go to %v", i, got)
		}
	}
}

// TestLossOfTheLast is published at once, as is the first connection after it.
func TestLossOfTheLast(t *testing.T) {
	r := newRig(t, Config{}, fleet(1))
	r.cc.Refuse = func(string) error { return errRefused }
	r.cc.Conn("10.0.0.1:80").Move(connectivity.Idle, nil)
	r.cc.Step()
	if r.cc.State() != connectivity.Connecting {
		t.Fatalf("after the last connection broke the channel is %v, want CONNECTING", r.cc.State())
	}
	if _, _, err := r.begin(ask{}); err != gbalancer.ErrNoSubConnAvailable {
		t.Fatalf("pick: %v, want it to queue", err)
	}
	r.flush()
	if r.cc.State() != connectivity.TransientFailure {
		t.Fatalf("after the reconnect was refused the channel is %v, want TRANSIENT_FAILURE", r.cc.State())
	}
	r.cc.Refuse = nil
	r.cc.Conn("10.0.0.1:80").Move(connectivity.Idle, nil)
	r.settle()
	if r.cc.State() != connectivity.Ready {
		t.Fatalf("with a connection the channel is %v before the window ends, want READY", r.cc.State())
	}
	r.call(ask{})
}

// TestFirstAndLastNeverWait: whatever was published a moment before and however dear that was, the channel is READY as
// soon as there is a connection, and no longer than there is one, in random sequences of losses, refusals, reconnects
// and ejections.
func TestFirstAndLastNeverWait(t *testing.T) {
	for _, cost := range []time.Duration{0, 200 * time.Microsecond, 20 * time.Millisecond} {
		rnd := rand.New(rand.NewPCG(7, uint64(cost)))
		r := newRig(t, Config{}, fleet(3))
		r.clock.step = int64(cost)
		changes, ready := 0, true
		for range 3000 {
			switch in := fleet(3)[rnd.IntN(3)]; rnd.IntN(5) {
			case 0:
				r.cc.Refuse = nil
				if rnd.IntN(2) == 0 {
					r.cc.Refuse = func(string) error { return errRefused }
				}
			case 1:
				r.cc.Conn(in.Addr).Move(connectivity.Idle, nil)
			case 2:
				r.cc.Step()
			case 3:
				if t := r.clock.take(r.clock.Now()); t != nil {
					t.f()
				}
			case 4:
				if _, done, err := r.begin(ask{}); err == nil {
					r.frozen = true
					done(ended(fails(codes.Unavailable)))
					r.frozen = false
				}
			}
			now := r.p.states[connectivity.Ready] > 0
			if got := r.cc.State() == connectivity.Ready; got != now {
				t.Fatalf("publications cost %v: %d are connected, and the channel is %v", cost, r.p.states[connectivity.Ready], r.cc.State())
			}
			if now != ready {
				ready = now
				changes++
			}
		}
		r.clock.step = 0
		if changes < 20 {
			t.Errorf("publications cost %v: the first came or the last went %d times only, want 20", cost, changes)
		}
	}
}

// TestEjectionIsUrgent: one ejection is published at once. A storm of them costs few pickers where publishing is dear;
// where it is cheap, half of the instances serve at every moment of it.
func TestEjectionIsUrgent(t *testing.T) {
	const n = 200
	for _, row := range []struct {
		name     string
		cost     time.Duration
		min, max float64 // pickers for each ejection
	}{{"cheap", 0, 0.9, 1}, {"dear", 2 * time.Millisecond, 0, 0.8}} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, Config{}, fleet(n))
			for _, in := range fleet(n) {
				r.answers[in.ID] = fails(codes.Unavailable)
			}
			r.clock.step = int64(row.cost)
			before := r.cc.Updates()
			for range 8 {
				got := r.calls(n, ask{})
				if row.cost == 0 && len(got) < n/2 {
					t.Fatalf("calls go to %d instances, want half of %d at all times", len(got), n)
				}
			}
			r.clock.step = 0
			c := r.p.describe().Counters
			if c.Ejections < n/2 {
				t.Fatalf("%d ejections, want half of %d at least", c.Ejections, n)
			}
			got := float64(r.cc.Updates()-before) / float64(c.Ejections)
			if got < row.min || got > row.max {
				t.Errorf("%v pickers for each of %d ejections, want %v to %v", got, c.Ejections, row.min, row.max)
			}
			r.advance(time.Second)
			if got := r.calls(n, ask{}); len(got) != n/2 {
				t.Errorf("calls go to %d instances, want half of %d", len(got), n)
			}
		})
	}
}

// TestOvertakenWindow: a timer fires, and before it runs an urgent publication has begun the next window, in which
// another change waits. The late timer is none of that window's business.
func TestOvertakenWindow(t *testing.T) {
	r := newRig(t, Config{}, fleet(5))
	r.flush()
	lose := func(i int) { // without what the policy does about it
		r.cc.Conn(fleet(5)[i].Addr).Move(connectivity.Idle, nil)
		r.cc.Step()
	}
	lose(0) // published at once
	lose(1) // waits
	published := r.cc.Updates()
	wake := r.clock.take(r.clock.Now()) // the reconnections
	late := r.clock.take(r.clock.Now() + minWindow)
	if late == nil || late.at != r.clock.Now() {
		t.Fatal("no timer waits for the end of the window")
	}
	r.clock.set(r.clock.Now() - 1) // it was a little early
	r.answers["i3"] = fails(codes.Unavailable)
	r.sickenQuietly("i3") // urgent
	if r.cc.Updates() != published+1 {
		t.Fatalf("%d pickers for an ejection, want 1", r.cc.Updates()-published)
	}
	lose(4) // waits again
	if r.cc.Updates() != published+1 {
		t.Fatal("a second change within a window was published at once")
	}
	late.f()
	if r.cc.Updates() != published+1 {
		t.Error("the late timer published before its window's end")
	}
	wake.f()
	r.flush()
	if r.cc.Updates() == published+1 {
		t.Error("the change that waited was never published")
	}
}

// sickenQuietly ejects id without letting time pass or connections move.
func (r *rig) sickenQuietly(id string) {
	r.t.Helper()
	for e := range r.ever {
		if e.id.ID == id {
			for range 3 {
				e.observe(func(h health) health { return h.fail(false) })
			}
			r.p.eject(e, 3, r.answers[id])
			return
		}
	}
	r.t.Fatalf("no endpoint %s", id)
}

// TestClose: with the real clock, when Close returns nothing of the policy is left and nothing more is delivered.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cc := lbtest.New()
		b := lbtest.Build(cc, Name, "orders")
		if err := lbtest.Update(b, mustParse(t, Config{}), lbtest.Endpoints(fleet(8)...)); err != nil {
			t.Fatal(err)
		}
		cc.Settle()
		time.Sleep(2 * time.Millisecond) // virtual
		synctest.Wait()
		picker := cc.Picker()
		var under []func(gbalancer.DoneInfo)
		for range 80 { // ejects half, so that a timer waits for 30 s
			res, err := picker.Pick(gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/a/b"})
			if err != nil {
				t.Fatal(err)
			}
			under = append(under, res.Done)
		}
		for _, done := range under[:60] {
			done(ended(fails(codes.Unavailable)))
		}
		cc.Conn("10.0.0.1:80").Move(connectivity.Idle, nil)
		cc.Step()
		b.Close()
		updates := cc.Updates()
		began := time.Now()
		for _, done := range under[60:] {
			done(ended(fails(codes.Unavailable)))
		}
		cc.Settle()
		b.ExitIdle()
		b.ResolverError(errRefused)
		if err := lbtest.Update(b, mustParse(t, Config{}), lbtest.Endpoints(fleet(2)...)); err != nil {
			t.Errorf("an update after Close: %v", err)
		}
		time.Sleep(time.Hour) // virtual
		synctest.Wait()
		if cc.Updates() != updates {
			t.Errorf("%d pickers were delivered after Close", cc.Updates()-updates)
		}
		if d := time.Since(began); d != time.Hour {
			t.Errorf("Close left something that took %v", d)
		}
		for _, c := range Channels() {
			if c.Target == "lb:///orders" && len(c.Endpoints) == 8 {
				t.Error("a closed policy is among Channels")
			}
		}
	})
}
