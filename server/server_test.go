package server

import (
	"context"
	"errors"
	"os"
	"strings"
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
		synctest.Wait() // the announcement may still be on its way
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
		synctest.Wait() // the announcement may still be on its way
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
