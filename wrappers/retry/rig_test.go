package retry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/registry"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the balancer tells of its ejections
	os.Exit(m.Run())
}

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

func (k kind) desc() *grpc.StreamDesc {
	return &grpc.StreamDesc{StreamName: k.String(), ServerStreams: k == serverKind || k == bidiKind,
		ClientStreams: k == clientKind || k == bidiKind}
}

// The service has each kind twice: in the service Declared the descriptor says that it is idempotent.
const (
	plainService    = "evenkeel.retrytest.Plain"
	declaredService = "evenkeel.retrytest.Declared"
)

func (k kind) plain() string    { return "/" + plainService + "/" + k.String() }
func (k kind) declared() string { return "/" + declaredService + "/" + k.String() }

func init() {
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String("evenkeel/retrytest.proto"), Package: proto.String("evenkeel.retrytest"),
		Dependency: []string{"google/protobuf/wrappers.proto"}, Syntax: proto.String("proto3"),
	}
	for service, level := range map[string]*descriptorpb.MethodOptions_IdempotencyLevel{
		"Plain": nil, "Declared": descriptorpb.MethodOptions_IDEMPOTENT.Enum(),
	} {
		s := &descriptorpb.ServiceDescriptorProto{Name: &service}
		for _, k := range kinds {
			m := &descriptorpb.MethodDescriptorProto{
				Name: proto.String(k.String()), InputType: proto.String(".google.protobuf.StringValue"),
				OutputType:      proto.String(".google.protobuf.StringValue"),
				ClientStreaming: &k.desc().ClientStreams, ServerStreaming: &k.desc().ServerStreams,
			}
			if level != nil {
				m.Options = &descriptorpb.MethodOptions{IdempotencyLevel: level}
			}
			s.Method = append(s.Method, m)
		}
		file.Service = append(file.Service, s)
	}
	fd, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err == nil {
		err = protoregistry.GlobalFiles.RegisterFile(fd)
	}
	if err != nil {
		panic(err)
	}
}

// handler serves all kinds on server number i: for a unary call there is one message to receive, and one to send.
type handler func(i int, k kind, s grpc.ServerStream) error

// fleet is some real servers and a real client, over connections in memory. Inside a synctest bubble time is exact.
type fleet struct {
	t       *testing.T
	conn    *grpc.ClientConn
	servers []*grpc.Server
	served  chan error
	calls   []atomic.Int64 // what each server got
	options []grpc.DialOption
}

// dial is how to reach the servers, with grpc's own retries disabled or not.
func (f *fleet) dial(disableRetry bool) []grpc.DialOption {
	if disableRetry {
		return append(slices.Clone(f.options), grpc.WithDisableRetry())
	}
	return slices.Clone(f.options)
}

const (
	ours       = "evenkeel"
	roundRobin = "round_robin"
	// noBlacklist is our policy, but nobody is taken out.
	noBlacklist = "evenkeel without blacklist"
)

var policies = []string{ours, roundRobin}

func serviceConfig(policy string) string {
	switch policy {
	case ours:
		return balancer.ServiceConfig(balancer.Config{})
	case noBlacklist:
		return balancer.ServiceConfig(balancer.Config{Blacklist: balancer.Blacklist{Disabled: true}})
	}
	return `{"loadBalancingConfig":[{"` + policy + `":{}}]}`
}

// newFleet starts n servers and a client with r's interceptors, if r is not nil.
func newFleet(t *testing.T, n int, policy string, r *Retrier, h handler, opts ...grpc.DialOption) *fleet {
	t.Helper()
	f := &fleet{t: t, served: make(chan error, n), calls: make([]atomic.Int64, n)}
	res := manual.NewBuilderWithScheme("fleet")
	state := gresolver.State{}
	listeners := make(map[string]*bufconn.Listener)
	for i := range n {
		addr := fmt.Sprintf("s%d:1", i)
		lis := bufconn.Listen(1 << 16)
		listeners[addr] = lis
		state.Endpoints = append(state.Endpoints, registry.SetInstance(
			gresolver.Endpoint{Addresses: []gresolver.Address{{Addr: addr}}},
			&registry.Instance{ID: fmt.Sprintf("i%d", i), Addr: addr}))
		s := grpc.NewServer(grpc.UnaryInterceptor(UnaryServerInterceptor()), grpc.StreamInterceptor(StreamServerInterceptor()))
		register(s, func(k kind, ss grpc.ServerStream) error {
			f.calls[i].Add(1)
			return h(i, k, ss)
		})
		f.servers = append(f.servers, s)
		go func() { f.served <- s.Serve(lis) }()
	}
	res.InitialState(state)
	f.options = []grpc.DialOption{
		grpc.WithResolvers(res), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := listeners[addr].DialContext(ctx)
			if err != nil {
				return nil, err
			}
			return named{conn, name(addr)}, nil
		}),
	}
	opts = append(append(f.dial(true), grpc.WithDefaultServiceConfig(serviceConfig(policy))), opts...)
	if r != nil {
		opts = append(opts, grpc.WithChainUnaryInterceptor(r.UnaryClientInterceptor()),
			grpc.WithChainStreamInterceptor(r.StreamClientInterceptor()))
	}
	var err error
	if f.conn, err = grpc.NewClient("fleet:///test", opts...); err != nil {
		t.Fatal(err)
	}
	return f
}

// named gives a connection in memory the address of its server.
type named struct {
	net.Conn
	addr name
}

func (n named) RemoteAddr() net.Addr { return n.addr }

type name string

func (name) Network() string  { return "fleet" }
func (n name) String() string { return string(n) }

// close ends everything and waits.
func (f *fleet) close() {
	f.conn.Close()
	for _, s := range f.servers {
		s.Stop()
	}
	for range f.servers {
		if err := <-f.served; err != nil {
			f.t.Errorf("Serve: %v", err)
		}
	}
}

// idle fails the test if our balancer still counts a call as under way.
func (f *fleet) idle() {
	f.t.Helper()
	seen := false
	defer func() {
		if !seen {
			f.t.Error("our balancer does not know the fleet")
		}
	}()
	for _, c := range balancer.Channels() {
		if c.Target != "fleet:///test" {
			continue
		}
		seen = true
		for _, e := range c.Endpoints {
			if e.InFlight != 0 {
				f.t.Errorf("%s: %d calls are in flight, want none", e.Instance.ID, e.InFlight)
			}
		}
	}
}

// total is how many calls arrived at all servers.
func (f *fleet) total() (n int64) {
	for i := range f.calls {
		n += f.calls[i].Load()
	}
	return n
}

// hello makes a unary call.
func (f *fleet) hello(ctx context.Context, method string, opts ...grpc.CallOption) (string, error) {
	out := new(wrapperspb.StringValue)
	err := f.conn.Invoke(ctx, method, wrapperspb.String("hello"), out, opts...)
	return out.GetValue(), err
}

// warm waits until every connection is there and the balancer knows.
func (f *fleet) warm() *fleet {
	f.t.Helper()
	// A method that nobody serves. Its call waits for the first connection, the pause for the others.
	if _, err := f.hello(context.Background(), "/"+plainService+"/Warm", grpc.WaitForReady(true)); status.Code(err) != codes.Unimplemented {
		f.t.Fatalf("warming up: %v", err)
	}
	_ = takes(context.Background(), time.Second)
	return f
}

// exchange makes a call of any kind: it sends one message and returns the first answer.
func (f *fleet) exchange(ctx context.Context, k kind, method string, opts ...grpc.CallOption) (string, error) {
	if k == unaryKind {
		return f.hello(ctx, method, opts...)
	}
	s, err := f.conn.NewStream(ctx, k.desc(), method, opts...)
	if err != nil {
		return "", err
	}
	if err := s.SendMsg(wrapperspb.String("hello")); err != nil && err != io.EOF {
		return "", err
	}
	if err := s.CloseSend(); err != nil {
		return "", err
	}
	out := new(wrapperspb.StringValue)
	if err := s.RecvMsg(out); err != nil {
		return "", err
	}
	if k != clientKind { // the end
		if err := s.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
			return out.GetValue(), err
		}
	}
	return out.GetValue(), nil
}

// receive reads the request that exchange sends.
func receive(s grpc.ServerStream) error { return s.RecvMsg(new(wrapperspb.StringValue)) }

// send answers.
func send(s grpc.ServerStream, text string) error { return s.SendMsg(wrapperspb.String(text)) }

// echo is a handler's work if all is well: the answer names the server.
func echo(i int, s grpc.ServerStream) error {
	if err := receive(s); err != nil {
		return err
	}
	return send(s, fmt.Sprintf("i%d", i))
}

// register makes h serve both services on s.
func register(s *grpc.Server, h func(kind, grpc.ServerStream) error) {
	for _, service := range []string{plainService, declaredService} {
		d := &grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
		for _, k := range kinds {
			if k == unaryKind {
				d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: k.String(), Handler: serveUnary(h, "/"+service+"/"+k.String())})
				continue
			}
			sd := *k.desc()
			sd.Handler = func(_ any, ss grpc.ServerStream) error { return h(k, ss) }
			d.Streams = append(d.Streams, sd)
		}
		s.RegisterService(d, struct{}{})
	}
}

// oneMessage makes a unary call look like a stream to a handler.
type oneMessage struct {
	grpc.ServerStream
	ctx     context.Context
	in, out *wrapperspb.StringValue
}

func (o *oneMessage) Context() context.Context { return o.ctx }

func (o *oneMessage) RecvMsg(m any) error {
	proto.Merge(m.(proto.Message), o.in)
	return nil
}

func (o *oneMessage) SendMsg(m any) error {
	o.out = m.(*wrapperspb.StringValue)
	return nil
}

func serveUnary(h func(kind, grpc.ServerStream) error, method string) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, i grpc.UnaryServerInterceptor) (any, error) {
		o := &oneMessage{in: new(wrapperspb.StringValue), out: new(wrapperspb.StringValue)}
		if err := decode(o.in); err != nil {
			return nil, err
		}
		serve := func(ctx context.Context, _ any) (any, error) {
			o.ctx = ctx
			if err := h(unaryKind, o); err != nil {
				return nil, err
			}
			return o.out, nil
		}
		return i(ctx, o.in, &grpc.UnaryServerInfo{FullMethod: method}, serve)
	}
}

// newTest returns a Retrier whose waits are half of what they may be: a random one is now and then as good as none, and
// a test that needs a long one would fail.
func newTest(t *testing.T, c Config) *Retrier {
	t.Helper()
	r, err := newRetrier(c, clock.New(), func() uint64 { return 1 << 63 })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// budget returns one.
func budget(t *testing.T, percent, perSecond float64) *Budget {
	t.Helper()
	b, err := NewBudget(percent, perSecond)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// takes lets d pass, or less if ctx ends.
func takes(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// log collects what happened, from several goroutines.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "; ")
}

var errDown = status.Error(codes.Unavailable, "down")
