package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/registry"
)

// synctest.Test fails if a goroutine is left when its function has returned: every test here checks that too.

func TestOrderOfShutdown(t *testing.T) {
	for name, end := range map[string]func(*under){
		"signal":  func(u *under) { u.sigs <- syscall.SIGTERM },
		"context": func(u *under) { u.cancel() },
		"both":    func(u *under) { u.cancel(); u.sigs <- syscall.SIGTERM },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newUnder()
				h := health.NewServer()
				u.cfg.Health = h
				note := func(context.Context, registry.Instance) error { u.add("health %s", statusNow(h)); return nil }
				u.reg.register, u.reg.update = note, note
				u.start()
				time.Sleep(time.Second) // virtual
				end(u)
				if err := <-u.result; err != nil {
					t.Errorf("Serve = %v, want nil", err)
				}
				u.want(t, "0s register orders orders-1", "0s health SERVING",
					"1s update draining=true track=stable weight=0", "1s health NOT_SERVING", "6s close", "6s returned")
				u.cancel()
			})
		})
	}
}

func TestCallInFlightIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.echo.unary = func(ctx context.Context) error { time.Sleep(20 * time.Second); return ctx.Err() }
		u.start()
		defer u.cancel()
		client := testgrpc.NewTestServiceClient(u.dial(t))
		inFlight := make(chan error, 2)
		call := func() { _, err := client.EmptyCall(context.Background(), &testgrpc.Empty{}); inFlight <- err }
		go call()
		synctest.Wait()
		u.sigs <- syscall.SIGTERM
		time.Sleep(4 * time.Second)
		go call() // during DrainDelay the server serves as ever
		if err := errors.Join(<-inFlight, <-inFlight, <-u.result); err != nil {
			t.Errorf("calls and Serve: %v, want none to fail", err)
		}
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "5s close", "24s returned")
	})
}

func TestEndlessStreamIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.cfg.StopTimeout = 10 * time.Second
		u.start()
		defer u.cancel()
		stream, err := testgrpc.NewTestServiceClient(u.dial(t)).FullDuplexCall(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		u.sigs <- syscall.SIGTERM
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v, want Unavailable", err)
		}
		err = <-u.result
		if !errors.Is(err, ErrNotGraceful) || !strings.Contains(err.Error(), "StopTimeout of 10s") {
			t.Errorf("Serve = %v, want ErrNotGraceful that names StopTimeout of 10s", err)
		}
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "5s close", "15s returned")
	})
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.start()
		defer u.cancel()
		stream, err := testgrpc.NewTestServiceClient(u.dial(t)).FullDuplexCall(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		u.sigs <- syscall.SIGTERM
		time.Sleep(time.Second)
		u.sigs <- os.Interrupt
		if err := <-u.result; !errors.Is(err, ErrNotGraceful) || !strings.Contains(err.Error(), "second signal") {
			t.Errorf("Serve = %v, want ErrNotGraceful that names the second signal", err)
		}
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "1s close", "1s returned")
	})
}

func TestSecondSignalWhileTheRegistryHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.reg.update, u.reg.close = func(ctx context.Context, _ registry.Instance) error { return hang(ctx) }, hang
		u.start()
		defer u.cancel()
		synctest.Wait()
		u.sigs <- syscall.SIGTERM
		time.Sleep(time.Second)
		u.sigs <- syscall.SIGTERM
		if err := <-u.result; !errors.Is(err, ErrNotGraceful) {
			t.Errorf("Serve = %v, want ErrNotGraceful", err)
		}
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "1s close", "2.5s returned")
	})
}

func TestRegistryHangsAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.reg.update, u.reg.close = func(ctx context.Context, _ registry.Instance) error { return hang(ctx) }, hang
		u.start()
		synctest.Wait()
		u.cancel()
		if err := <-u.result; err != nil {
			t.Errorf("Serve = %v, want nil: the registry's trouble is not the server's", err)
		}
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "8s close", "11s returned")
	})
}

// A registry that ignores even its contexts must not keep Serve; its goroutines are its own then.
func TestRegistryIgnoresItsContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		release := make(chan struct{})
		u.reg.update = func(context.Context, registry.Instance) error { <-release; return nil }
		u.reg.close = func(context.Context) error { <-release; return nil }
		u.start()
		synctest.Wait()
		u.cancel()
		if err := <-u.result; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
		u.want(t, "0s register orders orders-1", "0s update draining=true track=stable weight=0", "8s close", "12s returned")
		close(release)
	})
}

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

func TestHealthGatesTheAnnouncement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		h := health.NewServer()
		h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		h.SetServingStatus("grpc.testing.TestService", healthpb.HealthCheckResponse_NOT_SERVING)
		u.cfg.Health = h
		healthpb.RegisterHealthServer(u.s, h)
		u.start()
		time.Sleep(10 * time.Second)
		u.want(t)
		h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		synctest.Wait()
		u.want(t, "10s register orders orders-1")
		r, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "grpc.testing.TestService"})
		if err != nil || r.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("what the app set is now %v, %v, want it untouched", r.GetStatus(), err)
		}
		u.cancel()
		<-u.result
	})
}

func TestHealthThroughTheServersLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.start()
		client := healthpb.NewHealthClient(u.dial(t))
		check := func(want healthpb.HealthCheckResponse_ServingStatus) {
			t.Helper()
			synctest.Wait()
			for _, service := range []string{"", "grpc.testing.TestService"} {
				r, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
				if err != nil || r.GetStatus() != want {
					t.Errorf("health of %q = %v, %v, want %v", service, r.GetStatus(), err, want)
				}
			}
		}
		check(healthpb.HealthCheckResponse_SERVING)
		u.cancel()
		check(healthpb.HealthCheckResponse_NOT_SERVING)
		<-u.result
	})
}

func TestListenerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		_ = u.lis.Close()
		u.start()
		defer u.cancel()
		if err := <-u.result; err == nil || !strings.Contains(err.Error(), "closed") || u.reg.leaked() != 0 {
			t.Errorf("Serve = %v with %d registrations left, want the listener's error and 0", err, u.reg.leaked())
		}
	})
}

func TestListenerBreaksLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.start()
		defer u.cancel()
		synctest.Wait()
		time.Sleep(time.Second)
		_ = u.lis.Close()
		if err := <-u.result; err == nil || !strings.Contains(err.Error(), "serving on") {
			t.Errorf("Serve = %v, want the listener's error", err)
		}
		u.want(t, "0s register orders orders-1", "1s close", "1s returned")
	})
}

func TestAppStopsTheServerItself(t *testing.T) {
	for name, stop := range map[string]func(*grpc.Server){"Stop": (*grpc.Server).Stop, "GracefulStop": (*grpc.Server).GracefulStop} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newUnder()
				u.echo.unary = func(context.Context) error { time.Sleep(10 * time.Second); return nil }
				u.start()
				defer u.cancel()
				client := testgrpc.NewTestServiceClient(u.dial(t))
				call := make(chan struct{})
				go func() { defer close(call); _, _ = client.EmptyCall(context.Background(), &testgrpc.Empty{}) }()
				synctest.Wait()
				go stop(u.s)
				synctest.Wait()
				// Deregistered at once, although GracefulStop waits for its call for 10 s.
				if got := u.all(); len(got) < 2 || got[1] != "0s close" {
					t.Errorf("journal %q, want the record gone at once", got)
				}
				if err := <-u.result; err != nil {
					t.Errorf("Serve = %v, want nil", err)
				}
				<-call
				time.Sleep(10 * time.Second) // Stop does not wait for handlers
			})
		})
	}
}

func TestServerStoppedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.s.Stop()
		u.start()
		defer u.cancel()
		if err := <-u.result; !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("Serve = %v, want grpc.ErrServerStopped", err)
		}
		u.want(t, "0s returned")
	})
}

func TestContextEndedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := serve(ctx, u.s, u.lis, u.cfg, nil); err != nil || u.reg.leaked() != 0 {
			t.Errorf("Serve = %v with %d registrations left, want nil, 0", err, u.reg.leaked())
		}
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

func TestWithoutRegistrar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnder()
		u.cfg = Config{DrainDelay: -1, Logger: u.cfg.Logger}
		u.start()
		if _, err := testgrpc.NewTestServiceClient(u.dial(t)).EmptyCall(t.Context(), &testgrpc.Empty{}); err != nil {
			t.Errorf("call: %v", err)
		}
		u.cancel()
		if err := <-u.result; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
		u.want(t, "0s returned")
	})
}

func TestWrongConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*under)
		want   string
	}{
		"stop timeout":  {func(u *under) { u.cfg.StopTimeout = -time.Second }, "StopTimeout = -1s, want"},
		"no service":    {func(u *under) { u.cfg.Service = "" }, `Service = "", want`},
		"service utf-8": {func(u *under) { u.cfg.Service = "a\xff" }, `Service = "a\xff", want`},
		"no address":    {func(u *under) { u.cfg.Instance.Addr = "" }, "Config.Instance.Addr is empty"},
		"bad address":   {func(u *under) { u.cfg.Instance.Addr = "orders" }, `Addr = "orders", want host:port`},
		"port 0":        {func(u *under) { u.cfg.Instance.Addr = "10.0.0.1:0" }, `Addr = "10.0.0.1:0"`},
		"wildcard":      {func(u *under) { u.cfg.Instance.Addr = "0.0.0.0:80" }, `Config.Instance.Addr = "0.0.0.0:80", want an address`},
		"alt wildcard":  {func(u *under) { u.cfg.Instance.AltAddrs = []string{"[::]:80"} }, `AltAddrs[0] = "[::]:80"`},
		"label":         {func(u *under) { u.cfg.Instance.Labels["a b"] = "" }, `"a b"`},
		"health twice": {func(u *under) { healthpb.RegisterHealthServer(u.s, health.NewServer()) },
			"Config.Health = nil, want the *health.Server"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUnder()
			tc.change(u)
			err := serve(t.Context(), u.s, u.lis, u.cfg, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Serve = %v, want an error with %s", err, tc.want)
			}
			u.want(t)
			if _, err := u.lis.Accept(); err == nil {
				t.Error("the listener is open, want it closed")
			}
		})
	}
	if err := Serve(t.Context(), nil, newUnder().lis, Config{}); err == nil {
		t.Error("Serve without a grpc.Server = nil, want an error")
	}
	if err := Serve(t.Context(), grpc.NewServer(), nil, Config{}); err == nil {
		t.Error("Serve without a listener = nil, want an error")
	}
}

func TestInstanceIsFilledIn(t *testing.T) {
	u := newUnder()
	healthpb.RegisterHealthServer(u.s, health.NewServer())
	lis, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	cfg := Config{Registrar: u.reg, Service: "orders", Health: health.NewServer()}
	seen := map[string]bool{}
	for range 100 {
		c, err := cfg.complete(lis.Addr(), []string{"grpc.testing.TestService"}, true)
		if err != nil {
			t.Fatal(err)
		}
		in := c.Instance
		if seen[in.ID] || !strings.HasPrefix(in.ID, "orders-") || len(in.Services) != 1 || checkReachable("Addr", in.Addr) != nil {
			t.Fatalf("instance %+v, want a new ID for orders, a reachable Addr, one service", in)
		}
		if _, port, _ := net.SplitHostPort(in.Addr); !strings.HasSuffix(lis.Addr().String(), ":"+port) {
			t.Fatalf("Addr = %q, want the port of %v", in.Addr, lis.Addr())
		}
		seen[in.ID] = true
	}
	if cfg.DrainDelay != 0 || cfg.Instance.ID != "" {
		t.Error("complete changed the caller's Config")
	}
}

func TestInfrastructureIsNotAnnounced(t *testing.T) {
	for service, want := range map[string]bool{
		"grpc.health.v1.Health": true, "grpc.reflection.v1.ServerReflection": true,
		"grpc.reflection.v1alpha.ServerReflection": true, "grpc.channelz.v1.Channelz": true,
		"grpc.testing.TestService": false, "orders.v1.Orders": false,
	} {
		if got := infrastructure(service); got != want {
			t.Errorf("infrastructure(%q) = %v, want %v", service, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		0: 100 * time.Millisecond, 3: 800 * time.Millisecond, 7: 10 * time.Second, 10: 10 * time.Second, 1 << 40: 10 * time.Second,
	} {
		if got := backoff(attempt); got != want {
			t.Errorf("backoff(%d) = %v, want %v", attempt, got, want)
		}
	}
}
