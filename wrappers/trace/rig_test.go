package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "test.Kinds"

// kinds are the methods of the test service, one of each kind of call.
var kinds = []string{"Unary", "ClientStream", "ServerStream", "BidiStream"}

func full(kind string) string { return "/" + service + "/" + kind }

// work is what a handler does, on top of receiving everything and sending one message (unary and client-stream) or
// two (the others).
type work func(ctx context.Context) error

var streams = map[string]*grpc.StreamDesc{
	"ClientStream": {StreamName: "ClientStream", ClientStreams: true},
	"ServerStream": {StreamName: "ServerStream", ServerStreams: true},
	"BidiStream":   {StreamName: "BidiStream", ClientStreams: true, ServerStreams: true},
}

// register serves the test service on s.
func register(s *grpc.Server, do work) {
	d := grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
	d.Methods = []grpc.MethodDesc{{MethodName: "Unary",
		Handler: func(srv any, ctx context.Context, decode func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			handler := func(ctx context.Context, req any) (any, error) {
				return wrapperspb.String("reply to " + req.(*wrapperspb.StringValue).Value), do(ctx)
			}
			if chain == nil {
				return handler(ctx, in)
			}
			return chain(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: full("Unary")}, handler)
		}}}
	for _, kind := range kinds[1:] {
		desc := *streams[kind]
		desc.Handler = func(_ any, stream grpc.ServerStream) error {
			for {
				if err := stream.RecvMsg(new(wrapperspb.StringValue)); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					return err
				}
				if !desc.ClientStreams {
					break
				}
			}
			for i := range 2 {
				if i == 0 || desc.ServerStreams {
					if err := stream.SendMsg(wrapperspb.String(fmt.Sprintf("message %d", i+1))); err != nil {
						return err
					}
				}
			}
			return do(stream.Context())
		}
		d.Streams = append(d.Streams, desc)
	}
	s.RegisterService(&d, nil)
}

// call makes a call of some kind to its end.
func call(ctx context.Context, cc *grpc.ClientConn, kind string, opts ...grpc.CallOption) error {
	if kind == "Unary" {
		return cc.Invoke(ctx, full(kind), wrapperspb.String("ada"), new(wrapperspb.StringValue), opts...)
	}
	stream, err := cc.NewStream(ctx, streams[kind], full(kind), opts...)
	if err != nil {
		return err
	}
	return drain(stream, kind)
}

// drain sends one message, or two if the client may stream, and receives to the end.
func drain(stream grpc.ClientStream, kind string) error {
	for i := range 2 {
		if i == 0 || streams[kind].ClientStreams {
			if err := stream.SendMsg(wrapperspb.String("ada")); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		err := stream.RecvMsg(new(wrapperspb.StringValue))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || !streams[kind].ServerStreams {
			return err
		}
	}
}

// rig is a client and a server with a Tracing each, over bufconn.
type rig struct {
	t              *testing.T
	tracer         *mocktracer.MockTracer
	client, server *Tracing
	cc             *grpc.ClientConn
	srv            *grpc.Server
	listener       *bufconn.Listener
	stop           func()
}

// setup says how a rig differs from the plain one.
type setup struct {
	config      Config // of both sides; the tracer is added
	do          work
	unaryBelow  []grpc.UnaryClientInterceptor  // after the trace
	streamBelow []grpc.StreamClientInterceptor // after the trace
	server      []grpc.ServerOption
}

func newRig(t *testing.T, s setup) *rig {
	t.Helper()
	r := &rig{t: t, tracer: mocktracer.New(), listener: bufconn.Listen(1 << 16)}
	if s.config.Tracer == nil {
		s.config.Tracer = r.tracer
	}
	var err error
	if r.client, err = New(s.config); err != nil {
		t.Fatal(err)
	}
	if r.server, err = New(s.config); err != nil {
		t.Fatal(err)
	}
	if s.do == nil {
		s.do = func(context.Context) error { return nil }
	}
	srv := grpc.NewServer(append(s.server, grpc.ChainUnaryInterceptor(r.server.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(r.server.StreamServerInterceptor()))...)
	r.srv = srv
	register(srv, s.do)
	served := make(chan error)
	go func() { served <- srv.Serve(r.listener) }()
	r.cc, err = grpc.NewClient("passthrough:///buf", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.listener.DialContext(ctx) }),
		grpc.WithChainUnaryInterceptor(append([]grpc.UnaryClientInterceptor{r.client.UnaryClientInterceptor()}, s.unaryBelow...)...),
		grpc.WithChainStreamInterceptor(append([]grpc.StreamClientInterceptor{r.client.StreamClientInterceptor()}, s.streamBelow...)...))
	if err != nil {
		t.Fatal(err)
	}
	r.stop = func() {
		if err := r.cc.Close(); err != nil {
			t.Error(err)
		}
		srv.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}
	return r
}

// closed checks that every span has ended, and how many there were.
func (r *rig) closed(client, attempts, server uint64) {
	r.t.Helper()
	c, s := r.client.State().Client, r.server.State().Server
	if want := (Counts{Started: client + attempts, Attempts: attempts}); c != want {
		r.t.Errorf("client's spans: %+v, want %+v", c, want)
	}
	if want := (Counts{Started: server}); s != want {
		r.t.Errorf("server's spans: %+v, want %+v", s, want)
	}
	if n := uint64(len(r.tracer.FinishedSpans())); n != client+attempts+server {
		r.t.Errorf("the tracer has %d finished spans, want %d:\n%s", n, client+attempts+server, tree(r.tracer))
	}
}

// tree is what the tracer recorded: a line for each span below its parent, with its kind, status and attempt.
func tree(tracer *mocktracer.MockTracer) string {
	spans := tracer.FinishedSpans()
	slices.SortFunc(spans, func(a, b *mocktracer.MockSpan) int { return a.SpanContext.SpanID - b.SpanContext.SpanID })
	known := make(map[int]bool)
	for _, s := range spans {
		known[s.SpanContext.SpanID] = true
	}
	var b strings.Builder
	var print func(parent int, root bool, indent string)
	print = func(parent int, root bool, indent string) {
		for _, s := range spans {
			if s.ParentID != parent && !(root && !known[s.ParentID]) {
				continue
			}
			fmt.Fprintf(&b, "%s%v %s %v", indent, s.Tag("span.kind"), s.OperationName, s.Tag(TagStatus))
			if n := s.Tag(TagAttempt); n != nil {
				fmt.Fprintf(&b, " #%v", n)
			}
			b.WriteString("\n")
			print(s.SpanContext.SpanID, false, indent+"  ")
		}
	}
	print(0, true, "")
	return b.String()
}

// only is the one span of the side and, if number is not 0, of the attempt.
func (r *rig) only(side Side, number int) *mocktracer.MockSpan {
	r.t.Helper()
	var found []*mocktracer.MockSpan
	for _, s := range r.tracer.FinishedSpans() {
		n, _ := s.Tag(TagAttempt).(int)
		if fmt.Sprint(s.Tag("span.kind")) == side.String() && n == number {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		r.t.Fatalf("%d spans of the %v, attempt %d, want 1:\n%s", len(found), side, number, tree(r.tracer))
	}
	return found[0]
}

// logs are the logs of a span, "event key=value key=value".
func logs(s *mocktracer.MockSpan) (lines []string) {
	for _, l := range s.Logs() {
		var parts []string
		for _, f := range l.Fields {
			if f.Key == "event" {
				parts = append(parts, f.ValueString)
			} else {
				parts = append(parts, f.Key+"="+f.ValueString)
			}
		}
		lines = append(lines, strings.Join(parts, " "))
	}
	return lines
}

func wantTree(t *testing.T, tracer *mocktracer.MockTracer, want string) {
	t.Helper()
	if got, want := tree(tracer), strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("spans:\n%swant:\n%s", got, want)
	}
}
