package resolver

import (
	"context"
	"errors"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// service is what a builder knows of one service, and the watch that its connections share.
type service struct {
	b    *builder
	name string

	// core belongs to the goroutine of run. The next run waits for the last to end before it touches it.
	core core
	// nudge has room for one: several wishes for news are one wish.
	nudge chan struct{}

	// Guarded by b.mu:

	conns  map[*connection]struct{}
	cancel context.CancelFunc // ends the present run
	done   chan struct{}      // closed when it has ended; nil before the first
	snap   *snapshot          // what the connections are to have; nil until there is something to say
	warned bool               // the log knows that evenkeel does not balance this service
}

// snapshot is a state to hand to gRPC. It is immutable, and a new one for every change.
type snapshot struct {
	instances []*registry.Instance
	err       error // why there are none, nil if the registry says so
}

// startLocked starts the watch. The caller holds b.mu.
func (s *service) startLocked() {
	ctx, cancel := context.WithCancel(context.Background())
	prev := s.done
	s.cancel, s.done, s.snap = cancel, make(chan struct{}), nil
	go s.run(ctx, prev, s.done)
}

// watch is one running call of Watch. Its zero value is none.
type watch struct {
	updates chan []registry.Instance
	ended   chan error // has room for the error, so that the goroutine can end
}

// run turns what happens into events of the core, and does what the core says, until ctx ends.
func (s *service) run(ctx context.Context, prev <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	if prev != nil {
		<-prev
	}
	var w watch
	timer := time.NewTimer(0)
	defer timer.Stop()
	for e := s.core.start(s.b.clock.Now()); ; {
		s.apply(e)
		if e.watch {
			w = s.watch(ctx)
		}
		var wake <-chan time.Time
		if d, ok := s.core.next(); ok {
			timer.Reset(d)
			wake = timer.C
		}
		select {
		case <-ctx.Done():
			if w.ended != nil {
				<-w.ended
			}
			return
		case set := <-w.updates:
			e = s.core.update(s.b.clock.Now(), set)
		case err := <-w.ended:
			w = watch{}
			if ctx.Err() != nil {
				return
			}
			e = s.core.ended(s.b.clock.Now(), err)
		case <-s.nudge:
			e = s.core.nudge(s.b.clock.Now())
		case <-wake:
			e = s.core.tick(s.b.clock.Now())
		}
	}
}

// watch starts a watch. It ends with ctx, or says by its ended channel that it ended before.
func (s *service) watch(ctx context.Context) watch {
	ctx, cancel := context.WithCancel(ctx)
	w := watch{updates: make(chan []registry.Instance), ended: make(chan error, 1)}
	go func() {
		err := errors.New("the watch ended without an error")
		defer func() {
			cancel()
			w.ended <- err
		}()
		if e := s.b.watcher.Watch(ctx, s.name, func(set []registry.Instance) {
			select {
			case w.updates <- set:
			case <-ctx.Done():
			}
		}); e != nil {
			err = e
		}
	}()
	return w
}

// apply publishes what the core shows, and logs what it notes.
func (s *service) apply(e effects) {
	if e.publish {
		if instances, err, ok := s.core.view(); ok {
			snap := &snapshot{instances: instances, err: err}
			s.b.mu.Lock()
			s.snap = snap
			for c := range s.conns {
				c.wake()
			}
			s.b.mu.Unlock()
		}
	}
	for _, n := range e.notes {
		s.b.logger().Log(context.Background(), n.level, "resolver: "+n.msg, append([]any{"service", s.name}, n.args...)...)
	}
}

// current is what the connections are to have, nil if there is nothing to say yet.
func (s *service) current() *snapshot {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.snap
}

// firstWarning reports true once.
func (s *service) firstWarning() bool {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	first := !s.warned
	s.warned = true
	return first
}

// wantsNews tells the run that gRPC has asked for news.
func (s *service) wantsNews() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}
