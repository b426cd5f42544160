package balancer

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/registry"
)

func TestRampShape(t *testing.T) {
	const w = 40 * time.Second
	for _, tt := range []struct {
		cfg  SlowStart
		at   time.Duration
		want float64
	}{
		{SlowStart{Window: w}, -time.Hour, 0.1},
		{SlowStart{Window: w}, 0, 0.1},
		{SlowStart{Window: w}, w / 20, 0.1},
		{SlowStart{Window: w}, w / 4, 0.25},
		{SlowStart{Window: w}, w / 2, 0.5},
		{SlowStart{Window: w}, w, 1},
		{SlowStart{Window: w}, 9 * w, 1},
		{SlowStart{Window: w, MinPercent: 30}, 0, 0.3},
		{SlowStart{Window: w, MinPercent: 100}, 0, 1},
		{SlowStart{Window: w, Aggression: 2}, w / 4, 0.5},
		{SlowStart{Window: w, Aggression: 0.5}, w / 2, 0.25},
		{SlowStart{}, 0, 1},
	} {
		r, err := tt.cfg.resolve()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.share(int64(tt.at)); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%+v: the share at %v is %v, want %v", tt.cfg, tt.at, got, tt.want)
		}
	}
}

const rampTime = 32 * time.Second

// slowly is a configuration with slow start and nothing else that is new.
func slowly(s Strategy) Config { return Config{Strategy: s, SlowStart: SlowStart{Window: rampTime}} }

// joined is a rig of n instances to which the last one came later, when the others had been there for long.
func joined(t *testing.T, c Config, n int) *rig {
	t.Helper()
	r := newRig(t, c, fleet(n)[:n-1])
	r.advance(time.Minute)
	r.update(c, fleet(n))
	return r
}

// TestSlowStartShares: an instance that joins four others gets its share of the calls, by every strategy, at each
// point of the ramp and after it.
func TestSlowStartShares(t *testing.T) {
	const n, calls = 5, 1500
	for _, s := range strategiesUnderTest {
		t.Run(s.Name(), func(t *testing.T) {
			r := joined(t, slowly(s), n)
			for _, tt := range []struct {
				at    time.Duration
				share float64
			}{{time.Second, 0.1}, {rampTime / 4, 0.25}, {rampTime / 2, 0.5}, {rampTime, 1}} {
				r.advance(time.Duration(start) + time.Minute + tt.at - time.Duration(r.clock.Now()) + time.Second/2)
				if got := r.state("i4").Share; math.Abs(got-tt.share) > 0.03 {
					t.Fatalf("after %v the share is %v, want about %v", tt.at, got, tt.share)
				}
				share := r.state("i4").Share
				got := make([]int, n)
				for range calls {
					id, done, err := r.begin(ask{})
					if err != nil {
						t.Fatal(err)
					}
					got[id[1]-'0']++
					done(ended(nil))
				}
				want := make([]float64, n)
				for i := range want {
					want[i] = calls / (n - 1 + share)
				}
				want[n-1] *= share
				checkExpected(t, fmt.Sprintf("calls after %v", tt.at), got, want)
			}
			if r.p.byConfig.set.limited || r.p.reduced != 0 || len(r.p.warming) != 0 {
				t.Error("the ramp is over, and shares are still looked at")
			}
		})
	}
}

// TestSlowStartHash: the keys of an instance that joins are those that it will have, and while it warms up those of
// their calls that it is spared go to the key's next instance, which is always the same.
func TestSlowStartHash(t *testing.T) {
	r := joined(t, slowly(Hash{Unbounded: true}), 5)
	owners := func() map[string]map[string]int {
		got := make(map[string]map[string]int)
		for k := range 60 {
			key := fmt.Sprint("key", k)
			got[key] = r.calls(40, ask{ctx: WithHashKey(t.Context(), key)})
		}
		return got
	}
	r.advance(rampTime / 2)
	during := owners()
	r.advance(rampTime)
	moved := 0
	for key, after := range owners() {
		if len(after) != 1 {
			t.Fatalf("%s is served by %v, want one instance", key, after)
		}
		if after["i4"] == 0 {
			if len(during[key]) != 1 {
				t.Errorf("%s is not the new instance's, and was served by %v", key, during[key])
			}
			continue
		}
		moved++
		if d := during[key]; d["i4"] == 0 || d["i4"] == 40 || len(d) != 2 {
			t.Errorf("%s is the new instance's, and was served by %v, want by it and one other", key, d)
		}
	}
	if moved == 0 {
		t.Error("the new instance has no key")
	}
}

// TestSlowStartWhoIsNew: an instance that joins others is, from its first connection on, and nobody else.
func TestSlowStartWhoIsNew(t *testing.T) {
	share := func(r *rig, id string, want float64) {
		t.Helper()
		if got := r.state(id).Share; math.Abs(got-want) > 1e-6 {
			t.Errorf("the share of %s is %v, want %v", id, got, want)
		}
	}
	c := slowly(nil)
	r := newRig(t, c, fleet(3))
	for _, id := range []string{"i0", "i1", "i2"} {
		share(r, id, 1) // nobody is new to a client that is new itself
	}
	r.drop("10.0.0.1:80")
	share(r, "i0", 1) // it reconnected

	// The ramp begins when it can be called, not when it is known.
	r.cc.Refuse = func(string) error { return errRefused }
	r.update(c, fleet(4))
	r.advance(time.Minute)
	share(r, "i3", 1)
	r.cc.Refuse = nil
	r.reconnect("10.0.0.4:80")
	share(r, "i3", 0.1)
	r.drop("10.0.0.4:80")
	r.advance(rampTime / 2)
	share(r, "i3", 0.5) // it goes on while it has no connection, and after

	// A new process at an old address is new, and one that leaves while it warms up is no trouble.
	again := fleet(4)[:3]
	again[1].ID = "i1b"
	r.update(c, again)
	share(r, "i1b", 0.1)
	if r.p.reduced != 1 {
		t.Errorf("%d endpoints have a reduced share, want 1", r.p.reduced)
	}
	r.advance(2 * rampTime)
	share(r, "i1b", 1)

	// After everybody left, everybody is new, which is the same as nobody.
	r.update(c, nil)
	r.update(c, fleet(2))
	share(r, "i1", 1)
}

// TestSlowStartAfterBlacklist: an instance that was out comes back slowly; one that was kept in does not.
func TestSlowStartAfterBlacklist(t *testing.T) {
	for _, s := range strategiesUnderTest {
		t.Run(s.Name(), func(t *testing.T) {
			r := newRig(t, slowly(s), fleet(4))
			r.sicken("i2", fails(codes.Unavailable))
			r.serveOut("i2")
			delete(r.answers, "i2")
			for range 20 {
				r.call(ask{})
			}
			if st := r.state("i2"); st.Ejected || st.Probing || st.Share > 0.2 {
				t.Fatalf("i2 is %+v, want back with a tenth of its share", st)
			}
			r.flush()
			got := r.calls(1240, ask{})
			if n := got["i2"]; n > 70 || n < 15 && !remembersFailures(s) { // or it gets even less
				t.Errorf("calls go to %v, want about 40 to i2", got)
			}
			r.advance(2 * rampTime)
			if st := r.state("i2"); st.Share != 1 {
				t.Errorf("after the window its share is %v", st.Share)
			}
		})
	}
	r := newRig(t, slowly(nil), fleet(2))
	r.sicken("i0", fails(codes.Unavailable))
	r.sicken("i1", fails(codes.Unavailable))
	clear(r.answers)
	r.calls(10, ask{})
	for _, id := range []string{"i0", "i1"} {
		if st := r.state(id); !st.Ejected && st.Share != 1 {
			t.Errorf("%s was kept in, and its share is %v", id, st.Share)
		}
	}
}

// TestSlowStartAllNew: where nobody is warm nobody is spared, and where nearly nobody is, calls are still served.
func TestSlowStartAllNew(t *testing.T) {
	for _, s := range strategiesUnderTest {
		c := slowly(s)
		r := newRig(t, c, fleet(5)[:1])
		r.update(c, fleet(5)[1:]) // one deployment: the old one left, and the others joined it
		got := make([]int, 4)
		for range 1000 {
			got[r.call(ask{})[1]-'1']++
		}
		checkUniform(t, s.Name(), got)
		r.advance(rampTime / 2) // shares differ by nothing still
		got = make([]int, 4)
		for range 1000 {
			got[r.call(ask{})[1]-'1']++
		}
		checkUniform(t, s.Name()+" later", got)
		if s == (RoundRobin{}) {
			checkTurns(t, r, ask{}, "i1 i2 i3 i4") // not one call is turned away
		}
	}
}

// TestSlowStartOneAfterTheOther: where nobody is warm, the one that is further gets more, at every moment of the ramp, and
// so it is within a zone.
func TestSlowStartOneAfterTheOther(t *testing.T) {
	for _, zone := range []string{"", "a"} {
		c := slowly(nil)
		c.Zone.Local = zone
		ins := fleet(4)
		for i := range ins[:3] {
			ins[i].Zone = "a"
		}
		r := newRig(t, c, []registry.Instance{ins[0], ins[3]})
		r.update(c, []registry.Instance{ins[0], ins[1], ins[3]})
		r.advance(rampTime / 2)
		last := ins[1:3]
		if zone != "" {
			last = ins[1:4] // one elsewhere
		}
		r.update(c, last)
		r.advance(rampTime / 4) // i1 is at three quarters, i2 at one
		got := r.calls(2000, ask{})
		sum := float64(got["i1"] + got["i2"])
		checkExpected(t, fmt.Sprintf("calls in zone %q", zone), []int{got["i1"], got["i2"]}, []float64{sum * 0.75, sum * 0.25})
		if sum < 1500 {
			t.Errorf("calls go to %v, want most of them to i1 and i2", got)
		}
	}
}

// TestSlowStartTried: a retry is not turned away from the only instance that is left for it, and never goes back to one
// that was tried because another is new.
func TestSlowStartTried(t *testing.T) {
	for _, s := range strategiesUnderTest {
		r := joined(t, slowly(s), 2)
		old := &callctx.Call{}
		for old.Picked() == nil || old.Picked().ID != "i0" {
			r.call(ask{ctx: with(t.Context(), old)})
		}
		var tried callctx.Tried
		tried.Add(old.Picked())
		for range 100 {
			if id := r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}); id != "i1" {
				t.Fatalf("%s: a second attempt went to %s again, want the new instance", s.Name(), id)
			}
		}
	}
}

// TestSlowStartConfigChanges: a ramp follows the configuration that is in force, and ends when it is switched off.
func TestSlowStartConfigChanges(t *testing.T) {
	c := slowly(nil)
	r := joined(t, c, 3)
	r.advance(rampTime / 2)
	share := func(want float64) {
		t.Helper()
		if got := r.state("i2").Share; math.Abs(got-want) > 0.02 {
			t.Errorf("the share is %v, want %v", got, want)
		}
	}
	share(0.5)
	c.SlowStart.Window = 2 * rampTime
	r.update(c, fleet(3))
	share(0.25)
	r.advance(rampTime / 2)
	share(0.5)
	c.SlowStart = SlowStart{}
	r.update(c, fleet(3))
	share(1)
	if !r.p.byConfig.set.plain {
		t.Error("slow start is off, and picks still take the slow way")
	}
	checkTurns(t, r, ask{}, "i0 i1 i2")
	c.SlowStart = SlowStart{Window: rampTime}
	r.update(c, fleet(3))
	share(1) // nobody is new because of a new configuration
}

// TestSlowStartClockBackwards: a clock that is set back by an hour does not make the ramp an hour longer.
func TestSlowStartClockBackwards(t *testing.T) {
	r := joined(t, slowly(nil), 3)
	r.advance(rampTime / 2)
	r.p.mu.Lock()
	r.clock.set(r.clock.Now() - int64(time.Hour))
	r.p.reheat()
	r.p.mu.Unlock()
	for _, timer := range r.clock.timers {
		timer.at -= int64(time.Hour) // a timer does not care for the time of day
	}
	r.advance(rampTime + rampTime/32)
	if got := r.state("i2").Share; got != 1 {
		t.Errorf("the share is %v, want 1", got)
	}
}

// TestSetShare: whatever is said about a share, the endpoint gets some calls and not more than all, and sets look at
// shares only while they matter.
func TestSetShare(t *testing.T) {
	r := newRig(t, Config{}, fleet(2))
	e := endpoint(r, "i0")
	set := func(v float64) {
		r.p.mu.Lock()
		r.p.setShare(e, warming, v)
		r.p.retop()
		r.p.unlockAndPublish(urgent)
	}
	for _, tt := range []struct {
		v    float64
		want float64
	}{{0.5, 0.5}, {0.25, 0.25}, {0, 0.001}, {-1, 0.001}, {1, 1}, {7, 1}, {0.5, 0.5}, {1, 1}} {
		set(tt.v)
		if got := r.state("i0").Share; math.Abs(got-tt.want) > 1e-3 {
			t.Errorf("after %v the share is %v, want %v", tt.v, got, tt.want)
		}
		if want := tt.want < 1; (r.p.reduced == 1) != want || r.p.byConfig.set.limited != want {
			t.Errorf("after %v, %d are reduced and the set is limited: %v, want %v", tt.v, r.p.reduced, r.p.byConfig.set.limited, want)
		}
	}
}

// TestSlowStartAllocatesNothing while somebody warms up.
func TestSlowStartAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool drops what it is given, at random")
	}
	for _, s := range strategiesUnderTest {
		r := joined(t, slowly(s), 4)
		info := gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/orders.Orders/Get"}
		checkNoAllocations(t, s.Name(), r.cc.Picker(), info)
	}
}

func TestSlowStartConfig(t *testing.T) {
	for js, want := range map[string]string{
		`{"slowStart":{"window":"-1s"}}`:                   "evenkeel: slowStart.window = -1s, want 0 to 8760h0m0s",
		`{"slowStart":{"window":"1s","minPercent":101}}`:   "evenkeel: slowStart.minPercent = 101, want 1 to 100",
		`{"slowStart":{"window":"1s","aggression":-1}}`:    "evenkeel: slowStart.aggression = -1, want 0.1 to 100",
		`{"slowStart":{"minPercent":5}}`:                   "evenkeel: slowStart.window = 0 with other fields set, want a window such as 30s",
		`{"slowStart":{"windows":"1s"}}`:                   `evenkeel: slowStart: unknown field "windows", want one of window, minPercent, aggression`,
		`{"slowStart":{"window":"1s","aggression":1e300}}`: "evenkeel: slowStart.aggression = 1e+300, want 0.1 to 100",
	} {
		if _, err := parseConfig(json.RawMessage(js)); err == nil || err.Error() != want {
			t.Errorf("%s:\n\t%v, want\n\t%s", js, err, want)
		}
	}
	c := SlowStart{Window: 90 * time.Second, MinPercent: 5, Aggression: 1.5}
	s := mustParse(t, Config{SlowStart: c})
	want, err := c.resolve()
	if err != nil || s.ramp != want {
		t.Errorf("the ramp is %+v (%v), want %+v", s.ramp, err, want)
	}
	if _, err := (SlowStart{Window: 1, Aggression: math.NaN()}).resolve(); err == nil {
		t.Error("an aggression that is no number is accepted")
	}
}
