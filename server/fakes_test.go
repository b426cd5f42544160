package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/test/bufconn"

	"github.com/evenkeel/evenkeel/registry"
)

// journal is what happened, in order and with the time since it was made.
type journal struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

func newJournal() *journal { return &journal{start: time.Now()} }

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf("%v ", time.Since(j.start))+fmt.Sprintf(format, args...))
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

func (j *journal) want(t *testing.T, want ...string) {
	t.Helper()
	if got := j.all(); !slices.Equal(got, want) {
		t.Errorf("journal:\n got %q\nwant %q", got, want)
	}
}

// fakeRegistry notes every call. The functions, where set, decide what a call does.
type fakeRegistry struct {
	*journal
	register func(ctx context.Context, in registry.Instance) error
	update   func(ctx context.Context, in registry.Instance) error
	close    func(ctx context.Context) error

	mu            sync.Mutex
	opened, ended int
}

func (f *fakeRegistry) Register(ctx context.Context, service string, in registry.Instance) (registry.Registration, error) {
	f.add("register %s %s", service, in.ID)
	if f.register != nil {
		if err := f.register(ctx, in); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	f.opened++
	f.mu.Unlock()
	return fakeRegistration{f}, nil
}

// leaked is how many registrations were handed out and never closed.
func (f *fakeRegistry) leaked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened - f.ended
}

type fakeRegistration struct{ f *fakeRegistry }

func (r fakeRegistration) Update(ctx context.Context, in registry.Instance) error {
	r.f.add("update draining=%v track=%s weight=%d", in.Draining, in.Labels["track"], in.Weight)
	if r.f.update != nil {
		return r.f.update(ctx, in)
	}
	return nil
}

func (r fakeRegistration) Close(ctx context.Context) error {
	r.f.add("close")
	r.f.mu.Lock()
	r.f.ended++
	r.f.mu.Unlock()
	if r.f.close != nil {
		return r.f.close(ctx)
	}
	return nil
}

// hang blocks until ctx ends, as a registry does that does not answer.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// echo is a test service: a unary call takes as long as the handler says, a stream as long as its client keeps it.
type echo struct {
	testgrpc.UnimplementedTestServiceServer
	unary func(ctx context.Context) error
}

func (e *echo) EmptyCall(ctx context.Context, _ *testgrpc.Empty) (*testgrpc.Empty, error) {
	if e.unary != nil {
		if err := e.unary(ctx); err != nil {
			return nil, err
		}
	}
	return &testgrpc.Empty{}, nil
}

func (e *echo) FullDuplexCall(stream grpc.BidiStreamingServer[testgrpc.StreamingOutputCallRequest, testgrpc.StreamingOutputCallResponse]) error {
	if err := stream.Send(&testgrpc.StreamingOutputCallResponse{}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

const instanceID = "orders-1"

// under is one server under test, on an in-memory listener.
type under struct {
	*journal
	reg    *fakeRegistry
	cfg    Config
	s      *grpc.Server
	echo   *echo
	lis    *bufconn.Listener
	sigs   chan os.Signal
	cancel context.CancelFunc
	result chan error
}

func newUnder() *under {
	j := newJournal()
	u := &under{
		journal: j, reg: &fakeRegistry{journal: j}, s: grpc.NewServer(), echo: &echo{},
		lis: bufconn.Listen(1 << 16), sigs: make(chan os.Signal, 4), result: make(chan error, 1),
	}
	testgrpc.RegisterTestServiceServer(u.s, u.echo)
	u.cfg = Config{
		Registrar: u.reg,
		Service:   "orders",
		Instance:  registry.Instance{ID: instanceID, Addr: "10.0.0.1:80", Labels: map[string]string{"track": "stable"}},
		Logger:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	return u
}

func (u *under) start() {
	var ctx context.Context
	ctx, u.cancel = context.WithCancel(context.Background())
	go func() {
		err := serve(ctx, u.s, u.lis, u.cfg, u.sigs)
		u.add("returned")
		u.result <- err
	}()
}

func (u *under) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///under",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return u.lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// statusNow is what a check of the whole server says at this moment.
func statusNow(h *health.Server) string {
	r, err := h.Check(context.Background(), &healthpb.HealthCheckRequest{})
	if err != nil {
		return err.Error()
	}
	return r.GetStatus().String()
}
