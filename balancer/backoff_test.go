package balancer

import (
	"errors"
	"testing"

	"google.golang.org/grpc/connectivity"
)

// A new instance at an address whose connection is in backoff is connected to at once; the same instance is not.
func TestNewInstanceSkipsBackoff(t *testing.T) {
	ins := fleet(2)
	r := newRig(t, Config{}, ins[:1])
	r.cc.Refuse = func(string) error { return errors.New("refused") }
	r.update(Config{}, ins)
	if n := r.cc.Created(); n != 2 {
		t.Fatalf("%d sub-connections, want 2", n)
	}
	r.cc.Refuse = nil
	r.update(Config{}, ins)
	if n := r.cc.Created(); n != 2 {
		t.Errorf("%d sub-connections after the same instance was seen again, want 2", n)
	}
	ins[1].ID = "restarted"
	r.update(Config{}, ins)
	if n := r.cc.Created(); n != 3 {
		t.Errorf("%d sub-connections after a new instance was seen there, want 3", n)
	}
	for _, e := range r.p.describe().Endpoints {
		if e.State != connectivity.Ready {
			t.Errorf("%s is %v, want READY", e.Instance.ID, e.State)
		}
	}
	ins[1].ID = "again" // a connection that works stays
	r.update(Config{}, ins)
	if n := r.cc.Created(); n != 3 {
		t.Errorf("%d sub-connections after a new instance on a good connection, want 3", n)
	}
}
