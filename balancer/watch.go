package balancer

import (
	"github.com/evenkeel/evenkeel/balancer/outlier"
	"github.com/evenkeel/evenkeel/internal/clock"
)

// watch is what a policy has for [Outliers]: it lays the counters of its endpoints before a detector, now and then, and
// does what that decides. It is guarded by policy.mu but for the policy's flag watching.
//
// While nothing fails there is nothing to compare, so nobody looks. The first failure after a quiet time begins a
// watch: the counters are read, and from then on at each interval, until nothing has failed for as long as the
// detector looks back. So a call that succeeds does nothing for it, and one that fails reads a flag. The failure that
// began a watch is not counted in it; if the instance is bad there will be more.
type watch struct {
	judge     outlier.Judge
	timer     clock.Timer
	quiet     int64 // since when nothing has failed
	failures  uint64
	endpoints []*Endpoint // that are judged
	hosts     []*outlier.Host
}

// refit takes over the settings' idea of outliers: it ends the watch under way and begins another if one is always
// kept. mu is held, or the policy is not in use yet.
func (p *policy) refit() {
	p.endWatch()
	p.watch.judge = nil
	v := p.settings.vigil
	if v == nil {
		return
	}
	judge, err := v.judge(p.rand)
	if err != nil {
		panic(err) // not reachable: the settings were validated by making one
	}
	p.watch.judge = judge
	if v.always {
		p.beginWatch()
	}
}

// alarm begins a watch because a call to e failed.
func (p *policy) alarm(e *Endpoint) {
	p.mu.Lock()
	if p.watch.judge != nil && !p.watching.Load() && !e.gone() && !p.closed {
		p.beginWatch()
	}
	p.mu.Unlock()
}

func (p *policy) beginWatch() {
	w := &p.watch
	p.watching.Store(true)
	w.quiet, w.failures = p.clock.Now(), 0
	p.call()
	w.judge.Step(w.quiet, w.hosts) // nothing is decided yet: all begin here
	w.timer = p.after(int64(w.judge.Interval()), p.patrol)
}

func (p *policy) endWatch() {
	w := &p.watch
	p.watching.Store(false)
	p.stop(w.timer)
	w.timer = nil
	for _, e := range p.known {
		p.unwatch(e)
	}
	clear(w.endpoints)
	w.endpoints, w.hosts = w.endpoints[:0], w.hosts[:0]
}

// unwatch forgets what the detector knows about e.
func (p *policy) unwatch(e *Endpoint) {
	if e.host == nil {
		return
	}
	e.host, e.spared = nil, 0
	if e.reserved[lagging] != 0 {
		p.setShare(e, lagging, 1)
	}
}

// patrol is a look at the endpoints.
func (p *policy) patrol() {
	p.mu.Lock()
	w := &p.watch
	w.timer = nil
	if p.closed || w.judge == nil {
		p.mu.Unlock()
		return
	}
	now := p.clock.Now()
	p.call()
	for _, v := range w.judge.Step(now, w.hosts) {
		p.obey(now, w.endpoints[v.Host], v)
	}
	if p.settings.vigil.times() && !p.settings.vigil.dryRun {
		p.reweigh()
	}
	if now < w.quiet {
		w.quiet = now
	}
	if !p.settings.vigil.always && now-w.quiet > int64(outlier.Span) {
		p.endWatch()
	} else {
		w.timer = p.after(int64(w.judge.Interval()), p.patrol)
	}
	if len(p.dirty) == 0 {
		p.mu.Unlock()
		return
	}
	p.unlockAndPublish(urgent)
}

// call reads the counters of all endpoints that could get calls, or could if they were not out; mu is held. The others
// are forgotten: what they did before is old when they are back.
func (p *policy) call() {
	w := &p.watch
	before := w.endpoints
	w.endpoints, w.hosts = w.endpoints[:0], w.hosts[:0]
	now, total := p.clock.Now(), uint64(0)
	for _, e := range p.known {
		if e.conn.Load() == nil || e.Instance().Draining {
			p.unwatch(e)
			continue
		}
		if e.host == nil {
			e.host = new(outlier.Host)
		}
		h := e.host
		// Failures before calls, so that there are never more of them.
		if p.settings.vigil.a50 != nil {
			h.Failures = e.counted().errors.Load()
			h.Calls = e.ended.Load()
		} else {
			h.Failures = e.failures.Load()
			silent := e.counted().silent.Load()
			h.Calls = max(e.ended.Load(), silent) - silent
		}
		h.Timed = e.counted().timed.Load()
		h.Latency = e.counted().latency.Load()
		h.Out = e.phase() != healthy || e.spared > now
		total += h.Failures
		w.endpoints, w.hosts = append(w.endpoints, e), append(w.hosts, h)
	}
	if n := len(w.endpoints); n < len(before) {
		clear(before[n:]) // or what is gone would stay in memory
	}
	if total != w.failures { // somebody who left counts as a failure, which does no harm
		w.quiet, w.failures = now, total
	}
}

// obey does what the detector says about e, or only tells about it; mu is held.
func (p *policy) obey(now int64, e *Endpoint, v outlier.Verdict) {
	switch s := p.settings; {
	case v.Return: // A50: e comes back when its time is over, a moment before the sweep that says so
	case s.vigil.dryRun:
		length := int64(v.For)
		if length == 0 {
			length = s.judge.base
			e.spared = now + length
		}
		p.counts.WouldEject++
		p.tell(Event{Kind: WouldEject, ID: e.id.ID, Addr: e.id.Addr, Reason: v.Reason, For: nanoseconds(length),
			Ejections: e.sentence.level})
	case s.vigil.ejects && e.phase() == healthy:
		p.putOutFor(e, v.For, v.Reason)
	}
}

// reweigh takes over the shares that the detector gives for latency; mu is held.
func (p *policy) reweigh() {
	changed := false
	for i, e := range p.watch.endpoints {
		share := p.watch.hosts[i].Share()
		if float32(1-share) != e.reserved[lagging] {
			p.setShare(e, lagging, share)
			changed = true
		}
	}
	if changed {
		p.retop()
	}
}

// clocked notes how long a call took, for those who ask about latency.
func (e *Endpoint) clocked(latency int64) {
	e.tally().latency.Add(uint64(latency))
	e.tally().timed.Add(1)
}

// silent notes the end of a call that says nothing about e. Where no watch is on nobody counts: the detector goes by
// differences from when it began, so it misses nothing.
func (p *policy) silent(e *Endpoint) {
	if p.watching.Load() {
		e.tally().silent.Add(1)
	}
}

// failed notes that a call to e ended with an error, whatever it says; only A50's detectors ask for that.
func (v *vigil) failed(e *Endpoint) {
	if v != nil && v.a50 != nil {
		e.tally().errors.Add(1)
	}
}
