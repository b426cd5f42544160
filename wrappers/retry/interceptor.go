package retry

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// unary returns the interceptor. A call that succeeds at once, without timeouts or hedging, does not leave its function,
// which is a closure because a method value would be a second function that copies the many arguments to the first.
func (r *Retrier) unary() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		m := r.method(r.state.Load(), name)
		rules, exempt, notify := m.rules, m.exempt, false
		for _, o := range opts {
			switch o := o.(type) {
			case policyOption:
				rules, exempt = o.rules, false
			case grpc.OnFinishCallOption:
				notify = true
			}
		}
		if exempt {
			return invoker(ctx, name, req, reply, cc, opts...)
		}
		m.budget(rules).deposit()
		timed := m.begin()
		if notify || !rules.plain {
			c := newCall(r, m, rules, ctx, name, req, reply, cc, invoker, opts)
			return c.elaborate(notify)
		}
		began := int64(0)
		if timed {
			began = r.clock.Now()
		}
		a, own := m.first(ctx, cc, opts, began)
		var err error
		if a.room.Observer() == nil {
			err = invoker(a.room.Context(), name, req, reply, cc, own...)
		} else {
			err = newCall(r, m, rules, ctx, name, req, reply, cc, invoker, opts).watched(a, own)
		}
		if err != nil {
			c := newCall(r, m, rules, ctx, name, req, reply, cc, invoker, opts)
			c.progress.attempts = 1
			return c.goOn(c.failed(a, err), err)
		}
		m.succeeded(r.clock, a, cc)
		return nil
	}
}

// errAborted stands for the end of an attempt whose goroutine panicked or exited.
var errAborted = status.Error(codes.Aborted, "retry: the call's goroutine panicked or exited")

// call is a unary call that needs more than one plain attempt.
type call struct {
	trial
	req, reply any
	cc         *grpc.ClientConn
	invoker    grpc.UnaryInvoker
	opts       []grpc.CallOption // of the caller
}

//go:noinline // the calls that succeed at once need none of it
func newCall(r *Retrier, m *method, rules *rules, ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts []grpc.CallOption) *call {
	return &call{
		trial: trial{r: r, m: m, rules: rules, limits: rules.limits, ctx: ctx, name: name},
		req:   req, reply: reply, cc: cc, invoker: invoker, opts: opts,
	}
}

// invoke makes the attempt a, and tells whoever watches the call.
func (c *call) invoke(a *attempt, reply any, opts []grpc.CallOption) (err error) {
	a.start()
	err = errAborted
	defer func() { a.over(err) }()
	return c.invoker(a.context(), c.name, c.req, reply, c.cc, opts...)
}

// watched makes the plain first attempt a of a call that somebody watches, who wants to know where it went.
func (c *call) watched(a *attempt, opts []grpc.CallOption) error {
	if a.peer == nil {
		a.peer = new(peer.Peer)
		opts = append(opts, grpc.Peer(a.peer))
	}
	return c.invoke(a, c.reply, opts)
}

// elaborate makes a call that has a timeout, hedging or an OnFinish option, if notify.
func (c *call) elaborate(notify bool) (err error) {
	if notify {
		// grpc would call these at the end of every attempt.
		rest, finish := withoutFinish(c.opts)
		c.opts, err = rest, errAborted
		defer func() { finish(err) }()
	}
	defer c.bound()()
	f, err := c.round()
	if err == nil {
		return nil
	}
	return c.goOn(f, err)
}

// bound applies what holds for the whole call. The call ends with the function that it returns.
func (c *call) bound() context.CancelFunc {
	c.obeyChain()
	if _, has := c.ctx.Deadline(); c.rules.timeout > 0 && !has && !c.rules.dryRun {
		ctx, cancel := context.WithTimeout(c.ctx, c.rules.timeout)
		c.ctx = ctx
		return cancel
	}
	return func() {}
}

// goOn decides, after a failure with err, what is next, and does it until the call ends.
func (c *call) goOn(f failure, err error) error {
	for {
		why, again := c.again(f)
		if !again {
			return c.giveUp(err, why)
		}
		clearTargets(c.opts) // or the caller could find there what belongs to an attempt that came to nothing
		if f, err = c.round(); err == nil {
			return nil
		}
	}
}

// round makes one attempt, with its hedges.
func (c *call) round() (failure, error) {
	if delay := c.hedgeDelay(c.reply); delay > 0 {
		return c.race(delay)
	}
	a := c.newAttempt()
	err := c.try(&a.attempt, c.reply, c.prepare(a, c.ctx, callctx.Unary, c.opts))
	if err != nil {
		return c.failed(&a.attempt, err), err
	}
	if a.number() == 1 {
		c.m.succeeded(c.r.clock, &a.attempt, c.cc)
	} else {
		c.m.retried(c.r.clock.Now(), true)
	}
	return failure{}, nil
}

// try makes the attempt a, within AttemptTimeout.
func (c *call) try(a *attempt, reply any, opts []grpc.CallOption) error {
	if c.rules.attemptTimeout > 0 && !c.rules.dryRun {
		ctx, cancel := context.WithTimeout(a.context(), c.rules.attemptTimeout)
		defer cancel()
		a.extra.ctx = ctx
	}
	return c.invoke(a, reply, opts)
}

// withoutFinish takes the OnFinish options out of opts and returns what calls them.
func withoutFinish(opts []grpc.CallOption) (rest []grpc.CallOption, finish func(error)) {
	var finishers []func(error)
	for _, o := range opts {
		if f, ok := o.(grpc.OnFinishCallOption); ok {
			finishers = append(finishers, f.OnFinish)
		} else {
			rest = append(rest, o)
		}
	}
	return rest, func(err error) {
		for _, f := range finishers {
			f(err)
		}
	}
}

// clearTargets resets what earlier attempts wrote into the caller's header, trailer and peer.
func clearTargets(opts []grpc.CallOption) {
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = nil
		case grpc.TrailerCallOption:
			*o.TrailerAddr = nil
		case grpc.PeerCallOption:
			*o.PeerAddr = peer.Peer{}
		}
	}
}

// sleep waits for d or until ctx ends, whichever is first.
func (r *Retrier) sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	done := make(chan struct{})
	timer := r.clock.AfterFunc(d, func() { close(done) })
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
