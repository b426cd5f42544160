// Command hops makes one traced call over two hops and prints the ID of its trace.
//
//	shop  --Hello-->  orders (two instances)  --Tell-->  stock
//
// The first instance of orders that is asked answers UNAVAILABLE, so the shop's retry asks the other. Everything runs
// in this process, each service with a tracer of its own, which speaks OpenTracing to the wrappers and OTLP to Jaeger.
// The program ../main.go starts Jaeger, runs this one, and shows what came of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/opentracing/opentracing-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

func main() {
	otlp := flag.String("otlp", "127.0.0.1:4317", "where spans are sent: `host:port` of OTLP over gRPC, without TLS")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	id, err := run(ctx, *otlp)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hops:", err)
		os.Exit(1)
	}
	fmt.Println(id)
}

// run makes the call and returns the trace's ID once every span has been delivered.
func run(ctx context.Context, otlp string) (id string, err error) {
	w := &world{otlp: otlp, registry: memory.New()}
	defer func() { err = errors.Join(err, w.close()) }()

	stock, err := w.service(ctx, "stock")
	if err != nil {
		return "", err
	}
	if err := w.serve(ctx, stock, "stock-1", teller{}); err != nil {
		return "", err
	}
	orders, err := w.service(ctx, "orders")
	if err != nil {
		return "", err
	}
	toStock, err := w.dial(orders, "stock")
	if err != nil {
		return "", err
	}
	handler := &taker{stock: toStock}
	for _, instance := range []string{"orders-1", "orders-2"} {
		if err := w.serve(ctx, orders, instance, handler); err != nil {
			return "", err
		}
	}
	shop, err := w.service(ctx, "shop")
	if err != nil {
		return "", err
	}
	toOrders, err := w.dial(shop, "orders")
	if err != nil {
		return "", err
	}
	if err := connected(ctx, toOrders, "orders-1", "orders-2"); err != nil {
		return "", err
	}
	return buy(ctx, shop, toOrders)
}

// connected waits until calls of conn can go to each of the instances: with one alone, the retry would have no other to
// go to. Health checks are neither traced nor retried.
func connected(ctx context.Context, conn *grpc.ClientConn, instances ...string) error {
	for _, id := range instances {
		_, err := healthpb.NewHealthClient(conn).Check(filters.NewContext(ctx, filters.ID(id)), &healthpb.HealthCheckRequest{},
			grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	return nil
}

// buy is what the shop does: one call, under a span of its own.
func buy(ctx context.Context, shop *service, orders *grpc.ClientConn) (id string, err error) {
	span := shop.tracer.StartSpan("buy")
	defer span.Finish()
	if sc, ok := span.Context().(interface{ TraceID() traceID }); ok {
		id = sc.TraceID().String()
	}
	ctx = opentracing.ContextWithSpan(ctx, span)
	ctx = filters.NewContext(ctx, filters.Label("track", "stable"), "orders")
	_, err = greeter.Hello(ctx, orders, "ada", grpc.WaitForReady(true))
	return id, err
}

// taker is orders: it refuses the first call, whichever instance gets it, and asks the stock on the others.
type taker struct {
	stock *grpc.ClientConn
	calls atomic.Int64
}

// Hello implements [greeter.Server].
func (t *taker) Hello(ctx context.Context, name string) (string, error) {
	if t.calls.Add(1) == 1 {
		return "", status.Error(codes.Unavailable, "warming up")
	}
	recv, err := greeter.Tell(ctx, t.stock, name, grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	for {
		switch _, err := recv(); {
		case errors.Is(err, io.EOF):
			return "done", nil
		case err != nil:
			return "", err
		}
	}
}

// Tell implements [greeter.Server].
func (*taker) Tell(context.Context, string, func(string) error) error {
	return status.Error(codes.Unimplemented, "orders tells nothing")
}

// teller is stock.
type teller struct{}

// Hello implements [greeter.Server].
func (teller) Hello(context.Context, string) (string, error) {
	return "", status.Error(codes.Unimplemented, "stock only tells")
}

// Tell implements [greeter.Server].
func (teller) Tell(_ context.Context, name string, send func(string) error) error {
	return errors.Join(send("one for "+name), send("one left"))
}

// world is what has to be closed in the end, in the reverse order of its making.
type world struct {
	otlp     string
	registry *memory.Registry
	closers  []func() error
}

func (w *world) close() (err error) {
	for i := len(w.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, w.closers[i]())
	}
	return err
}

// service is a service as its tracer sees it.
type service struct {
	name    string
	tracer  opentracing.Tracer
	tracing *trace.Tracing
}

func (w *world) service(ctx context.Context, name string) (*service, error) {
	tracer, stop, err := newTracer(ctx, name, w.otlp)
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, stop)
	tracing, err := trace.New(trace.Config{Tracer: tracer})
	return &service{name, tracer, tracing}, err
}

// serve runs an instance of a service and registers it.
func (w *world) serve(ctx context.Context, s *service, id string, handler greeter.Server) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.ChainUnaryInterceptor(s.tracing.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(s.tracing.StreamServerInterceptor()))
	greeter.Register(srv, handler)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	w.closers = append(w.closers, func() error {
		srv.GracefulStop()
		return <-served
	})
	_, err = w.registry.Register(ctx, s.name, registry.Instance{ID: id, Addr: l.Addr().String(),
		Labels: map[string]string{"track": "stable"}})
	return err
}

// dial connects a service to another, with the wrappers in their order: trace first, then retry.
func (w *world) dial(from *service, to string) (*grpc.ClientConn, error) {
	retrier, err := retry.New(retry.Config{Policy: retry.Policy{Idempotent: true}})
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("lb:///"+to, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(resolver.NewBuilder(w.registry,
			resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})))),
		grpc.WithChainUnaryInterceptor(from.tracing.UnaryClientInterceptor(), retrier.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(from.tracing.StreamClientInterceptor(), retrier.StreamClientInterceptor()))
	if err == nil {
		w.closers = append(w.closers, conn.Close)
	}
	return conn, err
}
