package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync/atomic"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// Rig is a policy on a [Channel]. Make it with [NewWorn]; the caller closes it. It belongs to one goroutine.
type Rig struct {
	policy Policy
	ch     *Channel
	b      gbalancer.Balancer
	cfg    serviceconfig.LoadBalancingConfig
	target string
}

// rigs numbers them, so that each finds itself in balancer.Channels.
var rigs atomic.Uint64

func newRig(p Policy, eager bool) (*Rig, error) {
	builder, err := p.builder()
	if err != nil {
		return nil, err
	}
	cfg, err := p.parse()
	if err != nil {
		return nil, err
	}
	// The authority tells rigs apart; the service is the same, since filters are bound to it.
	target := gresolver.Target{URL: url.URL{
		Scheme: "lb", Host: "rig" + strconv.FormatUint(rigs.Add(1), 10), Path: "/" + service,
	}}
	r := &Rig{policy: p, ch: newChannel(eager), cfg: cfg, target: target.String()}
	r.b = builder.Build(r.ch, gbalancer.BuildOptions{Target: target})
	return r, nil
}

// Close ends the policy.
func (r *Rig) Close() {
	r.b.Close()
	r.ch.Settle()
}

// update hands endpoints to the policy and lets their connections settle.
func (r *Rig) update(eps []gresolver.Endpoint) error {
	if err := lbtest.Update(r.b, r.cfg, eps); err != nil {
		return fmt.Errorf("policy %s: update: %w", r.policy.Label, err)
	}
	r.ch.Settle()
	return nil
}

// covered waits for the first picker, published after number seq, that covers n endpoints.
func (r *Rig) covered(seq, n int) (publication, error) {
	return r.ch.await(seq, func(p publication) bool { return r.ch.Covers(p.picker, n) })
}

// sent is the end of a call that went well. It is a variable, since making it anew for every call costs as much as a
// pick, and that is grpc-go's work and not the policy's.
var sent = gbalancer.DoneInfo{BytesSent: true, BytesReceived: true}

// call is one pick and the end of its call.
func (r *Rig) call(p gbalancer.Picker, info gbalancer.PickInfo) (*Conn, error) {
	res, err := p.Pick(info)
	if err != nil {
		return nil, err
	}
	conn := res.SubConn.(*Conn)
	if res.Done == nil {
		return conn, nil
	}
	if r.policy.Report == nil {
		res.Done(sent)
		return conn, nil
	}
	done := sent
	done.ServerLoad = r.policy.Report(conn.index)
	res.Done(done)
	return conn, nil
}

// NewWorn builds a rig of n endpoints that can be called and two that cannot, for which these have happened: one was
// ejected after three failures, one drains, one that is called has got another weight. (Policies that know no
// ejections and no drains call n+2.) Then every endpoint gets some calls, with the filter and without. It is an error
// if evenkeel does not report all three, or calls one of the two.
func NewWorn(p Policy, n int) (*Rig, error) {
	r, err := newRig(p, true)
	if err != nil {
		return nil, err
	}
	if err := r.wear(n); err != nil {
		r.Close()
		return nil, fmt.Errorf("policy %s, n = %d: %w", p.Label, n, err)
	}
	return r, nil
}

func (r *Rig) wear(n int) error {
	fleet := wornFleet(n)
	if err := r.update(lbtest.Endpoints(fleet...)); err != nil {
		return err
	}
	if _, err := r.covered(0, len(fleet)); err != nil {
		return err
	}
	bad := filters.NewContext(context.Background(), filters.ID(ejectedID), service)
	for range 3 {
		res, err := r.ch.Picker().Pick(gbalancer.PickInfo{Ctx: bad, FullMethodName: method})
		if err != nil {
			return err
		}
		if res.Done != nil {
			res.Done(gbalancer.DoneInfo{Err: status.Error(codes.Unavailable, "bench"), BytesSent: true})
		}
	}
	fleet = append([]registry.Instance(nil), fleet...) // what was handed over must not be modified
	fleet[n+1].Draining = true
	fleet[0].Weight = 3
	if err := r.update(lbtest.Endpoints(fleet...)); err != nil {
		return err
	}
	if r.policy.ours() {
		if err := r.assertWorn(); err != nil {
			return err
		}
	}
	return r.traffic(n)
}

// assertWorn checks evenkeel's own report.
func (r *Rig) assertWorn() error {
	var ejected, draining, reweighed bool
	for _, c := range balancer.Channels() {
		if c.Target != r.target {
			continue
		}
		for _, e := range c.Endpoints {
			if e.State != connectivity.Ready {
				return fmt.Errorf("instance %s is %v, want READY", e.Instance.ID, e.State)
			}
			ejected = ejected || e.Instance.ID == ejectedID && e.Ejected
			draining = draining || e.Instance.ID == drainingID && e.Instance.Draining
			reweighed = reweighed || e.Instance.ID == "i0" && e.Instance.Weight == 3
		}
	}
	if !ejected || !draining || !reweighed {
		return fmt.Errorf("ejected %t, draining %t, weight changed %t, want all three", ejected, draining, reweighed)
	}
	return nil
}

// callsEach is how many calls each endpoint gets before it is measured: more than the 20 outcomes that evenkeel
// remembers of each.
const callsEach = 25

// traffic makes calls until each of n endpoints has had some, and checks that the two others had none.
func (r *Rig) traffic(n int) error {
	for _, c := range []Context{{}, {Filtered: true}, {Deadline: true}} {
		ctx, stop := c.New()
		defer stop()
		picker := r.ch.Picker()
		info := gbalancer.PickInfo{Ctx: ctx, FullMethodName: method}
		if c.Filtered && n < 10 { // nobody is one in ten of three
			continue
		}
		for range callsEach * n {
			conn, err := r.call(picker, info)
			if err != nil {
				return err
			}
			if conn.index >= n && r.policy.ours() {
				return errors.New("an instance that is ejected or draining was picked")
			}
		}
	}
	return nil
}
