package balancer

import (
	"testing"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
)

// A call whose connection went away before it was sent says nothing about the endpoint, to nobody: the connection's
// state says it.
func TestLostBeforeItWasSent(t *testing.T) {
	r := newRig(t, Config{Strategy: PeakEWMA{}}, fleet(1))
	r.call(ask{})
	for range 3 {
		_, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		r.cc.Refuse = func(string) error { return errRefused }
		r.drop(fleet(1)[0].Addr)
		done(gbalancer.DoneInfo{Err: fails(codes.Unavailable)})
		r.cc.Refuse = nil
		r.reconnect(fleet(1)[0].Addr)
		r.flush()
	}
	if s := r.state("i0"); s.Failures != 0 || s.Ejected || s.Load > 1e9 {
		t.Errorf("%+v, want no failure, no ejection and no penalty", s)
	}
}
