package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/registry"
)

// leaveTimeout is how long Serve waits, after everything has stopped, for goroutines that are in a user's code.
const leaveTimeout = time.Second

// run is the shell of one Serve call: it reports to the core what happens and does what the core says.
type run struct {
	cfg       Config // complete
	s         *grpc.Server
	lis       *listener
	services  []string // what s serves, without health and the like
	ownHealth bool     // cfg.Health was made by Serve
	clk       clock.Real
	core      core

	stopOrdered atomic.Bool // by the core, rather than by the app

	// events has room for every event that can ever be sent, so that no sender waits and none is lost.
	events chan event
	wg     sync.WaitGroup

	base      context.Context // for what shutdown does; ends when the core has stopped
	endBase   context.CancelFunc
	over      context.Context // for announcing and the user's updates; ends when shutdown begins
	endOver   context.CancelFunc
	announced chan struct{} // closed when the announcing goroutine will not set ann any more

	mu      sync.Mutex // guards what follows, and that over ends either before ann is set or after
	ann     *Announcement
	failure error // why serving ended by itself
}

func newRun(s *grpc.Server, lis net.Listener, cfg Config, services []string, ownHealth bool) *run {
	r := &run{
		cfg: cfg, s: s, services: services, ownHealth: ownHealth, clk: clock.New(),
		core:   core{drainDelay: cfg.DrainDelay, stopTimeout: cfg.StopTimeout},
		events: make(chan event, 16),
	}
	r.lis = &listener{
		Listener:  lis,
		accepting: func() { r.events <- accepting },
		closed:    func() { r.events <- broken },
	}
	r.base, r.endBase = context.WithCancel(context.Background())
	r.over, r.endOver = context.WithCancel(r.base)
	return r
}

// serve runs the loop. Nothing in it blocks but the wait for the next event, so a second signal is always heard.
func (r *run) serve(ctx context.Context, sigs <-chan os.Signal) error {
	defer r.endBase()
	r.wg.Go(func() {
		err := r.s.Serve(r.lis)
		if errors.Is(err, grpc.ErrServerStopped) && r.stopOrdered.Load() {
			err = nil // the context ended so early that the stop overtook the start
		}
		if err != nil {
			r.fail(fmt.Errorf("server: serving on %v: %w", r.lis.Addr(), err))
		}
		r.events <- broken
	})
	ended := ctx.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for r.core.state != stopped {
		timer.Stop()
		if r.core.deadline != 0 {
			timer.Reset(time.Duration(r.core.deadline - r.clk.Now()))
		}
		var ev event
		select {
		case ev = <-r.events:
		case <-ended:
			ended, ev = nil, ctxEnded
		case sig := <-sigs:
			ev = signalled
			r.cfg.Logger.Info("server: got a signal", "signal", sig.String())
		case <-timer.C:
			ev = tick
		}
		for _, act := range r.core.step(r.clk.Now(), ev) {
			r.do(act)
		}
	}
	return r.result()
}

func (r *run) do(act action) {
	log := r.cfg.Logger
	switch act {
	case healthUp:
		r.healthUp()
	case announce:
		log.Info("server: serving", "listener", r.lis.Addr().String())
		if r.cfg.Registrar != nil {
			r.announced = make(chan struct{})
			r.wg.Go(r.announce)
		}
	case notServing:
		log.Info("server: going down: health says NOT_SERVING")
		r.cfg.Health.Shutdown()
		r.mu.Lock()
		r.endOver()
		r.mu.Unlock()
	case mark:
		r.wg.Go(r.mark)
	case deregister:
		r.wg.Go(r.deregister)
	case gracefulStop:
		r.stopOrdered.Store(true)
		log.Info("server: waiting for the calls in flight", "timeout", r.cfg.StopTimeout)
		r.wg.Go(func() {
			r.s.GracefulStop()
			r.events <- drained
		})
	case stop:
		r.stopOrdered.Store(true)
		log.Warn("server: stopping now")
		r.wg.Go(func() {
			r.lis.cutAll() // or Stop would wait for handshakes
			r.s.Stop()
			r.events <- killed
		})
	}
}

func (r *run) healthUp() {
	if r.ownHealth {
		r.cfg.Health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	}
	startHealth(r.over, r.cfg.Health, r.services)
	r.wg.Go(func() {
		err := awaitServing(r.over, r.cfg.Health, func() {
			r.cfg.Logger.Info("server: accepting connections, but the health service does not say SERVING: not announced yet")
		})
		if err == nil {
			r.events <- ready
		}
	})
}

// announce registers. A registration that comes when shutdown has begun is closed here, any other by deregister.
func (r *run) announce() {
	gone := sync.OnceFunc(func() { close(r.announced) })
	defer gone()
	log, in := r.cfg.Logger, r.cfg.Instance
	reg, err := register(r.over, r.cfg.Registrar, r.cfg.Service, in, log)
	if err != nil {
		if r.over.Err() == nil {
			r.fail(fmt.Errorf("server: the registry refuses to announce %q: %w", r.cfg.Service, err))
			r.events <- broken
		}
		return
	}
	ann := newAnnouncement(r.over, reg, in)
	r.mu.Lock()
	late := r.over.Err() != nil
	if !late {
		r.ann = ann
	}
	r.mu.Unlock()
	if late {
		r.closeRegistration(reg)
		return
	}
	gone()
	log.Info("server: announced", "service", r.cfg.Service, "id", in.ID, "addr", in.Addr, "altAddrs", in.AltAddrs)
	if r.cfg.Announced != nil {
		r.cfg.Announced(ann)
	}
}

func (r *run) mark() {
	if ann := r.announcement(); ann != nil {
		ctx, cancel := context.WithTimeout(r.base, registryTimeout)
		defer cancel()
		if err := ann.drain(ctx); err != nil {
			r.cfg.Logger.Warn("server: could not mark the instance as draining", "err", err)
		}
	}
	r.events <- marked
}

func (r *run) deregister() {
	if ann := r.announcement(); ann != nil {
		r.closeRegistration(ann.reg)
	} else if r.announced != nil {
		<-r.announced // it is being closed by announce, or never came
	}
	r.events <- deregistered
}

func (r *run) closeRegistration(reg registry.Registration) {
	ctx, cancel := context.WithTimeout(context.Background(), registryTimeout)
	defer cancel()
	// A little longer than base: a registration that comes when everything has stopped is to be removed as well.
	defer context.AfterFunc(r.base, func() {
		t := time.NewTimer(leaveTimeout / 2)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-ctx.Done():
		}
	})()
	if err := reg.Close(ctx); err != nil {
		r.cfg.Logger.Warn("server: could not deregister; the registry will forget the instance by itself", "err", err)
		return
	}
	r.cfg.Logger.Info("server: deregistered", "id", r.cfg.Instance.ID)
}

func (r *run) announcement() *Announcement {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ann
}

// fail keeps the first reason.
func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure == nil {
		r.failure = err
	}
}

// result waits for the goroutines and says how it ended.
func (r *run) result() error {
	r.endBase()
	if !r.wait() || r.core.stuck {
		r.cfg.Logger.Warn("server: something ignores that the server has stopped: a handler, the registry or Announced")
	}
	var cut error
	switch r.core.ending {
	case timedOut:
		cut = fmt.Errorf("%w: StopTimeout of %v ran out", ErrNotGraceful, r.cfg.StopTimeout)
	case forced:
		cut = fmt.Errorf("%w: a second signal came", ErrNotGraceful)
	}
	r.mu.Lock()
	err := errors.Join(r.failure, cut)
	r.mu.Unlock()
	if err != nil {
		r.cfg.Logger.Error("server: stopped", "err", err)
		return err
	}
	r.cfg.Logger.Info("server: stopped")
	return nil
}

// wait reports whether all goroutines ended in time.
func (r *run) wait() bool {
	done := make(chan struct{})
	go func() { // ends with the goroutines that it waits for
		r.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(leaveTimeout)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
