package breaker

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// kind is one of the four kinds of calls.
type kind int

const (
	unaryKind kind = iota
	serverKind
	clientKind
	bidiKind
)

var kinds = []kind{unaryKind, serverKind, clientKind, bidiKind}

func (k kind) String() string { return [...]string{"Unary", "Server", "Client", "Bidi"}[k] }

func (k kind) method() string { return "/evenkeel.Kinds/" + k.String() }

func (k kind) desc() *grpc.StreamDesc {
	return &grpc.StreamDesc{StreamName: k.String(), ServerStreams: k == serverKind || k == bidiKind,
		ClientStreams: k == clientKind || k == bidiKind}
}

// handler serves all kinds: for a unary call there is one message to receive, and one to send.
type handler func(ctx context.Context, k kind, s grpc.ServerStream) error

// stack is a real server and a real client over a connection in memory, to be used inside a synctest bubble.
type stack struct {
	t      *testing.T
	conn   *grpc.ClientConn
	server *grpc.Server
	lis    *bufconn.Listener
	served chan error
}

func newStack(t *testing.T, h handler, client, server *Breakers) *stack {
	t.Helper()
	var so []grpc.ServerOption
	if server != nil {
		so = append(so, grpc.UnaryInterceptor(server.UnaryServerInterceptor()), grpc.StreamInterceptor(server.StreamServerInterceptor()))
	}
	s := &stack{t: t, lis: bufconn.Listen(1 << 16), server: grpc.NewServer(so...), served: make(chan error, 1)}
	d := &grpc.ServiceDesc{ServiceName: "evenkeel.Kinds", HandlerType: (*any)(nil)}
	for _, k := range kinds {
		if k == unaryKind {
			d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: k.String(), Handler: serveUnary(h)})
			continue
		}
		sd := *k.desc()
		sd.Handler = func(_ any, ss grpc.ServerStream) error { return h(ss.Context(), k, ss) }
		d.Streams = append(d.Streams, sd)
	}
	s.server.RegisterService(d, struct{}{})
	go func() { s.served <- s.server.Serve(s.lis) }()
	co := []grpc.DialOption{
		grpc.WithTransportCredentials(insecureCreds), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.lis.DialContext(ctx) }),
	}
	if client != nil {
		co = append(co, grpc.WithUnaryInterceptor(client.UnaryClientInterceptor()), grpc.WithStreamInterceptor(client.StreamClientInterceptor()))
	}
	var err error
	if s.conn, err = grpc.NewClient("passthrough:///kinds", co...); err != nil {
		t.Fatal(err)
	}
	return s
}

// close ends everything and waits.
func (s *stack) close() {
	s.conn.Close()
	s.server.Stop()
	if err := <-s.served; err != nil {
		s.t.Errorf("Serve: %v", err)
	}
}

// oneMessage makes a unary call look like a stream to a handler.
type oneMessage struct {
	grpc.ServerStream
	in, out *wrapperspb.StringValue
}

func (o *oneMessage) RecvMsg(m any) error {
	m.(*wrapperspb.StringValue).Value = o.in.Value
	return nil
}

func (o *oneMessage) SendMsg(m any) error {
	o.out = m.(*wrapperspb.StringValue)
	return nil
}

func serveUnary(h handler) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, i grpc.UnaryServerInterceptor) (any, error) {
		o := &oneMessage{in: new(wrapperspb.StringValue), out: new(wrapperspb.StringValue)}
		if err := decode(o.in); err != nil {
			return nil, err
		}
		serve := func(ctx context.Context, _ any) (any, error) {
			if err := h(ctx, unaryKind, o); err != nil {
				return nil, err
			}
			return o.out, nil
		}
		if i == nil {
			return serve(ctx, o.in)
		}
		return i(ctx, o.in, &grpc.UnaryServerInfo{FullMethod: unaryKind.method()}, serve)
	}
}

// call makes one call of kind k to its end: one message there, and all that come back.
func (s *stack) call(ctx context.Context, k kind, opts ...grpc.CallOption) error {
	if k == unaryKind {
		return s.conn.Invoke(ctx, k.method(), wrapperspb.String("hello"), new(wrapperspb.StringValue), opts...)
	}
	cs, err := s.open(ctx, k, "hello", opts...)
	if err != nil {
		return err
	}
	for {
		err := cs.RecvMsg(new(wrapperspb.StringValue))
		if err == io.EOF || err == nil && !k.desc().ServerStreams {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// open begins a stream and sends the one thing it has to say.
func (s *stack) open(ctx context.Context, k kind, say string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	cs, err := s.conn.NewStream(ctx, k.desc(), k.method(), opts...)
	if err != nil {
		return nil, err
	}
	if err := cs.SendMsg(wrapperspb.String(say)); err != nil && err != io.EOF {
		return nil, err
	}
	return cs, cs.CloseSend()
}

// echo answers one message and ends with err.
func echo(err func() error) handler {
	return func(_ context.Context, _ kind, s grpc.ServerStream) error {
		var m wrapperspb.StringValue
		if e := s.RecvMsg(&m); e != nil {
			return e
		}
		if e := err(); e != nil {
			return e
		}
		return s.SendMsg(&m)
	}
}

// only is the state of a kind's breaker.
func only(t *testing.T, b *Breakers) BreakerState {
	t.Helper()
	s := b.State()
	if len(s.Breakers) != 1 {
		t.Fatalf("%d breakers, want 1", len(s.Breakers))
	}
	return s.Breakers[0]
}

// TestKinds: every feature with every kind of call, on both sides. This is the table of docs/breaker.md.
func TestKinds(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		for _, k := range kinds {
			t.Run(side+"/"+k.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testKind(t, side, k) })
			})
		}
	}
}

func testKind(t *testing.T, side string, k kind) {
	asked := false
	r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 2, MaxConcurrent: 2,
		Fallback: func(_ context.Context, _ string, _, _ any, err error) error { asked = true; return err }}})
	var answer error
	var client, server *Breakers
	if side == "client" {
		client = r.Breakers
	} else {
		server = r.Breakers
	}
	hold := make(chan struct{})
	s := newStack(t, func(ctx context.Context, k kind, ss grpc.ServerStream) error {
		if hold != nil {
			select {
			case <-hold:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return echo(func() error { return answer })(ctx, k, ss)
	}, client, server)
	defer s.close()

	// The bulkhead, and the way back from it.
	results := make(chan error, 2)
	for range 2 {
		go func() { results <- s.call(t.Context(), k) }()
	}
	synctest.Wait()
	if err := s.call(t.Context(), k); status.Code(err) != codes.Unavailable || only(t, r.Breakers).InFlight != 2 {
		t.Errorf("a third call: %v with %v, want UNAVAILABLE and 2 in flight", err, only(t, r.Breakers))
	}
	close(hold)
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("a call that was let through: %v", err)
		}
	}
	synctest.Wait()
	hold = nil
	if b := only(t, r.Breakers); b.Successes != 2 || b.Failures != 0 || b.InFlight != 0 || b.Rejected != 1 {
		t.Errorf("%v, want 2 successes, 1 turned away, none in flight", b)
	}

	// It opens, turns away, probes, and comes back.
	answer = errDown
	for range 2 {
		if err := s.call(t.Context(), k); status.Code(err) != codes.Unavailable {
			t.Errorf("%v, want the server's error", err)
		}
	}
	synctest.Wait()
	if b := only(t, r.Breakers); b.Phase != Open {
		t.Fatalf("%v, want open", b)
	}
	answer = nil
	if err := s.call(t.Context(), k); status.Code(err) != codes.Unavailable {
		t.Errorf("%v, want to be turned away", err)
	}
	if b := only(t, r.Breakers); b.Rejected != 2 {
		t.Errorf("%v, want 2 turned away", b)
	}
	sleep(6 * sec)
	if err := s.call(t.Context(), k); err != nil {
		t.Errorf("the probe: %v", err)
	}
	synctest.Wait()
	if b := only(t, r.Breakers); b.Phase != Recovering || b.InFlight != 0 {
		t.Errorf("%v, want recovering with none in flight", b)
	}
	if told := r.events(); told != "closed>open open>half-open half-open>recovering" {
		t.Errorf("told %q", told)
	}
	// Fallbacks are for unary calls; on a server, for methods with a linked descriptor, which this one has not.
	if want := side == "client" && k == unaryKind; asked != want {
		t.Errorf("the fallback was asked: %v, want %v", asked, want)
	}
}
