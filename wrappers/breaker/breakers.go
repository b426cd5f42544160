package breaker

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// Breakers are the circuit breakers of one client, of several, or of a server; they share a configuration and
// nothing else. Make them with [New] and give their interceptors to [google.golang.org/grpc.NewClient] or
// NewServer, the unary and the streaming one of the same Breakers. They are safe for concurrent use, have no
// goroutine, and need no closing.
type Breakers struct {
	clock  clock.Clock
	random func() uint64
	events events
	rules  atomic.Pointer[rules]
	index  atomic.Pointer[table] // replaced as a whole, under mu

	unguarded atomic.Uint64
	fullUntil atomic.Int64 // until when looking for room is in vain

	mu  sync.Mutex // guards ids and the replacement of rules and index; taken before any breaker's lock
	ids map[string]uint32
}

// New makes breakers. The error names the field that is wrong, what it is and what is wanted.
func New(c Config) (*Breakers, error) {
	return newBreakers(c, clock.New(), clock.Rand)
}

func newBreakers(c Config, clk clock.Clock, random func() uint64) (*Breakers, error) {
	b := &Breakers{clock: clk, random: random, ids: make(map[string]uint32)}
	b.events.deliver = func(e StateChange) {
		if f := b.rules.Load().onStateChange; f != nil {
			f(e)
		}
	}
	b.index.Store(new(table))
	rs, err := c.resolve(1, b.id)
	if err != nil {
		return nil, err
	}
	b.rules.Store(rs)
	return b, nil
}

// mustNew is for the shorthands.
func mustNew(p Policy) *Breakers {
	b, err := New(Config{Policy: p})
	if err != nil {
		panic(err)
	}
	return b
}

// id is the number of an entry of Config.Methods. mu is held, or b is not yet known to others.
func (b *Breakers) id(text string) uint32 {
	n, ok := b.ids[text]
	if !ok {
		n = uint32(len(b.ids) + 1)
		b.ids[text] = n
	}
	return n
}

// Update replaces the configuration, callbacks included, while calls are running; calls that begin after it
// returned go by the new one. If c is not valid, the error says why and nothing has changed.
//
// A breaker stays in its state as long as the new configuration has an entry for the same methods with the same
// Key; others are forgotten. New thresholds hold for what its window has counted. With another Window,
// BucketPeriod, OpenFor or Probes, which gobreaker takes only once, a closed breaker begins a new window, an open
// one begins its time anew with the new length, and a half-open one follows when its probes are through.
func (b *Breakers) Update(c Config) error {
	b.mu.Lock()
	rs, err := c.resolve(b.rules.Load().version+1, b.id)
	if err != nil {
		b.mu.Unlock()
		return err
	}
	b.rules.Store(rs)
	next := b.index.Load().clone()
	for br := range next.all() {
		w := br.key.which
		if r := rs.byScope[w.scope()]; r == nil || r.disabled || !w.custom() && w.key() != r.key {
			br.gone.Store(true)
			next.remove(br)
		}
	}
	b.index.Store(next)
	b.fullUntil.Store(0)
	b.mu.Unlock()
	for br := range next.all() {
		br.adopt(rs.byScope[br.key.which.scope()])
	}
	return nil
}

// enter finds the call's breaker and takes a place there. c.b stays nil if the call is none of the breakers'
// business. An error is why the breaker turns the call away, in which case the call has no place.
func (b *Breakers) enter(c *call, target string, side which, w *callOption) *Error {
	for {
		rs := b.rules.Load()
		var r *rule
		var br *breaker
		if x := rs.routes.find(side, c.method, target); x != nil && w.key == "" {
			r, br = x.rule, x.breaker
		} else if r, br = b.lookUp(rs, c.method, target, side, w.key); r == nil {
			return nil
		} else if br == nil {
			continue
		}
		if !br.used.Load() {
			br.used.Store(true)
		}
		c.rule = r
		if w.override != nil {
			c.rule = r.with(w.override)
		}
		entered := br.places.enter(c.rule.maxConcurrent)
		if br.gone.Load() { // removed since it was found: whoever removes looks at places after setting gone
			if entered {
				br.places.leave()
			}
			b.forget(rs, side, c.method, br)
			continue
		}
		c.b = br
		return c.ask(r, entered)
	}
}

// lookUp finds, or makes, the breaker of calls that routes has not noted. r is nil if the call passes without one; br
// is nil if the configuration has changed meanwhile.
func (b *Breakers) lookUp(rs *rules, method, target string, side which, custom string) (r *rule, br *breaker) {
	r, applies := rs.table.Applies(method)
	if !applies || r.disabled {
		return nil, nil
	}
	id, name := r.keyFor(method, side, custom)
	if br = b.index.Load().find(id, target, name); br == nil {
		var again bool
		if br, again = b.create(rs, r, key{id, target, name}); again {
			return r, nil
		} else if br == nil {
			b.unguarded.Add(1)
			return nil, nil
		}
	}
	if custom == "" {
		rs.routes.note(side, method, target, r, br)
	}
	return r, br
}

// forget waits for whoever is changing the table, and takes back a note of br, which is on its way out of it.
func (b *Breakers) forget(rs *rules, side which, method string, br *breaker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if br.gone.Load() { // else it was found to be in use, and stays
		rs.routes.forget(side, method, br)
	}
}

// ask asks c's breaker, where the call has entered, that is has a place, or found it full. r is the policy's rule.
func (c *call) ask(r *rule, entered bool) *Error {
	if entered && c.b.rule.Load() == r && c.admitQuickly() {
		return nil
	}
	return c.askCarefully(r, entered)
}

func (c *call) askCarefully(r *rule, entered bool) (e *Error) {
	admitted := false
	defer func() { // a callback may panic
		switch {
		case admitted:
		case c.done != nil:
			c.end(excluded, nil)
		case entered:
			c.b.places.leave()
		}
	}()
	if c.b.rule.Load() != r {
		c.b.adopt(r)
	}
	if entered {
		e = c.admit()
	} else {
		last := c.b.last.Load()
		e = &Error{Breaker: c.b.name, Phase: last.phase, Full: true, Since: last.at, Until: last.until,
			server: c.b.key.which.server()}
	}
	if e == nil {
		admitted = true
		return nil
	}
	e.Method, e.DryRun = c.method, c.rule.dry
	c.refused = e
	c.b.rejected.Add(1)
	if f := c.b.owner.rules.Load().onReject; f != nil {
		f(e)
	}
	if !c.rule.dry {
		return e
	}
	c.beyond = true
	c.b.beyond.Add(1) // before it leaves its place, see inFlight
	if entered {
		c.b.places.leave()
	}
	admitted = true
	return nil
}

// create makes the breaker k and puts it into the table; nil if there is no room. again tells that the
// configuration has changed meanwhile.
func (b *Breakers) create(rs *rules, r *rule, k key) (br *breaker, again bool) {
	now := b.clock.Now()
	if now < b.fullUntil.Load() {
		return nil, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rules.Load() != rs {
		return nil, true
	}
	if br = b.index.Load().find(k.which, k.target, k.name); br != nil {
		return br, false
	}
	next := b.index.Load().clone()
	b.sweepLocked(next, now, rs.idleAfter)
	if next.n >= rs.maxBreakers && !b.makeRoomLocked(next, rs.maxBreakers) {
		b.fullUntil.Store(now + int64(time.Second)) // the search costs a look at every breaker
	} else {
		br = newBreaker(b, k, r, now)
		next.add(br)
	}
	b.index.Store(next)
	return br, false
}

// sweepLocked takes out of t what has been idle for long. mu is held.
func (b *Breakers) sweepLocked(t *table, now, idleAfter int64) {
	for br := range t.all() {
		br.tenure.look(now, br.used.Swap(false))
		last := br.last.Load()
		if br.tenure.idle(now, idleAfter) && (last.phase != Open || !time.Now().Before(last.until)) && br.remove() {
			t.remove(br)
		}
	}
}

// makeRoomLocked takes closed breakers out of t, the longest idle first, until one more has room. mu is held.
func (b *Breakers) makeRoomLocked(t *table, most int) bool {
	for t.n >= most {
		candidates := slices.Collect(t.all())
		seats := make([]occupant, len(candidates))
		for i, br := range candidates {
			seats[i] = occupant{br.tenure, br.inFlight() > 0 || br.last.Load().phase != Closed}
		}
		i := victim(seats)
		if i < 0 {
			return false
		}
		if candidates[i].remove() { // else a call came in between; the next look keeps it
			t.remove(candidates[i])
		}
	}
	return true
}

// remove marks b as out of the table, unless it has calls. Both this and enter write first and look then, so that
// at least one of them sees the other.
func (b *breaker) remove() bool {
	b.gone.Store(true)
	if b.inFlight() > 0 {
		b.gone.Store(false)
		return false
	}
	return true
}

// inFlight is how many calls have begun and not ended. A call that goes from one count to the other is in both for a
// moment, and since this reads them in that order it is never missed.
func (b *breaker) inFlight() int64 { return b.places.n.Load() + b.beyond.Load() }

// State is what [Breakers.State] tells.
type State struct {
	// Breakers are all that exist, by name.
	Breakers []BreakerState
	// Unguarded is how many calls passed without a breaker because there was no room for one.
	Unguarded uint64
}

// BreakerState is one breaker, for people and for metrics.
type BreakerState struct {
	// Name says which: the method, service or key, the target, and the policy's entry where that is not plain.
	Name string
	// Phase is its state, Since when that began.
	Phase Phase
	Since time.Time
	// Until is when probes are let through (Open) or all calls are (Recovering); else zero.
	Until time.Time
	// Share is the part of the calls that is let through now, from 0 to 1. In HalfOpen, where it is Probes calls,
	// it is 0.
	Share float64
	// InFlight is how many calls, streams among them, have begun and not ended.
	InFlight int
	// Successes and Failures are what the window holds, Run the failures in a row.
	Successes, Failures, Run uint32
	// Rejected is how many calls were turned away, or would have been but for DryRun, since the breaker was made.
	Rejected uint64
	// DryRun tells that it turns no call away.
	DryRun bool
	// Err is the last failure before it opened; nil if it is closed or has recovered.
	Err error
}

// State lists the breakers, those that were idle for long excepted. It brings them up to date first: an open one
// whose time is over is half-open. It costs a few microseconds a breaker, so once a second is no problem.
func (b *Breakers) State() State {
	now := b.clock.Now()
	b.mu.Lock()
	next := b.index.Load().clone()
	b.sweepLocked(next, now, b.rules.Load().idleAfter)
	b.index.Store(next)
	b.mu.Unlock()
	s := State{Breakers: make([]BreakerState, 0, next.n), Unguarded: b.unguarded.Load()}
	for br := range next.all() {
		s.Breakers = append(s.Breakers, br.state(now))
	}
	slices.SortFunc(s.Breakers, func(x, y BreakerState) int { return cmp.Compare(x.Name, y.Name) })
	return s
}

// state brings b up to date and describes it.
func (b *breaker) state(now int64) BreakerState {
	g := b.gate.Load()
	g.cb.State() // moves on what time has moved: the window, and an open breaker whose time is over
	switch last := b.last.Load(); {
	case last.phase == HalfOpen:
		b.expireProbes(now)
	case last.phase == Recovering && last.ramp.over(now):
		b.recovered(last)
	}
	b.settled()
	last, n := b.last.Load(), b.gate.Load().cb.Counts()
	s := BreakerState{Name: b.name, Phase: last.phase, Since: last.at, Until: last.until, Err: last.err,
		InFlight: int(b.inFlight()), Successes: n.TotalSuccesses, Failures: n.TotalFailures,
		Run: n.ConsecutiveFailures, Rejected: b.rejected.Load(), DryRun: b.rule.Load().dry}
	switch last.phase {
	case Closed:
		s.Share = 1
	case Recovering:
		s.Share = last.ramp.share(now)
	}
	return s
}

// String is one line, such as "/pkg.Service/Method on lb:///orders: open since 2026-01-02T15:04:05.000Z".
func (s BreakerState) String() string {
	return fmt.Sprintf("%s: %v since %s, %d in flight, %d of %d failed, %d turned away", s.Name, s.Phase,
		clockText(s.Since), s.InFlight, s.Failures, s.Failures+s.Successes, s.Rejected)
}
