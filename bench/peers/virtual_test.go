package peers

import (
	"context"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/weightedroundrobin"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/bench"
	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/server"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// virtual is a policy that is registered with gRPC, another library's real code, as a client of the simulation. Such
// code reads the machine's clock, so it runs in a bubble of testing/synctest, and before it is asked or told anything the
// bubble's time is brought to the simulation's.
type virtual struct {
	env     lb.Env
	began   time.Time
	policy  bench.Policy
	cc      *lbtest.ClientConn
	config  serviceconfig.LoadBalancingConfig
	b       gbalancer.Balancer
	servers map[string]int
}

// inBubble makes clients of a policy. It must be used within a bubble, and the policies be closed in it.
func inBubble(p bench.Policy, closers *[]func()) lb.Maker {
	return lb.Maker{Name: p.Label + " itself", New: func(env lb.Env) (lb.Balancer, error) {
		v := &virtual{env: env, began: time.Now().Add(-time.Duration(env.Now())), policy: p, cc: lbtest.New()}
		if p.Config != "" {
			var err error
			if v.config, err = lbtest.ParseConfig(p.Name, p.Config); err != nil {
				return nil, err
			}
		}
		v.b = lbtest.Build(v.cc, p.Name, "orders")
		*closers = append(*closers, v.b.Close)
		v.Update(env.Servers)
		return v, nil
	}}
}

// sync brings the bubble's time to the simulation's.
func (v *virtual) sync() {
	if d := time.Until(v.began.Add(time.Duration(v.env.Now()))); d > 0 {
		time.Sleep(d)
	}
	synctest.Wait() // what the policy does on goroutines of its own is done
}

func (v *virtual) Update(servers []lb.Server) {
	v.sync()
	v.servers = make(map[string]int)
	var s gresolver.State
	for _, srv := range servers {
		v.servers[srv.Instance.Addr] = srv.Index
		if v.policy.Address != nil {
			s.Addresses = append(s.Addresses, v.policy.Address(srv.Instance))
		} else {
			s.Endpoints = append(s.Endpoints, lbtest.EndpointsOf([]*registry.Instance{srv.Instance})...)
		}
	}
	_ = v.b.UpdateClientConnState(gbalancer.ClientConnState{ResolverState: s, BalancerConfig: v.config})
	v.cc.Settle()
}

func (v *virtual) Pick(c *lb.Call) (int, error) {
	v.sync()
	res, err := v.cc.Picker().Pick(gbalancer.PickInfo{FullMethodName: "/shop.Orders/Get", Ctx: context.Background()})
	if err != nil {
		return 0, err
	}
	c.Note = res.Done
	sc, ok := res.SubConn.(*lbtest.SubConn)
	if !ok {
		return 0, fmt.Errorf("a sub-connection of type %T", res.SubConn)
	}
	return v.servers[sc.Addr], nil
}

func (v *virtual) Done(c *lb.Call, _ int, r lb.Result) {
	v.sync()
	if done, ok := c.Note.(func(gbalancer.DoneInfo)); ok && done != nil {
		info := gbalancer.DoneInfo{Err: r.Err, BytesSent: true, BytesReceived: r.Err == nil}
		if l := r.Load; l != nil {
			info.ServerLoad = &v3orcapb.OrcaLoadReport{ApplicationUtilization: l.Utilization, RpsFractional: l.QPS, Eps: l.EPS}
		}
		done(info)
	}
}

// TestModelsAsTheirOriginals: the models of other libraries' policies in bench/sim, which are written from their
// specifications, send as many calls to slow servers as the libraries themselves do, and the calls take as long; at a high
// rate, at one so low that calls are forced upon servers that were not chosen for long, and while one server fails fast.
func TestModelsAsTheirOriginals(t *testing.T) {
	s := scenario.Scenario{
		Name: "two speeds",
		Servers: []scenario.Group{
			{Name: "fast", Count: 8, Server: server.Config{Cores: 2}},
			{Name: "slow", Count: 2, Server: server.Config{Cores: 2, Speed: 0.25}},
		},
		Clients: 4, Work: scenario.Exponential(10 * time.Millisecond),
		Steps: []scenario.Step{
			{Name: "busy", Rate: 600, Settle: 5 * time.Second, Measure: 15 * time.Second},
			{Name: "idle", Rate: 20, Settle: 30 * time.Second, Measure: 300 * time.Second},
			{Name: "failing", Rate: 300, Settle: 10 * time.Second, Measure: 20 * time.Second,
				Events: []scenario.Event{{At: -5 * time.Second, Do: scenario.Faults(0.1, server.Faults{Fail: 0.5, FailAfter: time.Millisecond})}}},
		},
	}
	models := map[string]lb.Maker{"kratos_p2c": baseline.Kratos(), "go_zero_p2c": baseline.GoZero(),
		"grpc_least_request": baseline.LeastRequest(), "grpc_weighted_round_robin": baseline.WRR()}
	wrr := bench.Policy{Label: "grpc_weighted_round_robin", Name: weightedroundrobin.Name, Config: "{}"} // gRFC A58's defaults
	originals := []bench.Policy{bench.GRPCLeastRequest(), wrr, kratosP2C()}
	for _, original := range append(originals, goZeroPolicies...) {
		t.Run(original.Label, func(t *testing.T) {
			model, err := scenario.Run(s, models[original.Label], 1)
			if err != nil {
				t.Fatal(err)
			}
			var itself *scenario.Result
			synctest.Test(t, func(*testing.T) {
				var closers []func()
				itself, err = scenario.Run(s, inBubble(original, &closers), 1)
				for _, c := range closers {
					c()
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			for i := range s.Steps {
				compare(t, &model.Steps[i], &itself.Steps[i])
			}
		})
	}
}

// compare checks that a model and its original did the same, but for what draws of 6,000 calls differ by: the originals draw
// from sources of their own, so no run is like another.
func compare(t *testing.T, model, itself *scenario.StepResult) {
	t.Helper()
	for _, q := range []struct{ at, tolerance float64 }{{0.5, 0.1}, {0.9, 0.15}, {0.99, 0.3}} {
		if q.at > 0.5 && model.Errors() > 0 {
			break // a call that failed counts as its deadline, so whether there are a few more or less is all or nothing
		}
		m, o := model.Latency.Quantile(q.at), itself.Latency.Quantile(q.at)
		t.Logf("%s: p%v of the model %v, of the original %v", model.Name, 100*q.at, time.Duration(m), time.Duration(o))
		if math.Abs(float64(m)/float64(o)-1) > q.tolerance {
			t.Errorf("%s: p%v of the model is %v, want that of the original, which is %v, within %v %%",
				model.Name, 100*q.at, time.Duration(m), time.Duration(o), 100*q.tolerance)
		}
	}
	if math.Abs(model.Errors()-itself.Errors()) > 0.02 {
		t.Errorf("%s: of the model's calls %.4f fail, want %.4f like the original's, within 0.02", model.Name, model.Errors(), itself.Errors())
	}
	t.Logf("%s: shares of the model %.3f, of the original %.3f; errors %.4f and %.4f", model.Name, model.Shares, itself.Shares, model.Errors(), itself.Errors())
	for g := range model.Shares {
		if math.Abs(model.Shares[g]-itself.Shares[g]) > 0.02 {
			t.Errorf("%s: the model sends %.3f of the calls to group %d, want %.3f like the original, within 0.02",
				model.Name, model.Shares[g], g, itself.Shares[g])
		}
	}
}
