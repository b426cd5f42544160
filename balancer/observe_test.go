package balancer

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/internal/lbtest"
)

func TestEventKindString(t *testing.T) {
	for k, want := range map[EventKind]string{Ejected: "ejected", Returned: "returned", Published: "published", 0: "unknown", 9: "unknown"} {
		if k.String() != want {
			t.Errorf("kind %d is %q, want %q", k, k, want)
		}
	}
}

// TestObserverMayAsk: an observer is called outside all locks, so it may look at everything, and at any channel.
func TestObserverMayAsk(t *testing.T) {
	var states []ChannelState
	r := bareRig(t, lbtest.New())
	defer Observe(func(e Event) {
		if e.Kind != Published {
			states = append(states, mine(r)...)
			r.call(ask{})
			Observe(func(Event) {})()
		}
	})()
	r.update(Config{}, fleet(4))
	r.sicken("i2", fails(codes.Unavailable))
	r.serveOut("i2")
	r.answers["i2"] = nil
	r.call(ask{})
	if len(states) != 2 || states[0].Counters.Ejections != 1 || states[1].Counters.Returns != 1 {
		t.Errorf("observed %+v, want the states at an ejection and a return", states)
	}
}

// mine is what Channels says about the rig's policy.
func mine(r *rig) []ChannelState {
	return slices.DeleteFunc(Channels(), func(s ChannelState) bool {
		return s.Counters.Publications != r.p.describe().Counters.Publications || len(s.Endpoints) != len(r.p.known)
	})
}

// TestEventsInOrder, one at a time, to every observer; and none after stop.
func TestEventsInOrder(t *testing.T) {
	var first, second []Event
	stopFirst := Observe(func(e Event) { first = append(first, e) })
	stopSecond := Observe(func(e Event) { second = append(second, e) })
	defer stopSecond()
	r := newRig(t, Config{}, fleet(6))
	r.frozen = true // events pile up
	for _, id := range []string{"i4", "i1", "i3"} {
		r.answers[id] = fails(codes.Unavailable)
		r.sickenQuietly(id)
	}
	r.frozen = false
	r.flush()
	r.update(Config{Blacklist: Blacklist{Disabled: true}}, fleet(6))
	if !slices.Equal(first, second) {
		t.Errorf("two observers saw different things:\n%v\n%v", first, second)
	}
	var ejected []string
	published, returned := 0, 0
	for _, e := range first {
		switch e.Kind {
		case Ejected:
			ejected = append(ejected, e.ID)
		case Returned:
			returned++
			if e.Reason != "the blacklist was disabled" {
				t.Errorf("returned because %q", e.Reason)
			}
		case Published:
			published++
			if e.Instances != 6 && e.Instances != 0 || e.ID != "" {
				t.Errorf("published %+v, want 6 instances", e)
			}
		}
	}
	if !slices.Equal(ejected, []string{"i4", "i1", "i3"}) || returned != 3 || published < 3 {
		t.Errorf("ejected %v, %d returned, %d published; want i4 i1 i3, 3, and some", ejected, returned, published)
	}
	stopFirst()
	stopFirst() // does nothing
	n := len(first)
	r.update(Config{}, fleet(5))
	if len(first) != n {
		t.Error("an observer was called after it was stopped")
	}
	if len(second) == n {
		t.Error("stopping one observer stopped the other")
	}
}

// TestSlowObserver: one that takes its time holds up no call, no update and no picker, only later events; Close waits
// for it.
func TestSlowObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []Event
		var busy atomic.Bool
		defer Observe(func(e Event) {
			if e.Kind == Ejected {
				if busy.Swap(true) {
					t.Error("two events of one policy are delivered at once")
				}
				time.Sleep(time.Minute) // virtual
				seen = append(seen, e)
				busy.Store(false)
			}
		})()
		cc := lbtest.New()
		b := lbtest.Build(cc, Name, "orders")
		if err := lbtest.Update(b, mustParse(t, Config{}), lbtest.Endpoints(fleet(8)...)); err != nil {
			t.Fatal(err)
		}
		cc.Settle()
		time.Sleep(2 * time.Millisecond)
		var first time.Time // ejection
		for k := range 124 {
			began := time.Now()
			if k < 24 {
				pickAndEnd(t, cc, fails(codes.Unavailable))
			} else {
				pickAndEnd(t, cc, nil)
			}
			if d := time.Since(began); d != 0 {
				t.Errorf("a call took %v while an observer was busy", d)
			}
			if first.IsZero() && b.(*policy).describe().Counters.Ejections > 0 {
				first = began
			}
			time.Sleep(10 * time.Millisecond) // virtual
		}
		ejections := b.(*policy).describe().Counters.Ejections
		b.Close()
		if n := uint64(len(seen)); n != ejections || n < 4 || time.Since(first) != time.Duration(n)*time.Minute {
			t.Errorf("Close returned %v after the first ejection with %d of %d events delivered, want all, a minute each",
				time.Since(first), n, ejections)
		}
	})
}

func pickAndEnd(t *testing.T, cc *lbtest.ClientConn, err error) {
	t.Helper()
	res, perr := cc.Picker().Pick(pickInfo(t))
	if perr != nil {
		t.Fatal(perr)
	}
	res.Done(ended(err))
}

func TestChannels(t *testing.T) {
	cfg := Config{Strategy: PeakEWMA{}, Filter: filter(t, "track=stable"), Require: filter(t, "zone in (us,eu)")}
	ins := shop()
	ins[3].Weight, ins[3].Draining = 5, true
	r := newRig(t, cfg, ins)
	r.cc.Refuse = func(string) error { return errRefused }
	r.drop(ins[4].Addr)
	r.sicken("s5", fails(codes.Unavailable))
	under := r.hold("s6")
	r.call(ask{ctx: bind(t, "id=s7")})
	all := mine(r)
	if len(all) != 1 {
		t.Fatalf("%d channels, want this one", len(all))
	}
	s := all[0]
	if s.Service != "orders" || !strings.HasPrefix(s.Target, "lb:///") || s.State != connectivity.Ready || s.Strategy != "peak_ewma" ||
		s.Filter != "track=stable" || s.Require != "zone in (eu,us)" || s.Filters != 3 || len(s.Endpoints) != 10 || s.Counters.Ejections != 1 {
		t.Errorf("the channel is %+v", s)
	}
	for _, e := range s.Endpoints {
		want := EndpointState{State: connectivity.Ready}
		switch e.Instance.ID {
		case "s4":
			want = EndpointState{State: connectivity.TransientFailure, Err: errRefused}
		case "s5":
			want = EndpointState{State: connectivity.Ready, Calls: 3, Failures: 3, Load: 5e9, Ejected: true, Ejections: 1, Remaining: e.Remaining}
			if e.Remaining < 26*time.Second || e.Remaining > 33*time.Second {
				t.Errorf("s5 has %v to go, want about 30s", e.Remaining)
			}
		case "s6":
			want = EndpointState{State: connectivity.Ready, InFlight: 1, Calls: 1}
		case "s7":
			want = EndpointState{State: connectivity.Ready, Calls: 1, Load: e.Load}
		}
		want.Instance = e.Instance
		if e.Load = float64(int64(e.Load/1e8)) * 1e8; e.Err != want.Err || e.State != want.State || e.InFlight != want.InFlight ||
			e.Calls != want.Calls || e.Failures != want.Failures || e.Ejected != want.Ejected || e.Probing != want.Probing ||
			e.Ejections != want.Ejections || e.Remaining != want.Remaining || want.Load == 5e9 && (e.Load < 4.9e9 || e.Load > 5e9) {
			t.Errorf("%s is %+v, want %+v", e.Instance.ID, e, want)
		}
	}
	// What it returns is the caller's to change.
	s.Endpoints[3].Instance.Labels["track"] = "changed"
	if got := mine(r)[0].Endpoints[3].Instance; got.Labels["track"] != "stable" || got.Weight != 5 || !got.Draining {
		t.Errorf("instance s3 is %+v after a caller changed its copy", got)
	}
	under(ended(nil))
}

// TestLogs: one line for an ejection, one for a return, with what a person at night needs.
func TestLogs(t *testing.T) {
	var buf bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&buf, nil)))
	defer slog.SetDefault(old)
	r := newRig(t, Config{}, fleet(4))
	r.sicken("i2", fails(codes.Unavailable))
	r.calls(50, ask{})
	r.serveOut("i2")
	r.answers["i2"] = nil
	r.calls(50, ask{})
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(lines), buf.String())
	}
	for i, parts := range [][]string{
		{"level=WARN", `msg="evenkeel: instance blacklisted"`, "service=orders", "instance=i2", "addr=10.0.0.3:80", "for=", "ejections=1",
			`reason="3 calls in a row failed, the last with: rpc error: code = Unavailable desc = no"`},
		{"level=INFO", "instance back", "service=orders", "instance=i2", `reason="a call succeeded"`},
	} {
		for _, part := range parts {
			if !strings.Contains(lines[i], part) {
				t.Errorf("line %d is %s, want %s in it", i, lines[i], part)
			}
		}
	}
}

// TestSortedChannels are in the order of their targets.
func TestSortedChannels(t *testing.T) {
	for _, name := range []string{"stock", "billing", "orders"} {
		b := lbtest.Build(lbtest.New(), Name, name)
		t.Cleanup(b.Close)
	}
	var targets []string
	for _, c := range Channels() {
		targets = append(targets, c.Target)
	}
	if len(targets) < 3 || !slices.IsSorted(targets) {
		t.Errorf("targets are %v, want three at least, sorted", targets)
	}
}
