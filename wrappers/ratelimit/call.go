package ratelimit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ask is a call, or a message of one, that asks to be let through.
type ask struct {
	s       *settings
	e       *entry
	method  string
	id      id
	n       int // tokens
	wait    bool
	client  bool
	message bool
}

// cost is how many tokens a call takes.
func (s *settings) cost(ctx context.Context, e *entry, method string, req any) int {
	if s.CostFunc != nil {
		return s.CostFunc(ctx, method, req)
	}
	return e.Cost
}

// WithCost makes a client's call take n tokens of its limiter, whatever the policy or Config.CostFunc say; 0 or
// less is free. Servers do not learn of it.
func WithCost(n int) grpc.CallOption { return costOption{n: n} }

// WithWait makes a client's call wait for its tokens, or not, whatever the policy says.
func WithWait(wait bool) grpc.CallOption { return waitOption{wait: wait} }

// Bypass lets a client's call pass its limiters, with all messages if it is a stream: it takes no tokens, never waits,
// is not refused and not counted, and the functions of [Config] are not asked about it. It wins over [WithCost] and
// [WithWait]. Servers do not learn of it, and limit the call as others.
func Bypass() grpc.CallOption { return bypassOption{} }

type costOption struct {
	grpc.EmptyCallOption
	n int
}

type waitOption struct {
	grpc.EmptyCallOption
	wait bool
}

type bypassOption struct{ grpc.EmptyCallOption }

// wishes are what the options of a client's call say. Of options of one kind the last counts.
type wishes struct {
	cost        int
	costs       bool // cost is said
	wait, waits bool // waits: wait is said
	bypass      bool
}

func wishesOf(opts []grpc.CallOption) (w wishes) {
	for _, o := range opts {
		switch o := o.(type) {
		case costOption:
			w.cost, w.costs = o.n, true
		case waitOption:
			w.wait, w.waits = o.wait, true
		case bypassOption:
			w.bypass = true
		}
	}
	return w
}

// costOf is how many tokens a client's call takes.
func (w *wishes) costOf(ctx context.Context, s *settings, e *entry, method string, req any) int {
	if w.costs {
		return w.cost
	}
	return s.cost(ctx, e, method, req)
}

// waitsBy reports whether a client's call waits for its tokens.
func (w *wishes) waitsBy(e *entry) bool {
	if w.waits {
		return w.wait
	}
	return e.Wait
}

// finished tells the OnFinish options among opts that the call ended with err, as gRPC does for the calls that it gets
// to see. It returns err.
func finished(opts []grpc.CallOption, err error) error {
	for _, o := range opts {
		if f, ok := o.(grpc.OnFinishCallOption); ok {
			f.OnFinish(err)
		}
	}
	return err
}

// withoutFinish takes the OnFinish options out of opts and returns what calls them. Both have slices of their own,
// since the caller may use its again.
func withoutFinish(opts []grpc.CallOption) (rest []grpc.CallOption, finish func(error)) {
	rest = make([]grpc.CallOption, 0, len(opts)+1) // with room for one of ours
	var finishers []grpc.CallOption
	for _, o := range opts {
		if _, ok := o.(grpc.OnFinishCallOption); ok {
			finishers = append(finishers, o)
		} else {
			rest = append(rest, o)
		}
	}
	return rest, func(err error) { _ = finished(finishers, err) }
}

// serverID says whose call it is, on the server's side.
func (s *settings) serverID(ctx context.Context, e *entry, method string) (k id) {
	if e.many == nil {
		return k
	}
	if e.PerMethod {
		k.method = short(method) // which callers choose, where a server has an UnknownServiceHandler
	}
	switch e.key {
	case byPeer:
		if p, ok := peer.FromContext(ctx); ok {
			k.setAddr(p.Addr)
		}
	case byMetadata:
		if v := metadata.ValueFromIncomingContext(ctx, e.metadata); len(v) > 0 {
			k.caller = short(v[0])
		}
	case byFunc:
		k.caller = short(s.KeyFunc(ctx, method))
	}
	return k
}

// clientID says whose call it is, on the client's side.
func (s *settings) clientID(ctx context.Context, e *entry, method string, cc *grpc.ClientConn) (k id) {
	if e.many == nil {
		return k
	}
	if e.PerMethod {
		k.method = method
	}
	switch e.key {
	case byPeer:
		if cc != nil {
			k.caller = cc.Target()
		}
	case byMetadata:
		if md, ok := metadata.FromOutgoingContext(ctx); ok {
			if v := md.Get(e.metadata); len(v) > 0 {
				k.caller = short(v[0])
			}
		}
	case byFunc:
		k.caller = short(s.KeyFunc(ctx, method))
	}
	return k
}

// setAddr sets a host, without the port, which is another for each connection.
func (k *id) setAddr(a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp != nil {
		k.ip = tcp.AddrPort().Addr().Unmap()
		if k.ip.IsValid() {
			return
		}
	}
	if a != nil {
		k.caller = short(a.String())
	}
}

// name is the caller as a person would write it.
func (k id) name() string {
	if k.ip.IsValid() {
		return k.ip.String()
	}
	return k.caller
}

// maxKey is the longest key that is kept as it is: what callers send must not fill the memory.
const maxKey = 128

func short(key string) string {
	if len(key) <= maxKey {
		return key
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(key)))
}

// pushbackKey is the trailer that says when to retry, in milliseconds, or not to if it is negative. gRFC A6.
const pushbackKey = "grpc-retry-pushback-ms"

// refusal is what a caller is told.
type refusal struct {
	Event
	client bool
	why    string
}

func (a *ask) refusal(reason Reason, retryIn time.Duration, why string) *refusal {
	return &refusal{
		Event: Event{Method: a.method, Scope: a.e.scope, Caller: a.id.name(), Reason: reason, Cost: a.n,
			RetryIn: retryIn, Message: a.message, DryRun: a.s.DryRun},
		client: a.client, why: why,
	}
}

// tooMany refuses for want of tokens, which will be there after wait.
func (a *ask) tooMany(wait time.Duration) *refusal {
	if wait == never {
		return a.refusal(Cost, never,
			fmt.Sprintf("it costs %d tokens and a full bucket holds %d, so it can never pass", a.n, a.e.Burst))
	}
	why := fmt.Sprintf("more than %v tokens a second, burst %d", a.e.Rate, a.e.Burst)
	if a.e.key != noKey {
		why += fmt.Sprintf(", from caller %q", a.id.name())
	}
	if a.wait {
		why += fmt.Sprintf(", and waiting %v for them is too long for its deadline or maxWait", wait)
	}
	return a.refusal(Rate, wait, why)
}

// turnedAway refuses by the verdict of the adaptive limit.
func (a *ask) turnedAway(v verdict, expected, remaining time.Duration) *refusal {
	if v == tooLate {
		// Another server may be faster, and there is no time to lose.
		return a.refusal(Deadline, 0, fmt.Sprintf("it takes about %v here and %v are left until its deadline",
			expected.Round(time.Microsecond), remaining.Round(time.Microsecond)))
	}
	return a.refusal(Concurrency, max(expected, time.Millisecond),
		"the server is working on as many calls as it can")
}

// err is the refusal as a gRPC status.
func (r *refusal) err() error {
	side := "the server refuses "
	if r.client {
		side = "not sent: "
	}
	st := status.New(codes.ResourceExhausted, "ratelimit: "+side+r.Method+": "+r.why+r.again())
	if r.RetryIn >= 0 {
		info := &errdetails.RetryInfo{RetryDelay: durationpb.New(r.RetryIn)}
		if with, err := st.WithDetails(info); err == nil {
			st = with
		}
	}
	return st.Err()
}

func (r *refusal) again() string {
	if r.RetryIn <= 0 {
		return ""
	}
	return fmt.Sprintf("; again in %v", r.RetryIn.Round(time.Microsecond))
}

// pushback tells it to gRPC's own retry, and to ours. It goes out only if no handler has run.
func (r *refusal) pushback() metadata.MD {
	return metadata.Pairs(pushbackKey, strconv.FormatInt(pushbackMillis(r.RetryIn), 10))
}
