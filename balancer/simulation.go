package balancer

import (
	"maps"
	"slices"

	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// NewBuilder returns a builder of policies that live in the time of c and draw from rand, for simulations and tests of
// this module; what is registered with gRPC uses the machine's. It parses the same configurations.
//
// A policy starts no goroutine of its own: everything that it does later, the delivery of events included, is a
// callback of c. If c calls back on the goroutine that drives the policy, the policy runs on that one alone, and one
// seed gives one run. An instance should then have a single address, since pick_first tries several against the
// machine's clock.
//
// Policies of this builder are not listed by [Channels], and one that is not closed is collected like any other value.
func NewBuilder(c clock.Clock, rand func() uint64) gbalancer.Builder {
	return unlisted{builder{clock: c, rand: rand}}
}

type unlisted struct{ builder }

// Build implements [gbalancer.Builder].
func (u unlisted) Build(cc gbalancer.ClientConn, opts gbalancer.BuildOptions) gbalancer.Balancer {
	p := u.builder.Build(cc, opts).(*policy)
	live.remove(p)
	return p
}

// Strategies returns the names of all strategies that are registered, in order.
func Strategies() []string {
	strategies.RLock()
	defer strategies.RUnlock()
	return slices.Sorted(maps.Keys(strategies.parse))
}
