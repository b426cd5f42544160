package ratelimit

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The methods of the test's service, one of each kind.
const (
	unary  = "/t.T/Unary"
	server = "/t.T/Server"
	client = "/t.T/Client"
	bidi   = "/t.T/Bidi"
)

var kinds = []string{unary, server, client, bidi}

// rig is a client and a server with one connection in memory.
type rig struct {
	cc *grpc.ClientConn
	// handle serves a unary call; nil echoes. It is set before the first call.
	handle func(ctx context.Context, in string) (string, error)
}

type rigOptions struct {
	client, server *Limiter
	dial           []grpc.DialOption
}

// newRig starts both; the returned function stops both and waits.
func newRig(t testing.TB, o rigOptions) (r *rig, stop func()) {
	t.Helper()
	r = new(rig)
	so := []grpc.ServerOption{grpc.WaitForHandlers(true)}
	if o.server != nil {
		so = append(so, grpc.UnaryInterceptor(o.server.UnaryServerInterceptor()), grpc.StreamInterceptor(o.server.StreamServerInterceptor()))
	}
	s := grpc.NewServer(so...)
	s.RegisterService(r.desc(), nil)
	healthpb.RegisterHealthServer(s, health.NewServer())
	lis := bufconn.Listen(1 << 20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	do := append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })}, o.dial...)
	if o.client != nil {
		do = append(do, grpc.WithUnaryInterceptor(o.client.UnaryClientInterceptor()), grpc.WithStreamInterceptor(o.client.StreamClientInterceptor()))
	}
	var err error
	if r.cc, err = grpc.NewClient("passthrough:///rig", do...); err != nil {
		t.Fatal(err)
	}
	return r, func() {
		_ = r.cc.Close()
		s.Stop()
		<-done
	}
}

func (r *rig) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "t.T",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error,
			in grpc.UnaryServerInterceptor) (any, error) {
			req := new(wrapperspb.StringValue)
			if err := decode(req); err != nil {
				return nil, err
			}
			handler := func(ctx context.Context, req any) (any, error) {
				text := req.(*wrapperspb.StringValue).GetValue()
				if r.handle == nil {
					return wrapperspb.String(text), nil
				}
				out, err := r.handle(ctx, text)
				if err != nil {
					return nil, err
				}
				return wrapperspb.String(out), nil
			}
			if in == nil {
				return handler(ctx, req)
			}
			return in(ctx, req, &grpc.UnaryServerInfo{FullMethod: unary}, handler)
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Server", Handler: echo, ServerStreams: true},
			{StreamName: "Client", Handler: echo, ClientStreams: true},
			{StreamName: "Bidi", Handler: echo, ClientStreams: true, ServerStreams: true},
		},
	}
}

// echo answers each message; a client stream's only answer is the last message.
func echo(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	last := wrapperspb.String("")
	for {
		m := new(wrapperspb.StringValue)
		switch err := ss.RecvMsg(m); {
		case err == io.EOF && method == client:
			return ss.SendMsg(last)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		last = m
		if method != client {
			if err := ss.SendMsg(m); err != nil {
				return err
			}
		}
	}
}

// call makes one call with messages, of which unary calls and server streams send one, and reads all answers.
func (r *rig) call(ctx context.Context, method string, messages int, opts ...grpc.CallOption) error {
	if method == unary {
		return r.cc.Invoke(ctx, unary, wrapperspb.String("x"), new(wrapperspb.StringValue), opts...)
	}
	if method == server {
		messages = 1
	}
	desc := &grpc.StreamDesc{ServerStreams: method != client, ClientStreams: method != server}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cs, err := r.cc.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return err
	}
	for range messages {
		if err := cs.SendMsg(wrapperspb.String("x")); err != nil && err != io.EOF {
			return err
		}
	}
	if err := cs.CloseSend(); err != nil {
		return err
	}
	for {
		if err := cs.RecvMsg(new(wrapperspb.StringValue)); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if method == client {
			return nil
		}
	}
}

func mustNew(t testing.TB, c Config) *Limiter {
	t.Helper()
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func text(s string) *wrapperspb.StringValue { return wrapperspb.String(s) }

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
