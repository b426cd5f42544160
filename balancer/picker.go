package balancer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
)

// picker is one published snapshot. It is immutable, but for candidate sets of filters that are met for the first
// time.
type picker struct {
	p        *policy
	settings *settings
	service  string
	// For the text of errors.
	known, connected, out int
	resolverErr           error

	byConfig *candidates // for calls whose context carries no filter
	byFilter atomic.Pointer[map[filters.Filter]*candidates]
}

// Pick implements [gbalancer.Picker]. What most calls need stands here; slow and start know everything else, and have
// so much more to carry that they cost a quarter of a pick more (BenchmarkPick in bench).
func (k *picker) Pick(info gbalancer.PickInfo) (gbalancer.PickResult, error) {
	set := k.byConfig
	var rec *callctx.Record
	if info.Ctx != nil {
		if rec = callctx.From(info.Ctx); rec != nil {
			set = k.setFor(rec)
		}
	}
	asked := 0
	if set.plain && !involved(rec) && k.ample(info.Ctx) {
		e := set.member(set.chooser.Choose(asking(rec)))
		if sc := e.subConn(); sc != nil && e.phase() == healthy {
			e.started.Add(1)
			return gbalancer.PickResult{SubConn: sc, Done: e.done}, nil
		}
		asked = 1
	} else if set.measured && !involved(rec) {
		if res, ok := k.measured(info, set, rec); ok {
			return res, nil
		}
		asked = 1
	}
	return k.slow(info, set, rec, asked)
}

// measured is Pick for a strategy that measures, as long as nothing else is special about the call: slow and start need a
// third more for it. It is false if the member that the strategy names cannot be used.
func (k *picker) measured(info gbalancer.PickInfo, set *candidates, rec *callctx.Record) (gbalancer.PickResult, bool) {
	ask := asking(rec)
	ask.Now = k.p.clock.Now()
	var counts *gauges
	if z := set.zones; z != nil {
		set, counts = z.side(z.draw(set.rand()))
	}
	e := set.member(set.chooser.Choose(ask))
	sc := e.subConn()
	if sc == nil || e.phase() != healthy {
		return gbalancer.PickResult{}, false
	}
	e.started.Add(1)
	r := newRecord()
	r.p, r.e, r.method, r.began, r.remaining = k.p, e, info.FullMethodName, ask.Now, k.remaining(info.Ctx)
	if counts != nil {
		r.gauge(counts.of(e))
	}
	return gbalancer.PickResult{SubConn: sc, Done: r.done}, true
}

// setFor returns the candidates for a call with a record.
func (k *picker) setFor(rec *callctx.Record) *candidates {
	if f, ok := filters.FromRecord(rec, k.service); ok {
		return k.candidates(f)
	}
	return k.byConfig
}

// involved reports whether a wrapper takes part in the call.
func involved(rec *callctx.Record) bool {
	return rec != nil && (rec.Call != nil || rec.Observer != nil)
}

// asking is the strategy's question about a call with a record.
func asking(rec *callctx.Record) Call {
	if rec == nil {
		return Call{}
	}
	return Call{HashKey: rec.HashKey, HasHashKey: rec.HasHashKey}
}

// ampleTime is how much time a call must have left for the default classifier to judge it as if it had no deadline.
const ampleTime = 10 * time.Millisecond

// ample reports whether a call with this context has no deadline, or one that is so far away that the default
// classifier does not care. Then its end can be judged without a record of the call, which is a third of the time of
// a pick with a deadline. It reads the clock only if there is one.
func (k *picker) ample(ctx context.Context) bool {
	if ctx == nil {
		return true
	}
	deadline, ok := ctx.Deadline()
	return !ok || k.p.clock.Until(deadline) >= ampleTime
}

// remaining is how much time a call with this context has left.
func (k *picker) remaining(ctx context.Context) time.Duration {
	if ctx != nil {
		if deadline, ok := ctx.Deadline(); ok {
			return k.p.clock.Until(deadline)
		}
	}
	return outcome.NoDeadline
}

// slow is Pick for calls of which more has to be known: the set waits for somebody or has probing calls to give away,
// the strategy measures, a wrapper takes part, the member that was named first cannot be used. asked is how often the
// strategy has been asked for this pick.
func (k *picker) slow(info gbalancer.PickInfo, set *candidates, rec *callctx.Record, asked int) (gbalancer.PickResult, error) {
	if set.none != nil {
		return gbalancer.PickResult{}, k.unavailable(set.none)
	}
	var call *callctx.Call
	var watcher callctx.Observer
	ask := asking(rec)
	ask.Attempt = asked
	if rec != nil {
		call, watcher = rec.Call, rec.Observer
	}
	if from := k.settings.keyFrom; from != "" && !ask.HasHashKey {
		ask.HashKey, ask.HasHashKey = fromMetadata(info.Ctx, from)
	}
	if k.settings.timed {
		ask.Now = k.p.clock.Now()
	}
	if len(set.probes) > 0 {
		e, claim := set.claim(k.p.rand(), call)
		if e != nil && k.p.probe(e, claim, kindOf(call, info.FullMethodName) == callctx.Stream) {
			return k.start(info, e, call, watcher, ask.Now, claim, false, nil)
		}
	}
	e, kept, g := set.choose(ask, call)
	if e == nil {
		// Every candidate lost its connection since this snapshot was made: the next one is on its way.
		return gbalancer.PickResult{}, gbalancer.ErrNoSubConnAvailable
	}
	return k.start(info, e, call, watcher, ask.Now, 0, kept, g)
}

// candidates returns the set of a filter that a context carries.
func (k *picker) candidates(f filters.Filter) *candidates {
	if m := k.byFilter.Load(); m != nil {
		if set := (*m)[f]; set != nil {
			if !set.used.Load() { // written once, so that picks share the cache line
				set.used.Store(true)
			}
			return set
		}
	}
	return k.p.admit(k, f)
}

// claim looks for an endpoint that waits for its probing call. It looks at two at most: with many of them, later
// calls find the others.
func (s *candidates) claim(r uint64, call *callctx.Call) (*Endpoint, uint32) {
	n := len(s.probes)
	at := below(r, n)
	for i := range min(n, 2) {
		e := s.probes[(at+i)%n]
		if e.subConn() == nil || e.phase() != probing || tried(call, e) {
			continue
		}
		if claim := e.claim(); claim != 0 {
			return e, claim
		}
	}
	return nil, 0
}

// maxAsks is how often the chooser is asked before the members are searched one by one.
const maxAsks = 8

// choose asks the strategy until it names a member that can be used now and whose share allows it; kept says that the
// member is blacklisted but stays in. If nobody's share allows the call, it goes to the one that was named last.
func (s *candidates) choose(ask Call, call *callctx.Call) (e *Endpoint, kept bool, g *gauge) {
	if s.zones != nil {
		e, kept, g = s.zones.choose(s.rand(), ask, call)
	} else {
		e, kept = s.named(ask, call)
	}
	if e == nil {
		ask.Attempt = maxAsks
		e, kept = s.search(ask, call)
	}
	return e, kept, g
}

// named is choose, but for a set whose strategy names nobody usable.
func (s *candidates) named(ask Call, call *callctx.Call) (e *Endpoint, kept bool) {
	n := len(s.members)
	var spared *Endpoint
	for ask.Attempt < maxAsks {
		e := s.member(s.chooser.Choose(ask))
		if usable, kept := s.usable(e); usable && !tried(call, e) {
			if !s.limited || s.admits(e) {
				return e, kept
			}
			spared = e
		}
		ask.Attempt++
		if n == 1 {
			break
		}
	}
	if spared != nil {
		_, kept := s.kept[spared]
		return spared, kept && spared.phase() != healthy
	}
	return nil, false
}

// member is the one that an answer of the strategy's means.
func (s *candidates) member(answer int) *Endpoint {
	i := uint(answer)
	if n := uint(len(s.members)); i >= n {
		i %= n
	}
	return s.members[i]
}

// usable reports whether e can be sent a call now. The snapshot may be older than what the endpoint says.
func (s *candidates) usable(e *Endpoint) (usable, kept bool) {
	if e.subConn() == nil {
		return false, false
	}
	if e.phase() == healthy {
		return true, false
	}
	_, kept = s.kept[e]
	return kept, kept
}

func tried(call *callctx.Call, e *Endpoint) bool { return call != nil && call.Tried.Has(&e.id) }

// search is the slow way for when the strategy names nobody usable: the best of what is there, from an arbitrary
// member on. An endpoint that was tried is better than one that is blacklisted, and that is better than none.
func (s *candidates) search(ask Call, call *callctx.Call) (*Endpoint, bool) {
	var again, out *Endpoint
	n := len(s.members)
	at := s.chooser.Choose(ask) % n
	for i := range n {
		e := s.members[(at+i+n)%n]
		usable, kept := s.usable(e)
		switch {
		case usable && !tried(call, e):
			return e, kept
		case usable && again == nil:
			again = e
		case out == nil && e.subConn() != nil:
			out = e
		}
	}
	if again != nil {
		_, kept := s.kept[again]
		return again, kept
	}
	return out, out != nil
}

// start counts the call in and says how its end is to be reported.
func (k *picker) start(info gbalancer.PickInfo, e *Endpoint, call *callctx.Call, watcher callctx.Observer, now int64,
	claim uint32, kept bool, g *gauge) (gbalancer.PickResult, error) {
	sc := e.subConn()
	if sc == nil { // lost between the choice and here
		if claim != 0 {
			k.p.release(e, claim)
		}
		return gbalancer.PickResult{}, gbalancer.ErrNoSubConnAvailable
	}
	e.started.Add(1)
	if call != nil {
		call.SetPicked(&e.id)
	}
	switch {
	case watcher == nil:
	case claim != 0:
		watcher.Event(callctx.Event{Kind: callctx.Probed, By: "balancer", Endpoint: &e.id})
	case kept:
		watcher.Event(callctx.Event{Kind: callctx.Kept, By: "balancer", Endpoint: &e.id})
	}
	remaining := k.remaining(info.Ctx)
	if k.settings.plain && remaining >= ampleTime && claim == 0 && !kept && watcher == nil {
		return gbalancer.PickResult{SubConn: sc, Done: e.done}, nil
	}
	r := newRecord()
	r.p, r.ending = k.p, ending{
		e: e, method: info.FullMethodName, began: now, remaining: remaining, claim: claim, kept: kept, watcher: watcher,
	}
	if call != nil {
		r.kind = call.Kind
	}
	r.gauge(g)
	return gbalancer.PickResult{SubConn: sc, Done: r.done}, nil
}

// ending is what has to be known about a call when it ends.
type ending struct {
	e         *Endpoint
	method    string
	began     int64 // 0 if nobody wants to know how long it takes
	remaining time.Duration
	claim     uint32 // of a probing call
	kept      bool   // sent to a blacklisted endpoint
	kind      callctx.Kind
	gauged    *gauge           // where it was counted in for the sake of zones, if it was
	watcher   callctx.Observer // nil if nobody watches the call
}

// tell tells who watches the call what its end did to the endpoint. Never under mu.
func (o *ending) tell(kind callctx.EventKind, err error) {
	if o.watcher != nil {
		o.watcher.Event(callctx.Event{Kind: kind, By: "balancer", Endpoint: &o.e.id, Err: err})
	}
}

// record is an ending that waits for its call, from a pool; its callback is bound once.
type record struct {
	p *policy
	ending
	done func(gbalancer.DoneInfo)
}

var records sync.Pool // of *record

func newRecord() *record {
	if r, ok := records.Get().(*record); ok {
		return r
	}
	r := new(record)
	r.done = r.end
	return r
}

func (r *record) end(info gbalancer.DoneInfo) {
	p, e := r.p, r.e
	if r.claim == 0 && !r.kept && e.uneventful(info.Err, info.BytesSent || info.BytesReceived) {
		e.ended.Add(1)
		if s := p.active.Load(); (s.timed || r.gauged != nil) && r.began != 0 {
			p.measure(s, &r.ending, outcome.OK, nil, info.ServerLoad)
		}
		r.p, r.ending = nil, ending{}
		records.Put(r)
		return
	}
	o := r.ending
	r.p, r.ending = nil, ending{}
	records.Put(r)
	p.finish(o, info)
}

// finishPlain is finish for a call of which nothing needs to be known.
func (e *Endpoint) finishPlain(info gbalancer.DoneInfo) {
	e.child.p.finish(ending{e: e, remaining: outcome.NoDeadline}, info)
}

// finish records the end of a call on its endpoint: load, latency and health.
func (p *policy) finish(o ending, info gbalancer.DoneInfo) {
	o.e.ended.Add(1)
	s := p.active.Load()
	if info.Err == nil && !info.BytesSent && !info.BytesReceived {
		// The pick was discarded, nothing was sent: not an infinitely fast success.
		p.silent(o.e)
		o.ungauged()
		p.undecided(o)
		return
	}
	class := outcome.OK
	if info.Err != nil {
		s.vigil.failed(o.e)
		class = s.judge.classify(o.method, info.Err, o.remaining)
	}
	if class == outcome.Failure {
		if !info.BytesSent && o.e.subConn() == nil {
			// The connection went away before the call was on it, which its state says already.
			p.silent(o.e)
			o.ungauged()
			p.undecided(o)
			return
		}
		o.e.failures.Add(1)
		if s.vigil != nil && !p.watching.Load() {
			p.alarm(o.e)
		}
	}
	if class == outcome.Ignore && gaveUp(info.Err) {
		p.silent(o.e)
	}
	if (s.timed || o.gauged != nil) && o.began != 0 {
		p.measure(s, &o, class, info.Err, info.ServerLoad)
	}
	if !s.judge.disabled {
		p.weigh(s, o, class, info)
	} else {
		p.undecided(o)
	}
}

// undecided notes the end of a call that says nothing about its endpoint.
func (p *policy) undecided(o ending) {
	if o.claim != 0 {
		p.release(o.e, o.claim)
	}
}

// measure hands the end of a call to those who want to know how long it took. said is what the server sent along about
// its load, if it did.
func (p *policy) measure(s *settings, o *ending, class outcome.Class, err error, said any) {
	sample := load.Sample{
		Now:       p.clock.Now(),
		Failed:    class == outcome.Failure || class == outcome.Soft,
		Cancelled: class == outcome.Ignore && gaveUp(err),
	}
	sample.Latency = sample.Now - o.began
	if o.kind == callctx.UnknownKind && isStream(o.method) || o.kind == callctx.Stream {
		sample.Latency = -1 // a stream lasts as long as it lasts
	}
	if s.vigil.times() && sample.Latency >= 0 && !sample.Failed && !sample.Cancelled {
		o.e.clocked(sample.Latency)
	}
	if o.gauged != nil {
		o.gauged.end(o.took(sample.Latency, class, err))
	}
	if s.measurer == nil {
		return
	}
	if said != nil {
		sample.Report, sample.Reported = reportOf(said)
	}
	s.measurer.Record(o.e, sample)
}

// gaveUp reports whether err says that the caller stopped waiting.
func gaveUp(err error) bool {
	c := outcome.Code(err)
	return c == codes.Canceled || c == codes.DeadlineExceeded
}

// weigh records what the end of a call says about the endpoint's health, and acts on it.
func (p *policy) weigh(s *settings, o ending, class outcome.Class, info gbalancer.DoneInfo) {
	e := o.e
	answered, failed := class == outcome.OK, false
	switch class {
	case outcome.OK:
		if e.health() != perfect {
			e.observe(health.ok)
		}
	case outcome.Soft:
		e.observe(health.answered)
	case outcome.Ignore:
		if answered = info.Err != nil && !gaveUp(info.Err); answered {
			e.observe(health.answered)
		}
	case outcome.Failure:
		doubtful := s.judge.doubts && outcome.Doubtful(info.Err)
		h := e.observe(func(h health) health { return h.fail(doubtful) })
		failed = !doubtful || h.corroborated()
		if o.claim == 0 && !o.kept {
			if h.trips(s.judge.failures) && e.phase() == healthy && p.eject(e, h.run(), info.Err) {
				o.tell(callctx.Ejected, info.Err)
			}
			return
		}
	}
	if o.claim != 0 || o.kept {
		p.verdict(o, answered, failed, info.Err)
	}
}
