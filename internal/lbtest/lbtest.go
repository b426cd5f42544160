// Package lbtest drives a load-balancing policy without a network: it is the channel that the policy sees.
//
// A [ClientConn] hands out sub-connections that connect when they are told to, delivers their state changes one
// after another as grpc-go's serializer does, and keeps the picker that the policy published last. Tests and
// benchmarks use it for any registered policy, ours and grpc-go's alike, so that they are measured the same way.
package lbtest

import (
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/experimental/stats"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/registry"
)

// ClientConn is a fake gbalancer.ClientConn. Make it with [New]. Picker, State and the counters may be read from any
// goroutine; everything else belongs to the goroutine that drives.
type ClientConn struct {
	gbalancer.ClientConn // panics when the policy asks for what is not here

	// Refuse says why the connection to an address fails; nil means that it succeeds.
	Refuse func(addr string) error
	// Load answers the probes of an address; nil means that nobody does. What it returns is delivered when
	// no state change waits.
	Load func(addr string) (load.Report, bool)
	// Unhealthy says whether an address reports NOT_SERVING; nil means that none does.
	Unhealthy func(addr string) bool

	mu      sync.Mutex
	state   gbalancer.State
	updates int
	events  []func()
	answers []func() // to probes
	conns   []*SubConn
}

// New returns a channel on which every connection succeeds.
func New() *ClientConn { return new(ClientConn) }

// Build makes the registered policy name on cc, for the target lb:///service.
func Build(cc *ClientConn, name, service string) gbalancer.Balancer {
	return BuildWith(cc, gbalancer.Get(name), service)
}

// BuildWith is Build for a builder that is not registered.
func BuildWith(cc *ClientConn, b gbalancer.Builder, service string) gbalancer.Balancer {
	return b.Build(cc, gbalancer.BuildOptions{
		Target: gresolver.Target{URL: url.URL{Scheme: "lb", Path: "/" + service}},
	})
}

// ParseConfig parses a policy's JSON as gRPC would.
func ParseConfig(name, js string) (serviceconfig.LoadBalancingConfig, error) {
	p, ok := gbalancer.Get(name).(gbalancer.ConfigParser)
	if !ok {
		return nil, fmt.Errorf("policy %q parses no configuration", name)
	}
	return p.ParseConfig([]byte(js))
}

// Endpoints makes a resolver's endpoints of instances.
func Endpoints(instances ...registry.Instance) []gresolver.Endpoint {
	list := make([]*registry.Instance, len(instances))
	for i := range instances {
		list[i] = &instances[i]
	}
	return EndpointsOf(list)
}

// EndpointsOf is [Endpoints] for records that the caller has: a resolver hands on the same one as long as nothing in it
// changes.
func EndpointsOf(instances []*registry.Instance) []gresolver.Endpoint {
	eps := make([]gresolver.Endpoint, len(instances))
	for i, in := range instances {
		addrs := []gresolver.Address{{Addr: in.Addr}}
		for _, a := range in.AltAddrs {
			addrs = append(addrs, gresolver.Address{Addr: a})
		}
		eps[i] = registry.SetInstance(gresolver.Endpoint{Addresses: addrs}, in)
	}
	return eps
}

// Update hands endpoints and a configuration to a policy.
func Update(b gbalancer.Balancer, cfg serviceconfig.LoadBalancingConfig, eps []gresolver.Endpoint) error {
	return b.UpdateClientConnState(gbalancer.ClientConnState{
		ResolverState: gresolver.State{Endpoints: eps}, BalancerConfig: cfg,
	})
}

// NewSubConn implements gbalancer.ClientConn.
func (cc *ClientConn) NewSubConn(addrs []gresolver.Address, o gbalancer.NewSubConnOptions) (gbalancer.SubConn, error) {
	if len(addrs) != 1 {
		return nil, errors.New("lbtest: want one address")
	}
	sc := &SubConn{cc: cc, Addr: addrs[0].Addr, listen: o.StateListener}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.conns = append(cc.conns, sc)
	return sc, nil
}

// UpdateState implements gbalancer.ClientConn.
func (cc *ClientConn) UpdateState(s gbalancer.State) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.state = s
	cc.updates++
}

// ResolveNow implements gbalancer.ClientConn.
func (cc *ClientConn) ResolveNow(gresolver.ResolveNowOptions) {}

// Target implements gbalancer.ClientConn.
func (cc *ClientConn) Target() string { return "lb:///test" }

// MetricsRecorder implements gbalancer.ClientConn.
func (cc *ClientConn) MetricsRecorder() stats.MetricsRecorder { return recorder{} }

type recorder struct {
	stats.UnimplementedMetricsRecorder
}

// Picker is the picker published last, nil if none was.
func (cc *ClientConn) Picker() gbalancer.Picker {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.state.Picker
}

// State is the connectivity state published last.
func (cc *ClientConn) State() connectivity.State {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.state.ConnectivityState
}

// Updates is how often the policy published.
func (cc *ClientConn) Updates() int {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.updates
}

// Created is how many sub-connections were ever made.
func (cc *ClientConn) Created() int {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return len(cc.conns)
}

// Conn is the sub-connection made last for addr, nil if there is none.
func (cc *ClientConn) Conn(addr string) *SubConn {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	for i := len(cc.conns) - 1; i >= 0; i-- {
		if cc.conns[i].Addr == addr {
			return cc.conns[i]
		}
	}
	return nil
}

func (cc *ClientConn) push(f func()) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.events = append(cc.events, f)
}

// Step delivers one waiting state change, or else the answer to a probe; false if there is none.
func (cc *ClientConn) Step() bool {
	cc.mu.Lock()
	waiting := &cc.events
	if len(*waiting) == 0 {
		waiting = &cc.answers
	}
	if len(*waiting) == 0 {
		cc.mu.Unlock()
		return false
	}
	f := (*waiting)[0]
	*waiting = (*waiting)[1:]
	cc.mu.Unlock()
	f()
	return true
}

// Settle delivers state changes and answers until none waits.
func (cc *ClientConn) Settle() {
	for cc.Step() {
	}
}

// SubConn is a fake sub-connection.
type SubConn struct {
	gbalancer.SubConn
	cc     *ClientConn
	Addr   string
	listen func(gbalancer.SubConnState)
	health func(gbalancer.SubConnState)
	closed bool
}

// Connect implements gbalancer.SubConn: it will be CONNECTING, then READY or in TRANSIENT_FAILURE.
func (sc *SubConn) Connect() {
	sc.Move(connectivity.Connecting, nil)
	if sc.cc.Refuse != nil {
		if err := sc.cc.Refuse(sc.Addr); err != nil {
			sc.Move(connectivity.TransientFailure, err)
			return
		}
	}
	sc.Move(connectivity.Ready, nil)
}

// Move queues a change of state, as if the network had caused it.
func (sc *SubConn) Move(s connectivity.State, err error) {
	sc.cc.push(func() {
		if !sc.closed {
			sc.listen(gbalancer.SubConnState{ConnectivityState: s, ConnectionError: err})
		}
	})
}

// RegisterHealthListener implements gbalancer.SubConn.
func (sc *SubConn) RegisterHealthListener(f func(gbalancer.SubConnState)) {
	sc.health = f
	sc.cc.push(func() {
		if sc.closed {
			return
		}
		if sc.cc.Unhealthy != nil && sc.cc.Unhealthy(sc.Addr) {
			f(gbalancer.SubConnState{ConnectivityState: connectivity.TransientFailure, ConnectionError: errors.New("NOT_SERVING")})
			return
		}
		f(gbalancer.SubConnState{ConnectivityState: connectivity.Ready})
	})
}

// Turn queues a change of what the server says about its health, on a connection that stays.
func (sc *SubConn) Turn(s connectivity.State, err error) {
	sc.cc.push(func() {
		if !sc.closed && sc.health != nil {
			sc.health(gbalancer.SubConnState{ConnectivityState: s, ConnectionError: err})
		}
	})
}

// Probe implements balancer.Prober.
func (sc *SubConn) Probe(_ time.Duration, answer func(load.Report, bool)) {
	sc.cc.mu.Lock()
	defer sc.cc.mu.Unlock()
	sc.cc.answers = append(sc.cc.answers, func() {
		if sc.cc.Load == nil {
			answer(load.Report{}, false)
			return
		}
		answer(sc.cc.Load(sc.Addr))
	})
}

// Shutdown implements gbalancer.SubConn.
func (sc *SubConn) Shutdown() { sc.cc.push(func() { sc.closed = true }) }

// UpdateAddresses implements gbalancer.SubConn.
func (sc *SubConn) UpdateAddresses([]gresolver.Address) {}
