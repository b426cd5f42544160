package ratelimit

import (
	"context"
	"math"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// TestScope: which policy holds, and who shares a bucket.
func TestScope(t *testing.T) {
	call := func(l *Limiter, method string) bool {
		_, err := l.UnaryServerInterceptor()(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { return nil, nil })
		return err == nil
	}
	one := Policy{Rate: 1e-6, Burst: 1}
	const health = "/grpc.health.v1.Health/Check"
	cases := []struct {
		name  string
		c     Config
		calls []string
		want  string // one letter a call: y or n
	}{
		{"nothing", Config{}, []string{"/a.A/X", "/a.A/X"}, "yy"},
		{"one for all", Config{Policy: one}, []string{"/a.A/X", "/a.A/Y", "/b.B/X"}, "ynn"},
		{"per method", Config{Policy: Policy{Rate: 1e-6, Burst: 1, PerMethod: true}}, []string{"/a.A/X", "/a.A/Y", "/a.A/X"}, "yyn"},
		{"service", Config{Methods: map[string]Policy{"/a.A/*": one}}, []string{"/a.A/X", "/a.A/Y", "/b.B/X", "/b.B/X"}, "ynyy"},
		{"the most exact", Config{Policy: one, Methods: map[string]Policy{"/a.A/*": one, "/a.A/X": one}},
			[]string{"/a.A/X", "/a.A/Y", "/b.B/X", "/a.A/X", "/a.A/Y", "/b.B/X"}, "yyynnn"},
		{"star", Config{Methods: map[string]Policy{"*": one}}, []string{"/a.A/X", "/b.B/X"}, "yn"},
		{"exempted by name", Config{Policy: one, Methods: map[string]Policy{"/a.A/X": {}}}, []string{"/a.A/X", "/a.A/X", "/a.A/Y", "/a.A/Y"}, "yyyn"},
		{"health passes", Config{Policy: one}, []string{health, health, "/a.A/X", health}, "yyyy"},
		{"health by name", Config{Methods: map[string]Policy{"/grpc.health.v1.Health/*": one}}, []string{health, health}, "yn"},
	}
	for _, c := range cases {
		l := mustNew(t, c.c)
		got := ""
		for _, m := range c.calls {
			got += map[bool]string{true: "y", false: "n"}[call(l, m)]
		}
		if got != c.want {
			t.Errorf("%s: %v = %s, want %s", c.name, c.calls, got, c.want)
		}
	}
}

func TestHealthPassesOverGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Rate: 1e-6, Burst: 1}
		r, stop := newRig(t, rigOptions{client: mustNew(t, Config{Policy: p}), server: mustNew(t, Config{Policy: p})})
		defer stop()
		for range 5 {
			if _, err := healthpb.NewHealthClient(r.cc).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
				t.Errorf("health check: %v", err)
			}
		}
	})
}

// TestKeys: who is a caller of its own.
func TestKeys(t *testing.T) {
	from := func(addr net.Addr) context.Context {
		return peer.NewContext(context.Background(), &peer.Peer{Addr: addr})
	}
	tcp := func(text string) context.Context { return from(net.TCPAddrFromAddrPort(mustAddrPort(text))) }
	with := func(kv ...string) context.Context {
		return metadata.NewIncomingContext(context.Background(), metadata.Pairs(kv...))
	}
	type user struct{}
	long := strings.Repeat("x", 1000)
	cases := []struct {
		key    string
		calls  []context.Context
		want   string
		caller string // of the last refusal
	}{
		{"peer", []context.Context{tcp("10.0.0.1:1"), tcp("10.0.0.1:2"), tcp("10.0.0.2:1"), tcp("[::ffff:10.0.0.1]:9")}, "ynyn", "10.0.0.1"},
		{"peer", []context.Context{tcp("[2001:db8::1]:1"), tcp("[2001:db8::2]:1"), tcp("[2001:db8::1]:2")}, "yyn", "2001:db8::1"},
		{"peer", []context.Context{from(&net.UnixAddr{Name: "/s"}), from(&net.UnixAddr{Name: "/s"}), context.Background()}, "yny", "/s"},
		{"peer", []context.Context{context.Background(), context.Background(), from(nil), from((*net.TCPAddr)(nil))}, "ynny", ""},
		{"metadata:Tenant", []context.Context{with("tenant", "a"), with("tenant", "b", "tenant", "a"), with("Tenant", "a"), with()}, "yyny", "a"},
		{"metadata:tenant", []context.Context{with(), with("other", "a"), context.Background()}, "ynn", ""},
		{"metadata:tenant", []context.Context{with("tenant", long), with("tenant", long+"y"), with("tenant", long)}, "yyn", ""},
		{"func", []context.Context{context.WithValue(context.Background(), user{}, "u"), context.WithValue(context.Background(), user{}, "v"),
			context.WithValue(context.Background(), user{}, "u")}, "yyn", "u"},
	}
	for _, c := range cases {
		last := Event{}
		l := mustNew(t, Config{Policy: Policy{Rate: 1e-6, Burst: 1, Key: c.key}, OnLimit: func(e Event) { last = e },
			KeyFunc: func(ctx context.Context, _ string) string { return ctx.Value(user{}).(string) }})
		got := ""
		for _, ctx := range c.calls {
			_, err := l.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: unary},
				func(context.Context, any) (any, error) { return nil, nil })
			got += map[bool]string{true: "y", false: "n"}[err == nil]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.key, got, c.want)
		}
		if len(last.Caller) > maxKey || c.caller != "" && last.Caller != c.caller {
			t.Errorf("%s: caller = %q, want %q", c.key, last.Caller, c.caller)
		}
	}
}

// TestClientKeys: on a client, peer is the target and metadata the outgoing one.
// TestKeysAreBounded: what callers send does not fill the memory, whether they name themselves or, where a server has an
// UnknownServiceHandler, methods.
func TestKeysAreBounded(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("tenant", long))
	l := mustNew(t, Config{Policy: Policy{Rate: 1, PerMethod: true, Key: "metadata:tenant", MaxKeys: 3}})
	for i := range 100 {
		info := &grpc.StreamServerInfo{FullMethod: "/a.A/" + strconv.Itoa(i) + long}
		if err := l.StreamServerInterceptor()(nil, bare{ctx: ctx}, info, func(any, grpc.ServerStream) error { return nil }); i < 3 && err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	bs := l.settings.Load().scopes["*"].many
	if n, shares := bs.size(); n != 3 || shares != 97 {
		t.Errorf("%d buckets, the shared one was given out %d times, want 3 and 97", n, shares)
	}
	for k := range bs.byID {
		if len(k.method) > maxKey || len(k.caller) > maxKey {
			t.Errorf("a key has %d and %d bytes, want at most %d", len(k.method), len(k.caller), maxKey)
		}
	}
}

type bare struct {
	grpc.ServerStream
	ctx context.Context
}

func (b bare) Context() context.Context { return b.ctx }
func (b bare) SetTrailer(_ metadata.MD) {}

func TestClientKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			key  string
			want string
		}{{"peer", "nn"}, {"metadata:tenant", "yn"}, {"func", "yn"}} {
			l := mustNew(t, Config{Policy: Policy{Rate: 1e-6, Burst: 1, Key: c.key}, KeyFunc: func(ctx context.Context, _ string) string {
				md, _ := metadata.FromOutgoingContext(ctx)
				return strings.Join(md.Get("tenant"), "")
			}})
			r, stop := newRig(t, rigOptions{client: l})
			got := ""
			for i, tenant := range []string{"a", "b", "a"} {
				err := r.call(metadata.AppendToOutgoingContext(t.Context(), "tenant", tenant), kinds[i+1], 1)
				if i > 0 {
					got += map[bool]string{true: "y", false: "n"}[err == nil]
				} else if err != nil {
					t.Errorf("%s: %v", c.key, err)
				}
			}
			if got != c.want {
				t.Errorf("%s: %s, want %s", c.key, got, c.want)
			}
			stop()
		}
	})
}

func TestCallOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Rate: 10, Burst: 10, Cost: 2}})
		r, stop := newRig(t, rigOptions{client: l})
		defer stop()
		for i, c := range []struct {
			opts []grpc.CallOption
			want float64 // tokens left
			ok   bool
			wait time.Duration
		}{
			{nil, 8, true, 0},
			{[]grpc.CallOption{WithCost(5)}, 3, true, 0},
			{[]grpc.CallOption{WithCost(0)}, 3, true, 0},
			{[]grpc.CallOption{WithCost(-3)}, 3, true, 0},
			{[]grpc.CallOption{WithCost(4)}, 3, false, 0},
			{[]grpc.CallOption{WithCost(4), WithWait(true)}, 0, true, 100 * ms},
			{[]grpc.CallOption{WithCost(11), WithWait(true)}, 0, false, 0},
			{[]grpc.CallOption{WithWait(true), WithWait(false)}, 0, false, 0},
		} {
			began := time.Now()
			err := r.call(t.Context(), kinds[i%4], 1, c.opts...)
			tokens := l.State().Scopes[0].Tokens
			if (err == nil) != c.ok || time.Since(began) != c.wait || math.Abs(tokens-c.want) > 1e-6 {
				t.Errorf("call %d: %v after %v, %v tokens left; want %v, %v, %v", i, err, time.Since(began), tokens, c.ok, c.wait, c.want)
			}
		}
	})
}
