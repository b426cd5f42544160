package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/credentials/insecure"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/wrappers"
)

// Stack is a client that is measured with whole calls: a way to find servers, to choose one, and what is around calls.
type Stack struct {
	// Label names it in the benchmarks. Ours begin with "evenkeel".
	Label string
	// Dial connects to a fleet; stop ends what it started besides the connection.
	Dial func(fleet []registry.Instance) (conn *grpc.ClientConn, stop func(), err error)
	// Filtered: the stack has a filter like [Tenth], and the fleet has one instance more, which does not meet it and must
	// get no call.
	Filtered bool
	// Bind binds that filter to the context of the calls; nil means that Dial sees to it.
	Bind func(context.Context) context.Context
}

// Plain is grpc-go's round_robin with a fixed list of addresses, and nothing around the call: what every stack is
// compared with.
func Plain() Stack { return Stack{Label: "grpc_round_robin", Dial: PlainDial()} }

// PlainDial is Plain's Dial with interceptors.
func PlainDial(chain ...grpc.UnaryClientInterceptor) func([]registry.Instance) (*grpc.ClientConn, func(), error) {
	return func(fleet []registry.Instance) (*grpc.ClientConn, func(), error) {
		fixed := manual.NewBuilderWithScheme("fixed")
		var state gresolver.State
		for _, in := range fleet {
			state.Addresses = append(state.Addresses, gresolver.Address{Addr: in.Addr})
		}
		fixed.InitialState(state)
		conn, err := grpc.NewClient("fixed:///"+service, grpc.WithResolvers(fixed),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithChainUnaryInterceptor(chain...),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"`+roundrobin.Name+`":{}}]}`))
		return conn, func() {}, err
	}
}

// Full is all of evenkeel that a client can have: its resolver on a registry, least_request with the blacklist on, a
// filter bound to the context of the calls, and the four wrappers.
func Full() Stack {
	return Stack{Label: "evenkeel_full", Dial: dialFull, Filtered: true, Bind: bindTenth}
}

func dialFull(fleet []registry.Instance) (*grpc.ClientConn, func(), error) {
	reg := memory.New()
	var records []registry.Registration
	stop := func() {
		for _, r := range records {
			_ = r.Close(context.Background()) // the registry ends with its last user
		}
	}
	for _, in := range fleet {
		r, err := reg.Register(context.Background(), service, in)
		if err != nil {
			stop()
			return nil, nil, err
		}
		records = append(records, r)
	}
	policy := balancer.ServiceConfig(balancer.Config{Strategy: balancer.LeastRequest{}})
	conn, err := grpc.NewClient("lb:///"+service,
		grpc.WithResolvers(resolver.NewBuilder(reg, resolver.WithServiceConfig(policy))),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(wrappers.ChainUnaryClient(EvenkeelWrappers().All()...)))
	return conn, stop, err
}

// servers is how many answer calls; one more is there that does not meet the filter.
const servers = 3

// Whole are servers on the loopback interface, in this process, and a plain client of theirs. Make it with [NewWhole];
// the caller closes it. It belongs to one goroutine.
type Whole struct {
	fleet []registry.Instance
	calls [servers + 1]atomic.Uint64 // how often each was called
	stop  []func()
	plain *client
}

// client is a stack that is connected to all servers.
type client struct {
	Stack
	conn *grpc.ClientConn
	stop func()
}

// NewWhole starts the servers and connects the plain client.
func NewWhole() (*Whole, error) {
	w := new(Whole)
	for i := range w.calls {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.Close()
			return nil, err
		}
		s := grpc.NewServer()
		greeter.Register(s, greeter.HelloFunc(func(_ context.Context, name string) (string, error) {
			w.calls[i].Add(1)
			return name, nil
		}))
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(lis) }) // returns when s is stopped
		w.stop = append(w.stop, func() { s.Stop(); serving.Wait() })
		slot := "0"
		if i == servers {
			slot = "1"
		}
		w.fleet = append(w.fleet, registry.Instance{
			ID: "s" + strconv.Itoa(i), Addr: lis.Addr().String(), Version: "1.4.2",
			Labels: map[string]string{"slot": slot},
		})
	}
	var err error
	if w.plain, err = w.dial(Plain()); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close ends the plain client and the servers.
func (w *Whole) Close() {
	if w.plain != nil {
		w.plain.close()
	}
	for _, stop := range w.stop {
		stop()
	}
}

// dial connects a stack, and makes calls until each of the servers has had one, then some more.
func (w *Whole) dial(s Stack) (*client, error) {
	fleet := w.fleet
	if !s.Filtered {
		fleet = fleet[:servers]
	}
	conn, stop, err := s.Dial(fleet)
	if err != nil {
		return nil, fmt.Errorf("stack %s: %w", s.Label, err)
	}
	c := &client{s, conn, stop}
	if err := w.warm(c); err != nil {
		c.close()
		return nil, fmt.Errorf("stack %s: %w", s.Label, err)
	}
	return c, nil
}

func (c *client) close() {
	_ = c.conn.Close() // ErrClientConnClosing is its only error
	c.stop()
}

// settleCalls are made at least, so that pools and the peers' statistics have something in them.
const settleCalls = 200

func (w *Whole) warm(c *client) error {
	var before [servers + 1]uint64
	for i := range w.calls {
		before[i] = w.calls[i].Load()
	}
	ctx, stop := c.context(Context{})
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for made := 0; ; made++ {
		missing := -1
		for i := range servers {
			if w.calls[i].Load() == before[i] {
				missing = i
			}
		}
		if missing < 0 && made >= settleCalls {
			break
		}
		if err := c.call(ctx, grpc.WaitForReady(true)); err != nil {
			// Not every policy lets a call wait until its first picker knows somebody: until the deadline an error is
			// that. Few of them, or the stack's breaker would remember.
			select {
			case <-ctx.Done():
				return fmt.Errorf("call %d, server %d has had none: %w", made, missing, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	if w.calls[servers].Load() != before[servers] {
		return errors.New("the server that does not meet the filter was called")
	}
	return nil
}

// context is what calls are made with.
func (c *client) context(cx Context) (context.Context, func()) {
	ctx, stop := cx.app(nil)
	if c.Bind != nil {
		ctx = c.Bind(ctx)
	}
	return ctx, stop
}

// static is the option that generated code adds to each call; a variable, because the slice is the caller's work.
var static = []grpc.CallOption{grpc.StaticMethod()}

var question = wrapperspb.String("Who is there?")

func (c *client) call(ctx context.Context, opts ...grpc.CallOption) error {
	var answer wrapperspb.StringValue
	return c.conn.Invoke(ctx, greeter.HelloMethod, question, &answer, append(opts, static...)...)
}

// block times so many calls, one after another.
func (c *client) block(ctx context.Context, calls int) (time.Duration, error) {
	start := time.Now()
	for range calls {
		if err := c.call(ctx); err != nil {
			return 0, fmt.Errorf("stack %s: %w", c.Label, err)
		}
	}
	return time.Since(start), nil
}

// How long a comparison is: blocks are short, so that what else the machine does meets both stacks alike, and many, so
// that their median is worth something.
const (
	blockCalls = 25
	blockPairs = 200
)

// Compare makes blocks of calls with a stack and with the plain client in turns, who is first changing from pair to
// pair. It reports the stack's median for a call (ns/op), the plain one's (plain-ns/op), their ratio (by-plain), and
// how many allocations a call has more (more-allocs/op), those of the server included: it is in this process, and the
// same for both. A benchmark time too short for one comparison makes one.
func (w *Whole) Compare(b *testing.B, s Stack, cx Context) {
	c, err := w.dial(s)
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	b.ResetTimer()
	mine, plain, err := w.inTurns(c, cx, b.N*blockPairs)
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	more, err := w.more(c, cx)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(mine, "ns/op")
	b.ReportMetric(plain, "plain-ns/op")
	b.ReportMetric(mine/plain, "by-plain")
	b.ReportMetric(more, "more-allocs/op")
}

// inTurns makes so many pairs of blocks and returns the medians, in nanoseconds for a call.
func (w *Whole) inTurns(c *client, cx Context, pairs int) (mine, plain float64, err error) {
	ctx, stop := c.context(cx)
	defer stop()
	plainCtx, stop := w.plain.context(cx)
	defer stop()
	var all [2][]float64
	for i := range pairs {
		for turn := range 2 {
			who, ctx, to := c, ctx, &all[0]
			if turn == i%2 {
				who, ctx, to = w.plain, plainCtx, &all[1]
			}
			took, err := who.block(ctx, blockCalls)
			if err != nil {
				return 0, 0, err
			}
			*to = append(*to, float64(took.Nanoseconds())/blockCalls)
		}
	}
	return median(all[0]), median(all[1]), nil
}

func median(s []float64) float64 {
	slices.Sort(s)
	return s[len(s)/2]
}

// More is how many allocations a call of a stack has more than one of the plain client, without timing anything.
func (w *Whole) More(s Stack, cx Context) (float64, error) {
	c, err := w.dial(s)
	if err != nil {
		return 0, err
	}
	defer c.close()
	return w.more(c, cx)
}

func (w *Whole) more(c *client, cx Context) (float64, error) {
	mine, err := c.allocs(cx)
	if err != nil {
		return 0, err
	}
	plain, err := w.plain.allocs(cx)
	return mine - plain, err
}

// allocs is how many allocations a call makes, on both of its sides. It is the least of some rounds, since what else
// is going on in the process, a collection that empties pools for one, can only add.
func (c *client) allocs(cx Context) (float64, error) {
	const rounds, calls = 5, 400
	ctx, stop := c.context(cx)
	defer stop()
	var least float64
	for round := range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := c.block(ctx, calls); err != nil {
			return 0, err
		}
		runtime.ReadMemStats(&after)
		if each := float64(after.Mallocs-before.Mallocs) / calls; round == 0 || each < least {
			least = each
		}
	}
	return least, nil
}
