package balancer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// SlowStart gives an instance that is new, restarted or back from the blacklist time to warm up: its share of the calls
// grows from MinPercent of what the strategy would give it to all of it within Window. Its zero value is switched off.
//
// It works with every strategy, since it is not the strategy that does it: of the calls that the strategy would
// give to the instance, so many go to whom it names next. With the strategy hash the keys of a new instance are
// therefore served by it and by the key's next instance for a while.
//
// An instance is new when it joins others, from its first connection on: those that the client finds when it starts
// are not. One that comes back at its old address with a new ID is new. One with the same ID is when its connection broke
// and the next attempt failed, since then its process was most likely restarted; one that can be reached again at once,
// as after a GOAWAY, is not. What counts is the difference to the others: where all are new, as after a deployment at
// once, nobody is spared, and no call is ever refused or delayed.
//
// Every client ramps up on its own. With few calls, a tenth of them is too few to warm anything up; then leave it off.
type SlowStart struct {
	// Window is how long an instance takes to get all of its calls; 0 switches slow start off. 10 to 60 s suit
	// servers with a cache or a just-in-time compiler.
	Window time.Duration
	// MinPercent is the share to begin with, from 1 to 100; 0 means 10.
	MinPercent int
	// Aggression shapes the ramp: the share at the time t is (t/Window)^(1/Aggression), from 0.1 to 100. 0 means 1,
	// which is a straight line; above 1 it grows faster at first, and below 1 faster at last (Envoy's slow start).
	Aggression float64
}

// slowStartJSON is a SlowStart as it stands in JSON, where durations are texts such as "30s".
type slowStartJSON struct {
	Window     strictjson.Duration `json:"window,omitzero"`
	MinPercent int                 `json:"minPercent,omitempty"`
	Aggression float64             `json:"aggression,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (s SlowStart) MarshalJSON() ([]byte, error) {
	return json.Marshal(slowStartJSON{strictjson.Duration(s.Window), s.MinPercent, s.Aggression})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (s *SlowStart) UnmarshalJSON(js []byte) error {
	var j slowStartJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return strictjson.At("slowStart", err)
	}
	*s = SlowStart{time.Duration(j.Window), j.MinPercent, j.Aggression}
	return nil
}

// ramp is a validated SlowStart with its defaults filled in.
type ramp struct {
	window   int64 // ns; 0 for off
	least    float64
	exponent float64
}

func (s SlowStart) resolve() (ramp, error) {
	if s.Window < 0 || s.Window > maxEjectionTime {
		return ramp{}, fmt.Errorf("slowStart.window = %v, want 0 to %v", s.Window, maxEjectionTime)
	}
	if s.MinPercent < 0 || s.MinPercent > 100 {
		return ramp{}, fmt.Errorf("slowStart.minPercent = %d, want 1 to 100", s.MinPercent)
	}
	if s.Aggression != 0 && !(s.Aggression >= 0.1 && s.Aggression <= 100) {
		return ramp{}, fmt.Errorf("slowStart.aggression = %v, want 0.1 to 100", s.Aggression)
	}
	if s.Window == 0 && s != (SlowStart{}) {
		return ramp{}, fmt.Errorf("slowStart.window = 0 with other fields set, want a window such as 30s")
	}
	return ramp{
		window: int64(s.Window), least: float64(cmp.Or(s.MinPercent, 10)) / 100, exponent: 1 / cmp.Or(s.Aggression, 1),
	}, nil
}

// share is what an endpoint gets after a time of t nanoseconds.
func (r ramp) share(t int64) float64 {
	if t >= r.window {
		return 1
	}
	return max(r.least, math.Pow(float64(max(t, 0))/float64(r.window), r.exponent))
}

// step is the time between two looks at the endpoints that warm up: with 64 of them a step of a straight ramp is less
// than 2 % of an endpoint's calls.
func (r ramp) step() int64 { return max(r.window/64, int64(time.Millisecond)) }

// cools notes that the connection to e is in state s now, and reports whether it can be called from now on and is cold: it
// was never called before, or it was restarted. That is what a connection says that broke and could not be made anew at
// once (ADR-0020). An attempt that fails before there ever was a connection says nothing, and neither does a health
// check that fails on one that holds. mu is held.
func (e *Endpoint) cools(s connectivity.State) bool {
	switch s {
	case connectivity.Idle: // pick_first says that of a connection that broke
		e.lost = e.sc != nil
	case connectivity.TransientFailure:
		e.cold = e.cold || e.lost
	case connectivity.Ready:
		cold := e.newcomer || e.cold
		e.lost, e.cold = false, false
		return cold
	}
	return false
}

// warm begins the slow start of e, which gets its first call now, or is back from the blacklist or a restart; mu is held.
func (p *policy) warm(e *Endpoint) {
	e.newcomer = false
	r := p.settings.ramp
	if r.window == 0 {
		return
	}
	e.warmSince = p.clock.Now()
	if !e.warms { // else it was ejected, and is back, before it was warm
		e.warms = true
		p.warming = append(p.warming, e)
	}
	p.setShare(e, warming, r.share(0))
	if p.warmer == nil {
		p.warmer = p.after(r.step(), p.warmed)
	}
}

// warmed gives the endpoints that warm up their next share.
func (p *policy) warmed() {
	p.mu.Lock()
	p.warmer = nil
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.reheat()
	if len(p.dirty) == 0 {
		p.mu.Unlock()
		return
	}
	p.unlockAndPublish(relaxed)
}

// reheat sets the shares of the endpoints that warm up by the ramp that is in force now; mu is held.
func (p *policy) reheat() {
	now, r := p.clock.Now(), p.settings.ramp
	p.warming = slices.DeleteFunc(p.warming, func(e *Endpoint) bool {
		if e.gone() {
			return true
		}
		e.warmSince = min(e.warmSince, now) // the clock was set back: do not wait for it to catch up
		share := r.share(now - e.warmSince)
		p.setShare(e, warming, share)
		e.warms = now-e.warmSince < r.window
		return !e.warms
	})
	p.retop()
	if len(p.warming) > 0 && p.warmer == nil {
		p.warmer = p.after(r.step(), p.warmed)
	}
}
