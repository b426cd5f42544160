package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

// beatText is the output of a TTL check. It never changes, so that beats cost the servers no write.
const beatText = "the instance says that it is well"

// Register implements [registry.Registrar]. It waits for the first answer of the agent, at most until ctx ends or
// 5 s have passed; without one, or with one that denies the token, it succeeds all the same and keeps trying. An
// error wraps [registry.ErrInvalid] or [ErrClosed]. A registration of this Registry with the same service and ID
// gives its record up to the new one.
func (r *Registry) Register(ctx context.Context, service string, in registry.Instance) (registry.Registration, error) {
	want, err := encode(service, in, r.cfg.Tags, r.cfg.Check)
	if err != nil {
		return nil, err
	}
	first := &attempt{done: make(chan struct{})}
	g := &registration{r: r, service: service, id: want.ID, limit: requestTime,
		want: record{in: in.Clone(), reg: want}, tries: []*attempt{first},
		keep: keeper{ttl: r.cfg.Check.Kind == CheckTTL, every: r.cfg.Check.Interval, random: r.random},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), left: make(chan struct{})}
	if g.keep.ttl { // a request that hangs must leave time for another
		g.limit = min(requestTime, max(r.cfg.Check.TTL/2, minInterval))
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())

	old, err := r.adopt(ctx, g)
	if err != nil {
		g.cancel()
		return nil, err
	}
	if old != nil {
		old.halt(ctx)
	}
	go g.run()
	if err := first.wait(ctx); err != nil {
		g.halt(ctx)
		r.forget(g)
		return nil, err
	}
	return g, nil
}

// adopt makes g the keeper of its record and counts its goroutine. It returns the keeper so far, if there is one,
// whose Close does not touch the record any more. One that is deregistering just then is waited for.
func (r *Registry) adopt(ctx context.Context, g *registration) (*registration, error) {
	for {
		r.mu.Lock()
		old := r.live[g.id]
		if r.closed {
			r.mu.Unlock()
			return nil, ErrClosed
		}
		if old == nil || !old.leaving || ctx.Err() != nil {
			r.live[g.id] = g
			r.work.Add(1)
			r.mu.Unlock()
			return old, nil
		}
		r.mu.Unlock()
		select {
		case <-old.left:
		case <-ctx.Done():
		}
	}
}

// leave says that g is about to remove its record, and reports whether it is g's to remove.
func (r *Registry) leave(g *registration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	g.leaving = r.live[g.id] == g
	return g.leaving
}

// forget ends g's claim to its record, if it still has it.
func (r *Registry) forget(g *registration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[g.id] == g {
		delete(r.live, g.id)
	}
}

// record is an instance and what it is in Consul.
type record struct {
	in  registry.Instance
	reg *api.AgentServiceRegistration
}

// attempt is somebody who waits for the next attempt to write the record.
type attempt struct {
	done chan struct{}
	err  error // may be read once done is closed
}

// wait returns why the record can never work, or nil when it was written, or may yet be.
func (t *attempt) wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return nil
	}
}

// registration keeps one record alive. One goroutine, run, owns keep and sends every request but the one that
// deregisters.
type registration struct {
	r           *Registry
	service, id string        // id is the service ID
	limit       time.Duration // of one request
	ctx         context.Context
	cancel      context.CancelFunc // ends the request that is under way
	keep        keeper
	written     record // what was last accepted; owned by run
	logged      result // what was last logged; owned by run

	wake chan struct{} // holds one: the record has changed
	stop chan struct{} // closed by halt
	done chan struct{} // closed when run has returned
	left chan struct{} // closed when Close has done what it can

	leaving bool // Close removes the record; guarded by r.mu

	mu     sync.Mutex // guards what follows; nothing waits or logs under it
	want   record
	tries  []*attempt // those that wait for want to be written
	closed bool
	halted bool
}

// Update implements [registry.Registration]. It waits as Register does. The record in Consul is replaced, never
// absent, and what its checks found out stays.
func (g *registration) Update(ctx context.Context, in registry.Instance) error {
	reg, err := encode(g.service, in, g.r.cfg.Tags, g.r.cfg.Check)
	if err != nil {
		return err
	}
	a := &attempt{done: make(chan struct{})}
	g.mu.Lock()
	old := g.want.in
	switch {
	case g.halted:
		g.mu.Unlock()
		return fmt.Errorf("consul: update of instance %q of %q: the registration is closed, or another has taken its ID",
			old.ID, g.service)
	case in.ID != old.ID || in.Addr != old.Addr || !slices.Equal(in.AltAddrs, old.AltAddrs):
		g.mu.Unlock()
		return fmt.Errorf("%w: update of instance %q of %q: ID, Addr, AltAddrs = %q, %q, %q, want them unchanged: %q, %q",
			registry.ErrInvalid, old.ID, g.service, in.ID, in.Addr, in.AltAddrs, old.Addr, old.AltAddrs)
	}
	g.want = record{in: in.Clone(), reg: reg}
	g.tries = append(g.tries, a)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default: // it knows
	}
	return a.wait(ctx)
}

// Close implements [registry.Registration]. It tries to deregister until ctx ends, for at most 5 s.
func (g *registration) Close(ctx context.Context) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	g.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	defer close(g.left)
	g.halt(ctx)
	if !g.r.leave(g) {
		return nil // the record is another's
	}
	defer g.r.forget(g)
	if err := g.deregister(ctx); err != nil {
		return fmt.Errorf("consul: deregister %q at %s: %w", g.id, g.r.where, g.r.secrets.clean(err))
	}
	return nil
}

// halt stops run and waits for it. The request that is under way may finish until ctx ends, so that a later one of
// ours does not overtake it.
func (g *registration) halt(ctx context.Context) {
	g.mu.Lock()
	if !g.halted {
		g.halted = true
		close(g.stop)
	}
	g.mu.Unlock()
	select {
	case <-g.done:
	case <-ctx.Done():
	}
	g.cancel()
	<-g.done
}

// deregister removes the record. That it is not there is fine.
func (g *registration) deregister(ctx context.Context) error {
	var delay time.Duration
	for {
		err := g.request(ctx, func(ctx context.Context) error {
			q := &api.QueryOptions{Token: g.r.secrets.token()}
			return g.r.client.Agent().ServiceDeregisterOpts(g.id, q.WithContext(ctx))
		})
		var answer api.StatusError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &answer) && answer.Code == http.StatusNotFound:
			return nil
		case errors.As(err, &answer) && answer.Code == http.StatusForbidden:
			return err
		}
		delay = min(max(2*delay, retryMin), retryMax)
		if !sleep(ctx, delay) {
			return err
		}
	}
}

// run does what keep says until halt.
func (g *registration) run() {
	defer g.r.work.Done()
	defer close(g.done)
	defer g.release()
	for {
		act, wait := g.keep.next(g.r.now())
		if act == actWait {
			if !g.pause(wait) {
				return
			}
			continue
		}
		select {
		case <-g.stop:
			return
		case <-g.wake:
			g.keep.change(g.r.now())
			continue
		default:
		}
		res, err := g.do(act)
		if g.ctx.Err() != nil {
			return
		}
		g.keep.done(g.r.now(), act, res)
		g.note(act, res, err)
	}
}

// pause waits until it is time, or the record changed. It reports false when it is time to stop.
func (g *registration) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-g.stop:
		return false
	case <-g.wake:
		g.keep.change(g.r.now())
	case <-t.C:
	}
	return true
}

// do sends the request of one action.
func (g *registration) do(act action) (result, error) {
	q := &api.QueryOptions{Token: g.r.secrets.token()}
	agent := g.r.client.Agent()
	switch act {
	case actPut:
		return g.put()
	case actBeat:
		err := g.request(g.ctx, func(ctx context.Context) error {
			return agent.UpdateTTLOpts(checkID(g.id), beatText, api.HealthPassing, q.WithContext(ctx))
		})
		return judge(err), err
	}
	var got *api.AgentService
	err := g.request(g.ctx, func(ctx context.Context) (err error) {
		got, _, err = agent.Service(g.id, q.WithContext(ctx))
		return err
	})
	if err == nil && !sameRecord(g.written.reg, got) {
		return resGone, errors.New("somebody has changed it")
	}
	return judge(err), err
}

// judge says what the answer to a beat or a reading means. Whatever the agent answers but yes, it may be that it
// does not know the check or the record (a 404, in older versions a 500), and then writing the record is right; if
// it is something else, writing it will fail too, and be repeated after a pause.
func judge(err error) result {
	var answer api.StatusError
	switch {
	case err == nil:
		return resOK
	case errors.As(err, &answer):
		return resGone
	}
	return resUnreachable
}

// put writes the record, and tells those who wait for it.
func (g *registration) put() (result, error) {
	g.mu.Lock()
	want, tries := g.want, g.tries
	g.tries = nil
	g.mu.Unlock()
	err := g.request(g.ctx, func(ctx context.Context) error {
		// Without ReplaceExistingChecks: checks that others added stay, maintenance mode for one.
		opts := api.ServiceRegisterOpts{Token: g.r.secrets.token()}
		return g.r.client.Agent().ServiceRegisterOpts(want.reg, opts.WithContext(ctx))
	})
	var answer api.StatusError
	res := resUnreachable
	var impossible error
	switch {
	case err == nil:
		res, g.written = resOK, want
	case errors.As(err, &answer) && answer.Code == http.StatusForbidden:
		res = resRefused
	case errors.As(err, &answer) && answer.Code == http.StatusBadRequest:
		res = resRefused
		impossible = fmt.Errorf("%w: instance %q of %q: Consul at %s refuses it: %w",
			registry.ErrInvalid, want.in.ID, g.service, g.r.where, g.r.secrets.clean(err))
		g.revert(want)
	}
	for _, t := range tries {
		t.err = impossible
		close(t.done)
	}
	if impossible != nil && len(tries) > 0 {
		err = nil // who asked for it has been told, and need not read it in the log
	}
	return res, err
}

// revert goes back to the record that was accepted before bad was refused, so that an update that Consul does not
// like does not cost the instance its place.
func (g *registration) revert(bad record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.written.reg != nil && g.want.reg == bad.reg {
		g.want = g.written
	}
}

// release tells everybody who still waits that nothing more comes.
func (g *registration) release() {
	g.mu.Lock()
	tries := g.tries
	g.tries = nil
	g.mu.Unlock()
	for _, t := range tries {
		close(t.done)
	}
}

// request bounds one request. Without a bound a frozen Consul would stop the beats for ever.
func (g *registration) request(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, g.limit, errNoAnswer)
	defer cancel()
	err := f(ctx)
	if err != nil && context.Cause(ctx) == errNoAnswer {
		return fmt.Errorf("no answer within %v: Consul is frozen or cannot be reached", g.limit)
	}
	return err
}

// note logs changes of state: that the record cannot be kept alive, that it can again, that it was put back.
func (g *registration) note(act action, res result, err error) {
	log := g.r.cfg.Logger.With("service", g.service, "record", g.id, "consul", g.r.where)
	reason := g.r.secrets.clean(err)
	switch {
	case res == resOK:
		if act == actRead && g.logged != resOK { // the last action of a round
			g.logged = resOK
			log.Info("consul: the record is as it should be")
		}
		return
	case err == nil, res == g.logged:
		return
	case res == resGone:
		log.Warn("consul: the record is not as it should be and is written again", "reason", reason)
	case res == resRefused:
		log.Error("consul: the record is refused and not announced; it is tried again", "reason", reason)
	case res == resUnreachable:
		log.Warn("consul: the record cannot be kept alive; it is tried again", "reason", reason)
	}
	g.logged = res
}
