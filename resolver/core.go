package resolver

import (
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

const (
	// backoffMin and backoffMax bound the ceiling that the wait before a new watch is drawn under.
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
	// nudgeMax bounds what is left of that wait once gRPC has asked for news.
	nudgeMax = time.Second
	// headStart is what a new watch gets before a remembered set is served without waiting for it any longer.
	headStart = 250 * time.Millisecond
	// firstAnswer is what a registry gets before the app is told that there is nothing to serve.
	firstAnswer = 5 * time.Second
)

var errNoAnswer = errors.New("silent for " + firstAnswer.String())

// The changes of state that are worth a line in the log.
const (
	msgOutage   = "the registry does not answer; the last known instances stay in service"
	msgNothing  = "the registry does not answer, and no instance is known"
	msgBack     = "the registry answers again"
	msgCollapse = "the registry dropped more than half of the instances at once; they stay until seen again or the hold ends"
	msgHoldOver = "no instance is held any more"
	msgSkipped  = "malformed records are left out"
)

// core decides what is served and when to watch. It is a state machine over events, with no goroutine, no clock and
// no gRPC in it: every method but next and view is an event, takes the time (nanoseconds since any fixed moment)
// and returns what the shell has to do. It is not safe for concurrent use.
type core struct {
	hold time.Duration  // how long a collapse is distrusted; 0 or less: every update is believed
	rand func() float64 // uniform in [0, 1)

	now    int64
	served []entry     // what is served, in an order that only changes at its end
	left   []departure // who left unannounced in the last hold, and was believed to
	held   int         // how many of served are held

	returned, removed int                 // what became of the held ones since the collapse
	bad               map[string]struct{} // why records were left out of the last update

	watching bool  // a watch runs
	answered bool  // and has given an update
	began    int64 // when it began
	attempt  int   // watches that failed since the last that lasted
	retryAt  int64 // when to watch again, if not watching
	nudged   bool  // retryAt was moved by a nudge

	shown     bool  // the connections may see what is served
	resumed   bool  // what is served is from before a pause in which nobody watched
	patience  int64 // when they may even if no update came
	down      error // why the registry is out, nil while it is not
	downSince int64
}

// entry is one served instance. The instance is shared with gRPC and never modified.
type entry struct {
	in    *registry.Instance
	held  bool
	since int64 // when it vanished, if held
}

type departure struct {
	addr string
	at   int64
}

// effects is what the shell has to do after an event.
type effects struct {
	publish bool // view has changed
	watch   bool // start a watch
	notes   []note
}

// note is a line for the log.
type note struct {
	level slog.Level
	msg   string
	args  []any
}

func (e *effects) note(level slog.Level, msg string, args ...any) {
	e.notes = append(e.notes, note{level, msg, args})
}

// advance moves the time on, never back: a clock that jumped backwards must not make a hold endless.
func (c *core) advance(now int64) { c.now = max(c.now, now) }

// since is the time that has passed since t.
func (c *core) since(t int64) time.Duration { return time.Duration(c.now - t) }

// start is the event that somebody wants the service, for the first time or again. What was served before is
// remembered; it is shown when the registry has had its chance to say something newer.
func (c *core) start(now int64) effects {
	c.advance(now)
	c.shown, c.down, c.attempt = false, nil, 0
	c.patience = c.now + int64(firstAnswer)
	c.resumed = len(c.served) > 0
	if c.resumed {
		c.patience = c.now + int64(headStart)
	}
	var e effects
	c.watch(&e)
	return e
}

func (c *core) watch(e *effects) {
	c.watching, c.answered, c.began = true, false, c.now
	e.watch = true
}

// ended is the event that the watch ended, with why.
func (c *core) ended(now int64, err error) effects {
	c.advance(now)
	// An update alone does not prove that the registry is well: one that answers and drops the watch at once, again
	// and again, must not be asked ten times a second. So the steps are forgotten only after a watch that lasted.
	if c.answered && c.since(c.began) >= ceiling(c.attempt) {
		c.attempt = 0
	}
	c.retryAt = c.now + int64(c.rand()*float64(ceiling(c.attempt)))
	c.attempt++
	c.watching, c.answered, c.nudged = false, false, false
	var e effects
	c.outage(err, &e)
	return e
}

// ceiling is what the wait after so many failures is drawn under: exponential backoff with full jitter, so that a
// thousand clients which lost their registry at one moment do not come back at one moment.
func ceiling(attempt int) time.Duration {
	if attempt >= 7 { // 100 ms << 7 is more than 10 s
		return backoffMax
	}
	return backoffMin << attempt
}

func (c *core) outage(err error, e *effects) {
	empty := len(c.served) == 0
	switch {
	case c.down != nil:
	case empty:
		c.downSince = c.now
		e.note(slog.LevelWarn, msgNothing, "error", err)
	default:
		c.downSince = c.now
		e.note(slog.LevelWarn, msgOutage, "error", err, "instances", len(c.served))
	}
	e.publish = !c.shown || empty && (c.down == nil || c.down.Error() != err.Error())
	c.shown, c.down = true, err
}

// nudge is the event that gRPC asks for news. It brings a new watch forward, once a wait.
func (c *core) nudge(now int64) effects {
	c.advance(now)
	if !c.watching && !c.nudged {
		c.nudged = true
		c.retryAt = min(c.retryAt, c.now+int64(c.rand()*float64(nudgeMax)))
	}
	return effects{}
}

// tick is the event that time has passed.
func (c *core) tick(now int64) effects {
	c.advance(now)
	var e effects
	if !c.watching && c.now >= c.retryAt {
		c.watch(&e)
	}
	if !c.shown && c.now >= c.patience {
		if len(c.served) == 0 {
			c.outage(errNoAnswer, &e)
		} else {
			c.shown, e.publish = true, true
		}
	}
	c.release(&e)
	return e
}

// next is how long to wait before the next tick; ok is false if there is nothing to wait for.
func (c *core) next() (wait time.Duration, ok bool) {
	wait = 1<<63 - 1
	sooner := func(d time.Duration) { wait, ok = min(wait, max(d, 0)), true }
	if !c.watching {
		sooner(-c.since(c.retryAt))
	}
	if !c.shown {
		sooner(-c.since(c.patience))
	}
	if c.answered && c.held > 0 {
		for _, e := range c.served {
			if e.held {
				sooner(c.hold - c.since(e.since))
			}
		}
	}
	return wait, ok
}

// release lets go of the instances whose hold has ended. The hold runs only while the registry is heard: an outage
// right after a collapse is no confirmation of it.
func (c *core) release(e *effects) {
	if c.held == 0 || !c.answered {
		return
	}
	n := len(c.served)
	kept := make([]entry, 0, n)
	for _, x := range c.served {
		if !x.held || c.since(x.since) < c.hold {
			kept = append(kept, x)
		}
	}
	if len(kept) == n {
		return
	}
	before := c.held
	c.served = slices.Clone(kept) // kept has room for all who were held
	c.held -= n - len(kept)
	c.removed += n - len(kept)
	e.publish = true
	c.noteHeld(before, e)
}

// update is the event that the registry reported its set.
func (c *core) update(now int64, set []registry.Instance) effects {
	c.advance(now)
	e := effects{publish: !c.shown || c.down != nil && len(c.served) == 0}
	before, n := c.held, len(set)
	if changed, ok := c.renew(set); ok {
		e.publish = e.publish || changed
	} else {
		list := c.accept(set, &e)
		n = len(list)
		if c.merge(list) {
			e.publish = true
		}
	}
	if c.down != nil {
		e.note(slog.LevelInfo, msgBack, "after", c.since(c.downSince).Round(time.Millisecond), "instances", n)
	}
	c.shown, c.answered, c.down = true, true, nil
	c.noteHeld(before, &e)
	c.release(&e)
	return e
}

// renew is accept and merge for the update that comes most often: nobody came or left, and who is where is as it was,
// since registries keep an order. It needs no maps, which are four fifths of what an update of 10,000 costs otherwise
// (BenchmarkUpdate). It does nothing, and reports false, if the update is another.
func (c *core) renew(set []registry.Instance) (changed, ok bool) {
	if len(set) != len(c.served) || c.held > 0 {
		return false, false
	}
	for i := range set {
		if set[i].Addr != c.served[i].in.Addr {
			return false, false
		}
	}
	var others []int
	for i := range set {
		if c.served[i].in.Equal(set[i]) {
			continue
		}
		if set[i].Validate() != nil { // accept knows what to do about it
			return false, false
		}
		others = append(others, i)
	}
	for _, i := range others {
		own := set[i]
		c.served[i].in = &own
	}
	c.bad, c.resumed = nil, false
	c.forget(nil)
	return len(others) > 0, true
}

// accept returns the records to believe: the valid ones, of two with one address the later. A record that says what
// is served already becomes the very same pointer. Each instance gets memory of its own, so that one which stays
// does not keep a thousand alive that came with it.
func (c *core) accept(set []registry.Instance, e *effects) []*registry.Instance {
	old := make(map[string]*registry.Instance, len(c.served))
	for _, x := range c.served {
		old[x.in.Addr] = x.in
	}
	list := make([]*registry.Instance, 0, len(set))
	at := make(map[string]int, len(set))
	var bad map[string]struct{}
	var news error // why a record is bad that was not so before
	for i := range set {
		in := old[set[i].Addr]
		if in == nil || !in.Equal(set[i]) {
			if err := set[i].Validate(); err != nil {
				if bad == nil {
					bad = make(map[string]struct{})
				}
				bad[err.Error()] = struct{}{}
				if _, known := c.bad[err.Error()]; !known && news == nil {
					news = err
				}
				continue
			}
			own := set[i]
			in = &own
		}
		if j, twice := at[in.Addr]; twice {
			list[j] = in
			continue
		}
		at[in.Addr] = len(list)
		list = append(list, in)
	}
	c.bad = bad
	if news != nil {
		e.note(slog.LevelWarn, msgSkipped, "records", len(bad), "error", news)
	}
	return list
}

// merge makes list what is served, less those that are not believed to have gone (ADR-0005), and reports whether
// anything changed. A departure is announced if the instance was draining, or if its ID is at another address now.
func (c *core) merge(list []*registry.Instance) (changed bool) {
	seen := make(map[string]*registry.Instance, len(list))
	ids := make(map[string]struct{}, len(list))
	for _, in := range list {
		seen[in.Addr] = in
		ids[in.ID] = struct{}{}
	}
	announced := func(in *registry.Instance) bool {
		_, moved := ids[in.ID]
		return in.Draining || moved
	}
	// Nobody watched during a pause, so whoever left then may well have announced it, and somebody else may have its
	// address by now: a set that has instances is believed as it is. An empty one is not (ADR-0005).
	rewritten := c.resumed && len(list) > 0
	c.resumed = false
	collapse := !rewritten && c.collapse(seen, announced)
	served := make([]entry, 0, max(len(list), len(c.served)))
	held := 0
	for _, x := range c.served {
		in := seen[x.in.Addr]
		switch {
		case in != nil:
			changed = changed || in != x.in
			served = append(served, entry{in: in})
			delete(seen, in.Addr)
			if x.held {
				c.returned++
			}
			continue
		case rewritten, announced(x.in):
			changed = true
			if x.held {
				c.removed++
			}
			continue
		case x.held:
			if !c.answered { // a registry that has just come back gets the whole hold to find them
				x.since = c.now
			}
		case collapse:
			x.held, x.since = true, c.now
		default:
			changed = true
			if c.hold > 0 {
				c.left = append(c.left, departure{x.in.Addr, c.now})
			}
			continue
		}
		held++
		served = append(served, x)
	}
	for _, in := range list {
		if seen[in.Addr] == in {
			changed = true
			served = append(served, entry{in: in})
		}
	}
	c.served, c.held = served, held
	return changed
}

// collapse reports whether those who are missing from seen and did not announce it, together with those who left so
// in the last hold, are more than half of all who were there in that time. Looking back that far is what sees an
// erosion: health checks that run out one by one.
func (c *core) collapse(seen map[string]*registry.Instance, announced func(*registry.Instance) bool) bool {
	c.forget(seen)
	all, missing := len(c.left), len(c.left)
	for _, x := range c.served {
		here := seen[x.in.Addr] != nil
		switch {
		case here && !x.in.Draining:
			all++
		case !here && !announced(x.in):
			all++
			missing++
		}
	}
	return c.hold > 0 && 2*missing > all
}

// forget drops the departures that do not count any more: of a hold ago, or of who is back.
func (c *core) forget(seen map[string]*registry.Instance) {
	c.left = slices.DeleteFunc(c.left, func(d departure) bool { return seen[d.addr] != nil || c.since(d.at) >= c.hold })
	if len(c.left) == 0 {
		c.left = nil // so that the memory of a large one returns
	}
}

// noteHeld tells the log when instances begin to be held, and when none is any more.
func (c *core) noteHeld(before int, e *effects) {
	switch {
	case before == 0 && c.held > 0:
		c.returned, c.removed = 0, 0
		e.note(slog.LevelWarn, msgCollapse, "held", c.held, "reported", len(c.served)-c.held, "hold", c.hold)
	case before > 0 && c.held == 0:
		level := slog.LevelInfo
		if c.removed > 0 {
			level = slog.LevelWarn
		}
		e.note(level, msgHoldOver, "returned", c.returned, "removed", c.removed, "instances", len(c.served))
	}
}

// view is what the connections may see: instances, or why there are none; ok is false if it is too early to say.
func (c *core) view() (instances []*registry.Instance, err error, ok bool) {
	if !c.shown {
		return nil, nil, false
	}
	if len(c.served) == 0 && c.down != nil {
		return nil, c.down, true
	}
	instances = make([]*registry.Instance, len(c.served))
	for i, x := range c.served {
		instances[i] = x.in
	}
	return instances, nil, true
}
