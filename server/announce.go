package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

const (
	registerTimeout = 10 * time.Second       // for one attempt to register
	minBackoff      = 100 * time.Millisecond // before the second attempt
	maxBackoff      = 10 * time.Second
)

var errShuttingDown = errors.New("server: shutting down, the record is not changed any more")

// Announcement is a running server's record in the registry. [Config.Announced] receives it; it is the way to
// change the server's labels, version, zone or weight, which reaches clients without a new connection. It has no
// zero value. It is safe for concurrent use, and nobody needs to close it: shutdown does.
type Announcement struct {
	reg  registry.Registration
	over context.Context // ends when shutdown begins
	// turn holds one token, the right to change the record, so that the record that is marked as draining has
	// the last change in it. It is a channel and not a mutex because the registry is called with it in hand, and
	// whoever waits for it must be able to give up.
	turn chan struct{}

	mu sync.Mutex // guards in
	in registry.Instance
}

func newAnnouncement(over context.Context, reg registry.Registration, in registry.Instance) *Announcement {
	return &Announcement{reg: reg, over: over, turn: make(chan struct{}, 1), in: in}
}

// Instance returns a copy of the record as it was last accepted, with the ID and the address that Serve chose.
func (a *Announcement) Instance() registry.Instance {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.in.Clone()
}

// Update replaces the record; start from [Announcement.Instance]. ID, Addr and AltAddrs must stay the same. ctx
// bounds the call. It fails if the new record is invalid (the error wraps [registry.ErrInvalid]), ctx ends, or the
// server has begun to shut down; the server then goes on with the old record, and that is what the draining mark is
// set on. An unreachable registry is not an error; it gets the new record when it is back.
func (a *Announcement) Update(ctx context.Context, in registry.Instance) error {
	if err := in.Validate(); err != nil {
		return err
	}
	old := a.Instance()
	if in.ID != old.ID || in.Addr != old.Addr || !slices.Equal(in.AltAddrs, old.AltAddrs) {
		return fmt.Errorf("%w: ID, Addr, AltAddrs = %q, %q, %q, want the announced %q, %q, %q: they cannot change",
			registry.ErrInvalid, in.ID, in.Addr, in.AltAddrs, old.ID, old.Addr, old.AltAddrs)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.over, func() { cancel(errShuttingDown) })()
	err := a.replace(ctx, func() (registry.Instance, error) {
		if a.over.Err() != nil {
			return registry.Instance{}, errShuttingDown
		}
		return in.Clone(), nil
	})
	if err != nil && a.over.Err() != nil {
		return errShuttingDown
	}
	return err
}

// drain marks the record as draining, whatever else is in it. It is called once, when over has ended, and ends
// the updates that are on their way.
func (a *Announcement) drain(ctx context.Context) error {
	return a.replace(ctx, func() (registry.Instance, error) {
		in := a.Instance()
		in.Draining = true
		return in, nil
	})
}

// replace asks next for the new record when it is its turn.
func (a *Announcement) replace(ctx context.Context, next func() (registry.Instance, error)) error {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-a.turn }()
	in, err := next()
	if err != nil {
		return err
	}
	if err := a.reg.Update(ctx, in.Clone()); err != nil {
		return err
	}
	a.mu.Lock()
	a.in = in
	a.mu.Unlock()
	return nil
}

// register asks until the registry accepts the record, refuses it for good (the error then wraps
// [registry.ErrInvalid]) or ctx ends. It logs a failure once, not per attempt.
func register(ctx context.Context, r registry.Registrar, service string, in registry.Instance,
	log *slog.Logger) (registry.Registration, error) {
	for attempt := 0; ; attempt++ {
		reg, err := registerOnce(ctx, r, service, in)
		switch {
		case err == nil && reg != nil:
			return reg, nil
		case err == nil:
			err = errors.New("the registrar returned neither a registration nor an error")
		case errors.Is(err, registry.ErrInvalid):
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if attempt == 0 {
			log.Warn("server: serving, but not announced: the registry does not take the record; trying on", "err", err)
		}
		t := time.NewTimer(rand.N(backoff(attempt)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

func registerOnce(ctx context.Context, r registry.Registrar, service string,
	in registry.Instance) (registry.Registration, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	return r.Register(ctx, service, in.Clone())
}

// backoff is the longest wait after the given attempt, counted from 0; the wait is chosen evenly below it, so that
// servers which lost their registry together do not return to it together.
func backoff(attempt int) time.Duration {
	if attempt > 10 { // 100 ms << 7 is over the limit already; more would overflow
		return maxBackoff
	}
	return min(minBackoff<<attempt, maxBackoff)
}
