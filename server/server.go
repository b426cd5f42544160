// Package server runs a grpc.Server for as long as it should be called, and tells the registry exactly that.
//
// [Serve] takes the place of the server's own Serve method:
//
//	err := server.Serve(ctx, s, lis, server.Config{Registrar: reg, Service: "orders"})
//
// The life of a server under it: grpc begins to accept connections; the gRPC health service says SERVING; only then
// is the instance announced, since a record that comes first sends clients to a closed door. It runs until ctx ends
// or the process gets SIGINT or SIGTERM, and then goes down in an order in which no call is lost (ADR-0006):
//
//  1. health says NOT_SERVING, and the record is marked Draining: no new calls, please;
//  2. DrainDelay (5 s) passes, so that everybody who watches has seen it, while calls are still served as ever;
//  3. the record is removed;
//  4. GracefulStop waits up to StopTimeout (30 s) for the calls that are in flight;
//  5. Stop cuts what is left.
//
// A second signal goes to step 5 at once. A registry that hangs delays steps 1 and 3 by 3 s each and no more; one
// that is down when the server starts does not keep it from serving, the announcement follows when it can. What can
// never be announced, such as a label key with a space in it, is an error of Serve: better loud at the start.
//
// With only Registrar and Service set, the instance gets an ID of its own for each start, the address that the
// listener has (on a wildcard, one of this machine's), and the gRPC services that are registered on the server.
// Serve adds the health service if the server has none. It costs nothing per call: it adds no interceptor and does
// not wrap connections. It starts a handful of goroutines and waits for them before it returns.
//
// Do not use it for a server that is not to be found through a registry and is stopped by other means; s.Serve is
// enough there. With a nil Registrar it still does everything else, which suits a server behind a Kubernetes
// Service or a proxy. Operators find the same from their side in docs/server.md.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/evenkeel/evenkeel/registry"
)

// Defaults of [Config].
const (
	defaultDrainDelay  = 5 * time.Second
	defaultStopTimeout = 30 * time.Second
)

// ErrNotGraceful is wrapped by [Serve]'s error when it did not wait for the calls in flight to end: because
// StopTimeout ran out, or because a second signal came.
var ErrNotGraceful = errors.New("server: stopped without waiting for the calls in flight")

// Config says how [Serve] announces and stops. Its zero value serves without announcing, with the default times.
// Serve copies it; it may be used for several servers, but an Instance with an ID or Addr, and a Health, belong to
// one.
type Config struct {
	// Registrar is where the instance is announced. Nil means nowhere: everything else is as ever, DrainDelay
	// included, for the sake of whoever watches the health service.
	Registrar registry.Registrar
	// Service is the name under which clients find it, as in lb:///orders. Required with a Registrar.
	Service string
	// Instance is the record to announce: Version, Zone, Weight and Labels are the app's. What is empty is filled:
	// ID with one that is new for every start, Addr (and AltAddrs, if the listener serves both IP families) with
	// the listener's address, or one of this machine's if it listens on a wildcard, Services with those on the
	// grpc.Server except health, reflection and channelz. Set Addr where clients reach the server by another
	// address (port mapping, several networks) and where the listener has none to derive it from (a Unix socket).
	Instance registry.Instance
	// Announced is called once, when the registry has the record or, if it is away just now, has undertaken to put it
	// there as soon as it can (registry.Registrar). It may keep the Announcement, to change
	// the record later. It is called on a goroutine of its own, which Serve waits for: it must return. It is never
	// called without a Registrar, or if shutdown comes first.
	Announced func(*Announcement)

	// Health is the health service of the grpc.Server, for apps that set it themselves; if the grpc.Server has
	// none, Serve registers it. The instance is announced once the status of the whole server ("") is SERVING,
	// which it is from the start unless the app says otherwise; services without a status are set to SERVING. Nil
	// means a new one, and is an error if the grpc.Server has a health service already.
	Health *health.Server

	// DrainDelay is how long the server goes on serving between the draining mark and its removal from the
	// registry, so that watchers see it. 0 means 5 s; negative means no delay.
	DrainDelay time.Duration
	// StopTimeout is how long GracefulStop may wait for calls in flight before Stop cuts them. 0 means 30 s.
	// Negative is an error: there is no unbounded wait.
	StopTimeout time.Duration
	// NoSignals leaves SIGINT and SIGTERM to the app, which then ends ctx.
	NoSignals bool
	// Logger gets a line for each step. Nil means slog.Default.
	Logger *slog.Logger
}

// Serve serves lis with s until ctx ends, the process gets SIGINT or SIGTERM (unless cfg.NoSignals), or serving
// ends by itself, and then stops s, in the order that the package documentation gives. The server must not be
// serving yet, and must not be given to Serve twice: a grpc.Server cannot be restarted.
//
// A second signal stops at once; that ctx ends as well counts for nothing then, so ctx may come from
// signal.NotifyContext.
//
// It returns nil after an orderly shutdown, also when the app itself stopped s; an error that wraps
// [ErrNotGraceful] if calls were not waited for; [grpc.ErrServerStopped] or the listener's error if serving ended by
// itself; an error that wraps [registry.ErrInvalid] if the instance can never be announced; or says which field of
// cfg is wrong. lis is closed in every case. s is stopped in every case but a wrong cfg, which is found before
// anything starts. All goroutines that it started have ended, unless a handler, cfg.Registrar or cfg.Announced
// ignores its end for more than a second.
func Serve(ctx context.Context, s *grpc.Server, lis net.Listener, cfg Config) error {
	var sigs chan os.Signal
	if !cfg.NoSignals {
		sigs = make(chan os.Signal, 2) // the first and the second; further ones mean nothing
		signal.Notify(sigs, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(sigs)
	}
	return serve(ctx, s, lis, cfg, sigs)
}

// serve is Serve with the signals as an argument.
func serve(ctx context.Context, s *grpc.Server, lis net.Listener, cfg Config, sigs <-chan os.Signal) error {
	if lis == nil {
		return errors.New("server: listener = nil, want one")
	}
	defer func() { _ = lis.Close() }() // grpc has closed it, but for a wrong cfg
	if s == nil {
		return errors.New("server: grpc.Server = nil, want one")
	}
	services := slices.Sorted(maps.Keys(s.GetServiceInfo()))
	hasHealth := slices.Contains(services, healthpb.Health_ServiceDesc.ServiceName)
	services = slices.DeleteFunc(services, infrastructure)
	cfg, err := cfg.complete(lis.Addr(), services, hasHealth)
	if err != nil {
		return err
	}
	ownHealth := cfg.Health == nil
	if ownHealth {
		cfg.Health = health.NewServer()
		cfg.Health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	}
	if !hasHealth {
		healthpb.RegisterHealthServer(s, cfg.Health)
	}
	return newRun(s, lis, cfg, services, ownHealth).serve(ctx, sigs)
}

// complete returns cfg with everything filled in that has a default, but for Health, or says what is wrong with it.
func (cfg Config) complete(listen net.Addr, services []string, hasHealth bool) (Config, error) {
	if cfg.StopTimeout < 0 {
		return cfg, fmt.Errorf("server: Config.StopTimeout = %v, want more than 0, or 0 for %v", cfg.StopTimeout, defaultStopTimeout)
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = defaultStopTimeout
	}
	if cfg.DrainDelay == 0 {
		cfg.DrainDelay = defaultDrainDelay
	}
	if cfg.Health == nil && hasHealth {
		return cfg, errors.New("server: Config.Health = nil, want the *health.Server that is registered on the grpc.Server " +
			"already: shutdown has to set it to NOT_SERVING")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Registrar == nil {
		return cfg, nil
	}
	if cfg.Service == "" || !utf8.ValidString(cfg.Service) {
		return cfg, fmt.Errorf("server: Config.Service = %q, want the name under which clients find this server", cfg.Service)
	}
	in, err := cfg.instance(listen, services)
	if err != nil {
		return cfg, err
	}
	cfg.Instance = in
	return cfg, nil
}

// instance fills in and validates the record to announce.
func (cfg Config) instance(listen net.Addr, services []string) (registry.Instance, error) {
	in := cfg.Instance.Clone()
	if in.ID == "" {
		in.ID = cfg.Service + "-" + strings.ToLower(rand.Text())
	}
	if len(in.Services) == 0 {
		in.Services = services
	}
	if in.Addr == "" {
		nics, err := machine()
		if err != nil {
			cfg.Logger.Warn("server: cannot list this machine's addresses", "err", err)
		}
		addrs, err := advertised(listen, nics)
		if err != nil {
			return in, err
		}
		in.Addr = addrs[0]
		if onlyHere(listen, in.Addr) {
			cfg.Logger.Warn("server: no address of this machine can be reached from others; set Config.Instance.Addr", "addr", in.Addr)
		}
		if len(in.AltAddrs) == 0 && len(addrs) > 1 {
			in.AltAddrs = addrs[1:]
		}
	}
	if err := in.Validate(); err != nil {
		return in, fmt.Errorf("server: Config.Instance: %w", err)
	}
	if err := checkReachable("Addr", in.Addr); err != nil {
		return in, err
	}
	for i, addr := range in.AltAddrs {
		if err := checkReachable(altField(i), addr); err != nil {
			return in, err
		}
	}
	return in, nil
}
