package bench

import (
	"context"
	"fmt"
	"strconv"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
)

const (
	service = "orders"
	method  = "/shop.Orders/Get"
)

// MaxFilters is how many filters there are for [InFilters].
const MaxFilters = 64

// The two instances of a worn fleet that get no calls: one is ejected, one draining.
const (
	ejectedID  = "ejected"
	drainingID = "draining"
)

// Fleet makes n instances. One in ten meets [Tenth] and each filter of [InFilters], the first one among them; weights
// go from 1 to 4.
func Fleet(n int) []registry.Instance {
	fleet := make([]registry.Instance, n)
	for i := range fleet {
		fleet[i] = registry.Instance{
			ID: "i" + strconv.Itoa(i), Addr: address(i), Version: "1.4.2", Zone: "eu-" + strconv.Itoa(i%3),
			Weight: uint32(i%4 + 1),
			Labels: map[string]string{"slot": strconv.Itoa(i % 10), "track": "stable"},
		}
	}
	return fleet
}

func address(i int) string { return fmt.Sprintf("10.%d.%d.%d:8080", i>>16&255, i>>8&255, i&255) }

// Tenth is met by one in ten of a [Fleet].
func Tenth() filters.Filter { return filters.Label("slot", "0") }

func bindTenth(ctx context.Context) context.Context { return filters.NewContext(ctx, Tenth(), service) }

// wornFleet is a tagged fleet of n and the two that get no calls. Both meet Tenth, so that they are out of it as well.
func wornFleet(n int) []registry.Instance {
	fleet := tagged(n + 2)
	for i, id := range []string{ejectedID, drainingID} {
		in := &fleet[n+i]
		in.ID, in.Labels["slot"] = id, "0"
	}
	return fleet
}

// InFilters is filter number i, below [MaxFilters], of those that a fleet made by tagged can tell apart.
func InFilters(i int) filters.Filter { return filters.Label(tag(i), "on") }

func tag(i int) string { return "f" + strconv.Itoa(i) }

// inEight is how many of the filters the endpoint that changes meets.
const inEight = 8

// tagged is a fleet in which each of InFilters is met by one in ten, and instance 0 meets eight of them.
func tagged(n int) []registry.Instance {
	fleet := Fleet(n)
	for i := range fleet {
		for f := range MaxFilters {
			if i > 0 && (i+f)%10 == 0 || i == 0 && f < inEight {
				fleet[i].Labels[tag(f)] = "on"
			}
		}
	}
	return fleet
}

// Context says what a measured pick is given, besides what every call has.
type Context struct {
	// Filtered: the caller bound a filter that one in ten meets.
	Filtered bool
	// Deadline: the call has one.
	Deadline bool
}

type appKey int

// rpcInfo is what grpc-go puts on top of each attempt's context.
type rpcInfo struct{ failFast bool }

type rpcInfoKey struct{}

// New makes a context such as grpc-go hands to the picker of p: the application's, then what grpc-go itself adds for a
// call (a cancellation) and for an attempt (a value). stop frees its timer.
func (c Context) New(p Policy) (ctx context.Context, stop func()) {
	ctx, stopApp := c.app(p.Bind)
	ctx, stopCall := context.WithCancel(ctx)
	ctx = context.WithValue(ctx, rpcInfoKey{}, &rpcInfo{failFast: true})
	return ctx, func() { stopCall(); stopApp() }
}

// keys is how many keys calls take turns with, where they have one: a power of two. With more of them the contexts that
// wait for their turn would not fit the processor's caches, as that of a call under way does.
const keys = 1024

// calls makes what is handed to the picker of p call by call, in turns: one context, or one for each key.
func (c Context) calls(p Policy) (infos []gbalancer.PickInfo, stop func()) {
	ctx, stop := c.New(p)
	if p.Key == nil {
		return []gbalancer.PickInfo{{Ctx: ctx, FullMethodName: method}}, stop
	}
	// The key is above what grpc-go adds for the call, and not below as in operation, since contexts with a cancellation
	// are larger. How many a picker has to look at is the same.
	for i := range keys {
		keyed := p.Key(ctx, keyOf(i))
		infos = append(infos, gbalancer.PickInfo{Ctx: keyed, FullMethodName: method})
	}
	return infos, stop
}

func keyOf(i int) string { return "user " + strconv.Itoa(i) }

// app makes a context such as an application calls with: two values of its own at the bottom, outgoing metadata, the
// filter, and the deadline if there is one.
func (c Context) app(bind func(context.Context) context.Context) (ctx context.Context, stop func()) {
	ctx = context.WithValue(context.Background(), appKey(0), "request 4711")
	ctx = context.WithValue(ctx, appKey(1), "user 42")
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "4711", "authorization", "bearer of a token")
	if c.Filtered {
		if bind == nil {
			bind = bindTenth
		}
		ctx = bind(ctx)
	}
	if c.Deadline {
		return context.WithTimeout(ctx, time.Hour)
	}
	return ctx, func() {}
}

// String is the context in a benchmark's name.
func (c Context) String() string {
	if c.Deadline {
		return "deadline"
	}
	return "plain"
}
