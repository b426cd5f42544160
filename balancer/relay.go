package balancer

import "time"

// relayer is implemented by a [Strategy] whose choosers are to look at what changed now and then, off the hot path.
type relayer interface {
	// relayEvery is the time between two looks.
	relayEvery() time.Duration
}

// relayed is a chooser of a relayer.
type relayed interface {
	// relay looks. It is called by one goroutine at a time, while calls use the chooser.
	relay(now int64)
}

// scheduleRelay sees to it that the choosers are told, if the strategy wants that; mu is held.
func (p *policy) scheduleRelay() {
	if r, ok := p.settings.strategy.(relayer); ok && p.relay == nil {
		p.relay = p.after(int64(r.relayEvery()), p.relayNow)
	}
}

// relayNow tells the choosers, and waits with the next time until that is done: so no two run at once.
func (p *policy) relayNow() {
	p.mu.Lock()
	var choosers []relayed
	if !p.closed {
		for _, r := range p.allRoutes() {
			for _, set := range r.set.andParts() {
				if c, ok := set.chooser.(relayed); ok {
					choosers = append(choosers, c)
				}
			}
		}
	}
	p.mu.Unlock()
	now := p.clock.Now()
	for _, c := range choosers {
		c.relay(now)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.relay = nil
	if !p.closed {
		p.scheduleRelay()
	}
}
