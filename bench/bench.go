// Package bench measures load-balancing policies, evenkeel's and everybody else's, by one and the same harness.
//
//	go test -run '^$' -bench . ./bench                 # everything, about a minute
//	go test -run '^$' -bench 'Pick/.*/n=1000$' ./bench  # one size
//	make bench                                          # six times, and README.md written anew
//
// A policy is driven through grpc-go's public interfaces only, on a [Channel] without a network, so what is measured
// is the policy: a [Rig] builds whatever is registered under a name, hands it endpoints, lets their connections
// become READY and calls the picker that it published. There is no special door for evenkeel. ADR-0010 has the reasons
// for a fake channel, for ratios instead of times, and what is left out.
//
// Nothing is measured in a pristine state. [NewWorn] has made an ejection, a drain and a change of a weight happen
// before a pick is timed, every endpoint has had its calls, and it fails the benchmark if evenkeel's own report
// ([github.com/evenkeel/evenkeel/balancer.Channels]) does not show all three. Picks get a context as grpc-go hands it
// over: several values deep, with outgoing metadata, below a cancellation, and with a deadline or without.
//
// What there is to measure: [Rig.Pick] (one pick and its end), [Converge] (from the first update of the resolver to
// a picker over all endpoints), [Changer] (one endpoint of many changes) and [Memory] (bytes for each endpoint). The
// benchmarks of this package apply them to evenkeel's strategies and to grpc-go's policies; a module that brings
// other libraries applies them to those, with the same [Policy] for evenkeel beside them in the same run.
//
// Times on a shared machine say little, so everything here runs beside its peers, neighbours in time, and package
// report turns the raw output into ratios with their spread. Do not compare a row of one run with a row of another.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/leastrequest"
	"google.golang.org/grpc/balancer/roundrobin"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// Policy is what is measured: a policy and its configuration. Its zero value is not usable: Label is required, and a
// Name or a Builder.
type Policy struct {
	// Label names it in the benchmarks. Ours begin with "evenkeel_".
	Label string
	// Name is what it is registered as in grpc-go.
	Name string
	// Config is its JSON; empty for a policy that parses none.
	Config string
	// Builder is used instead of the registered one if Name is empty.
	Builder gbalancer.Builder
	// Report is what the end of a call brings from the server for the endpoint with an index
	// (gbalancer.DoneInfo.ServerLoad), for policies that go by load reports; nil means nothing. The calls that
	// wear a rig in bring it; those that are timed only if Reporting is set, and else not, which is in the policy's
	// favour.
	Report    func(index int) any
	Reporting bool
	// Key binds a key to a call's context, in the way of the policy's library, for policies that go by keys; nil means
	// that calls have none. With it calls take turns with 1,024 keys.
	Key func(ctx context.Context, key string) context.Context
	// Lazy: the policy connects to whom a call is to go to, and not before. It needs a Key.
	Lazy bool
	// Address makes what the policy's own resolver hands over for an instance, for the many policies that are built on
	// grpc-go's package base and read addresses; nil means endpoints, with the instance attached.
	Address func(*registry.Instance) gresolver.Address
	// Bind binds a filter that one in ten of a [Fleet] meets to a call's context, in the way of the policy's library; nil
	// means evenkeel's.
	Bind func(context.Context) context.Context
	// Option is the configuration that takes the place of Config when the rig is worn in; empty for none.
	Option string
	// Newcomers: with Option, one instance in ten is replaced by another at the same address.
	Newcomers bool
	// Heavy: the first instance gets a hundred times the mean weight when its weight changes, not 3.
	Heavy bool
}

// weight is the first instance's after its change. The others' are 2.5 on average.
func (p Policy) weight() uint32 {
	if p.Heavy {
		return 250
	}
	return 3
}

// ejectionTime is how long an ejection lasts in a measured policy: longer than any run, so that none ends in the
// middle of a measurement.
const ejectionTime = 3 * time.Hour

// Evenkeel is this library's policy with a strategy, the blacklist on. Calls have a key if the strategy goes by one, and
// end with what servers say of themselves if it goes by that.
func Evenkeel(s balancer.Strategy) Policy {
	p := Policy{Label: "evenkeel_" + s.Name(), Name: balancer.Name, Config: configOf(balancer.Config{Strategy: s})}
	switch s.(type) {
	case balancer.Hash:
		p.Key = balancer.WithHashKey
	case balancer.Prequal, balancer.Keel:
		p.Report, p.Reporting = reportOf, true
	}
	return p
}

// configOf is the JSON of a configuration of evenkeel's, which has the blacklist on and ejections that last.
func configOf(c balancer.Config) string {
	c.Blacklist.BaseEjection = ejectionTime
	js, err := balancer.LoadBalancingConfig(c)
	if err != nil {
		panic(fmt.Sprintf("bench: %v", err)) // what is measured is valid, a test builds it
	}
	var entry map[string]json.RawMessage
	if err := json.Unmarshal(js, &entry); err != nil {
		panic(fmt.Sprintf("bench: %v", err))
	}
	return string(entry[balancer.Name])
}

// Strategies are evenkeel's, each with its defaults.
func Strategies() []Policy {
	var all []Policy
	for _, s := range []balancer.Strategy{
		balancer.RoundRobin{}, balancer.Random{}, balancer.Weighted{}, balancer.LeastRequest{}, balancer.PeakEWMA{},
		balancer.Prequal{}, balancer.Keel{}, balancer.Hash{},
	} {
		all = append(all, Evenkeel(s))
	}
	return all
}

// GRPCRoundRobin is grpc-go's round_robin, the reference: it counts nothing, so it is the floor.
func GRPCRoundRobin() Policy { return Policy{Label: "grpc_round_robin", Name: roundrobin.Name} }

// GRPCLeastRequest is grpc-go's least_request_experimental.
func GRPCLeastRequest() Policy {
	return Policy{Label: "grpc_least_request", Name: leastrequest.Name, Config: "{}"}
}

// ours reports whether p is evenkeel's.
func (p Policy) ours() bool { return p.Name == balancer.Name }

func (p Policy) builder() (gbalancer.Builder, error) {
	if p.Name == "" && p.Builder != nil {
		return p.Builder, nil
	}
	if b := gbalancer.Get(p.Name); b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("policy %s: name = %q, want one that is registered", p.Label, p.Name)
}

func (p Policy) parse() (serviceconfig.LoadBalancingConfig, error) {
	if p.Config == "" {
		return nil, nil
	}
	cfg, err := lbtest.ParseConfig(p.Name, p.Config)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Label, err)
	}
	return cfg, nil
}

// state is what the policy's resolver says about a fleet.
func (p Policy) state(fleet []registry.Instance) gresolver.State { return p.stateOf(pointers(fleet)) }

// stateOf is state for records that were there before, some of them. All else is made anew, as a resolver does.
func (p Policy) stateOf(fleet []*registry.Instance) gresolver.State {
	if p.Address == nil {
		return gresolver.State{Endpoints: lbtest.EndpointsOf(fleet)}
	}
	addrs := make([]gresolver.Address, len(fleet))
	for i, in := range fleet {
		addrs[i] = p.Address(in)
	}
	return gresolver.State{Addresses: addrs}
}

func pointers(fleet []registry.Instance) []*registry.Instance {
	list := make([]*registry.Instance, len(fleet))
	for i := range fleet {
		list[i] = &fleet[i]
	}
	return list
}
