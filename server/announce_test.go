package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"github.com/evenkeel/evenkeel/registry"
)

func TestRegistryDownAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		var down atomic.Bool
		down.Store(true)
		u.reg.register = func(context.Context, registry.Instance) error {
			if down.Load() {
				return errors.New("connection refused")
			}
			return nil
		}
		announced := make(chan registry.Instance, 1)
		u.cfg.Announced = func(a *Announcement) { announced <- a.Instance() }
		u.start()
		client := testgrpc.NewTestServiceClient(u.dial(t))
		if _, err := client.EmptyCall(context.Background(), &testgrpc.Empty{}); err != nil {
			t.Errorf("call while the registry is down: %v, want it served", err)
		}
		time.Sleep(time.Minute)
		if n := len(u.all()); n < 6 || n > 200 {
			t.Errorf("%d attempts to register in a minute, want a few, with backoff", n)
		}
		down.Store(false)
		time.Sleep(maxBackoff)
		if len(announced) != 1 {
			t.Errorf("not announced %v after the registry came back", maxBackoff)
		}
		u.cancel()
		if err := <-u.result; err != nil || u.reg.leaked() != 0 {
			t.Errorf("Serve = %v with %d registrations left, want nil, 0", err, u.reg.leaked())
		}
	})
}

func TestRegistryDownAllTheTime(t *testing.T) {
	for name, register := range map[string]func(context.Context, registry.Instance) error{
		"refuses":        func(context.Context, registry.Instance) error { return errors.New("connection refused") },
		"does not reply": func(ctx context.Context, _ registry.Instance) error { return hang(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newUnder()
				u.reg.register = register
				u.start()
				time.Sleep(time.Minute)
				begin := time.Now()
				u.cancel()
				if err := <-u.result; err != nil || time.Since(begin) != defaultDrainDelay {
					t.Errorf("Serve = %v after %v, want nil after %v", err, time.Since(begin), defaultDrainDelay)
				}
			})
		})
	}
}

// A registration that a registry hands out although shutdown has begun is closed, whenever it comes.
func TestLateRegistrationIsClosed(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 7 * time.Second, time.Minute} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newUnder()
				u.reg.register = func(context.Context, registry.Instance) error { time.Sleep(after); return nil }
				u.cfg.Announced = func(*Announcement) { t.Error("announced during shutdown") }
				u.start()
				synctest.Wait()
				u.cancel()
				if err := <-u.result; err != nil {
					t.Errorf("Serve = %v, want nil", err)
				}
				time.Sleep(after)
				synctest.Wait()
				if u.reg.opened != 1 || u.reg.leaked() != 0 {
					t.Errorf("%d registrations, %d of them left, want 1, 0", u.reg.opened, u.reg.leaked())
				}
			})
		})
	}
}

func TestRefusedRecordIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.reg.register = func(context.Context, registry.Instance) error {
			return fmt.Errorf("%w: Labels has 65 keys, want 64 at most", registry.ErrInvalid)
		}
		u.start()
		defer u.cancel()
		err := <-u.result
		if !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "65 keys") || !strings.Contains(err.Error(), "orders") {
			t.Errorf("Serve = %v, want ErrInvalid with the registry's reason and the service", err)
		}
		u.want(t, "0s register orders orders-1", "0s returned")
	})
}

func TestUpdateThroughTheAnnouncement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		got := make(chan *Announcement, 1)
		u.cfg.Announced = func(a *Announcement) { got <- a }
		u.start()
		a := <-got
		in := a.Instance()
		in.Labels["track"], in.Weight = "canary", 7
		if a.Instance().Labels["track"] != "stable" {
			t.Error("changing what Instance returned changed the record")
		}
		if err := a.Update(t.Context(), in); err != nil {
			t.Errorf("Update = %v", err)
		}
		moved := in.Clone()
		moved.Addr = "10.9.9.9:80"
		if err := a.Update(t.Context(), moved); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "10.9.9.9:80") {
			t.Errorf("Update with another Addr = %v, want ErrInvalid that quotes it", err)
		}
		bad := in.Clone()
		bad.Labels["a b"] = ""
		if err := a.Update(t.Context(), bad); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Update with a bad label = %v, want ErrInvalid", err)
		}
		u.cancel()
		synctest.Wait()
		if err := a.Update(context.Background(), in); !errors.Is(err, errShuttingDown) {
			t.Errorf("Update during shutdown = %v, want %v", err, errShuttingDown)
		}
		<-u.result
		u.want(t, "0s register orders orders-1", "0s update draining=false track=canary weight=7",
			"0s update draining=true track=canary weight=7", "5s close", "5s returned")
	})
}

// An update that hangs when shutdown begins gives way to the draining mark.
func TestUpdateInProgressGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.reg.update = func(ctx context.Context, in registry.Instance) error {
			if in.Draining {
				return nil
			}
			return hang(ctx)
		}
		got := make(chan *Announcement, 1)
		u.cfg.Announced = func(a *Announcement) { got <- a }
		u.start()
		a := <-got
		updated := make(chan error, 2)
		for range 2 { // one holds the turn, one waits for it
			go func() { updated <- a.Update(context.Background(), a.Instance()) }()
		}
		time.Sleep(time.Second)
		u.cancel()
		for range 2 {
			if err := <-updated; !errors.Is(err, errShuttingDown) {
				t.Errorf("Update = %v, want %v", err, errShuttingDown)
			}
		}
		<-u.result
		u.want(t, "0s register orders orders-1", "0s update draining=false track=stable weight=0",
			"1s update draining=true track=stable weight=0", "6s close", "6s returned")
	})
}

func TestAnnouncedMayBlockUntilShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		release := make(chan struct{})
		u.cfg.Announced = func(*Announcement) { <-release }
		u.start()
		synctest.Wait()
		u.cancel()
		<-u.result
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "5s close", "6s returned")
		close(release)
	})
}

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		0: 100 * time.Millisecond, 3: 800 * time.Millisecond, 7: 10 * time.Second, 10: 10 * time.Second, math.MaxInt: 10 * time.Second,
	} {
		if got := backoff(attempt); got != want {
			t.Errorf("backoff(%d) = %v, want %v", attempt, got, want)
		}
	}
}
