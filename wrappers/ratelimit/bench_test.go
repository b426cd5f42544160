package ratelimit

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
)

func noHandler(context.Context, any) (any, error) { return nil, nil }

func fromPeer() context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}})
}

// plenty is a rate at which nothing is refused.
const plenty = 1e9

// successes are the paths on which a call passes.
var successes = []struct {
	name string
	p    Policy
}{
	{"rate", Policy{Rate: plenty}},
	{"perMethod", Policy{Rate: plenty, PerMethod: true}},
	{"peer", Policy{Rate: plenty, Key: "peer"}},
	{"adaptive", Policy{Adaptive: Adaptive{Enabled: true}}},
	{"rate+adaptive", Policy{Rate: plenty, Adaptive: Adaptive{Enabled: true}}},
}

func TestNoAllocations(t *testing.T) {
	ctx := fromPeer()
	deadline, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	info := &grpc.UnaryServerInfo{FullMethod: unary}
	check := func(name string, f func()) {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations a call, want 0", name, n)
		}
	}
	for _, c := range successes {
		for _, ctx := range []context.Context{ctx, deadline} {
			l := mustNew(t, Config{Policy: c.p})
			in := l.UnaryServerInterceptor()
			check("server, "+c.name, func() { _, _ = in(ctx, nil, info, noHandler) })
			out := l.UnaryClientInterceptor()
			check("client, "+c.name, func() { _ = out(ctx, unary, nil, nil, nil, noCall) })
			stream := l.StreamClientInterceptor()
			desc := new(grpc.StreamDesc)
			check("client stream, "+c.name, func() { _, _ = stream(ctx, desc, nil, server, noStream) })
		}
	}
}

func noStream(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, nil
}

// BenchmarkAllow puts a call through the interceptors beside what x/time/rate costs by itself; the goal is 1.5
// times.
func BenchmarkAllow(b *testing.B) {
	b.Run("x/time/rate", func(b *testing.B) {
		l := rate.NewLimiter(plenty, 1e8)
		b.ReportAllocs()
		for b.Loop() {
			if !l.AllowN(time.Now(), 1) {
				b.Fatal("refused")
			}
		}
	})
	ctx := fromPeer()
	info := &grpc.UnaryServerInfo{FullMethod: unary}
	b.Run("client/rate", func(b *testing.B) {
		in := UnaryClientInterceptor(Policy{Rate: plenty})
		b.ReportAllocs()
		for b.Loop() {
			if in(ctx, unary, nil, nil, nil, noCall) != nil {
				b.Fatal("refused")
			}
		}
	})
	for _, c := range successes {
		b.Run("server/"+c.name, func(b *testing.B) {
			in := UnaryServerInterceptor(c.p)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := in(ctx, nil, info, noHandler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefuse is what an overloaded server pays for a call that it does not serve, gRPC's own work aside.
func BenchmarkRefuse(b *testing.B) {
	in := UnaryServerInterceptor(Policy{Rate: 1e-9, Burst: 1})
	ctx := fromPeer()
	info := &grpc.UnaryServerInfo{FullMethod: unary}
	_, _ = in(ctx, nil, info, noHandler)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in(ctx, nil, info, noHandler); err == nil {
			b.Fatal("passed")
		}
	}
}

// BenchmarkStream is what the start of a stream costs in a client's interceptor; those that can send more than one
// message are watched to their end.
func BenchmarkStream(b *testing.B) {
	for _, c := range []struct {
		name string
		desc grpc.StreamDesc
		p    Policy
	}{
		{"server", grpc.StreamDesc{ServerStreams: true}, Policy{Rate: plenty}},
		{"bidi", grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Policy{Rate: plenty}},
		{"bidi/messageCost", grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Policy{Rate: plenty, MessageCost: 1}},
		{"bidi/no limit", grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Policy{}},
	} {
		in := StreamClientInterceptor(c.p)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var s scripted
				if _, err := in(b.Context(), &c.desc, nil, bidi, s.start); err != nil {
					b.Fatal(err)
				}
				s.end(nil)
			}
		})
	}
}
