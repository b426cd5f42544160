package server

import (
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

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
		"evenkeel.v1.Load": true, "grpc.testing.TestService": false, "orders.v1.Orders": false,
	} {
		if got := infrastructure(service); got != want {
			t.Errorf("infrastructure(%q) = %v, want %v", service, got, want)
		}
	}
}
