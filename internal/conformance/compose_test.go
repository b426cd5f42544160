package conformance

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// each runs f in a bubble for each policy and kind.
func each(t *testing.T, f func(t *testing.T, policy string, k kind)) {
	for _, policy := range policies {
		for _, k := range kinds {
			t.Run(policy+"/"+k.String(), func(t *testing.T) {
				bubble(t, func(t *testing.T) { f(t, policy, k) })
			})
		}
	}
}

// try makes a call in the usual way and returns its first reply and its error.
func (r *rig) try(ctx context.Context, k kind, method string, opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.begin(ctx, k, method, opts...)
	if err != nil {
		return "", err
	}
	if err := send(s, "request"); err != nil && !k.manyRequests() {
		return "", err
	}
	_ = s.CloseSend()
	return finish(k, s)
}

// begin opens a call; a unary one is made when its reply is received.
func (r *rig) begin(ctx context.Context, k kind, method string, opts ...grpc.CallOption) (sender, error) {
	if k == unary {
		return &unaryCall{r: r, ctx: ctx, method: method, opts: opts}, nil
	}
	return r.conn.NewStream(ctx, k.desc(), method, opts...)
}

// sender is the part of a grpc.ClientStream that the tests need.
type sender interface {
	SendMsg(any) error
	RecvMsg(any) error
	CloseSend() error
}

// unaryCall makes a unary call look like a stream.
type unaryCall struct {
	r       *rig
	ctx     context.Context
	method  string
	opts    []grpc.CallOption
	request any
}

func (u *unaryCall) SendMsg(m any) error { u.request = m; return nil }
func (u *unaryCall) CloseSend() error    { return nil }
func (u *unaryCall) RecvMsg(m any) error {
	return u.r.conn.Invoke(u.ctx, u.method, u.request, m, u.opts...)
}

// finish receives until the end and returns the first reply.
func finish(k kind, s sender) (string, error) {
	first, err := receive(s)
	for err == nil && k.manyReplies() {
		if _, err = receive(s); describe(err) == "EOF" {
			return first, nil
		}
	}
	return first, err
}

// answer is a handler's work if all is well: the reply is the number of the server.
func answer(i int, k kind, s grpc.ServerStream) error {
	if _, err := requests(k, s); err != nil {
		return err
	}
	return send(s, fmt.Sprint(i))
}

var (
	errDown = status.Error(codes.Unavailable, "down")
	// steady is a balancer that takes nobody out, so that what is seen is the wrappers' doing.
	steady = balancer.Config{Blacklist: balancer.Blacklist{Disabled: true}}
)

// breakerCalls is how many calls the breakers of w have counted.
func breakerCalls(w wrappers) (n int) {
	for _, b := range w.breakers.State().Breakers {
		n += int(b.Successes + b.Failures)
	}
	return n
}

// TestOneTokenManyAttempts: the limiter is outside of the retry and the breaker inside, so a call takes one token and
// each of its attempts asks the breaker. Client and bidi streams, whose requests nobody keeps, have one attempt.
func TestOneTokenManyAttempts(t *testing.T) {
	each(t, func(t *testing.T, policy string, k kind) {
		r := newRig(t, setup{policy: policy, balancer: steady, servers: 3, client: chain{
			trace: tracing, ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 0.001, Burst: 5}},
			retry: &retry.Config{}, breaker: breaking}})
		defer r.close()
		r.does(func(i int, k kind, s grpc.ServerStream) error {
			if r.handled() < 3 {
				return errDown
			}
			return answer(i, k, s)
		})
		attempts, want := 3, codes.OK
		if k.manyRequests() {
			attempts, want = 1, codes.Unavailable
		}
		_, err := r.try(t.Context(), k, k.declared())
		if status.Code(err) != want {
			t.Errorf("call: %v, want %v", err, want)
		}
		if got := r.client.limiter.State().Scopes[0]; got.Admitted != 1 || got.Tokens < 4 || got.Tokens > 4.1 {
			t.Errorf("limiter admitted %d and has %v tokens, want 1 and 4 of 5", got.Admitted, got.Tokens)
		}
		if got := breakerCalls(r.client); got != attempts {
			t.Errorf("breaker counted %d, want %d", got, attempts)
		}
		if got := r.client.trace.State().Client; got.Started != uint64(attempts+1) || got.Attempts != uint64(attempts) {
			t.Errorf("trace has %+v, want a span for the call and %d for attempts", got, attempts)
		}
		if got := r.handled(); got != attempts {
			t.Errorf("handlers: %d, want %d", got, attempts)
		}
	})
}

// TestOpenBreakerIsNotRetried: a breaker that opens between two attempts ends the call, and once it is open a call ends
// at once, without a retry, a wait, or a withdrawal from the budget.
func TestOpenBreakerIsNotRetried(t *testing.T) {
	each(t, func(t *testing.T, policy string, k kind) {
		var retries, gaveUp int
		r := newRig(t, setup{policy: policy, balancer: steady, servers: 3, client: chain{
			trace: tracing, ratelimit: limiting,
			retry: &retry.Config{
				OnRetry: func(retry.Event) { retries++ }, OnGiveUp: func(retry.Event) { gaveUp++ }},
			breaker: &breaker.Config{Policy: breaker.Policy{ConsecutiveFailures: 1, OpenFor: time.Hour}}}})
		defer r.close()
		r.does(func(int, kind, grpc.ServerStream) error { return errDown })
		_, err := r.try(t.Context(), k, k.declared())
		var refused *breaker.Error
		if status.Code(err) != codes.Unavailable || errors.As(err, &refused) == k.manyRequests() {
			t.Errorf("first call: %v, want UNAVAILABLE, from the breaker if it was tried again", err)
		}
		first, balance, began := retries, r.client.retrier.State().Balance, time.Now()
		_, err = r.try(t.Context(), k, k.declared())
		if refused = nil; !errors.As(err, &refused) || status.Code(err) != codes.Unavailable {
			t.Errorf("second call: %v, want the breaker's UNAVAILABLE", err)
		}
		if retries != first || time.Since(began) != 0 {
			t.Errorf("second call: %d retries in %v, want none", retries-first, time.Since(began))
		}
		if got := r.client.retrier.State().Balance; got < balance {
			t.Errorf("the budget went from %v to %v, want no withdrawal", balance, got)
		}
		if got := r.handled(); got != 1 {
			t.Errorf("handlers: %d, want 1", got)
		}
	})
}

// TestRefusedByOwnLimiter: what the client's limiter refuses is neither tried again nor known to the breaker.
func TestRefusedByOwnLimiter(t *testing.T) {
	each(t, func(t *testing.T, policy string, k kind) {
		r := newRig(t, setup{policy: policy, client: chain{
			trace: tracing, ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 0.001, Burst: 1}},
			retry: &retry.Config{}, breaker: breaking}})
		defer r.close()
		r.does(answer)
		if _, err := r.try(t.Context(), k, k.declared()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := r.try(t.Context(), k, k.declared()); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("second call: %v, want RESOURCE_EXHAUSTED", err)
		}
		if r.handled() != 1 || breakerCalls(r.client) != 1 || time.Since(began) != 0 {
			t.Errorf("%d handlers, %d calls in the breaker, after %v, want 1, 1, 0s",
				r.handled(), breakerCalls(r.client), time.Since(began))
		}
	})
}

// TestRefusedByServersLimiter: what a server's limiter refuses with a pushback no handler has seen, so that any kind of
// call that can be sent again is, and the breaker does not count the refusal.
func TestRefusedByServersLimiter(t *testing.T) {
	each(t, func(t *testing.T, policy string, k kind) {
		r := newRig(t, setup{policy: policy, balancer: steady,
			client: chain{trace: tracing, ratelimit: limiting, retry: &retry.Config{}, breaker: breaking},
			server: chain{trace: tracing, ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 10, Burst: 1}}}})
		defer r.close()
		r.does(answer)
		if _, err := r.try(t.Context(), k, k.plain()); err != nil {
			t.Fatal(err)
		}
		want, counted := codes.OK, 2
		if k.manyRequests() {
			want, counted = codes.ResourceExhausted, 1
		}
		if _, err := r.try(t.Context(), k, k.plain()); status.Code(err) != want {
			t.Errorf("second call: %v, want %v", err, want)
		}
		if got := breakerCalls(r.client); got != counted || r.handled() != counted {
			t.Errorf("%d calls in the breaker and %d handlers, want %d", got, r.handled(), counted)
		}
	})
}

// TestRetryGoesElsewhere: with two instances of which one is dead, the second attempt succeeds, even though the strategy
// (by chance) would name the same again half of the time.
func TestRetryGoesElsewhere(t *testing.T) {
	for _, k := range []kind{unary, serverStream} {
		t.Run(k.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				plenty, err := retry.NewBudget(100, 100)
				if err != nil {
					t.Fatal(err)
				}
				c := balancer.Config{Strategy: balancer.Random{}, Blacklist: steady.Blacklist}
				r := newRig(t, setup{balancer: c, servers: 2, client: chain{
					trace: tracing, ratelimit: limiting, breaker: breaking,
					retry: &retry.Config{Policy: retry.Policy{MaxAttempts: 2, Budget: plenty}}}})
				defer r.close()
				r.does(func(i int, k kind, s grpc.ServerStream) error {
					if i == 0 {
						return errDown
					}
					return answer(i, k, s)
				})
				const calls = 60
				for range calls {
					if got, err := r.try(t.Context(), k, k.declared()); got != "1" || err != nil {
						t.Fatalf("got %q, %v, want the answer of instance 1", got, err)
					}
				}
				if got := r.calls[1].Load(); got != calls {
					t.Errorf("instance 1 answered %d, want %d", got, calls)
				}
				if r.calls[0].Load() == 0 {
					t.Error("the dead instance was never tried, so nothing was shown")
				}
			})
		})
	}
}
