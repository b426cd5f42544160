package oteltrace

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// Sources are the wrappers that [Watch] reports on, by names of your choice, which become the attribute
// "evenkeel.name". The process's balancers are reported without being named here.
type Sources struct {
	Retriers map[string]*retry.Retrier
	Breakers map[string]*breaker.Breakers
	Limiters map[string]*ratelimit.Limiter
}

// phases are what a breaker can be in.
var phases = []breaker.Phase{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Recovering}

// Watch reports what the sources and the balancers know whenever the provider's reader collects: the package
// documentation lists the metrics. nil means otel.GetMeterProvider(). stop ends it; call it once. The maps must not be
// changed afterwards. Collecting takes the locks that calls take, for a moment each, and time in proportion to the
// number of endpoints.
func Watch(p metric.MeterProvider, s Sources) (stop func() error, err error) {
	if p == nil {
		p = otel.GetMeterProvider()
	}
	m := p.Meter(scopeName)
	w, err := newWatch(m)
	if err != nil {
		return nil, fmt.Errorf("oteltrace: %w", err)
	}
	reg, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		w.retriers(o, s.Retriers)
		w.breakers(o, s.Breakers)
		w.limiters(o, s.Limiters)
		w.channels(o, balancer.Channels())
		return nil
	}, w.all...)
	if err != nil {
		return nil, fmt.Errorf("oteltrace: %w", err)
	}
	return reg.Unregister, nil
}

// watch is the instruments.
type watch struct {
	budget                                                  metric.Float64ObservableGauge
	state, concurrency, blacklist, endpoints                metric.Int64ObservableGauge
	budgetRefused, breakerRejected, limitRejected, ejection metric.Int64ObservableCounter
	all                                                     []metric.Observable
}

func newWatch(m metric.Meter) (*watch, error) {
	w := new(watch)
	var err error
	w.budget, err = m.Float64ObservableGauge("evenkeel.retry.budget", metric.WithUnit("{retry}"),
		metric.WithDescription("Retries that the budget would pay for now."))
	if err != nil {
		return nil, err
	}
	w.all = append(w.all, w.budget)
	for _, g := range []struct {
		to               *metric.Int64ObservableGauge
		name, unit, text string
	}{
		{&w.state, "evenkeel.breaker.state", "1", "1 for the state that the breaker is in, 0 for the others."},
		{&w.concurrency, "evenkeel.ratelimit.concurrency", "{call}", "Calls that the adaptive limit allows at a time."},
		{&w.blacklist, "evenkeel.blacklist.size", "{instance}", "Instances that are blacklisted now."},
		{&w.endpoints, "evenkeel.endpoints", "{instance}", "Instances by the state of their connection."},
	} {
		if *g.to, err = m.Int64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.text)); err != nil {
			return nil, err
		}
		w.all = append(w.all, *g.to)
	}
	for _, c := range []struct {
		to               *metric.Int64ObservableCounter
		name, unit, text string
	}{
		{&w.budgetRefused, "evenkeel.retry.refused", "{attempt}", "Retries and hedges that the budget did not pay for."},
		{&w.breakerRejected, "evenkeel.breaker.rejected", "{call}", "Calls that the breaker turned away."},
		{&w.limitRejected, "evenkeel.ratelimit.rejected", "{call}", "Calls that the limiter refused."},
		{&w.ejection, "evenkeel.blacklist.ejections", "{instance}", "Instances that were blacklisted."},
	} {
		if *c.to, err = m.Int64ObservableCounter(c.name, metric.WithUnit(c.unit), metric.WithDescription(c.text)); err != nil {
			return nil, err
		}
		w.all = append(w.all, *c.to)
	}
	return w, nil
}

func name(n string) attribute.KeyValue { return attribute.String("evenkeel.name", n) }

func (w *watch) retriers(o metric.Observer, all map[string]*retry.Retrier) {
	for n, r := range all {
		s := r.State()
		o.ObserveFloat64(w.budget, s.Balance, metric.WithAttributes(name(n)))
		for _, m := range s.Methods {
			o.ObserveInt64(w.budgetRefused, m.Refused, metric.WithAttributes(name(n), attribute.String("rpc.method", nameOf(m.Method))))
		}
	}
}

func (w *watch) breakers(o metric.Observer, all map[string]*breaker.Breakers) {
	for n, b := range all {
		for _, s := range b.State().Breakers {
			which := attribute.String("evenkeel.breaker", s.Name)
			o.ObserveInt64(w.breakerRejected, int64(s.Rejected), metric.WithAttributes(name(n), which))
			for _, p := range phases {
				is := int64(0)
				if p == s.Phase {
					is = 1
				}
				o.ObserveInt64(w.state, is, metric.WithAttributes(name(n), which, attribute.String("state", p.String())))
			}
		}
	}
}

func (w *watch) limiters(o metric.Observer, all map[string]*ratelimit.Limiter) {
	for n, l := range all {
		for _, s := range l.State().Scopes {
			scope := attribute.String("evenkeel.scope", s.Scope)
			for reason, count := range map[string]uint64{"rate": s.Refused.Rate, "cost": s.Refused.Cost,
				"concurrency": s.Refused.Concurrency, "deadline": s.Refused.Deadline} {
				o.ObserveInt64(w.limitRejected, int64(count), metric.WithAttributes(name(n), scope, attribute.String("reason", reason)))
			}
			if s.Concurrency != nil {
				o.ObserveInt64(w.concurrency, int64(s.Concurrency.Limit), metric.WithAttributes(name(n), scope))
			}
		}
	}
}

// channels sums up by target, since a process may have several connections to one.
func (w *watch) channels(o metric.Observer, all []balancer.ChannelState) {
	type counts struct {
		blacklisted, ejections int64
		states                 map[string]int64
	}
	targets := make(map[string]*counts)
	for _, ch := range all {
		c := targets[ch.Target]
		if c == nil {
			c = &counts{states: make(map[string]int64)}
			targets[ch.Target] = c
		}
		c.ejections += int64(ch.Counters.Ejections)
		for _, e := range ch.Endpoints {
			c.states[e.State.String()]++
			if e.Ejected {
				c.blacklisted++
			}
		}
	}
	for t, c := range targets {
		target := attribute.String("evenkeel.target", t)
		o.ObserveInt64(w.blacklist, c.blacklisted, metric.WithAttributes(target))
		o.ObserveInt64(w.ejection, c.ejections, metric.WithAttributes(target))
		for state, n := range c.states {
			o.ObserveInt64(w.endpoints, n, metric.WithAttributes(target, attribute.String("state", state)))
		}
	}
}
