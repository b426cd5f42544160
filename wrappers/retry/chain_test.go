package retry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// chain is four services, each of which calls the next one to answer, the last of which is down. Each has one server,
// and its handler calls on with a Retrier of its own.
type chain [4]*fleet

// layers is what of a chain's layers is to be tried.
type layers struct {
	policy func() Policy
	own    bool   // handlers fail with a code of their own
	user   string // the service config of the user's client, which has no Retrier then
}

func newChain(t *testing.T, l layers) (c chain, closeAll func()) {
	var closers []func()
	for i := len(c) - 1; i >= 0; i-- {
		h := failing(errDown)
		if i < len(c)-1 {
			next := c[i+1]
			h = func(_ int, _ kind, s grpc.ServerStream) error {
				_, err := next.hello(s.Context(), unaryKind.declared(), grpc.WaitForReady(true))
				code := status.Code(err)
				if l.own {
					code = codes.Unavailable + codes.ResourceExhausted - code // the other one
				}
				return status.Error(code, "further down")
			}
		}
		r := newTest(t, Config{Policy: l.policy()})
		var opts []grpc.DialOption
		if i == 0 && l.user != "" {
			r, opts = nil, []grpc.DialOption{grpc.WithDefaultServiceConfig(l.user)}
		}
		f := newFleet(t, 1, roundRobin, r, h, opts...)
		if opts != nil { // with grpc's own retries
			f.conn.Close()
			conn, err := grpc.NewClient("fleet:///test", append(f.dial(false), opts...)...)
			if err != nil {
				t.Fatal(err)
			}
			f.conn = conn
		}
		c[i] = f
		closers = append(closers, f.close)
	}
	return c, func() {
		for i := len(closers) - 1; i >= 0; i-- { // the user's first
			closers[i]()
		}
	}
}

// call makes n calls to the first layer, a hundred a second, and returns how often each layer was called, and what the
// last call ended with.
func (c chain) call(t *testing.T, n int) (at [4]int64, err error) {
	t.Helper()
	for range n {
		if _, err = c[0].hello(context.Background(), unaryKind.declared(), grpc.WaitForReady(true)); err == nil {
			t.Error("a call did not fail")
		}
		_ = takes(context.Background(), 10*time.Millisecond)
	}
	for i, f := range c {
		at[i] = f.total()
	}
	return at, err
}

func runChain(t *testing.T, n int, l layers) (at [4]int64, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, closeAll := newChain(t, l)
		defer closeAll()
		at, err = c.call(t, n)
	})
	return at, err
}

// TestChainStop: the layer next to the failure retries, and nobody further up repeats that. Handlers that fail with a
// code of their own are retried by their callers; then nobody retries for a retry.
func TestChainStop(t *testing.T) {
	policy := func(stop bool) func() Policy {
		return func() Policy {
			return Policy{ChainStop: stop, Budget: budget(t, 1000, 10), Codes: []codes.Code{codes.Unavailable, codes.ResourceExhausted}}
		}
	}
	for name, tt := range map[string]struct {
		layers
		want [4]int64
		why  Reason
	}{
		"without":                 {layers{policy: policy(false)}, [4]int64{3, 9, 27, 81}, Exhausted},
		"with":                    {layers{policy: policy(true)}, [4]int64{1, 1, 1, 3}, PushedBack},
		"codes of their own":      {layers{policy: policy(true), own: true}, [4]int64{3, 5, 7, 9}, Exhausted},
		"without, and grpc's own": {layers{policy: policy(false), user: retryConfig}, [4]int64{4, 12, 36, 108}, ""},
		"with, and grpc's own":    {layers{policy: policy(true), user: retryConfig}, [4]int64{1, 1, 1, 3}, ""},
	} {
		at, err := runChain(t, 1, tt.layers)
		if at != tt.want {
			t.Errorf("%s: the layers were called %v times, want %v", name, at, tt.want)
		}
		var tried *Error
		if errors.As(err, &tried) != (tt.why != "") || tried != nil && tried.Reason != tt.why {
			t.Errorf("%s: %v, want the reason %q", name, err, tt.why)
		}
	}
}

// retryConfig has grpc-go retry.
const retryConfig = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.01s","maxBackoff":"0.1s","backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]}`

// TestChainStorm: a budget of 20 % at each of four layers is 1.2 times the calls at the last one, and not 1.2 to the
// fourth.
func TestChainStorm(t *testing.T) {
	const calls = 300
	run := func(stop bool) float64 {
		at, _ := runChain(t, calls, layers{policy: func() Policy { return Policy{ChainStop: stop, Budget: budget(t, 20, 0)} }})
		t.Logf("ChainStop %v: the layers were called %v times", stop, at)
		return float64(at[3]) / calls
	}
	if with := run(true); with < 1.15 || with > 1.2 {
		t.Errorf("%.2f attempts a call at the last layer, want 1.2", with)
	}
	if without := run(false); without < 1.9 {
		t.Errorf("%.2f attempts a call without ChainStop, so this shows nothing", without)
	}
}

// errStop is what a handler of the service below returns to have it answer with a pushback that forbids retries.
var errStop = status.Error(codes.Unavailable, "leave me alone")

// errLong is one that answers with a pushback of more than a minute.
var errLong = status.Error(codes.Unavailable, "come back tomorrow")

// noneFor is what a limiter on the client refuses a call with that may come back after so long.
func noneFor(d time.Duration) error {
	s, err := status.New(codes.ResourceExhausted, "too many calls").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// refusing is an interceptor that lets no call of the method through.
func refusing(err error) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if name == unaryKind.declared() {
			return err
		}
		return invoker(ctx, name, req, reply, cc, opts...)
	}
}

// below is a service that a handler calls: its server fails as err says.
func below(t *testing.T, p Policy, err error, inner ...grpc.UnaryClientInterceptor) *fleet {
	r := newTest(t, Config{Policy: p})
	return newFleet(t, 1, roundRobin, nil, func(_ int, k kind, s grpc.ServerStream) error {
		if rerr := receive(s); rerr != nil {
			return rerr
		}
		if push := map[error]string{errStop: "-1", errLong: "86400000"}[err]; push != "" {
			md := metadata.Pairs(pushbackKey, push)
			if k == unaryKind {
				_ = grpc.SetTrailer(s.Context(), md)
			} else {
				s.SetTrailer(md)
			}
		}
		if err == nil {
			return send(s, "well")
		}
		return err
	}, grpc.WithChainUnaryInterceptor(append([]grpc.UnaryClientInterceptor{r.UnaryClientInterceptor()}, inner...)...),
		grpc.WithChainStreamInterceptor(r.StreamClientInterceptor()))
}

// opensAfter is an interceptor that lets so many calls through, as a breaker does before it opens.
func opensAfter(n int64) grpc.UnaryClientInterceptor {
	var calls atomic.Int64
	return func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if name == unaryKind.declared() && calls.Add(1) > n {
			return barred{errors.New("open")}
		}
		return invoker(ctx, name, req, reply, cc, opts...)
	}
}

// TestCallerIsTold: what a handler's caller is told about retries, for what the handler's own call ended with and what
// the handler makes of it.
func TestCallerIsTold(t *testing.T) {
	pass := func(_ grpc.ServerStream, err error) error { return err }
	chainStop := func(p Policy) Policy {
		p.ChainStop = true
		return p
	}
	for _, tt := range []struct {
		name   string
		policy Policy
		fails  error // of the service below; nil: it answers well
		plain  bool  // the method there is not declared idempotent
		gone   bool  // there is no connection to it
		local  error // what an interceptor on the client refuses every call with
		opens  int64 // a breaker opens after so many calls that it lets through, less one; 0: there is none
		detach func(context.Context) context.Context
		does   func(grpc.ServerStream, error) error
		want   string
	}{
		{name: "passes the failure on", policy: chainStop(Policy{}), fails: errDown, does: pass, want: "[-1]"},
		{name: "wraps it", policy: chainStop(Policy{}), fails: errDown,
			does: func(_ grpc.ServerStream, err error) error { return fmt.Errorf("orders: %w", err) }, want: "[-1]"},
		{name: "says it in its own words", policy: chainStop(Policy{}), fails: errDown,
			does: func(_ grpc.ServerStream, err error) error { return status.Error(status.Code(err), "no orders") }, want: "[-1]"},
		{name: "fails with another code", policy: chainStop(Policy{}), fails: errDown,
			does: func(grpc.ServerStream, error) error { return status.Error(codes.Aborted, "begin anew") }, want: "[]"},
		{name: "does without it", policy: chainStop(Policy{}), fails: errDown,
			does: func(s grpc.ServerStream, _ error) error { return send(s, "without") }, want: "[]"},
		{name: "asks for a retry", policy: chainStop(Policy{}), fails: errDown,
			does: func(s grpc.ServerStream, err error) error {
				if o, ok := s.(*oneMessage); ok {
					_ = grpc.SetTrailer(o.ctx, metadata.Pairs(pushbackKey, "50"))
				} else {
					s.SetTrailer(metadata.Pairs(pushbackKey, "50"))
				}
				return err
			}, want: "[50]"},
		{name: "calls on behalf of nobody", policy: chainStop(Policy{}), fails: errDown, does: pass, want: "[]",
			detach: func(context.Context) context.Context { return context.Background() }},
		{name: "outlives its caller", policy: chainStop(Policy{}), fails: errDown, does: pass, want: "[-1]",
			detach: context.WithoutCancel},
		{name: "its call succeeded", policy: chainStop(Policy{}), want: "[]",
			does: func(grpc.ServerStream, error) error { return errDown }},
		{name: "a failure that is not repeated", policy: chainStop(Policy{}), fails: status.Error(codes.NotFound, "none"), does: pass, want: "[]"},
		{name: "a method that is not repeated", policy: chainStop(Policy{}), fails: errDown, plain: true, does: pass, want: "[]"},
		{name: "nothing got through", policy: chainStop(Policy{}), fails: errDown, gone: true, does: pass, want: "[]"},
		{name: "nothing got through, over budget", policy: chainStop(Policy{Budget: budget(t, 0, 0)}), fails: errDown,
			gone: true, does: pass, want: "[]"},
		{name: "a breaker is open", policy: chainStop(Policy{}), fails: errDown, opens: 1, does: pass, want: "[]"},
		{name: "a breaker opens", policy: chainStop(Policy{}), fails: errDown, opens: 2, does: pass, want: "[-1]"},
		{name: "over budget", policy: chainStop(Policy{Budget: budget(t, 0, 0)}), fails: errDown, does: pass, want: "[-1]"},
		{name: "one attempt is the policy", policy: chainStop(Policy{MaxAttempts: 1}), fails: errDown, does: pass, want: "[]"},
		{name: "told not to", policy: chainStop(Policy{}), fails: errStop, does: pass, want: "[-1]"},
		{name: "told not to, one attempt", policy: chainStop(Policy{MaxAttempts: 1}), fails: errStop, does: pass, want: "[-1]"},
		{name: "told to wait for long", policy: chainStop(Policy{}), fails: errLong, does: pass, want: "[-1]"},
		{name: "a limiter has none for long", policy: chainStop(Policy{Codes: []codes.Code{codes.ResourceExhausted}}),
			local: noneFor(2 * time.Minute), does: pass, want: "[]"},
		{name: "a limiter has none", policy: chainStop(Policy{Codes: []codes.Code{codes.ResourceExhausted}}),
			local: noneFor(time.Second), does: pass, want: "[]"},
		{name: "hedged", policy: chainStop(Policy{Hedge: Hedge{Delay: time.Second}}), fails: errDown, does: pass, want: "[-1]"},
		{name: "dry run", policy: chainStop(Policy{DryRun: true}), fails: errDown, does: pass, want: "[]"},
		{name: "dry run, told not to", policy: chainStop(Policy{DryRun: true}), fails: errStop, does: pass, want: "[]"},
		{name: "without ChainStop", policy: Policy{}, fails: errDown, does: pass, want: "[]"},
	} {
		for _, k := range kinds {
			synctest.Test(t, func(t *testing.T) {
				var inner []grpc.UnaryClientInterceptor
				if tt.opens > 0 {
					inner = append(inner, opensAfter(tt.opens-1))
				}
				if tt.local != nil {
					inner = append(inner, refusing(tt.local))
				}
				b := below(t, tt.policy, tt.fails, inner...).warm()
				defer b.close()
				if tt.gone {
					b.servers[0].Stop()
				}
				f := newFleet(t, 1, roundRobin, nil, func(_ int, _ kind, s grpc.ServerStream) error {
					if err := receive(s); err != nil {
						return err
					}
					ctx, method := s.Context(), unaryKind.declared()
					if tt.detach != nil {
						ctx = tt.detach(ctx)
					}
					if tt.plain {
						method = unaryKind.plain()
					}
					_, err := b.hello(ctx, method)
					return tt.does(s, err)
				}).warm()
				defer f.close()
				if got := pushbackOf(f, k); got != tt.want {
					t.Errorf("%v, %s: the pushback is %s, want %s", k, tt.name, got, tt.want)
				}
			})
		}
	}
}

// pushbackOf is what f's server tells about retries.
func pushbackOf(f *fleet, k kind) string {
	var trailer metadata.MD
	_, _ = f.exchange(context.Background(), k, k.declared(), grpc.Trailer(&trailer))
	return fmt.Sprint(trailer[pushbackKey])
}

// TestRetriesHelp: while most retries succeed, what fails in spite of them is for those further up to try again.
func TestRetriesHelp(t *testing.T) {
	for _, tt := range []struct {
		k     kind
		p     Policy
		hedge bool // each retry's first attempt fails, and its hedge answers
	}{
		{k: unaryKind},
		{k: unaryKind, p: Policy{Hedge: Hedge{Delay: time.Second}}},
		{k: unaryKind, p: Policy{Hedge: Hedge{Delay: 10 * time.Millisecond}}, hedge: true},
		{k: serverKind},
	} {
		synctest.Test(t, func(t *testing.T) {
			tt.p.ChainStop, tt.p.Budget = true, budget(t, 1000, 0)
			var outage atomic.Bool
			b := newFleet(t, 1, roundRobin, newTest(t, Config{Policy: tt.p}), func(i int, _ kind, s grpc.ServerStream) error {
				before := PreviousAttempts(s.Context())
				if tt.hedge && before > 0 {
					_ = takes(s.Context(), 20*time.Millisecond) // so the hedge is under way when the other fails
				}
				if outage.Load() || before == 0 || tt.hedge && before == 1 {
					return errDown
				}
				return echo(i, s)
			}).warm()
			defer b.close()
			f := newFleet(t, 1, roundRobin, nil, func(_ int, _ kind, s grpc.ServerStream) error {
				text, err := b.exchange(s.Context(), tt.k, tt.k.declared())
				if err != nil {
					return err
				}
				return send(s, text)
			}).warm()
			defer f.close()
			calls := func(n int) (last string) {
				for range n {
					last = pushbackOf(f, unaryKind)
				}
				return last
			}
			calls(40)
			outage.Store(true)
			first, later := calls(1), calls(40)
			if first != "[]" || later != "[-1]" {
				t.Errorf("%v, hedging %v: the pushback is %s at first and %s later, want [] and [-1]", tt.k, tt.p.Hedge.Delay, first, later)
			}
		})
	}
}

// TestStreamsPassItOn: a stream that no attempt can follow passes on all the same that nobody is to try again.
func TestStreamsPassItOn(t *testing.T) {
	for _, k := range kinds {
		for fails, want := range map[error]string{errStop: "[-1]", errDown: map[bool]string{true: "[]", false: "[-1]"}[k.desc().ClientStreams]} {
			synctest.Test(t, func(t *testing.T) {
				b := below(t, Policy{ChainStop: true}, fails).warm()
				defer b.close()
				f := newFleet(t, 1, roundRobin, nil, func(_ int, _ kind, s grpc.ServerStream) error {
					_, err := b.exchange(s.Context(), k, k.declared())
					return err
				}).warm()
				defer f.close()
				if got := pushbackOf(f, unaryKind); got != want {
					t.Errorf("%v, %v: the pushback is %s, want %s", k, fails, got, want)
				}
			})
		}
	}
}

// TestAnswersRetry: who made one attempt only because the caller is trying again already leaves it to the caller.
func TestAnswersRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := below(t, Policy{ChainStop: true}, errDown).warm()
		defer b.close()
		f := newFleet(t, 1, roundRobin, nil, func(_ int, _ kind, s grpc.ServerStream) error {
			_, err := b.hello(s.Context(), unaryKind.declared())
			return err
		}).warm()
		defer f.close()
		var trailer metadata.MD
		ctx := metadata.AppendToOutgoingContext(context.Background(), attemptsKey, "1")
		_, err := f.hello(ctx, unaryKind.declared(), grpc.Trailer(&trailer))
		if status.Code(err) != codes.Unavailable || b.total() != 1 || len(trailer[pushbackKey]) != 0 {
			t.Errorf("%v after %d attempts, pushback %v; want UNAVAILABLE after 1, none", err, b.total(), trailer[pushbackKey])
		}
	})
}

// TestServerAllocations: the interceptors cost a call that succeeds one allocation.
func TestServerAllocations(t *testing.T) {
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("other", "1"))
	var seen atomic.Value // or the compiler sees that handlers forget their contexts
	unary, handler := UnaryServerInterceptor(), func(ctx context.Context, _ any) (any, error) {
		seen.Store(ctx)
		return nil, nil
	}
	if n := testing.AllocsPerRun(1000, func() { _, _ = unary(ctx, nil, nil, handler) }); n != 1 {
		t.Errorf("unary: %v allocations, want 1", n)
	}
	var ss grpc.ServerStream = &oneMessage{ctx: ctx}
	stream := StreamServerInterceptor()
	if n := testing.AllocsPerRun(1000, func() {
		_ = stream(nil, ss, nil, func(_ any, s grpc.ServerStream) error {
			seen.Store(s.Context())
			return nil
		})
	}); n != 1 {
		t.Errorf("stream: %v allocations, want 1", n)
	}
}
