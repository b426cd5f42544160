package balancer

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// eject takes e out after a run of failures that err ended. The run is handed over, because a success may have come
// in since.
func (p *policy) eject(e *Endpoint, run int, err error) bool {
	p.mu.Lock()
	if e.phase() != healthy || e.gone() || p.closed { // another call was faster, or the instance has left
		p.mu.Unlock()
		return false
	}
	p.putOut(e, fmt.Sprintf("%d calls in a row failed, the last with: %v", run, err))
	p.unlockAndPublish(urgent)
	return true
}

// putOut begins an ejection of e; mu is held.
func (p *policy) putOut(e *Endpoint, reason string) { p.putOutFor(e, 0, reason) }

// putOutFor is putOut for so long, 0 for as long as the blacklist says; mu is held.
func (p *policy) putOutFor(e *Endpoint, exactly time.Duration, reason string) {
	now := p.clock.Now()
	length := e.sentence.eject(now, &p.settings.judge, p.rand())
	if exactly != 0 {
		length, e.sentence.until = exactly, now+int64(exactly)
	}
	e.setPhase(ejected)
	e.giveUp() // or a probing call that hangs would keep the next one away
	p.sick[e] = struct{}{}
	p.setShare(e, ailing, e.health().worth(&p.settings.judge))
	p.counts.Ejections++
	p.markDirty(e.child)
	p.arm(e.sentence.until)
	p.tell(Event{Kind: Ejected, ID: e.id.ID, Addr: e.id.Addr, Reason: reason, For: length, Ejections: e.sentence.level})
}

// heal ends the ejection of e for good; mu is held.
func (p *policy) heal(e *Endpoint, reason string) {
	e.sentence.clear(p.clock.Now())
	e.observe(func(h health) health { return h & (1<<32 - 1) }) // no run of failures is left to count on
	e.setPhase(healthy)
	e.giveUp()
	delete(p.sick, e)
	p.setShare(e, ailing, 1)
	p.counts.Returns++
	p.markDirty(e.child)
	p.tell(Event{Kind: Returned, ID: e.id.ID, Addr: e.id.Addr, Reason: reason, Ejections: e.sentence.level})
}

// probe notes that the call which claimed e is under way, and when it counts as failed. It is not to be sent there as
// a probing call, and probe reports false, if others have decided about e since it was claimed.
func (p *policy) probe(e *Endpoint, claim uint32, stream bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.phase() != probing || e.claimed.Load() != claim || p.closed {
		e.unclaim(claim)
		return false
	}
	e.sentence.probeEnd = p.clock.Now() + p.settings.judge.probe
	e.sentence.stream = stream
	p.arm(e.sentence.probeEnd)
	return true
}

// release ends a probing call that has decided nothing.
func (p *policy) release(e *Endpoint, claim uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.unclaim(claim) {
		e.sentence.probeEnd = 0
	}
}

// verdict acts on the end of a call to an endpoint that is not in good standing: its probing call, or one that was
// sent there because too few others are left.
func (p *policy) verdict(o ending, answered, failed bool, err error) {
	e := o.e
	p.mu.Lock()
	if o.claim != 0 {
		if !e.unclaim(o.claim) { // it was given up, and has been judged
			p.mu.Unlock()
			return
		}
		e.sentence.probeEnd = 0
	}
	if e.gone() || p.closed {
		p.mu.Unlock()
		return
	}
	var kind callctx.EventKind
	switch {
	case answered && e.phase() != healthy:
		if e.phase() == ejected {
			// It was kept in, and well before its time was over: an ejection that was not served does not make the
			// next one longer, or a minute of trouble everywhere would keep half of the fleet out for five.
			e.sentence.level--
		}
		kind = callctx.Returned
		p.heal(e, "a call succeeded")
		if o.claim != 0 { // it was out; who was kept in has had its calls all the time
			p.warm(e)
		}
	case failed && e.phase() == probing:
		kind = callctx.Ejected
		p.putOut(e, fmt.Sprintf("a probing call failed: %v", err))
	default:
		if failed && e.phase() != healthy { // it is kept in, and worse than it was
			p.setShare(e, ailing, e.health().worth(&p.settings.judge))
			p.retop()
		}
		if len(p.dirty) > 0 { // it had a full share until now
			p.unlockAndPublish(relaxed)
			return
		}
		p.mu.Unlock()
		return
	}
	p.unlockAndPublish(urgent)
	o.tell(kind, err)
}

// arm sees to it that the sick endpoints are looked at when at has come; mu is held.
func (p *policy) arm(at int64) {
	if p.tick != nil {
		if p.tickAt <= at {
			return
		}
		p.stop(p.tick)
	}
	p.tickAt = at
	p.tick = p.after(max(0, at-p.clock.Now()), p.ticked)
}

// patients are the sick endpoints, in an order that does not depend on that of a map: each draws the jitter of its next
// ejection. mu is held.
func (p *policy) patients() []*Endpoint {
	return slices.SortedFunc(maps.Keys(p.sick), func(a, b *Endpoint) int { return cmp.Compare(a.number, b.number) })
}

// ticked looks at the sick endpoints: those whose time is over are to be probed, and a probing call that does not
// end is judged.
func (p *policy) ticked() {
	p.mu.Lock()
	p.tick = nil
	if p.closed {
		p.mu.Unlock()
		return
	}
	now := p.clock.Now()
	for _, e := range p.patients() {
		if due := e.sentence.due(e.phase()); due == 0 || due > now {
			continue
		}
		if e.phase() == ejected {
			e.setPhase(probing)
			e.sentence.until = 0
			p.markDirty(e.child)
			continue
		}
		e.giveUp()
		e.sentence.probeEnd = 0
		if !e.sentence.stream { // a stream that is open may be a healthy one
			p.putOut(e, fmt.Sprintf("a probing call did not end within %v", time.Duration(p.settings.judge.probe)))
		}
	}
	next := int64(0)
	for e := range p.sick {
		if due := e.sentence.due(e.phase()); due != 0 && (next == 0 || due < next) {
			next = due
		}
	}
	if next != 0 {
		p.arm(next)
	}
	if len(p.dirty) == 0 {
		p.mu.Unlock()
		return
	}
	p.unlockAndPublish(urgent)
}
