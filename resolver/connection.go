package resolver

import (
	"fmt"
	"sync"
	"time"

	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/internal/beacon"
	"github.com/evenkeel/evenkeel/registry"
)

// darkTime is how long a beacon may stay dark before the log says that evenkeel does not balance. UpdateState lights
// it before it returns, except where gRPC drops the state because the connection is just closing, or waits for the
// address of a proxy.
const darkTime = time.Second

// connection hands a service's instances to one gRPC connection, from a goroutine of its own, so that a connection
// which is slow to take them holds up no other. It implements gresolver.Resolver.
type connection struct {
	s              *service
	cc             gresolver.ClientConn
	config         *serviceconfig.ParseResult // nil: none to send
	configDisabled bool                       // there is one, but the app has gRPC ignore it

	poke      chan struct{} // has room for one: the state to send is always the latest
	stop      chan struct{}
	done      chan struct{}
	closeOnce sync.Once
}

// wake makes the connection look at the service's state. It never waits.
func (c *connection) wake() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// ResolveNow implements gresolver.Resolver. A watch is always up to date, so it does nothing but bring the next
// attempt forward, to within a second, while the registry is out of reach.
func (c *connection) ResolveNow(gresolver.ResolveNowOptions) { c.s.wantsNews() }

// Close implements gresolver.Resolver. When it returns, cc is not called any more and, if this was the service's
// last connection, no goroutine is left. It waits for the Watch of the registry to end.
func (c *connection) Close() {
	c.closeOnce.Do(func() {
		close(c.stop)
		<-c.done
		c.s.b.leave(c)
	})
}

func (c *connection) run() {
	defer close(c.done)
	var sent *snapshot
	var shown bool // gRPC has instances
	var lamp *beacon.Beacon
	var dark <-chan time.Time // fires when it is time to look at lamp
	for {
		select {
		case <-c.stop:
			return
		case <-dark:
			dark = nil
			if !lamp.Lit() && c.s.firstWarning() {
				c.warn()
			}
			continue
		case <-c.poke:
		}
		select {
		case <-c.stop: // with both ready, select may have chosen the poke
			return
		default:
		}
		snap := c.s.current()
		if snap == nil || snap == sent {
			continue
		}
		sent = snap
		if snap.err != nil {
			if shown { // it was busy while the set became empty, which gRPC is to know before why
				shown = false
				c.send(&snapshot{})
			}
			c.report(snap.err)
			continue
		}
		lamp, shown = c.send(snap), len(snap.instances) > 0
		if dark == nil && !lamp.Lit() && len(snap.instances) > 0 {
			dark = time.After(darkTime)
		}
	}
}

// report tells gRPC why there are no instances. It takes the text of err and does not wrap it: if gRPC found a
// status inside, it would fail wait-for-ready calls at once, with that status.
func (c *connection) report(err error) {
	c.cc.ReportError(fmt.Errorf("resolver: no instance of %q is known: the registry does not answer: %v", c.s.name, err))
}

// send hands a state to gRPC and returns the beacon that went with it. It ignores UpdateState's error: asking the
// registry again would give the same.
func (c *connection) send(snap *snapshot) *beacon.Beacon {
	lamp := new(beacon.Beacon)
	state := gresolver.State{
		Endpoints:     make([]gresolver.Endpoint, len(snap.instances)),
		Addresses:     make([]gresolver.Address, len(snap.instances)), // policies built on grpc's balancer/base read these
		ServiceConfig: c.config,
		Attributes:    beacon.Put(nil, lamp),
	}
	for i, in := range snap.instances {
		ep := c.endpoint(in)
		state.Endpoints[i], state.Addresses[i] = ep, ep.Addresses[0]
	}
	_ = c.cc.UpdateState(state)
	return lamp
}

func (c *connection) endpoint(in *registry.Instance) gresolver.Endpoint {
	serverName := ""
	if f := c.s.b.opts.serverName; f != nil {
		serverName = f(*in)
	}
	ep := gresolver.Endpoint{Addresses: make([]gresolver.Address, 0, 1+len(in.AltAddrs))}
	ep.Addresses = append(ep.Addresses, gresolver.Address{Addr: in.Addr, ServerName: serverName})
	for _, alt := range in.AltAddrs {
		ep.Addresses = append(ep.Addresses, gresolver.Address{Addr: alt, ServerName: serverName})
	}
	return registry.SetInstance(ep, in)
}

// warn says that evenkeel does not balance, and what mends it.
func (c *connection) warn() {
	mend := `resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})), or "loadBalancingConfig":[{"evenkeel":{}}] in the app's service config`
	if c.configDisabled {
		mend = `grpc.WithDisableServiceConfig has gRPC ignore WithServiceConfig: drop it, or put the config into grpc.WithDefaultServiceConfig`
	}
	c.s.b.logger().Warn("resolver: another policy than evenkeel got the instances; if it is pick_first, gRPC's silent default, all calls go to one instance",
		"service", c.s.name, "mend", mend)
}
