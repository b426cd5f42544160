package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/resolver"
)

const (
	stableVersion = "1.4.0"
	canaryVersion = "1.5.0-rc.1"
	baseEjection  = 2 * time.Second
)

// demo is the cast: five servers, a connection, and the traffic on it.
type demo struct {
	reg    registry.Registry
	fleet  []*instance
	conn   *grpc.ClientConn
	calls  *traffic
	screen *screen
}

func newDemo(ctx context.Context, reg registry.Registry, s *screen) (*demo, error) {
	d := &demo{reg: reg, screen: s}
	for i := range 5 {
		track, version := "stable", stableVersion
		if i == 4 {
			track, version = "canary", canaryVersion
		}
		in, err := startInstance(ctx, reg, fmt.Sprintf("%s-%d", track, i+1), track, version)
		if err != nil {
			d.close()
			return nil, err
		}
		d.fleet = append(d.fleet, in)
	}
	conn, err := grpc.NewClient("lb:///greeter",
		grpc.WithResolvers(resolver.NewBuilder(reg, // where the instances are
			resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{ // how to choose one
				Blacklist: balancer.Blacklist{BaseEjection: baseEjection},
			})))),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), // a failed call is to be seen
	)
	if err != nil {
		d.close()
		return nil, err
	}
	d.conn = conn
	return d, nil
}

// close stops everything, in order.
func (d *demo) close() {
	if d.calls != nil {
		d.calls.end()
	}
	if d.conn != nil {
		_ = d.conn.Close()
	}
	ended := make(chan struct{})
	for _, in := range d.fleet {
		go func() {
			_ = in.shutDown()
			ended <- struct{}{}
		}()
	}
	for range d.fleet {
		<-ended
	}
}

// act is one scene; it returns what was seen, or what did not hold.
type act struct {
	title string
	play  func(context.Context) (seen string, err error)
}

// play runs the acts one after another and sums up. An act that fails does not keep the others from being played.
func (d *demo) play(ctx context.Context) error {
	d.calls = startTraffic(ctx, d.conn)
	acts := []act{
		{"Five servers, one of them a canary. Plain calls spread over all of them.", d.spread},
		{`Calls that carry the filter track=canary go to the canary only.`, d.canary},
		{"One instance answers UNAVAILABLE to everything. It is blacklisted, and returns when it is well.", d.blacklist},
		{"All instances are replaced, one by one, under load.", d.roll},
	}
	var problems []error
	var summary []string
	for i, a := range acts {
		d.screen.act("%d. %s", i+1, a.title)
		seen, err := a.play(ctx)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		verdict := "ok    "
		if err != nil {
			verdict, seen = "FAILED", err.Error()
			problems = append(problems, fmt.Errorf("act %d: %w", i+1, err))
		}
		summary = append(summary, fmt.Sprintf("%s  %d. %s", verdict, i+1, seen))
	}
	d.screen.act("Summary")
	for _, line := range summary {
		d.screen.say("%s", line)
	}
	return errors.Join(problems...)
}

// watch shows the counts until done says so, or too much time has passed.
func (d *demo) watch(ctx context.Context, limit time.Duration, done func() bool) bool {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	over := time.After(limit)
	for {
		d.screen.show(d.calls.now())
		if done() {
			return true
		}
		select {
		case <-tick.C:
		case <-over:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (d *demo) spread(ctx context.Context) (string, error) {
	// Count from when all five are connected.
	d.calls.begin(filters.Filter{})
	if !d.watch(ctx, 5*time.Second, func() bool { return len(d.calls.now().by) == len(d.fleet) }) {
		return "", fmt.Errorf("only %d of %d instances answered within 5 s", len(d.calls.now().by), len(d.fleet))
	}
	d.calls.begin(filters.Filter{})
	d.watch(ctx, 3*time.Second, func() bool { return false })
	c := d.calls.now()
	if c.failed > 0 {
		return "", fmt.Errorf("%d of %d calls failed, the last with: %w", c.failed, c.calls, c.lastErr)
	}
	fair := float64(c.calls) / float64(len(d.fleet))
	for _, in := range d.fleet {
		// In turn, so the shares are equal but for the calls of the moment.
		if n := c.by[in.id]; float64(n) < 0.9*fair || float64(n) > 1.1*fair {
			return "", fmt.Errorf("%s got %d of %d calls, want about %.0f", in.id, n, c.calls, fair)
		}
	}
	return fmt.Sprintf("%d calls, 0 failed, about %.0f for each of %d instances", c.calls, fair, len(d.fleet)), nil
}

func (d *demo) canary(ctx context.Context) (string, error) {
	d.calls.begin(filters.Label("track", "canary"))
	d.watch(ctx, 2*time.Second, func() bool { return false })
	c := d.calls.now()
	canary := d.fleet[len(d.fleet)-1]
	switch {
	case c.failed > 0:
		return "", fmt.Errorf("%d of %d calls failed, the last with: %w", c.failed, c.calls, c.lastErr)
	case c.calls == 0 || c.by[canary.id] != c.calls:
		return "", fmt.Errorf("the canary answered %d of %d calls, want all", c.by[canary.id], c.calls)
	}
	return fmt.Sprintf("%d calls, 0 failed, all of them to %s", c.calls, canary.id), nil
}

func (d *demo) blacklist(ctx context.Context) (string, error) {
	sick := d.fleet[1]
	d.calls.begin(filters.Filter{})
	sick.failing.Store(true)
	if !d.watch(ctx, 5*time.Second, func() bool { return endpoint(sick.id).Ejected }) {
		return "", fmt.Errorf("%s was not blacklisted within 5 s", sick.id)
	}
	d.screen.say("%s is out", sick.id)
	d.watch(ctx, time.Second, func() bool { return false })
	lost := d.calls.now().failed
	sick.failing.Store(false)
	d.screen.say("%s is well again, and waits for its ejection to end", sick.id)
	before := d.calls.now().by[sick.id]
	if !d.watch(ctx, 3*baseEjection, func() bool { return d.calls.now().by[sick.id] > before+10 }) {
		return "", fmt.Errorf("%s has not come back within %v", sick.id, 3*baseEjection)
	}
	// Three failures in a row, and what the other callers had under way there by then.
	if c := d.calls.now(); c.failed > 3+callers {
		return "", fmt.Errorf("%d calls failed, want 3 and at most %d that were under way", c.failed, callers)
	}
	return fmt.Sprintf("%s was out after %d failed calls, and back when it was well", sick.id, lost), nil
}

func (d *demo) roll(ctx context.Context) (string, error) {
	d.calls.begin(filters.Filter{})
	for i, old := range d.fleet {
		version := stableVersion
		if old.track == "canary" {
			version = canaryVersion
		}
		next, err := startInstance(ctx, d.reg, old.id+"b", old.track, version)
		if err != nil {
			return "", err
		}
		d.fleet[i] = next
		stopped := make(chan error, 1)
		go func() { stopped <- old.shutDown() }()
		var stopErr error
		gone := func() bool {
			select {
			case stopErr = <-stopped:
				return true
			default:
				return false
			}
		}
		if !d.watch(context.WithoutCancel(ctx), time.Minute, gone) || stopErr != nil {
			return "", fmt.Errorf("%s did not stop in order: %w", old.id, stopErr)
		}
	}
	all := func() bool {
		by := d.calls.now().by
		for _, in := range d.fleet {
			if by[in.id] == 0 {
				return false
			}
		}
		return true
	}
	if !d.watch(ctx, 5*time.Second, all) {
		return "", errors.New("not all of the new instances got calls within 5 s")
	}
	c := d.calls.now()
	if c.failed > 0 {
		return "", fmt.Errorf("%d of %d calls failed, the last with: %w", c.failed, c.calls, c.lastErr)
	}
	return fmt.Sprintf("%d instances replaced, %d calls, 0 failed", len(d.fleet), c.calls), nil
}

// endpoint is what the client knows about an instance.
func endpoint(id string) balancer.EndpointState {
	for _, ch := range balancer.Channels() {
		for _, e := range ch.Endpoints {
			if e.Instance.ID == id {
				return e
			}
		}
	}
	return balancer.EndpointState{}
}
