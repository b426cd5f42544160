package trace

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
)

// With the real resolver and balancer, over loopback: spans name the instance and the filter.
func TestInstanceAndFilter(t *testing.T) {
	leak.Check(t)
	tracing, tracer := newTracing(t, Config{})
	reg := memory.New()
	for _, track := range []string{"stable", "canary"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		register(srv, func(context.Context) error { return nil })
		done := make(chan error)
		go func() { done <- srv.Serve(l) }()
		t.Cleanup(func() {
			srv.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		_, err = reg.Register(t.Context(), "orders", registry.Instance{ID: "orders-" + track, Addr: l.Addr().String(),
			Labels: map[string]string{"track": track}})
		if err != nil {
			t.Fatal(err)
		}
	}
	cc, err := grpc.NewClient("lb:///orders", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(resolver.NewBuilder(reg, resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})))),
		grpc.WithChainUnaryInterceptor(tracing.UnaryClientInterceptor(), retrying(1)),
		grpc.WithChainStreamInterceptor(tracing.StreamClientInterceptor()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			t.Error(err)
		}
	})
	canary := filters.Label("track", "canary")
	for _, c := range []struct {
		name, kind string
		ctx        context.Context
		filter     any
	}{
		{"bound to the service", "BidiStream", filters.NewContext(t.Context(), canary, "orders"), "track=canary"},
		{"bound to all", "Unary", filters.NewContext(t.Context(), canary), "track=canary"},
		{"bound to another", "ServerStream", filters.NewContext(t.Context(), canary, "stock"), nil},
	} {
		tracer.Reset()
		if err := call(c.ctx, cc, c.kind, grpc.WaitForReady(true)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for _, s := range tracer.FinishedSpans() {
			if s.Tag(TagAttempt) == nil && s.Tag(TagFilter) != c.filter {
				t.Errorf("%s: filter %v, want %v", c.name, s.Tag(TagFilter), c.filter)
			}
			want := []any{"orders-canary"}
			if c.filter == nil {
				want = append(want, "orders-stable")
			}
			if id := s.Tag(TagInstance); !slices.Contains(want, id) {
				t.Errorf("%s: %v names the instance %v, want one of %v", c.name, s.OperationName, id, want)
			}
			if addr, _ := s.Tag(TagPeer).(string); addr == "" {
				t.Errorf("%s: %v names no address", c.name, s.OperationName)
			}
		}
	}
}

// The call whose failure blacklisted an instance says so, and so does the one that brought it back.
func TestBlacklistDecisions(t *testing.T) {
	leak.Check(t)
	tracing, tracer := newTracing(t, Config{})
	reg := memory.New()
	var sick atomic.Bool
	sick.Store(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	register(srv, func(context.Context) error {
		if sick.Load() {
			return status.Error(codes.Unavailable, "sick")
		}
		return nil
	})
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if _, err := reg.Register(t.Context(), "orders", registry.Instance{ID: "orders-1", Addr: l.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	cc, err := grpc.NewClient("lb:///orders", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(resolver.NewBuilder(reg, resolver.WithServiceConfig(balancer.ServiceConfig(
			balancer.Config{Blacklist: balancer.Blacklist{Failures: 1, MaxEjectedPercent: 100}})))),
		grpc.WithChainUnaryInterceptor(tracing.UnaryClientInterceptor()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for i, want := range [][]string{
		{"ejected by=balancer endpoint=orders-1 message=rpc error: code = Unavailable desc = sick", "error error.kind=UNAVAILABLE message=sick"},
		{"kept by=balancer endpoint=orders-1", "returned by=balancer endpoint=orders-1"}, // nobody else is left
	} {
		tracer.Reset()
		_ = call(t.Context(), cc, "Unary", grpc.WaitForReady(true))
		sick.Store(false)
		if got := logs(tracer.FinishedSpans()[0]); !slices.Equal(got, want) {
			t.Errorf("call %d: logs\n%q, want\n%q", i+1, got, want)
		}
	}
}
