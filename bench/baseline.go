package bench

import (
	"sync"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"
)

// ChannelOnly is a policy that does nothing but connect, for what the fake channel itself costs. Only [Memory] has a
// use for it.
func ChannelOnly() Policy { return Policy{Label: "channel_only", Builder: connectors{}} }

// PickFirstOnly is one pick_first for each endpoint and nothing above: the least that a policy which leaves
// connecting to grpc-go's own leaf can hold. Only [Memory] has a use for it.
func PickFirstOnly() Policy { return Policy{Label: "pick_first_only", Builder: leaves{}} }

// publishing turns the connections that became READY into pickers that take them in turn: enough to be asked whether
// they cover everything. It publishes once, when all of them are there.
type publishing struct {
	gbalancer.Balancer
	cc    gbalancer.ClientConn
	want  int
	ready []gbalancer.SubConn
}

func (p *publishing) add(sc gbalancer.SubConn) {
	p.ready = append(p.ready, sc)
	if len(p.ready) == p.want {
		p.cc.UpdateState(gbalancer.State{ConnectivityState: connectivity.Ready, Picker: &turns{conns: p.ready}})
	}
}

func (p *publishing) ResolverError(error)                                          {}
func (p *publishing) UpdateSubConnState(gbalancer.SubConn, gbalancer.SubConnState) {}
func (p *publishing) ExitIdle()                                                    {}
func (p *publishing) Close()                                                       {}

type turns struct {
	mu    sync.Mutex
	next  int
	conns []gbalancer.SubConn
}

func (t *turns) Pick(gbalancer.PickInfo) (gbalancer.PickResult, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = (t.next + 1) % len(t.conns)
	return gbalancer.PickResult{SubConn: t.conns[t.next]}, nil
}

type connectors struct{}

func (connectors) Name() string { return "channel_only" }

func (connectors) Build(cc gbalancer.ClientConn, _ gbalancer.BuildOptions) gbalancer.Balancer {
	return &connector{publishing{cc: cc}}
}

type connector struct{ publishing }

func (c *connector) UpdateClientConnState(s gbalancer.ClientConnState) error {
	c.want = len(s.ResolverState.Endpoints)
	for _, ep := range s.ResolverState.Endpoints {
		var sc gbalancer.SubConn
		//lint:ignore SA1019 it is deprecated for several addresses; with one it is how a sub-channel is made
		sc, err := c.cc.NewSubConn(ep.Addresses[:1], gbalancer.NewSubConnOptions{
			StateListener: func(s gbalancer.SubConnState) {
				if s.ConnectivityState == connectivity.Ready {
					sc.RegisterHealthListener(func(gbalancer.SubConnState) {})
					c.add(sc)
				}
			},
		})
		if err != nil {
			return err
		}
		sc.Connect()
	}
	return nil
}

type leaves struct{}

func (leaves) Name() string { return "pick_first_only" }

func (leaves) Build(cc gbalancer.ClientConn, o gbalancer.BuildOptions) gbalancer.Balancer {
	return &tree{publishing: publishing{cc: cc}, opts: o, children: make(map[string]gbalancer.Balancer)}
}

type tree struct {
	publishing
	opts     gbalancer.BuildOptions
	children map[string]gbalancer.Balancer
}

// leaf is what a child sees as its channel.
type leaf struct {
	gbalancer.ClientConn
	t *tree
}

func (l *leaf) UpdateState(s gbalancer.State) {
	if s.ConnectivityState == connectivity.Ready {
		if res, err := s.Picker.Pick(gbalancer.PickInfo{}); err == nil {
			l.t.add(res.SubConn)
		}
	}
}

func (t *tree) UpdateClientConnState(s gbalancer.ClientConnState) error {
	t.want = len(s.ResolverState.Endpoints)
	builder := gbalancer.Get(pickfirst.Name)
	for _, ep := range s.ResolverState.Endpoints {
		child := builder.Build(&leaf{ClientConn: t.cc, t: t}, t.opts)
		t.children[ep.Addresses[0].Addr] = child
		state := pickfirst.EnableHealthListener(gresolver.State{Endpoints: []gresolver.Endpoint{ep}})
		if err := child.UpdateClientConnState(gbalancer.ClientConnState{ResolverState: state}); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) Close() {
	for _, c := range t.children {
		c.Close()
	}
}
