package balancer

import (
	"math"
	"testing"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// TestSlowStartAfterRestart: an instance whose connection broke and could not be made anew at once comes back slowly. One
// that was reached again at once does not, nor one that said for a while that it does not serve, nor one that could not be
// reached when the client started.
func TestSlowStartAfterRestart(t *testing.T) {
	const one = "10.0.0.2:80" // i1's
	refuse := func(addr string) error {
		if addr == one {
			return errRefused
		}
		return nil
	}
	for _, tt := range []struct {
		name    string
		trouble func(r *rig)
		want    float64
	}{
		{"reached again at once", func(r *rig) { r.drop(one) }, 1},
		{"again and again", func(r *rig) { r.drop(one); r.drop(one); r.drop(one) }, 1},
		{"restarted", func(r *rig) {
			r.cc.Refuse = refuse
			r.drop(one)
			r.cc.Refuse = nil
			r.reconnect(one)
		}, 0.1},
		{"restarted, with many attempts", func(r *rig) {
			r.cc.Refuse = refuse
			r.drop(one)
			for range 5 {
				r.advance(time.Minute)
				r.reconnect(one)
			}
			r.cc.Refuse = nil
			r.reconnect(one)
		}, 0.1},
		{"restarted, and its connection was lost in the ramp", func(r *rig) {
			r.cc.Refuse = refuse
			r.drop(one)
			r.cc.Refuse = nil
			r.reconnect(one)
			r.advance(rampTime / 2)
			r.drop(one)
		}, 0.5},
		{"restarted twice", func(r *rig) {
			for range 2 {
				r.cc.Refuse = refuse
				r.drop(one)
				r.cc.Refuse = nil
				r.reconnect(one)
				r.advance(rampTime / 2)
			}
		}, 0.5},
		{"restarted, and not serving at first", func(r *rig) {
			r.cc.Unhealthy = func(addr string) bool { return addr == one }
			r.drop(one)
			r.cc.Conn(one).Turn(connectivity.Ready, nil)
			r.flush()
		}, 0.1},
		{"not serving for a while", func(r *rig) {
			r.cc.Conn(one).Turn(connectivity.TransientFailure, errRefused)
			r.flush()
			r.cc.Conn(one).Turn(connectivity.Ready, nil)
			r.flush()
		}, 1},
		{"reached again at once, and later not serving for a while", func(r *rig) {
			r.drop(one)
			r.cc.Conn(one).Turn(connectivity.TransientFailure, errRefused)
			r.flush()
			r.cc.Conn(one).Turn(connectivity.Ready, nil)
			r.flush()
		}, 1},
		{"restarted before slow start was switched on", func(r *rig) {
			r.update(Config{}, fleet(3))
			r.cc.Refuse = refuse
			r.drop(one)
			r.cc.Refuse = nil
			r.reconnect(one)
			r.update(slowly(nil), fleet(3))
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, slowly(nil), fleet(3))
			r.advance(time.Hour)
			tt.trouble(r)
			if st := r.state("i1"); st.State != connectivity.Ready || math.Abs(st.Share-tt.want) > 0.02 {
				t.Fatalf("i1 is %v with the share %v, want READY with %v", st.State, st.Share, tt.want)
			}
			for _, id := range []string{"i0", "i2"} {
				if st := r.state(id); st.Share != 1 {
					t.Errorf("the share of %s is %v, want 1", id, st.Share)
				}
			}
			r.advance(rampTime)
			if st := r.state("i1"); st.Share != 1 {
				t.Errorf("after the window its share is %v", st.Share)
			}
		})
	}

	r := bareRig(t, lbtest.New()) // it is down when the client starts, which says nothing about how cold it is later
	r.cc.Refuse = refuse
	r.update(slowly(nil), fleet(3))
	r.advance(time.Minute)
	r.cc.Refuse = nil
	r.reconnect(one)
	if st := r.state("i1"); st.State != connectivity.Ready || st.Share != 1 {
		t.Errorf("i1 is %v with the share %v, want READY with 1", st.State, st.Share)
	}
}

// TestSlowStartAfterOutage: when the client could reach nobody for a while, all are cold alike, and nobody is spared.
func TestSlowStartAfterOutage(t *testing.T) {
	r := newRig(t, slowly(nil), fleet(3))
	r.advance(time.Hour)
	r.cc.Refuse = func(string) error { return errRefused }
	for _, in := range fleet(3) {
		r.drop(in.Addr)
	}
	r.advance(time.Minute)
	r.cc.Refuse = nil
	for _, in := range fleet(3) {
		r.reconnect(in.Addr)
	}
	for _, id := range []string{"i0", "i1", "i2"} {
		if st := r.state(id); st.Share > 0.2 {
			t.Errorf("the share of %s is %v, want about 0.1", id, st.Share)
		}
	}
	if got := r.calls(300, ask{}); got["i0"] < 95 || got["i1"] < 95 || got["i2"] < 95 {
		t.Errorf("calls go to %v, want to all alike", got)
	}
}
