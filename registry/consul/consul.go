// Package consul announces instances in HashiCorp Consul and watches them there.
//
// With no configuration it speaks to the Consul agent on this machine:
//
//	reg, err := consul.New(consul.Config{})
//	...
//	defer reg.Close()
//	r, err := reg.Register(ctx, "orders", registry.Instance{ID: "orders-7f9c", Addr: "10.0.0.7:9001"})
//	conn, err := grpc.NewClient("lb:///orders", grpc.WithResolvers(resolver.NewBuilder(reg)), ...)
//
// The life of a record. Register writes it, passing, with a health check ([Check]: by default a TTL of 15 s). One
// goroutine for each registration then says every 5 s that the instance is well, and reads the record back. An agent
// that has lost it or does not know its check, because it restarted empty or somebody deleted it, gets it again at
// once; one that cannot be reached is asked again every 1 to 2 s for as long as it takes. Close removes it. A
// process that dies stops beating: its record turns critical within the TTL, and Consul deletes it a minute later.
// All of this goes to the agent and, since nothing changes, costs the servers no write.
//
// The life of a watch. One blocking query at a time is open at the agent, which answers when something changes or
// after WaitTime. Only instances whose checks all pass are served, so putting one into maintenance with Consul's own
// tools takes it out. Records that others wrote work too: Meta and tags become labels, Weights.Passing the weight;
// what becomes what is in docs/adr/0004-consul-records.md. A record that cannot be an instance is left out, and
// logged when it appears.
//
// What is an error and what is not. A watch ends with an error when Consul cannot be reached, does not answer in
// time (also when it is frozen and holds the connection open), has no leader, or denies the token; it never takes
// an outage for an empty service. The resolver then serves its last set and starts the watch again. A registration
// fails only for what Consul can never store. A denied token is not that: while Consul's servers are away, its agents
// deny tokens that they have not seen, so a denial is logged as an error and tried again.
//
// What Consul says can still be wrong in one way: thawed after it was frozen for longer than the TTL, it reports
// that nobody is passing until the next beats arrive. The resolver's Hold is there for that.
//
// Do not point it at Consul's servers but at the agent on the same machine: records belong to the agent that they
// were registered with, and checks run there. And do not use it where Consul's mesh does the balancing.
package consul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

const (
	// requestTime bounds every request but a blocking query. A Consul that needs longer is frozen.
	requestTime = 5 * time.Second
	// closeTime bounds what Close does for a registration when its context allows longer.
	closeTime = 5 * time.Second
	// maxIdle is how many connections are kept for the next query or beat.
	maxIdle = 64
)

// ErrClosed is wrapped by what a [Registry] returns after, and because of, its Close.
var ErrClosed = errors.New("consul: the registry is closed")

// Registry announces and watches instances in one Consul. [New] makes one; its zero value is not usable. It is safe
// for concurrent use, and whoever made it closes it.
type Registry struct {
	cfg       Config // with defaults; its Token has moved to secrets
	client    *api.Client
	where     string // for errors and logs
	own       func() // releases the transport, if it is ours
	secrets   *secrets
	clock     clock.Real
	random    func() float64
	faults    faultLog
	anonymous bool      // no token is sent
	hint      sync.Once // that a token may be missing

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // watches and registrations' goroutines

	mu     sync.Mutex // guards what follows
	closed bool
	live   map[string]*registration // by service ID: who keeps the record
}

var _ registry.Registry = (*Registry)(nil)

// New returns a Registry. It does not speak to Consul, so it works while Consul is down. An error says which field
// of cfg is wrong, or which file or certificate cannot be read.
func New(cfg Config) (*Registry, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &Registry{cfg: cfg, secrets: &secrets{file: cfg.TokenFile}, clock: clock.New(), random: rand.Float64,
		live: make(map[string]*registration), own: func() {}, where: "the caller's client"}
	r.secrets.use(cfg.Token)
	r.cfg.Token = ""
	if cfg.TokenFile != "" {
		token, err := readToken(cfg.TokenFile)
		if err != nil {
			return nil, err
		}
		r.secrets.use(token)
	}
	if r.client = cfg.Client; r.client != nil {
		r.secrets.hide(r.client.Headers().Get("X-Consul-Token"))
	} else if err := r.dial(cfg.apiConfig()); err != nil {
		return nil, r.secrets.clean(err)
	}
	r.faults.logger = cfg.Logger
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// dial makes the client.
func (r *Registry) dial(a *api.Config) error {
	if strings.Contains(a.Address, "@") {
		return fmt.Errorf("consul: %s = (not shown), want no user or password in it", api.HTTPAddrEnvName)
	}
	r.where = a.Address // as it was given; a unix:// path needs no more
	// Every watch has a connection of its own, and wants to find it again. And with HTTP/2 a connection whose other
	// end has vanished would be used for a quarter of an hour, since a request that times out does not close it.
	a.Transport.MaxIdleConnsPerHost = maxIdle
	a.Transport.ForceAttemptHTTP2 = false
	client, err := api.NewHttpClient(a.Transport, a.TLSConfig)
	if err != nil {
		return fmt.Errorf("consul: TLS: %w", err)
	}
	// Consul redirects no request of ours. Whoever does would get the token, which net/http takes along.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	a.HttpClient = client
	if r.client, err = api.NewClient(a); err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	// NewClient has completed a: what the environment says is secret, too.
	r.secrets.hide(a.Token)
	if a.HttpAuth != nil {
		r.secrets.hide(a.HttpAuth.Password)
	}
	r.anonymous = r.secrets.token() == "" && a.Token == ""
	if !strings.HasPrefix(r.where, "unix://") {
		r.where = a.Scheme + "://" + a.Address + a.PathPrefix
	}
	r.own = client.CloseIdleConnections
	return nil
}

// Close ends every watch, deregisters what is still registered (all at once, within 5 s), and returns when no
// goroutine of the registry is left. Its error says what could not be deregistered. A second Close does nothing.
func (r *Registry) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	var live []*registration
	for _, g := range r.live {
		live = append(live, g)
	}
	r.mu.Unlock()
	r.cancel() // watches; registrations have their own

	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	errs := make([]error, len(live))
	var wg sync.WaitGroup
	for i, g := range live {
		wg.Go(func() { errs[i] = g.Close(ctx) })
	}
	wg.Wait()
	r.work.Wait()
	r.own()
	return errors.Join(errs...)
}

// enter counts a piece of work that Close waits for.
func (r *Registry) enter() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.work.Add(1)
	return nil
}

// now is the time of the keepers and paces.
func (r *Registry) now() time.Duration { return time.Duration(r.clock.Now()) }

// String names the Consul that the registry speaks to.
func (r *Registry) String() string { return "consul(" + r.where + ")" }

// GoString is String.
func (r *Registry) GoString() string { return r.String() }

// Format implements [fmt.Formatter]: every verb prints String.
func (r *Registry) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(r.String())) }

// LogValue implements [slog.LogValuer].
func (r *Registry) LogValue() slog.Value { return slog.StringValue(r.String()) }
