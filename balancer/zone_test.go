package balancer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// TestZoneSurge: calls stay in the zone as long as it can serve them, with every strategy; what is too much goes
// elsewhere, and no queue builds up meanwhile; and comes back.
func TestZoneSurge(t *testing.T) {
	for i, s := range strategiesUnderTest {
		t.Run(fmt.Sprint(i, s.Name()), func(t *testing.T) {
			w := newTown(t, near(s), zoned(4, 9))
			w.rnd = rand.New(rand.NewPCG(5, uint64(i)))
			w.live(5*time.Second, 60)
			left, _ := w.live(10*time.Second, 60)
			w.wantLeft("with a sixth of what the zone can do", left, 0.002, 0.05)

			_, mean := w.live(2*time.Second, 600)
			if mean > 200*time.Millisecond {
				t.Errorf("calls take %v when the surge begins, want no queue", mean)
			}
			left, mean = w.live(6*time.Second, 600)
			w.wantLeft("with half as much again as it can do", left, 0.33, 0.7)
			if mean > 100*time.Millisecond {
				t.Errorf("calls take %v in the surge, want what a queue of a few takes", mean)
			}

			w.live(10*time.Second, 60)
			left, _ = w.live(10*time.Second, 60)
			w.wantLeft("after the surge", left, 0.002, 0.1)
		})
	}
}

// TestZoneTrouble: what happens in the zone or elsewhere, and how much leaves a while later; and that they are back ten
// seconds after all is well again, or twenty after a hang. With ten calls a second the zone is known to be well by those few that stayed.
func TestZoneTrouble(t *testing.T) {
	slow := func(times int) func(*house) {
		return func(h *house) { h.takes = time.Duration(times) * 10 * time.Millisecond }
	}
	for _, tt := range []struct {
		name        string
		rate        int
		do          func(w *town)
		after       time.Duration
		least, most float64
		back        time.Duration
	}{
		{"the zone is slow", 160, func(w *town) { w.in("a", slow(10)) }, 2 * time.Second, 0.8, 0.96, 10 * time.Second},
		{"and calls are few", 10, func(w *town) { w.in("a", slow(20)) }, 20 * time.Second, 0.3, 0.96, 30 * time.Second},
		{"the others are slow", 160, func(w *town) { w.in("b", slow(10)) }, 3 * time.Second, 0.002, 0.08, 10 * time.Second},
		{"all are slow, and the zone has hardly enough", 160, func(w *town) { w.in("a", slow(2)); w.in("b", slow(2)) },
			3 * time.Second, 0.004, 0.4, 10 * time.Second},
		{"the zone hangs", 160, func(w *town) { w.in("a", func(h *house) { h.stuck = true }) }, time.Second, 0.8, 0.96,
			20 * time.Second}, // the last call that hangs ends after five
		{"and calls are few", 10, func(w *town) { w.in("a", func(h *house) { h.stuck = true }) }, 3 * time.Second, 0.8, 0.96,
			30 * time.Second},
		{"the others hang", 160, func(w *town) { w.in("b", func(h *house) { h.stuck = true }) }, 3 * time.Second, 0.002, 0.08,
			10 * time.Second},
		{"the zone has hardly enough, and the others hang", 160, func(w *town) {
			w.in("a", slow(2))
			w.live(10*time.Second, 160)
			w.in("b", func(h *house) { h.stuck = true })
		}, 3 * time.Second, 0.002, 0.12, 10 * time.Second},
		{"the others are far away", 160, func(w *town) { w.in("b", func(h *house) { h.far = 100 * time.Millisecond }) },
			3 * time.Second, 0.002, 0.08, 10 * time.Second},
	} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprint(tt.name, seed), func(t *testing.T) {
				w := newTown(t, near(LeastRequest{}), zoned(4, 9))
				w.rnd = rand.New(rand.NewPCG(5, seed))
				w.live(10*time.Second, tt.rate)
				tt.do(w)
				w.live(tt.after, tt.rate)
				left, _ := w.live(10*time.Second, tt.rate)
				w.wantLeft(tt.name, left, tt.least, tt.most)
				w.in("a", func(h *house) { *h = house{zone: "a", takes: 10 * time.Millisecond} })
				w.in("b", func(h *house) { *h = house{zone: "b", takes: 10 * time.Millisecond, far: time.Millisecond} })
				w.live(tt.back, tt.rate)
				left, _ = w.live(10*time.Second, tt.rate)
				w.wantLeft("well again", left, 0, 0.08)
			})
		}
	}
}

// TestZoneBursts: a client that is idle most of the time, or makes ten times as many calls now and then, stays in a zone
// that can serve them.
func TestZoneBursts(t *testing.T) {
	w := newTown(t, near(nil), zoned(40, 3))
	w.live(10*time.Second, 100)
	away := 0.0
	for range 5 {
		w.advance(3 * time.Minute)
		_, _ = w.live(2*time.Second, 20)
		left, _ := w.live(2*time.Second, 1000)
		away += left / 5
	}
	w.wantLeft("in bursts", away, 0.002, 0.1)
}

// TestZoneSlowCalls: before it is known how long calls take, and they take long, those that are under way are no reason to
// leave; neither when a client starts, nor when it has not called for minutes.
func TestZoneSlowCalls(t *testing.T) {
	for _, rate := range []int{10, 500} {
		w := newTown(t, near(nil), zoned(40, 40))
		for _, h := range w.servers {
			h.far = time.Second
		}
		w.cc.Settle()
		first := func() float64 {
			left, _ := w.live(900*time.Millisecond, rate)
			return left
		}
		w.wantLeft(fmt.Sprintf("at first, %d a second", rate), first(), 0, 0.3)
		w.advance(10 * time.Minute)
		w.wantLeft(fmt.Sprintf("after a break, %d a second", rate), first(), 0, 0.3)
	}
}

// TestZoneOthers: what calls with another filter do is not this filter's business.
func TestZoneOthers(t *testing.T) {
	w := newTown(t, near(LeastRequest{}), zoned(4, 9))
	elsewhere := ask{ctx: bind(t, "zone=b")}
	w.live(5*time.Second, 100)
	for range 1000 {
		for range 3 {
			w.call(elsewhere)
		}
		w.live(20*time.Millisecond, 100)
	}
	left, _ := w.live(5*time.Second, 100)
	w.wantLeft("beside calls that only go elsewhere", left, 0.002, 0.05)
}

// TestZoneQuiet: a client with few calls, whose latencies are mostly chance, stays in the zone nevertheless.
func TestZoneQuiet(t *testing.T) {
	w := newTown(t, near(nil), zoned(2, 3))
	w.live(time.Minute, 10)
	left, _ := w.live(5*time.Minute, 10)
	w.wantLeft("with ten calls a second", left, 0.004, 0.06)
}

// TestZoneWithoutInstances: as many leave as instances are missing, beyond the reserve; all if none is left, and who
// comes back is not flooded.
func TestZoneWithoutInstances(t *testing.T) {
	ins := zoned(10, 10)
	w := newTown(t, near(nil), ins)
	w.live(10*time.Second, 100)
	for i := range 10 {
		addr := ins[i].Addr
		w.cc.Refuse = func(a string) error {
			for _, in := range ins[:i+1] {
				if in.Addr == a {
					return errRefused
				}
			}
			return nil
		}
		w.drop(addr)
		left, _ := w.live(time.Second, 300)
		if want := max(0.01, 1-1.4*float64(9-i)/10); left < want-0.06 || left > want+0.09 {
			t.Errorf("with %d of 10 missing, %.0f %% leave, want %.0f %%", i+1, 100*left, 100*want)
		}
	}
	if got := w.calls(50, ask{}); len(got) != 11 {
		t.Errorf("calls go to %v, want to the eleven elsewhere", got)
	}
	w.cc.Refuse = nil
	w.reconnect(ins[0].Addr)
	left, _ := w.live(300*time.Millisecond, 300)
	w.wantLeft("when the first is back", left, 0.8, 1)
	for _, in := range ins[1:10] {
		w.reconnect(in.Addr)
	}
	left, _ = w.live(300*time.Millisecond, 300)
	w.wantLeft("at the moment when all are back", left, 0.6, 1)
	w.live(10*time.Second, 100)
	left, _ = w.live(10*time.Second, 100)
	w.wantLeft("later", left, 0.002, 0.08)
}

// TestZoneStart: a client that starts, and is connected elsewhere first, uses its zone as soon as that is there.
func TestZoneStart(t *testing.T) {
	ins := zoned(1, 2)
	cc := lbtest.New()
	cc.Refuse = func(addr string) error {
		if addr == ins[0].Addr {
			return errRefused
		}
		return nil
	}
	r := bareRig(t, cc)
	r.update(near(nil), ins)
	if got := r.calls(30, ask{}); got["i0"] != 0 {
		t.Fatalf("calls go to %v, and the zone is not connected", got)
	}
	cc.Refuse = nil
	r.reconnect(ins[0].Addr)
	if got := r.calls(300, ask{}); got["i0"] < 240 {
		t.Errorf("calls go to %v, want all but about a tenth to i0, in the zone", got)
	}
}

// TestStrangeZone: a zone that nobody is in is off, and the log says so once for each.
func TestStrangeZone(t *testing.T) {
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	c := func(zone string) Config { return Config{Zone: Zone{Local: zone}} }
	r := newRig(t, c("A"), nil)
	for _, step := range []struct {
		zone string
		ins  []registry.Instance
		want int
	}{
		{"A", nil, 0}, {"A", zoned(1, 1), 1}, {"A", zoned(2, 2), 1}, {"a", zoned(2, 2), 1}, {"c", zoned(2, 2), 2}, {"b", zoned(2, 2), 2},
	} {
		r.update(c(step.zone), step.ins)
		if got := strings.Count(log.String(), "no instance is in the zone"); got != step.want {
			t.Errorf("zone %s: %d warnings, want %d:\n%s", step.zone, got, step.want, log.String())
		}
	}
	if want := `service=orders zone.local=A zones="[a b]"`; !strings.Contains(log.String(), want) {
		t.Errorf("want %s in\n%s", want, log.String())
	}
}

// TestZoneGrows: instances that join the zone are not missing there until they are connected to.
func TestZoneGrows(t *testing.T) {
	ins := zoned(8, 4)
	w := newTown(t, near(nil), slices.Concat(ins[:2], ins[8:]))
	w.live(10*time.Second, 100)
	w.cc.Refuse = func(string) error { return errRefused }
	w.update(near(nil), ins)
	left, _ := w.live(5*time.Second, 100)
	w.wantLeft("while new ones are not connected", left, 0.002, 0.08)
}

// TestZoneKept: an instance of the zone that is blacklisted, and serves only because too many are, does not get all the
// calls of the zone.
func TestZoneKept(t *testing.T) {
	w := newTown(t, near(nil), zoned(3, 1)) // two of five may be out
	w.live(10*time.Second, 100)
	for _, id := range []string{"i0", "i1", "i2"} {
		w.answers[id] = fails(codes.Unavailable)
	}
	w.calls(100, ask{})
	if out := w.out(); len(out) != 3 {
		t.Fatalf("%v are blacklisted, want the zone", out)
	}
	got := w.calls(300, ask{})
	if sick := got["i0"] + got["i1"] + got["i2"]; sick == 0 || sick > 130 {
		t.Errorf("calls go to %v, want about a third to the one that is kept in", got)
	}
}

// TestZoneComposes with filters, retries, the blacklist, keys and a change of the configuration.
func TestZoneComposes(t *testing.T) {
	ins := zoned(3, 3)
	for i := range ins {
		ins[i].Labels = map[string]string{"n": fmt.Sprint(i)}
	}
	w := newTown(t, near(nil), ins)
	w.live(10*time.Second, 100)
	count := func(a ask) (a0, away int) {
		for id, n := range w.calls(400, a) {
			if w.servers[id].zone == "a" {
				a0 += n
			} else {
				away += n
			}
		}
		return a0, away
	}
	for _, tt := range []struct {
		filter string
		only   string // the zone that all calls go to; "a" for nearly all
	}{{"n in (0,4)", "a"}, {"n in (4,5)", "b"}, {"zone=b", "b"}, {"prefer(zone=b; zone=a)", "b"}, {"prefer(zone=a)", "a"}} {
		here, away := count(ask{ctx: bind(t, tt.filter)})
		if tt.only == "b" && here > 0 || tt.only == "a" && here < 320 { // a tenth, while nothing is known about the set
			t.Errorf("%s: %d calls stay and %d leave, want them in %s", tt.filter, here, away, tt.only)
		}
	}

	var tried callctx.Tried
	for range 3 {
		call := &callctx.Call{Tried: &tried}
		for call.Picked() == nil || w.servers[call.Picked().ID].zone != "a" {
			w.call(ask{ctx: with(t.Context(), call)})
		}
		tried.Add(call.Picked())
	}
	for range 50 {
		if id := w.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}); w.servers[id].zone == "a" {
			t.Fatalf("all in the zone were tried, and the call goes to %s", id)
		}
	}

	for _, id := range []string{"i0", "i1", "i2"} {
		w.answers[id] = fails(codes.Unavailable)
	}
	w.calls(200, ask{})
	if here, _ := count(ask{}); here > 10 {
		t.Errorf("the zone is out, and %d of 400 calls go there, want probing calls at most", here)
	}
	clear(w.answers)

	w.update(Config{Zone: Zone{Local: "b"}, Blacklist: Blacklist{Disabled: true}}, ins)
	if here, away := count(ask{}); here > 80 {
		t.Errorf("now in zone b, %d of 400 calls leave it and %d stay", here, away)
	}
	w.update(Config{Blacklist: Blacklist{Disabled: true}}, ins)
	if !w.p.byConfig.set.plain {
		t.Error("no zone is preferred, and picks still take the slow way")
	}
	w.checkEven(7)
	w.update(Config{Zone: Zone{Local: "elsewhere"}}, ins)
	w.checkEven(7)
}

// checkEven wants calls in turn to n instances.
func (w *town) checkEven(n int) {
	w.t.Helper()
	got := w.calls(10*n, ask{})
	for id, calls := range got {
		if len(got) != n || calls != 10 {
			w.t.Errorf("calls go to %v, want 10 to each of %d, and not %d to %s", got, n, calls, id)
		}
	}
}

// TestZoneKeys: in the zone a key has one instance.
func TestZoneKeys(t *testing.T) {
	w := newTown(t, near(Hash{Unbounded: true}), zoned(4, 4))
	w.live(20*time.Second, 100)
	for k := range 20 {
		most := 0
		for id, n := range w.calls(100, ask{ctx: WithHashKey(t.Context(), fmt.Sprint("key", k))}) {
			if w.servers[id].zone == "a" {
				most = max(most, n)
			}
		}
		if most < 90 {
			t.Errorf("key%d: its instance in the zone got %d of 100 calls, want nearly all", k, most)
		}
	}
}

// TestZoneUpdates: what is measured outlives a set that is made anew more often than anybody looks at it.
func TestZoneUpdates(t *testing.T) {
	ins := zoned(4, 9)
	w := newTown(t, near(nil), ins)
	w.in("a", func(h *house) { h.takes = 100 * time.Millisecond })
	w.live(time.Second, 160)
	for i := range 200 {
		w.live(50*time.Millisecond, 160)
		ins[12].Labels = map[string]string{"n": fmt.Sprint(i)}
		w.update(near(nil), ins)
	}
	left, _ := w.live(5*time.Second, 160)
	w.wantLeft("with an update every 50 ms", left, 0.6, 0.96)
	if got := w.p.describe().Leaving; got < 0.6 {
		t.Errorf("Channels says that %v leave", got)
	}
}

// TestZoneReports: weights from load reports come into force within the zone.
func TestZoneReports(t *testing.T) {
	c := near(Weighted{Load: "orca", Blackout: 1})
	r := newRig(t, c, zoned(2, 2))
	backends := map[string]*backend{"i0": {capacity: 100}, "i1": {capacity: 300}}
	for range 4 {
		r.second(40, backends)
	}
	if got := r.second(400, backends); got["i1"] < 2*got["i0"] {
		t.Errorf("calls go to %v, want 1 to 3 to i0 and i1", got)
	}
}

func TestZoneAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool drops what it is given, at random")
	}
	for _, s := range strategiesUnderTest {
		r := newRig(t, near(s), zoned(3, 3))
		checkNoAllocations(t, s.Name(), r.cc.Picker(), gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/a/b"})
	}
}

// TestZoneStreams are divided and not measured, and every call that was counted in is counted out.
func TestZoneStreams(t *testing.T) {
	r := newRig(t, near(nil), zoned(2, 2))
	stream := ask{ctx: with(t.Context(), &callctx.Call{Kind: callctx.Stream})}
	for _, end := range []gbalancer.DoneInfo{ended(nil), {}, ended(fails(codes.Unavailable)), ended(fails(codes.NotFound)),
		{Err: fails(codes.Canceled)}} {
		for _, a := range []ask{stream, {}} {
			_, done, err := r.begin(a)
			if err != nil {
				t.Fatal(err)
			}
			r.advance(time.Second)
			done(end)
		}
	}
	near, far := r.p.byConfig.borders.near.read(), r.p.byConfig.borders.far.read()
	begun, over, calls := near.begun+far.begun, near.over+far.over, near.calls+far.calls
	if begun != 5 || over != 5 || calls != 2 {
		t.Errorf("%d unary calls begun and %d over, %d of them measured; want 5, 5 and the success and the cancelled one",
			begun, over, calls)
	}
}

func TestZoneConfig(t *testing.T) {
	for js, want := range map[string]string{
		`{"zone":{"local":"a","tolerance":-1}}`:     "evenkeel: zone.tolerance = -1, want 0 to 10",
		`{"zone":{"local":"a","remotePercent":51}}`: "evenkeel: zone.remotePercent = 51, want 0 to 50",
		`{"zone":{"tolerance":1}}`:                  `evenkeel: zone.local = "" with other fields set, want the client's zone`,
		`{"zone":{"name":"a"}}`:                     `evenkeel: zone: unknown field "name", want one of `,
	} {
		if _, err := parseConfig(json.RawMessage(js)); err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%s:\n\t%v, want\n\t%s", js, err, want)
		}
	}
	want := Zone{Local: "a", Tolerance: 0.5, RemotePercent: 2.5}
	if s := mustParse(t, Config{Zone: want}); s.zone != want || s.plain {
		t.Errorf("the zone is %+v, want %+v, and measured", s.zone, want)
	}
}
