package client

import (
	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Probe asks a server for its load, as [lb.Env] promises. The probe travels as a call does and takes none of its
// time from the server's requests but what answering costs.
func (c *Client) Probe(server int, timeout int64, answer func(lb.Load, bool)) {
	var p *probe
	if n := len(c.probes); n > 0 {
		p, c.probes = c.probes[n-1], c.probes[:n-1]
	} else {
		p = &probe{client: c}
	}
	c.probed++
	now := c.sim.Now()
	_, zone := c.servers.Server(server)
	*p = probe{client: c, server: server, ends: now + timeout, answer: answer, luck: c.salt + c.probed, zone: zone}
	c.recorder.Probed(server, now)
	p.schedule(now+p.delay(), reach)
}

// probe is one probe on its way. It is used again for others.
type probe struct {
	client *Client
	server int
	zone   string
	ends   int64 // when its time runs out
	answer func(lb.Load, bool)
	load   lb.Load
	ok     bool
	luck   uint64
}

func (p *probe) delay() int64 {
	p.luck = engine.Mix(p.luck)
	return p.client.cfg.Network.Delay(p.client.zone, p.zone, p.luck)
}

// schedule is for the time at, or for the end of the probe's time if that is before.
func (p *probe) schedule(at int64, kind uint8) {
	if at > p.ends {
		at, kind, p.ok = p.ends, expire, false
	}
	p.client.sim.At(at, p, kind, uint64(p.server))
}

// Handle implements [engine.Handler].
func (p *probe) Handle(kind uint8, _ uint64) {
	if kind == reach {
		s, _ := p.client.servers.Server(p.server)
		now := p.client.sim.Now()
		if p.load, p.ok = s.Probe(); p.ok || s.Down() {
			p.schedule(now+p.delay(), reply)
		} else {
			p.schedule(p.ends, expire)
		}
		return
	}
	answer, load, ok := p.answer, p.load, p.ok && kind == reply
	p.answer = nil
	p.client.probes = append(p.client.probes, p)
	answer(load, ok)
}
