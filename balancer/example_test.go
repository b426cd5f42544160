package balancer_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// The whole service config, for a client that has none yet: hand it to resolver.WithServiceConfig or to
// grpc.WithDefaultServiceConfig.
func ExampleServiceConfig() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{
		Strategy: balancer.LeastRequest{Choices: 3},
		Filter:   filters.Label("track", "stable"),
	}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"least_request":{"choices":3}},"filter":"track=stable"}}]}
}

// A client that has a service config puts the policy into it, and keeps the rest.
func ExampleLoadBalancingConfig() {
	policy, err := balancer.LoadBalancingConfig(balancer.Config{
		Blacklist: balancer.Blacklist{BaseEjection: 10 * time.Second},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	js, _ := json.MarshalIndent(map[string]any{
		"loadBalancingConfig": []any{policy},
		"methodConfig":        []any{map[string]any{"name": []any{map[string]any{}}, "timeout": "1s"}},
	}, "", "  ")
	fmt.Println(string(js))

	_, err = balancer.LoadBalancingConfig(balancer.Config{Strategy: balancer.LeastRequest{Choices: 1}})
	fmt.Println(err)
	// Output:
	// {
	//   "loadBalancingConfig": [
	//     {
	//       "evenkeel": {
	//         "strategy": {
	//           "round_robin": {}
	//         },
	//         "blacklist": {
	//           "baseEjection": "10s"
	//         }
	//       }
	//     }
	//   ],
	//   "methodConfig": [
	//     {
	//       "name": [
	//         {}
	//       ],
	//       "timeout": "1s"
	//     }
	//   ]
	// }
	// evenkeel: strategy least_request: choices = 1, want 2 to 10
}

func ExampleObserve() {
	ejected := make(chan balancer.Event, 1)
	stop := balancer.Observe(func(e balancer.Event) {
		if e.Kind == balancer.Ejected {
			ejected <- e // at most one here; an observer must not block for long
		}
	})
	defer stop()

	// Three calls fail at "b", as if it had crashed behind a proxy that still listens.
	ch := dial(balancer.Config{}, "a", "b", "c")
	defer ch.close()
	for range 9 {
		ch.call(func(id string) error {
			if id == "b" {
				return status.Error(codes.Unavailable, "no upstream")
			}
			return nil
		})
	}
	e := <-ejected
	fmt.Println(e.Kind, e.ID, "of", e.Service)
	fmt.Println(e.Reason)
	// Output:
	// ejected b of orders
	// 3 calls in a row failed, the last with: rpc error: code = Unavailable desc = no upstream
}

func ExampleChannels() {
	ch := dial(balancer.Config{Require: filters.Not(filters.ID("c"))}, "a", "b", "c")
	defer ch.close()
	for range 10 {
		ch.call(func(string) error { return nil })
	}
	for _, c := range balancer.Channels() {
		if c.Service != "orders" {
			continue
		}
		fmt.Println(c.Service, c.State, c.Strategy, c.Require)
		for _, e := range c.Endpoints {
			fmt.Println(e.Instance.ID, e.State, "calls:", e.Calls, "under way:", e.InFlight, "ejected:", e.Ejected)
		}
	}
	// Output:
	// orders READY round_robin id!=c
	// a READY calls: 5 under way: 0 ejected: false
	// b READY calls: 5 under way: 0 ejected: false
	// c READY calls: 0 under way: 0 ejected: false
}

// channel is a client's channel without a network, so that the examples can say what comes out.
type channel struct {
	cc *lbtest.ClientConn
	b  gbalancer.Balancer
}

func dial(c balancer.Config, ids ...string) *channel {
	js, err := balancer.LoadBalancingConfig(c)
	if err != nil {
		panic(err)
	}
	js = json.RawMessage(strings.TrimSuffix(strings.TrimPrefix(string(js), `{"evenkeel":`), "}"))
	cfg, err := lbtest.ParseConfig(balancer.Name, string(js))
	if err != nil {
		panic(err)
	}
	var ins []registry.Instance
	for i, id := range ids {
		ins = append(ins, registry.Instance{ID: id, Addr: fmt.Sprintf("10.0.0.%d:80", i+1)})
	}
	ch := &channel{cc: lbtest.New()}
	ch.b = lbtest.Build(ch.cc, balancer.Name, "orders")
	for range 2 { // the second finds all connections made
		if err := lbtest.Update(ch.b, cfg, lbtest.Endpoints(ins...)); err != nil {
			panic(err)
		}
		ch.cc.Settle()
	}
	return ch
}

func (ch *channel) close() { ch.b.Close() }

// call makes one call, which ends as serve says for the instance that was chosen.
func (ch *channel) call(serve func(id string) error) string {
	res, err := ch.cc.Picker().Pick(gbalancer.PickInfo{FullMethodName: "/orders.Orders/Get"})
	if err != nil {
		panic(err)
	}
	addr := res.SubConn.(*lbtest.SubConn).Addr
	states := balancer.Channels()
	own := slices.IndexFunc(states, func(c balancer.ChannelState) bool { return c.Service == "orders" })
	for _, e := range states[own].Endpoints {
		if e.Instance.Addr == addr {
			addr = e.Instance.ID
		}
	}
	res.Done(gbalancer.DoneInfo{Err: serve(addr), BytesSent: true, BytesReceived: true})
	return addr
}
