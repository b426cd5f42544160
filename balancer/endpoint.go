package balancer

import (
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/balancer/outlier"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/registry"
)

// Endpoint is one instance as the policy knows it, with its load and its health. It outlives pickers, updates of the
// registry, reconnects and changes of the configuration, and ends when the instance leaves or is replaced by one
// with another ID. Strategies read it; it is safe for concurrent use.
type Endpoint struct {
	// What a pick reads and writes: 64 bytes, which are one cache line, since an object of this size is aligned to one.
	// Among ten thousand endpoints each line is a miss, which costs as much as all that a pick does with three.
	phaseNow atomic.Uint32     // a phase, and quick if sc can be called
	weight   atomic.Uint32     // of inst, at least 1
	sc       gbalancer.SubConn // of the first connection; written once, before quick is set for the first time
	started  atomic.Uint64
	ended    atomic.Uint64
	word     atomic.Uint64 // a health
	ewma     load.PeakEWMA
	done     func(gbalancer.DoneInfo) // for calls that need no record of their own; bound once

	conn     atomic.Pointer[connection] // nil while there is no connection to send on
	slots    atomic.Pointer[[]slot]
	inst     atomic.Pointer[registry.Instance]
	claimed  atomic.Uint32 // odd while a probing call is under way; its number
	share    atomic.Uint32 // of fullShare; 0 for all of it
	failures atomic.Uint64
	tallies  atomic.Pointer[tally] // nil until somebody counts there
	slotsMu  sync.Mutex            // orders writers of slots

	id     callctx.Endpoint
	child  *child
	number uint32        // by which endpoints have an order that one seed gives again
	probes atomic.Uint32 // of the load: underWay, overdue

	// Guarded by policy.mu.
	sentence  sentence
	reserved  [shareKinds]float32 // what is missing to a full share, by who says so
	newcomer  bool                // it joined others, and was never connected
	lost      bool                // its connection broke, and it has no other yet
	cold      bool                // that could not be had at once, so it was most likely restarted
	warms     bool                // it is in its slow start
	warmSince int64               // when that began
	host      *outlier.Host       // what the detector of outliers knows; nil while nobody watches
	spared    int64               // until when a dry run pretends that it is out
}

// tally is what is counted at an endpoint that not every endpoint needs: what never failed and is not watched by any
// feature has none.
type tally struct {
	errors  atomic.Uint64 // ends with any error, for A50
	silent  atomic.Uint64 // ends, during a watch, that say nothing: what was never sent, what its caller gave up
	timed   atomic.Uint64 // calls whose time was taken, for Outliers.Slow
	latency atomic.Uint64 // of these together, in ns

	answered, unanswered atomic.Uint64 // probes of the load
}

// nothing is the tally of who has none.
var nothing tally

// tally is where to count.
func (e *Endpoint) tally() *tally {
	if t := e.tallies.Load(); t != nil {
		return t
	}
	e.tallies.CompareAndSwap(nil, new(tally))
	return e.tallies.Load()
}

// counted is what was counted, for readers.
func (e *Endpoint) counted() *tally {
	if t := e.tallies.Load(); t != nil {
		return t
	}
	return &nothing
}

// connection is one READY spell of an endpoint.
type connection struct {
	sc        gbalancer.SubConn
	way       atomic.Pointer[grpc.ClientConnInterface] // for line; nil until somebody calls there
	muteUntil atomic.Int64                             // when the server may be probed
}

// muteAt reports whether the server is not to be probed at that time.
func (c *connection) muteAt(now int64) bool { return now < c.muteUntil.Load() }

type slot struct{ key, value any }

// Instance is the endpoint's record in the registry as of now; for an endpoint that another resolver made, one with
// nothing but its address. It is shared and must not be modified.
func (e *Endpoint) Instance() *registry.Instance { return e.inst.Load() }

// Weight is the instance's weight as of now, at least 1.
func (e *Endpoint) Weight() uint32 { return e.weight.Load() }

// set takes over the registry's record of the instance.
func (e *Endpoint) set(in *registry.Instance) {
	e.inst.Store(in)
	e.weight.Store(max(in.Weight, 1))
}

// InFlight is how many calls and streams are under way there from this client.
func (e *Endpoint) InFlight() int64 {
	ended := e.ended.Load() // first, so that the difference is never negative
	return int64(e.started.Load() - ended)
}

// Slot returns what a strategy keeps at the endpoint under key, and makes it with init at the first use. Use a key
// of an unexported type. A lookup takes no lock.
func (e *Endpoint) Slot(key any, init func() any) any {
	if v, ok := e.lookup(key); ok {
		return v
	}
	e.slotsMu.Lock()
	defer e.slotsMu.Unlock()
	if v, ok := e.lookup(key); ok {
		return v
	}
	v := init()
	var old []slot
	if p := e.slots.Load(); p != nil {
		old = *p
	}
	next := append(old[:len(old):len(old)], slot{key, v})
	e.slots.Store(&next)
	return v
}

func (e *Endpoint) lookup(key any) (any, bool) {
	if p := e.slots.Load(); p != nil {
		for _, s := range *p {
			if s.key == key {
				return s.value, true
			}
		}
	}
	return nil, false
}

// quick, in phaseNow, says that the endpoint is on its first connection. Then a pick finds what to send on in the
// endpoint itself; after a reconnect it is one cache line away. (What readers may be copying cannot be overwritten.)
const quick = 4

func (e *Endpoint) phase() phase   { return phase(e.phaseNow.Load() &^ quick) }
func (e *Endpoint) health() health { return health(e.word.Load()) }

// setPhase changes the phase; policy.mu is held.
func (e *Endpoint) setPhase(p phase) { e.phaseNow.Store(e.phaseNow.Load()&quick | uint32(p)) }

// connect makes conn what is sent on, nil for nothing; policy.mu is held.
func (e *Endpoint) connect(conn *connection) {
	word := e.phaseNow.Load() &^ quick
	if conn == nil {
		e.phaseNow.Store(word)
		e.conn.Store(nil)
		return
	}
	if e.sc == nil {
		e.sc = conn.sc
	}
	if e.sc == conn.sc {
		word |= quick
	}
	e.conn.Store(conn)
	e.phaseNow.Store(word)
}

// subConn is what to send on, nil if there is nothing.
func (e *Endpoint) subConn() gbalancer.SubConn {
	if e.phaseNow.Load()&quick != 0 {
		return e.sc
	}
	if conn := e.conn.Load(); conn != nil {
		return conn.sc
	}
	return nil
}

// observe steps the health word and returns the new one.
func (e *Endpoint) observe(step func(health) health) health {
	for {
		old := e.word.Load()
		next := step(health(old))
		if uint64(next) == old || e.word.CompareAndSwap(old, uint64(next)) {
			return next
		}
	}
}

// uneventful reports whether the end of a call, which was neither a probing call nor sent to somebody kept in, changes
// nothing but the number of calls under way and what the strategy measures: it succeeded, like the last 20. It is the
// common case, worth 10 ns of a pick's 45.
func (e *Endpoint) uneventful(err error, sent bool) bool {
	return err == nil && sent && e.health() == perfect
}

// claim makes the caller the one probing call, and returns its number; 0 if another is under way.
func (e *Endpoint) claim() uint32 {
	n := e.claimed.Load()
	if n&1 == 0 && e.claimed.CompareAndSwap(n, n+1) {
		return n + 1
	}
	return 0
}

// unclaim ends the probing call with this number; false if it had been given up before.
func (e *Endpoint) unclaim(n uint32) bool { return e.claimed.CompareAndSwap(n, n+1) }

// giveUp ends the probing call under way, if there is one, so that its end decides nothing and another may begin.
func (e *Endpoint) giveUp() {
	if n := e.claimed.Load(); n&1 == 1 {
		e.unclaim(n)
	}
}

// gone reports whether e's life is over: the instance left, or another has its place. policy.mu is held.
func (e *Endpoint) gone() bool { return e.child.e != e || e.child.closed }
