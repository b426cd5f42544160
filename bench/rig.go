package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

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

// update hands a resolver's state to the policy and lets the connections settle.
func (r *Rig) update(s gresolver.State) error {
	r.ch.Answer()
	if err := r.b.UpdateClientConnState(gbalancer.ClientConnState{ResolverState: s, BalancerConfig: r.cfg}); err != nil {
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

// call is one pick and the end of its call, which is done.
func call(p gbalancer.Picker, info gbalancer.PickInfo, done *gbalancer.DoneInfo) (*Conn, error) {
	res, err := p.Pick(info)
	if err != nil {
		return nil, err
	}
	if res.Done != nil {
		res.Done(*done)
	}
	return res.SubConn.(*Conn), nil
}

// NewWorn builds a rig of n endpoints that can be called and two that cannot, for which these have happened: one was
// ejected after three failures, one drains, one that is called has got another weight. (Policies that know no
// ejections and no drains call n+2.) Then every endpoint gets some calls, with the filter and without. It is an error
// if evenkeel does not report all three, or calls one of the two.
func NewWorn(p Policy, n int) (*Rig, error) {
	r, err := newRig(p, !p.Lazy)
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
	if err := r.update(r.policy.state(fleet)); err != nil {
		return err
	}
	if err := r.connected(len(fleet)); err != nil {
		return err
	}
	bad := filters.NewContext(context.Background(), filters.ID(ejectedID), service)
	if r.policy.Key != nil {
		bad = r.policy.Key(bad, keyOf(0))
	}
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
	fleet[0].Weight = r.policy.weight()
	if err := r.update(r.policy.state(fleet)); err != nil {
		return err
	}
	if r.policy.ours() {
		if err := r.assertWorn(); err != nil {
			return err
		}
	}
	if r.policy.Option != "" {
		var err error
		if fleet, err = r.reconfigure(fleet); err != nil {
			return err
		}
	}
	if err := r.traffic(n); err != nil {
		return err
	}
	// Once more, so that what the policy has learned from the calls is in its picker now, and not after some period.
	return r.update(r.policy.state(fleet))
}

// connected waits until the policy can be measured: until its picker covers n endpoints, or if it is a lazy one until it
// is connected to those that the keys belong to.
func (r *Rig) connected(n int) error {
	if !r.policy.Lazy {
		_, err := r.covered(0, n)
		return err
	}
	infos, stop := Context{}.calls(r.policy)
	defer stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		r.ch.Settle()
		idle := 0
		for _, info := range infos {
			if _, err := call(r.ch.Picker(), info, &sent); errors.Is(err, gbalancer.ErrNoSubConnAvailable) {
				idle++
			} else if err != nil {
				return err
			}
		}
		if idle == 0 {
			return nil
		}
		select { // it connects on goroutines of its own
		case <-time.After(time.Millisecond):
		case <-late.C:
			return fmt.Errorf("%d of %d keys belong to nobody who is connected after %v", idle, len(infos), patience)
		}
	}
}

// reconfigure puts the policy's Option into force, and replaces one instance in ten if it wants newcomers. It returns the
// fleet as it is then.
func (r *Rig) reconfigure(fleet []registry.Instance) ([]registry.Instance, error) {
	cfg, err := lbtest.ParseConfig(r.policy.Name, r.policy.Option)
	if err != nil {
		return nil, fmt.Errorf("option: %w", err)
	}
	r.cfg = cfg
	if err := r.update(r.policy.state(fleet)); err != nil || !r.policy.Newcomers {
		return fleet, err
	}
	fleet = append([]registry.Instance(nil), fleet...)
	for i := newcomer; i < len(fleet); i += 10 {
		fleet[i].ID = "n" + strconv.Itoa(i)
	}
	return fleet, r.update(r.policy.state(fleet))
}

// newcomer is the first of those that are replaced, who do not meet Tenth.
const newcomer = 5

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
			reweighed = reweighed || e.Instance.ID == "i0" && e.Instance.Weight == r.policy.weight()
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
	picker := r.ch.Picker()
	for _, c := range []Context{{}, {Filtered: true}, {Deadline: true}} {
		if c.Filtered && n < 10 { // nobody is one in ten of three
			continue
		}
		infos, stop := c.calls(r.policy)
		defer stop()
		calls := callsEach * n
		if c.Filtered {
			calls /= 10
		}
		for i := range calls {
			index, err := r.reported(picker, infos[i%len(infos)])
			if err != nil {
				return err
			}
			if index >= n && r.policy.ours() {
				return errors.New("an instance that is ejected or draining was picked")
			}
		}
	}
	return nil
}

// reported is a call whose end brings the policy's load report, and after which probes are answered. It returns whose call
// it was.
func (r *Rig) reported(p gbalancer.Picker, info gbalancer.PickInfo) (index int, err error) {
	res, err := p.Pick(info)
	if err != nil {
		return 0, err
	}
	index = res.SubConn.(*Conn).index
	if res.Done != nil {
		done := sent
		if r.policy.Report != nil {
			done.ServerLoad = r.policy.Report(index)
		}
		res.Done(done)
	}
	r.ch.Answer()
	return index, nil
}

// Rigs are the worn rigs of one size, each made when a benchmark first wants it and kept for its repetitions. Make it
// with [NewRigs]; the caller closes it. It belongs to one goroutine.
type Rigs struct {
	n  int
	by map[string]*Rig
}

// NewRigs returns an empty set for n endpoints.
func NewRigs(n int) *Rigs { return &Rigs{n, make(map[string]*Rig)} }

// Of returns the rig of a policy, which is known by its label. It fails b if it cannot be made.
func (w *Rigs) Of(b *testing.B, p Policy) *Rig {
	b.Helper()
	r := w.by[p.Label]
	if r == nil {
		var err error
		if r, err = NewWorn(p, w.n); err != nil {
			b.Fatal(err)
		}
		w.by[p.Label] = r
	}
	return r
}

// Close ends all of them.
func (w *Rigs) Close() {
	for _, r := range w.by {
		r.Close()
	}
}
