// Package real runs this library's own policy in a simulation: package balancer as it is shipped, with its filters, its
// blacklist and its strategies, on a channel without a network and in virtual time.
//
// Nothing of the policy is modelled here. A client of the simulation gets a channel of its own, on which the policy
// builds its connections, publishes its pickers and is asked for picks through the same interfaces as by gRPC. What
// this package adds is what gRPC adds to it: connections that are made and lost, a backoff between attempts to make
// one, the context that a call comes with, and the report of how it ended.
//
//   - Connections are ready at once when the simulation starts, and then as soon as a server is shown. Who knows that a
//     server's process has died tells [Balancer.Lost], and its connection is lost as TCP would have it; after
//     [Balancer.Ready] the next attempt succeeds, and attempts come with gRPC's exponential backoff.
//   - A call is unary or a stream. It carries its deadline, the servers that it was tried on, and its key, if it has one, as the
//     library's wrappers would put them there.
//   - What a server says about its load with an answer reaches the strategy as a load report in the call's trailer does.
//   - A pick that gRPC would hold back until there is a connection fails with UNAVAILABLE, since a simulated call
//     cannot wait. That happens only when no server can be connected to.
//   - An instance has its first address only; several are tried by the machine's clock.
//
// The policy starts no goroutine: whatever it does later is a timer of the simulation (balancer.NewBuilder). It draws
// from its client's stream. So one seed gives one run.
//
// [WithRetry] and [WithLimit] add what packages retry and ratelimit decide to any policy, ours or another.
//
// Ejections and returns are logged with [log/slog], as in production. A program that simulates thousands of them
// discards that log.
package real

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/registry"
)

// method is what every simulated call is.
const method = "/sim.Service/Call"

// All returns the policy with each strategy that is registered, by its defaults, as "evenkeel/" and the strategy's
// name, in order; a variant that is no strategy of its own follows the one that it is of, as "evenkeel/weighted+orca".
func All() []lb.Maker {
	var all []lb.Maker
	for _, name := range balancer.Strategies() {
		all = append(all, FromJSON("evenkeel/"+name, `{"strategy":{"`+name+`":{}}}`))
		for _, v := range variants[name] {
			all = append(all, FromJSON("evenkeel/"+name+"+"+v.name, v.config))
		}
		if name == "least_request" {
			all = append(all, InZone("evenkeel/"+name+"+zone", balancer.Config{Strategy: balancer.LeastRequest{}}))
		}
	}
	return all
}

// variants are configurations that a comparison is about, by the name of their strategy.
var variants = map[string][]struct{ name, config string }{
	"weighted": {{"orca", `{"strategy":{"weighted":{"load":"orca"}}}`}},
}

// New returns the policy with a configuration. name is what tables call it.
func New(name string, c balancer.Config) lb.Maker {
	js, err := balancer.LoadBalancingConfig(c)
	if err != nil {
		return failing(name, err)
	}
	return FromJSON(name, string(js[len(`{"`+balancer.Name+`":`):len(js)-1]))
}

// FromJSON is New for the policy's JSON as it stands in a service config. One that is wrong is reported by the Maker.
func FromJSON(name, js string) lb.Maker {
	return lb.Maker{Name: name, New: func(env lb.Env) (lb.Balancer, error) {
		b, err := newBalancer(env, js)
		if err != nil {
			return nil, err
		}
		return b, nil
	}}
}

// InZone is New for clients that each prefer their own zone, by the other settings of c.Zone.
func InZone(name string, c balancer.Config) lb.Maker {
	return lb.Maker{Name: name, New: func(env lb.Env) (lb.Balancer, error) {
		own := c
		if own.Zone.Local = env.Zone; env.Zone == "" {
			own.Zone = balancer.Zone{}
		}
		return New(name, own).New(env)
	}}
}

func failing(name string, err error) lb.Maker {
	return lb.Maker{Name: name, New: func(lb.Env) (lb.Balancer, error) { return nil, err }}
}

// Balancer is the library's policy on one client of a simulation. Use [New].
type Balancer struct {
	env    lb.Env
	clock  *simClock
	ch     *channel
	policy gbalancer.Balancer
	cfg    serviceconfig.LoadBalancingConfig

	byAddr  map[string]*peer
	byIndex map[int]*peer // those that the registry shows

	// The context of calls without a key, made once.
	base deadline
	ctx  callctx.Room

	report load.Report // what the server said with the call that ends
}

var _ lb.Connections = (*Balancer)(nil)

// peer is one address. A server that is started anew at the address of another takes its connection over.
type peer struct {
	server   int
	endpoint *callctx.Endpoint // as the policy knows it; nil before the first pick
	down     bool
	conn     *conn // the one made last
}

func newBalancer(env lb.Env, js string) (*Balancer, error) {
	b := &Balancer{env: env, byAddr: make(map[string]*peer), byIndex: make(map[int]*peer)}
	b.ch = newChannel(b)
	b.clock = &simClock{now: env.Now, after: env.After, then: b.ch.Settle}
	b.ctx.Begin(&b.base, callctx.Unary, nil)
	builder := balancer.NewBuilder(b.clock, env.Rand)
	var err error
	if b.cfg, err = builder.(gbalancer.ConfigParser).ParseConfig([]byte(js)); err != nil {
		return nil, err
	}
	b.policy = builder.Build(b.ch, gbalancer.BuildOptions{
		Target: gresolver.Target{URL: url.URL{Scheme: "lb", Path: "/sim"}},
	})
	// Before the first call everything is connected and published.
	b.clock.hold()
	b.Update(env.Servers)
	b.clock.release(publication)
	return b, nil
}

// publication is how long the policy collects changes for a picker at most, while publishing costs no time.
const publication = int64(time.Millisecond)

// Pick implements [lb.Balancer].
func (b *Balancer) Pick(c *lb.Call) (int, error) {
	info := gbalancer.PickInfo{FullMethodName: method, Ctx: b.ctx.Context()}
	b.base.at = c.Deadline
	call := b.ctx.Call()
	call.Tried, call.Kind = b.tried(c.Tried), callctx.Unary
	if c.Stream {
		call.Kind = callctx.Stream
	}
	if c.HasKey {
		rec := callctx.Copy(info.Ctx)
		rec.HashKey, rec.HasHashKey = c.Key, true
		info.Ctx = callctx.With(&b.base, rec)
	}
	res, err := b.ch.picker.Pick(info)
	if err != nil {
		return 0, failure(err)
	}
	p := res.SubConn.(*conn).peer
	p.endpoint = call.Picked()
	c.Note = res.Done
	return p.server, nil
}

// failure is what gRPC would make of a picker's error.
func failure(err error) error {
	if errors.Is(err, gbalancer.ErrNoSubConnAvailable) {
		return errNotConnected
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

var errNotConnected = status.Error(codes.Unavailable, "real: no server is connected, and a simulated call does not wait")

// tried is what a retrying wrapper would have noted of the servers.
func (b *Balancer) tried(servers []int) *callctx.Tried {
	if len(servers) == 0 {
		return nil
	}
	t := new(callctx.Tried)
	for _, s := range servers {
		if p := b.byIndex[s]; p != nil {
			t.Add(p.endpoint)
		}
	}
	return t
}

// Done implements [lb.Balancer].
func (b *Balancer) Done(c *lb.Call, _ int, r lb.Result) {
	done := c.Note.(func(gbalancer.DoneInfo))
	if done == nil {
		return
	}
	info := gbalancer.DoneInfo{Err: r.Err, BytesSent: true, BytesReceived: r.Err == nil || r.Load != nil}
	if l := r.Load; l != nil {
		b.report = reportOf(*l)
		info.ServerLoad = &b.report
	}
	done(info)
}

// Update implements [lb.Balancer].
func (b *Balancer) Update(servers []lb.Server) {
	endpoints := make([]gresolver.Endpoint, 0, len(servers))
	byIndex, byAddr := make(map[int]*peer, len(servers)), make(map[string]*peer, len(servers))
	for _, s := range servers {
		p := b.byAddr[s.Instance.Addr]
		if p == nil {
			p = &peer{server: s.Index}
		}
		if p.server != s.Index { // another process at the same address
			p.server, p.endpoint, p.down = s.Index, nil, false
		}
		byIndex[s.Index], byAddr[s.Instance.Addr] = p, p
		endpoints = append(endpoints, registry.SetInstance(
			gresolver.Endpoint{Addresses: []gresolver.Address{{Addr: s.Instance.Addr}}}, s.Instance))
	}
	b.byIndex, b.byAddr = byIndex, byAddr
	err := b.policy.UpdateClientConnState(gbalancer.ClientConnState{
		ResolverState: gresolver.State{Endpoints: endpoints}, BalancerConfig: b.cfg,
	})
	if err != nil && !errors.Is(err, gbalancer.ErrBadResolverState) { // that is its answer to an empty set
		panic(fmt.Sprintf("real: the policy refuses an update: %v", err)) // not reachable: the config was parsed
	}
	b.ch.Settle()
}

// Lost implements [lb.Connections]. It tells that the process of a server is gone: its connection breaks, and attempts to make another fail.
func (b *Balancer) Lost(server int) {
	if p := b.byIndex[server]; p != nil && !p.down {
		p.down = true
		p.conn.broken()
		b.ch.Settle()
	}
}

// Ready implements [lb.Connections]. It tells that a server can be connected to again. The next attempt will succeed.
func (b *Balancer) Ready(server int) {
	if p := b.byIndex[server]; p != nil {
		p.down = false
	}
}
