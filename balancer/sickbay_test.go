package balancer

import (
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/filters"
)

// hold begins calls until one is at id, ends the others, and returns how to end that one.
func (r *rig) hold(id string) func(gbalancer.DoneInfo) {
	r.t.Helper()
	_, done, err := r.begin(ask{ctx: filters.NewContext(r.t.Context(), filters.ID(id))})
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

// TestFailuresOfTheDeparted: calls that were under way at an instance when it left fail, and nobody is ejected.
func TestFailuresOfTheDeparted(t *testing.T) {
	replaced := fleet(4)
	replaced[3].ID = "successor"
	for name, ins := range map[string][]int{"left": {0, 1, 2}, "replaced": {0, 1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{}, fleet(4))
			var under []func(gbalancer.DoneInfo)
			for range 5 {
				under = append(under, r.hold("i3"))
			}
			r.update(Config{}, replaced[:len(ins)])
			for _, done := range under {
				done(ended(fails(codes.Unavailable)))
			}
			if s := r.p.describe(); s.Counters.Ejections != 0 || len(r.p.sick) != 0 {
				t.Errorf("%d ejections, %d sick, want none of an instance that is gone", s.Counters.Ejections, len(r.p.sick))
			}
			if n := r.clock.pending(); n > 0 {
				t.Errorf("%d timers wait for an instance that is gone", n)
			}
		})
	}
}

// TestSickInstanceLeaves: nothing is remembered of it, and its probing call ends in peace.
func TestSickInstanceLeaves(t *testing.T) {
	for _, left := range []bool{false, true} {
		r := newRig(t, Config{}, fleet(4))
		r.sicken("i3", fails(codes.Unavailable))
		r.serveOut("i3")
		id, done, err := r.begin(ask{})
		if err != nil || id != "i3" {
			t.Fatal(id, err)
		}
		if left {
			r.update(Config{}, fleet(3))
		} else {
			next := fleet(4)
			next[3].ID = "successor"
			r.update(Config{}, next)
			if s := r.state("successor"); s.Ejected || s.Probing || s.Ejections != 0 || s.Failures != 0 || s.Calls != 0 {
				t.Fatalf("a new instance at the address inherited %+v", s)
			}
		}
		r.advance(time.Minute)
		done(ended(fails(codes.Unavailable)))
		if s := r.p.describe(); s.Counters.Ejections != 1 || len(r.p.sick) != 0 {
			t.Errorf("%d ejections, %d sick, want 1 and none", s.Counters.Ejections, len(r.p.sick))
		}
	}
}

// TestProbeOvertaken: while a probing call hangs, the endpoint is cleared, or ejected again, by a call that reached it
// through a filter for which it had to be kept in. Its next return must not wait for the call that hangs.
func TestProbeOvertaken(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error // how the overtaking call ends
		method string
	}{
		{"cleared", nil, ""},
		{"ejected again", fails(codes.Unavailable), ""},
		{"stream cleared", nil, "/grpc.health.v1.Health/Watch"},
		{"stream ejected again", fails(codes.Unavailable), "/grpc.health.v1.Health/Watch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{}, fleet(4))
			r.sicken("i2", fails(codes.Unavailable))
			r.serveOut("i2")
			id, hangs, err := r.begin(ask{method: tt.method})
			if err != nil || id != "i2" {
				t.Fatal(id, err)
			}
			r.hold("i2")(ended(tt.err))
			r.flush()
			if tt.err == nil {
				if s := r.state("i2"); s.Ejected || s.Probing {
					t.Fatalf("a success did not clear it: %+v", s)
				}
				r.sicken("i2", fails(codes.Unavailable))
			}
			r.serveOut("i2")
			r.answers["i2"] = nil
			if id := r.call(ask{}); id != "i2" {
				t.Fatalf("the first call after the second return went to %s, want i2 to be probed", id)
			}
			if s := r.state("i2"); s.Ejected || s.Probing {
				t.Fatalf("the probe did not clear it: %+v", s)
			}
			hangs(ended(fails(codes.Unavailable)))
			if s := r.state("i2"); s.Ejected || s.Probing {
				t.Fatalf("the call that hung decided: %+v", s)
			}
		})
	}
}

// TestBlacklistSwitchedOffAndOn: all are cleared at once, and the blacklist begins anew.
func TestBlacklistSwitchedOffAndOn(t *testing.T) {
	r := newRig(t, Config{}, fleet(4))
	r.sicken("i1", fails(codes.Unavailable))
	r.serveOut("i1")
	id, probe, err := r.begin(ask{})
	if err != nil || id != "i1" {
		t.Fatal(id, err)
	}
	r.sicken("i2", fails(codes.Unavailable))

	r.update(Config{Blacklist: Blacklist{Disabled: true}}, fleet(4))
	if len(r.out()) > 0 || len(r.p.sick) > 0 {
		t.Fatalf("out are %v, %d sick, want none", r.out(), len(r.p.sick))
	}
	if got := r.calls(400, ask{}); len(got) != 4 || got["i2"] != 100 {
		t.Fatalf("calls go to %v, want all four in turn", got)
	}

	r.update(Config{}, fleet(4))
	r.answers = map[string]error{}
	if got := r.calls(400, ask{}); len(got) != 4 || len(r.p.sick) > 0 {
		t.Fatalf("calls go to %v, %d sick; want all four, and nothing remembered", got, len(r.p.sick))
	}
	r.sicken("i1", fails(codes.Unavailable))
	r.serveOut("i1")
	r.answers["i1"] = nil
	if id := r.call(ask{}); id != "i1" {
		t.Fatalf("the probing call went to %s, want i1: the call that probed before has not ended", id)
	}
	probe(ended(nil))
}

// TestReconnectWhileSick: losing and regaining the connection changes nothing about an ejection.
func TestReconnectWhileSick(t *testing.T) {
	r := newRig(t, Config{}, fleet(4))
	r.sicken("i2", fails(codes.Unavailable))
	before := r.state("i2")
	r.drop("10.0.0.3:80")
	after := r.state("i2")
	if !after.Ejected || after.Ejections != before.Ejections || after.Failures != before.Failures || after.Calls != before.Calls {
		t.Fatalf("after a reconnect %+v, want %+v", after, before)
	}
	r.cc.Refuse = func(addr string) error {
		if addr == "10.0.0.3:80" {
			return errRefused
		}
		return nil
	}
	r.drop("10.0.0.3:80")
	r.serveOut("i2")
	if got := r.calls(30, ask{}); got["i2"] > 0 {
		t.Fatal("an endpoint without a connection is probed")
	}
	r.cc.Refuse = nil
	r.reconnect("10.0.0.3:80")
	r.answers["i2"] = nil
	if id := r.call(ask{}); id != "i2" {
		t.Fatalf("the first call after the connection is back went to %s, want i2 to be probed", id)
	}
}
