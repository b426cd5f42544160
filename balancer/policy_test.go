package balancer

import (
	"fmt"
	"strings"
	"testing"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// fleet makes n instances i0, i1, ... at made-up addresses.
func fleet(n int) []registry.Instance {
	ins := make([]registry.Instance, n)
	for i := range ins {
		ins[i] = registry.Instance{ID: fmt.Sprintf("i%d", i), Addr: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)}
	}
	return ins
}

// rig is a policy on a fake channel.
type rig struct {
	t  *testing.T
	cc *lbtest.ClientConn
	b  gbalancer.Balancer
}

func newRig(t *testing.T, c Config, ins []registry.Instance) *rig {
	t.Helper()
	r := &rig{t: t, cc: lbtest.New()}
	r.b = lbtest.Build(r.cc, Name, "orders")
	t.Cleanup(r.b.Close)
	r.update(c, ins)
	return r
}

// update hands a configuration and instances to the policy, and lets all connections settle.
func (r *rig) update(c Config, ins []registry.Instance) {
	r.t.Helper()
	js, err := LoadBalancingConfig(c)
	if err != nil {
		r.t.Fatal(err)
	}
	cfg, err := parseConfig([]byte(strings.TrimSuffix(strings.TrimPrefix(string(js), `{"evenkeel":`), "}")))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := lbtest.Update(r.b, cfg, lbtest.Endpoints(ins...)); err != nil && len(ins) > 0 {
		r.t.Fatal(err)
	}
	r.cc.Settle()
	r.b.(*policy).windowEnded()
}

var sent = gbalancer.DoneInfo{BytesSent: true, BytesReceived: true}

func TestSmoke(t *testing.T) {
	for _, s := range []Strategy{RoundRobin{}, Random{}, Weighted{}, LeastRequest{}, PeakEWMA{}} {
		r := newRig(t, Config{Strategy: s}, fleet(5))
		if r.cc.State() != connectivity.Ready {
			t.Fatal(r.cc.State())
		}
		for range 1000 {
			res, err := r.cc.Picker().Pick(gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/a/b"})
			if err != nil {
				t.Fatal(err)
			}
			info := sent
			if res.SubConn.(*lbtest.SubConn).Addr == "10.0.0.2:80" {
				info.Err = status.Error(codes.Unavailable, "no")
			}
			res.Done(info)
		}
		for _, e := range Channels()[0].Endpoints {
			t.Log(s.Name(), e.Instance.ID, e.Calls, e.Failures, e.Ejected, e.Load)
		}
		r.b.Close()
	}
	r := newRig(t, Config{}, fleet(5))
	ctx := filters.NewContext(t.Context(), filters.Label("track", "canary"))
	_, err := r.cc.Picker().Pick(gbalancer.PickInfo{Ctx: ctx})
	t.Log(err)
}
