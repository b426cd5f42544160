package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	_ "google.golang.org/grpc/health" // client-side health checking does nothing unless it is linked
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/beacon"
	"github.com/evenkeel/evenkeel/internal/clock"
)

func init() { gbalancer.Register(builder{}) }

// builder makes policies. Its zero value is what is registered; tests and the simulator fill in their own time and
// randomness.
type builder struct {
	clock clock.Clock
	rand  func() uint64
}

// Name implements [gbalancer.Builder].
func (builder) Name() string { return Name }

// ParseConfig implements [gbalancer.ConfigParser].
func (builder) ParseConfig(js json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	return parseConfig(js)
}

// Build implements [gbalancer.Builder].
func (b builder) Build(cc gbalancer.ClientConn, opts gbalancer.BuildOptions) gbalancer.Balancer {
	p := &policy{
		cc: cc, opts: opts, clock: b.clock, rand: b.rand,
		leaf:     gbalancer.Get(pickfirst.Name),
		service:  opts.Target.Endpoint(),
		children: make(map[string]*child),
		routes:   make(map[filters.Filter]*route),
		sick:     make(map[*Endpoint]struct{}),
	}
	if p.clock == nil {
		p.clock = clock.New()
	}
	if p.rand == nil {
		p.rand = clock.Rand
	}
	p.prober.p = p
	p.adopt(defaultSettings())
	live.add(p)
	return p
}

// policy is the plumbing of one channel: it owns one pick_first child per endpoint, keeps what is known about each,
// and publishes pickers.
//
// Locks, in the order in which they are taken: childMu, then a child's own mutex, then mu, then deliverMu. pick_first
// calls UpdateState under its mutex, so no child is ever called with mu held. Nothing of the application's, no
// logging and no call into grpc runs under mu.
type policy struct {
	cc      gbalancer.ClientConn
	opts    gbalancer.BuildOptions
	clock   clock.Clock
	rand    func() uint64
	leaf    gbalancer.Builder
	service string
	prober  prober

	childMu sync.Mutex // serialises calls into children

	mu          sync.Mutex // guards all of the following but active and watching
	settings    *settings
	active      atomic.Pointer[settings] // settings again, for those who do not hold mu
	children    map[string]*child        // by the endpoint's addresses
	known       []*Endpoint
	order       []*child // of the last update, as the resolver lists them
	spare       []*child // for the next one's
	generation  uint64   // counts updates
	subset      subset
	states      [connectivity.Shutdown + 1]int // how many children are in each state
	resolverErr error
	updating    bool // UpdateClientConnState is under way and will publish
	closed      bool

	byConfig *route
	routes   map[filters.Filter]*route
	dirty    []*Endpoint // whose state changed since the last publication
	window   window
	current  *picker
	seq      uint64
	counts   Counters

	numbers   uint64                 // how many endpoints and routes there were
	sick      map[*Endpoint]struct{} // ejected or probing
	tick      clock.Timer            // for the next event of a sick endpoint
	tickAt    int64
	reduced   int         // how many endpoints have a share below the full one
	warming   []*Endpoint // in their slow start
	warmer    clock.Timer // for their next share
	relay     clock.Timer // for the next look of the choosers
	watch     watch
	watching  atomic.Bool // watch looks at the endpoints
	spiller   clock.Timer // for the next adjustment of what leaves the zone
	spilledAt int64       // when the last was
	oddZone   string      // the local zone that strangeZone has told of
	publisher clock.Timer // for the end of the window
	idle      []*child    // to be told to connect again
	tasks     sync.WaitGroup
	events    []Event // to be delivered by a goroutine that holds no lock
	telling   bool    // it is running

	deliverMu sync.Mutex // orders UpdateState calls on cc
	delivered uint64
	dead      bool // Close was called: nothing is delivered any more
}

// child is the pick_first leaf of one endpoint, and the ClientConn that it sees.
type child struct {
	gbalancer.ClientConn
	p        *policy
	key      string
	leaf     gbalancer.Balancer
	endpoint gresolver.Endpoint

	// Guarded by p.mu.
	seen   uint64    // the generation of the last update that had it
	at     int       // where, while that is worked on
	e      *Endpoint // nil while its first update is worked on
	state  connectivity.State
	conn   *connection
	err    error // why it is in TRANSIENT_FAILURE
	dirty  bool
	closed bool
}

// UpdateState implements [gbalancer.ClientConn] for the leaf. It may be called from any goroutine, also from within
// a call into the leaf.
func (c *child) UpdateState(s gbalancer.State) {
	var conn *connection
	var err error
	switch s.ConnectivityState {
	case connectivity.Ready:
		// pick_first has one connection, and its picker answers it to every call.
		if res, perr := s.Picker.Pick(gbalancer.PickInfo{}); perr == nil {
			conn = &connection{sc: res.SubConn}
		}
	case connectivity.TransientFailure:
		_, err = s.Picker.Pick(gbalancer.PickInfo{})
	}
	p := c.p
	p.mu.Lock()
	if c.closed || p.closed {
		p.mu.Unlock()
		return
	}
	ready := p.states[connectivity.Ready]
	p.move(c, s.ConnectivityState)
	c.conn, c.err = conn, err
	if c.e.cools(s.ConnectivityState) {
		p.warm(c.e) // first, so that nobody finds it connected and with a full share
	}
	c.e.connect(conn)
	p.markDirty(c)
	if s.ConnectivityState == connectivity.Idle {
		p.wake(c)
	}
	// The first connection and the loss of the last one are what calls wait for.
	first := ready == 0 || p.states[connectivity.Ready] == 0
	if first && ready != p.states[connectivity.Ready] {
		p.unlockAndPublish(atOnce)
		return
	}
	p.unlockAndPublish(relaxed)
}

// move counts c under its new state; mu is held.
func (p *policy) move(c *child, to connectivity.State) {
	p.states[c.state]--
	p.states[to]++
	c.state = to
}

func (p *policy) markDirty(c *child) {
	if !c.dirty {
		c.dirty = true
		p.dirty = append(p.dirty, c.e)
	}
}

// wake has c connect again, from a goroutine of its own, because c is calling us; mu is held.
func (p *policy) wake(c *child) {
	p.idle = append(p.idle, c)
	if len(p.idle) == 1 {
		p.after(0, p.connectIdle)
	}
}

func (p *policy) connectIdle() {
	p.childMu.Lock()
	defer p.childMu.Unlock()
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		if !c.gone() {
			c.leaf.ExitIdle()
		}
	}
}

func (c *child) gone() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.closed || c.p.closed
}

// after calls f after d nanoseconds, on a goroutine that Close waits for; mu is held.
func (p *policy) after(d int64, f func()) clock.Timer {
	p.tasks.Add(1)
	return p.clock.AfterFunc(nanoseconds(d), func() {
		defer p.tasks.Done()
		f()
	})
}

// stop cancels a timer made by after.
func (p *policy) stop(t clock.Timer) {
	if t != nil && t.Stop() {
		p.tasks.Done()
	}
}

// UpdateClientConnState implements [gbalancer.Balancer]: it takes over what the resolver found and publishes it
// before it returns.
func (p *policy) UpdateClientConnState(s gbalancer.ClientConnState) error {
	err := p.update(s)
	if zone, others := p.strangeZone(s.ResolverState); zone != "" {
		slog.Warn("evenkeel: no instance is in the zone that the client prefers, so calls go anywhere", "service", p.service,
			"zone.local", zone, "zones", others)
	}
	return err
}

func (p *policy) update(s gbalancer.ClientConnState) error {
	beacon.Light(s.ResolverState.Attributes)
	next, ok := s.BalancerConfig.(*settings)
	if !ok && s.BalancerConfig != nil {
		return fmt.Errorf("evenkeel: balancer config is a %T, want evenkeel's own: %w", s.BalancerConfig, gbalancer.ErrBadResolverState)
	}
	p.childMu.Lock()
	defer p.childMu.Unlock()

	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.updating, p.resolverErr = true, nil
	if next != nil {
		p.adopt(next)
	}
	plan := p.reconcile(s.ResolverState)
	empty := len(p.known) == 0
	p.mu.Unlock()

	err := plan.connect()

	p.mu.Lock()
	p.updating = false
	p.publish()
	plan.close() // after the publication: calls have gone elsewhere by now
	if empty {
		return errors.Join(errNoEndpoints, gbalancer.ErrBadResolverState)
	}
	return err
}

var errNoEndpoints = errors.New("evenkeel: the resolver knows no instance")

// ResolverError implements [gbalancer.Balancer]. What is known stays served.
func (p *policy) ResolverError(err error) {
	p.mu.Lock()
	p.resolverErr = err
	if len(p.known) > 0 || p.closed {
		p.mu.Unlock()
		return
	}
	p.publish()
}

// UpdateSubConnState implements [gbalancer.Balancer]; the leaves listen to their connections themselves.
func (p *policy) UpdateSubConnState(gbalancer.SubConn, gbalancer.SubConnState) {
	slog.Error("evenkeel: UpdateSubConnState was called, which the policy never asks for")
}

// ExitIdle implements [gbalancer.Balancer]. The policy keeps every endpoint connected, so none stays idle.
func (p *policy) ExitIdle() {
	p.mu.Lock()
	for _, c := range p.order {
		if c.state == connectivity.Idle {
			p.wake(c)
		}
	}
	p.mu.Unlock()
}

// Close implements [gbalancer.Balancer]. When it returns, nothing of the policy runs any more.
func (p *policy) Close() {
	live.remove(p)
	p.mu.Lock()
	p.closed = true
	p.stop(p.tick)
	p.stop(p.publisher)
	p.stop(p.warmer)
	p.stop(p.relay)
	p.stop(p.watch.timer)
	p.stop(p.spiller)
	p.tick, p.publisher, p.warmer, p.relay, p.spiller, p.warming, p.watch = nil, nil, nil, nil, nil, nil, watch{}
	children := p.children
	p.children, p.known, p.order, p.spare = nil, nil, nil, nil
	p.mu.Unlock()

	p.deliverMu.Lock()
	p.dead = true
	p.deliverMu.Unlock()

	p.prober.close()
	p.childMu.Lock()
	for _, c := range children {
		if c.leaf != nil {
			c.leaf.Close()
		}
	}
	p.childMu.Unlock()
	p.tasks.Wait()
}

// urgency is how long a change may wait for its publication.
type urgency uint8

const (
	relaxed urgency = iota // until the window ends
	urgent                 // not at all, but where publishing is dear not twice in a row
	atOnce                 // not at all
)

// unlockAndPublish publishes what has changed, now or when the window ends. mu is held, and free when it returns.
func (p *policy) unlockAndPublish(u urgency) {
	if p.updating || p.closed {
		p.mu.Unlock()
		return
	}
	now := p.clock.Now()
	wait := int64(0)
	switch u {
	case urgent:
		wait = p.window.hurry(now)
	case relaxed:
		wait = p.window.changed(now)
	}
	if wait == 0 {
		p.publish()
		return
	}
	if wait > 0 {
		after := p.seq
		p.publisher = p.after(wait, func() { p.windowEnded(after) })
	}
	p.mu.Unlock()
}

// windowEnded publishes what waited since publication number after. If there was another since, it took that along,
// and this timer could not be stopped any more.
func (p *policy) windowEnded(after uint64) {
	p.mu.Lock()
	if p.closed || p.seq != after {
		p.mu.Unlock()
		return
	}
	p.publisher = nil
	if p.updating || !p.window.expired() {
		p.mu.Unlock()
		return
	}
	p.publish()
}

// publish makes a picker of the current state and delivers it. mu is held, and free when it returns.
func (p *policy) publish() {
	began := p.clock.Now()
	if p.publisher != nil { // this publication takes the waiting changes along
		p.stop(p.publisher)
		p.publisher = nil
	}
	p.refresh()
	k := &picker{
		p: p, settings: p.settings, service: p.service, byConfig: p.byConfig.set,
		known: len(p.known), connected: p.states[connectivity.Ready], out: len(p.sick), resolverErr: p.resolverErr,
	}
	if len(p.routes) > 0 {
		sets := make(map[filters.Filter]*candidates, len(p.routes))
		for f, r := range p.routes {
			sets[f] = r.set
		}
		k.byFilter.Store(&sets)
	}
	p.current = k
	p.seq++
	p.counts.Publications++
	seq, state := p.seq, gbalancer.State{ConnectivityState: p.aggregate(), Picker: k}
	if observed.Load() {
		p.tell(Event{Kind: Published, Instances: len(p.known)})
	}
	p.window.published(began, p.clock.Now())
	p.mu.Unlock()

	p.deliverMu.Lock()
	if seq > p.delivered && !p.dead {
		p.delivered = seq
		p.cc.UpdateState(state)
	}
	p.deliverMu.Unlock()
}

// manyDirty is from how many changed endpoints on all candidate sets are rebuilt without asking which are concerned.
const manyDirty = 64

// refresh rebuilds the candidate sets that the changes since the last publication concern; mu is held.
func (p *policy) refresh() {
	touch := func(r *route) {
		for _, e := range p.dirty {
			if len(p.dirty) > manyDirty {
				r.stale = true
			}
			if r.stale {
				break
			}
			r.touched(e)
		}
	}
	for _, r := range p.allRoutes() { // in order: a new chooser draws where it begins
		if touch(r); r.stale {
			r.rebuild(p)
		}
	}
	for _, e := range p.dirty {
		e.child.dirty = false
	}
	clear(p.dirty)
	p.dirty = p.dirty[:0]
}

// aggregate is the channel's state. Idle children are being woken, so they count as connecting.
func (p *policy) aggregate() connectivity.State {
	switch {
	case p.states[connectivity.Ready] > 0:
		return connectivity.Ready
	case p.states[connectivity.Connecting]+p.states[connectivity.Idle] > 0:
		return connectivity.Connecting
	}
	return connectivity.TransientFailure
}
