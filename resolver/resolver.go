// Package resolver makes gRPC follow the instances of a service in a registry: grpc.NewClient("lb:///orders") calls
// whatever a [registry.Watcher] reports under "orders", through every change and every outage of the registry.
//
//	conn, err := grpc.NewClient("lb:///orders",
//		grpc.WithResolvers(resolver.NewBuilder(reg, resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})))),
//		grpc.WithTransportCredentials(creds))
//
// With no options the builder serves the scheme "lb" and sends no service config, so that whatever the app has
// configured stays in force. gRPC's silent default is then pick_first, which sends every call to one instance; the
// builder warns in the log, once a service, when its instances do not reach the policy evenkeel.
//
// # What is served
//
// An update from the registry goes to each connection as one endpoint for each instance, labels and weight attached
// ([registry.FromEndpoint]); a connection that is slow to take it holds up no other, and skips states that are
// past. An instance keeps its place in the list, newcomers stand at the end. Malformed records are left out, and
// the log says so. The registry is believed, with two exceptions, since a registry in trouble must not become an
// outage of the service:
//
//   - It is out of reach. The last set stays in service, however old, and the watch is started again after a wait
//     drawn below 100 ms, then 200 ms, up to 10 s; when gRPC asks for news (a connection was lost), within a second.
//     The app is told only when there is nothing to serve: a call fails with UNAVAILABLE and the reason, and a
//     wait-for-ready call waits. So it is when a registry says nothing for 5 s and no instance is known.
//   - It reports a collapse: more than half of the instances are gone that were served in the last 30 s ([WithHold]),
//     and were not draining. A registry whose health checks ran out, or that restarted empty, looks just like that.
//     Those that are missing stay until they are seen again, or the registry has said so for the whole hold. If they
//     are really dead they have no connection, and a balancer gives them no call. ADR-0005 has the reasoning.
//
// An empty set that a healthy registry reports, hold and all, is passed on; calls then fail until instances come.
//
// # Lifetime
//
// All connections of one builder to one service share one watch, so share the builder too. The watch begins with the
// first connection and ends with the last, Close of which returns when every goroutine has ended. gRPC does the same
// to a connection that was idle for 30 minutes, so the builder remembers the last set: the next connection is given
// it if the registry has said nothing newer within 250 ms. (Not at once: after a night's rollout it would be a list
// of dead addresses.) What is remembered is one list for each service that had instances.
//
// # Names and TLS
//
// The authority of lb:///orders is "orders": that is the name which a server's certificate is checked against,
// unless [WithServerName], the credentials or grpc.WithAuthority say another.
//
// If HTTPS_PROXY is set, gRPC sends the connections through that proxy and drops all that is attached to an
// endpoint, so labels and weights are lost. List the instances in NO_PROXY or use grpc.WithNoProxy.
//
// Do not use this package where a DNS name with a load balancer behind it will do, nor for a fixed list of
// addresses: gRPC's own resolvers are simpler.
package resolver

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/registry"
)

const (
	defaultScheme = "lb"
	defaultHold   = 30 * time.Second
)

// Option changes how a builder works. A wrong one does not panic: the calls of a connection fail with an error that
// names the option.
type Option func(*options)

type options struct {
	scheme        string
	serviceConfig *string
	serverName    func(registry.Instance) string
	hold          time.Duration
	logger        *slog.Logger
	err           error // the first thing wrong with the options
}

func (o *options) fail(format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf(format, args...)
	}
}

// RFC 3986, section 3.1; a scheme means the same in upper and lower case, and gRPC compares in lower case.
var validScheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*$`)

// WithScheme makes the builder serve targets such as "name:///orders" instead of "lb:///orders".
func WithScheme(name string) Option {
	return func(o *options) {
		if s := strings.ToLower(name); validScheme.MatchString(s) {
			o.scheme = s
			return
		}
		// Scheme stays what it was, so that gRPC asks this builder, which then says why.
		o.fail("WithScheme = %q, want a letter, then letters, digits, '+', '-' or '.'", name)
	}
}

// WithServiceConfig sends json, a gRPC service config, along with the instances. gRPC lets it win over
// grpc.WithDefaultServiceConfig, as a whole; grpc.WithDisableServiceConfig makes gRPC ignore it. One that gRPC cannot
// parse, for example because no imported package provides the policy it names, fails every call, wait-for-ready
// ones too, with the reason. Without this option none is sent.
func WithServiceConfig(json string) Option {
	return func(o *options) { o.serviceConfig = &json }
}

// WithServerName sets the name that an instance's certificate is checked against, by instance; an empty answer
// leaves the default, which is the service's name. grpc.WithAuthority beats it. The name must not come from a part of
// the record that an attacker could write: it decides who is trusted. name is called again for every update, from
// several goroutines at once, and must not modify the instance. nil means no name.
func WithServerName(name func(registry.Instance) string) Option {
	return func(o *options) { o.serverName = name }
}

// WithHold sets how long a collapse is distrusted, and over how long departures add up to one; see the package
// documentation. 0 means the default, 30 s. A negative d switches it off: every update is believed at once.
func WithHold(d time.Duration) Option {
	return func(o *options) {
		o.hold = d
		if d == 0 {
			o.hold = defaultHold
		}
	}
}

// WithLogger sends the log there. nil, the default, means slog.Default() as it is when there is something to log.
// Each change of state is one line: the registry goes or comes back, a collapse begins or ends, records are
// malformed, instances are not balanced by evenkeel.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) { o.logger = l }
}

// builder implements gresolver.Builder.
type builder struct {
	watcher registry.Watcher
	opts    options
	clock   clock.Clock

	// mu guards services and the fields of each service that say so. Nothing runs under it that could wait, call
	// back or log.
	mu       sync.Mutex
	services map[string]*service
}

// NewBuilder returns a resolver builder for grpc.WithResolvers that follows w. It is safe for concurrent use, may be
// used by any number of connections, and need not be closed: what runs, runs for a connection and ends with it.
//
// NewBuilder does not fail. If w is nil or an option is wrong, the connection's calls fail with UNAVAILABLE and a
// text that names it.
func NewBuilder(w registry.Watcher, opts ...Option) gresolver.Builder {
	b := &builder{
		watcher:  w,
		opts:     options{scheme: defaultScheme, hold: defaultHold},
		clock:    clock.New(),
		services: make(map[string]*service),
	}
	if w == nil {
		b.opts.fail("NewBuilder: registry.Watcher = nil, want a registry")
	}
	for i, opt := range opts {
		if opt == nil {
			b.opts.fail("NewBuilder: option %d = nil, want an Option", i)
			continue
		}
		opt(&b.opts)
	}
	return b
}

// Scheme implements gresolver.Builder.
func (b *builder) Scheme() string { return b.opts.scheme }

// Build implements gresolver.Builder. It does not wait for the registry.
func (b *builder) Build(target gresolver.Target, cc gresolver.ClientConn, opts gresolver.BuildOptions) (gresolver.Resolver, error) {
	if b.opts.err != nil {
		return nil, misuse("%v", b.opts.err)
	}
	name, err := serviceName(target)
	if err != nil {
		return nil, misuse("target = %q: %v, want %s:///SERVICE", target.URL.String(), err, b.opts.scheme)
	}
	var config *serviceconfig.ParseResult
	if b.opts.serviceConfig != nil && !opts.DisableServiceConfig {
		config = cc.ParseServiceConfig(*b.opts.serviceConfig)
		if config.Err != nil {
			return nil, misuse("WithServiceConfig = %.200q, want a gRPC service config whose policy is imported: %v",
				*b.opts.serviceConfig, config.Err)
		}
	}
	c := &connection{
		cc:             cc,
		config:         config,
		configDisabled: b.opts.serviceConfig != nil && opts.DisableServiceConfig,
		poke:           make(chan struct{}, 1),
		stop:           make(chan struct{}),
		done:           make(chan struct{}),
	}
	b.join(name, c)
	go c.run()
	return c, nil
}

// serviceName is the service that a target names. What would be silently ignored is refused, so that lb://orders,
// which in a URL is the host "orders" and no path, does not become a puzzle.
func serviceName(target gresolver.Target) (string, error) {
	u, name := target.URL, target.Endpoint()
	switch {
	case u.Host != "" || u.User != nil:
		return "", fmt.Errorf("host = %q, got two slashes where three belong", u.Host)
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("query = %q, fragment = %q, neither has a meaning", u.RawQuery, u.Fragment)
	case name == "":
		return "", fmt.Errorf("service is empty")
	case strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/"):
		return "", fmt.Errorf("service = %q begins or ends with a slash", name)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return "", fmt.Errorf("service = %q has bytes that are not text", name)
	}
	return name, nil
}

// logger is where to log now.
func (b *builder) logger() *slog.Logger {
	if b.opts.logger != nil {
		return b.opts.logger
	}
	return slog.Default()
}

// join adds c to the service called name, and starts the watch if c is the first.
func (b *builder) join(name string, c *connection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.services[name]
	if s == nil {
		s = &service{
			b:     b,
			name:  name,
			core:  core{hold: b.opts.hold, rand: rand.Float64},
			conns: make(map[*connection]struct{}),
			nudge: make(chan struct{}, 1),
		}
		b.services[name] = s
	}
	c.s = s
	s.conns[c] = struct{}{}
	if len(s.conns) == 1 {
		s.startLocked()
		return
	}
	c.wake()
}

// leave takes c out of its service. If it was the last it stops the watch, waits for it, and forgets a service of
// which no instance is known.
func (b *builder) leave(c *connection) {
	s := c.s
	b.mu.Lock()
	delete(s.conns, c)
	if len(s.conns) > 0 {
		b.mu.Unlock()
		return
	}
	s.cancel()
	done := s.done
	b.mu.Unlock()

	<-done

	b.mu.Lock()
	defer b.mu.Unlock()
	// If nobody came in between, the core is nobody's, and may be read.
	if len(s.conns) == 0 && s.done == done && len(s.core.served) == 0 && b.services[s.name] == s {
		delete(b.services, s.name)
	}
}

// misuseError is what Build returns. It is a status error, because no waiting mends a mistake in the program: gRPC
// then fails wait-for-ready calls too, instead of leaving them to wait for nothing.
type misuseError struct{ text string }

func misuse(format string, args ...any) error {
	return misuseError{"resolver: " + fmt.Sprintf(format, args...)}
}

func (e misuseError) Error() string              { return e.text }
func (e misuseError) GRPCStatus() *status.Status { return status.New(codes.Unavailable, e.text) }
