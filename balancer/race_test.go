package balancer

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/balancer/outlier"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/internal/leak"
)

func pickInfo(t testing.TB) gbalancer.PickInfo {
	return gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/a/b"}
}

// storm is a policy on the real clock, under calls, while everything changes.
type storm struct {
	t       *testing.T
	cc      *lbtest.ClientConn
	p       *policy
	configs []serviceconfig.LoadBalancingConfig
	// gone is, for each address, since which event it is unknown; 0 while it is known.
	gone  [30]atomic.Int64
	event atomic.Int64
	stop  atomic.Bool
	calls atomic.Int64
	mu    sync.Mutex // guards ever
	ever  map[*Endpoint]bool
}

// TestStorm: eight goroutines pick and end calls at random while endpoints come and go, connections break, and
// filters and configurations change. In the end every call that began was counted out, and at no time did a pick
// return an endpoint that an update had removed before the pick began.
func TestStorm(t *testing.T) {
	leak.Check(t)
	s := &storm{t: t, cc: lbtest.New(), ever: make(map[*Endpoint]bool)}
	for _, c := range []Config{
		{Blacklist: Blacklist{BaseEjection: time.Millisecond, ProbeTimeout: time.Millisecond}},
		{Strategy: PeakEWMA{}, Blacklist: Blacklist{BaseEjection: 500 * time.Microsecond}},
		{Strategy: LeastRequest{}, Filter: filters.Label("half", "0")},
		{Strategy: Weighted{}, Blacklist: Blacklist{Disabled: true}},
		{Strategy: Weighted{Load: "orca", Blackout: 1, Update: leastUpdate}, Zone: Zone{Local: "z0"},
			SlowStart: SlowStart{Window: 2 * time.Millisecond}, Blacklist: Blacklist{BaseEjection: time.Millisecond}},
		{Strategy: Hash{MaxLoad: 1}, Blacklist: Blacklist{BaseEjection: time.Millisecond}},
		{Outliers: Outliers{Slow: 2}, Blacklist: Blacklist{BaseEjection: time.Millisecond}},
		{Outliers: Outliers{A50: &outlier.A50{Interval: time.Millisecond, BaseEjectionTime: time.Millisecond,
			FailurePercentageEjection: &outlier.FailurePercentageEjection{Threshold: 1, MinimumHosts: 1, RequestVolume: 1}}}},
		{Strategy: Random{}, Require: filters.LabelIn("third", "0", "1"), Blacklist: Blacklist{BaseEjection: time.Microsecond, MaxEjectedPercent: 100}},
	} {
		s.configs = append(s.configs, mustParse(t, c))
	}
	s.p = lbtest.Build(s.cc, Name, "orders").(*policy)
	defer Observe(func(Event) { Channels() })()
	s.update(rand.New(rand.NewPCG(1, 1)))
	s.cc.Settle()

	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() { s.call(rand.New(rand.NewPCG(2, uint64(g)))) })
	}
	rnd := rand.New(rand.NewPCG(3, 3))
	deadline := time.Now().Add(time.Minute)
	for changes := 0; (changes < 150 || s.calls.Load() < 5000) && time.Now().Before(deadline); changes++ {
		s.change(rnd)
		for range rnd.IntN(40) {
			if !s.cc.Step() {
				runtime.Gosched()
			}
		}
	}
	s.stop.Store(true)
	wg.Wait()
	s.p.Close()
	var started, ended uint64
	for e := range s.ever {
		if e.InFlight() != 0 {
			t.Errorf("endpoint %s: %d calls are in flight after all have ended", e.id.Addr, e.InFlight())
		}
		started += e.started.Load()
		ended += e.ended.Load()
	}
	if started != ended || started != uint64(s.calls.Load()) || started == 0 {
		t.Errorf("%d calls were made, %d counted in, %d counted out", s.calls.Load(), started, ended)
	}
	if n := len(s.p.routes); n > maxRoutes {
		t.Errorf("%d routes, want %d at most", n, maxRoutes)
	}
	c := s.p.describe().Counters
	if c.Ejections == 0 || c.Returns == 0 {
		t.Errorf("%+v: the storm had no ejection or no return in it, so it proves little", c)
	}
}

// change does one thing to the policy, from the goroutine that drives it.
func (s *storm) change(rnd *rand.Rand) {
	switch rnd.IntN(4) {
	case 0, 1:
		s.update(rnd)
	case 2:
		if sc := s.cc.Conn(fmt.Sprintf("10.0.0.%d:80", 1+rnd.IntN(30))); sc != nil {
			sc.Move(connectivity.Idle, nil)
		}
	case 3:
		Channels()
		s.p.ExitIdle()
		s.p.ResolverError(errRefused)
	}
}

func (s *storm) update(rnd *rand.Rand) {
	all := fleet(len(s.gone))
	ins := all[:0:0]
	var left []int
	for i, in := range all {
		if i > 0 && rnd.IntN(4) == 0 {
			left = append(left, i)
			continue
		}
		if rnd.IntN(8) == 0 {
			in.ID += fmt.Sprint("-", rnd.IntN(3))
		}
		in.Zone = fmt.Sprint("z", rnd.IntN(3))
		in.Weight, in.Draining = rnd.Uint32N(4), rnd.IntN(10) == 0
		in.Labels = map[string]string{"half": fmt.Sprint(i % 2), "third": fmt.Sprint(rnd.IntN(3))}
		s.gone[i].Store(0)
		ins = append(ins, in)
	}
	if err := lbtest.Update(s.p, s.configs[rnd.IntN(len(s.configs))], lbtest.Endpoints(ins...)); err != nil {
		s.t.Error(err)
	}
	for _, i := range left {
		s.gone[i].CompareAndSwap(0, s.event.Add(1))
	}
	s.p.mu.Lock()
	known := s.p.known
	s.p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range known {
		s.ever[e] = true
	}
}

// call picks and ends calls until the storm is over.
func (s *storm) call(rnd *rand.Rand) {
	var under []func(gbalancer.DoneInfo)
	for !s.stop.Load() {
		info := pickInfo(s.t)
		switch rnd.IntN(6) {
		case 0:
			info.Ctx = filters.NewContext(info.Ctx, filters.Label("half", fmt.Sprint(rnd.IntN(3))))
		case 1:
			info.Ctx = filters.NewContext(info.Ctx, filters.Prefer(filters.Label("third", fmt.Sprint(rnd.IntN(3)))))
		case 2:
			info.Ctx = with(info.Ctx, &callctx.Call{Kind: callctx.Kind(rnd.IntN(3)), Tried: new(callctx.Tried)})
		case 3:
			info.FullMethodName = "/grpc.health.v1.Health/Watch"
		}
		if rnd.IntN(2) == 0 {
			info.Ctx = WithHashKey(info.Ctx, fmt.Sprint(rnd.IntN(100)))
		}
		before := s.event.Load()
		res, err := s.cc.Picker().Pick(info)
		if err == nil {
			s.calls.Add(1)
			s.check(res.SubConn.(*lbtest.SubConn).Addr, before)
			under = append(under, res.Done)
		}
		for len(under) > rnd.IntN(20) {
			i := rnd.IntN(len(under))
			under[i](randomEnd(rnd))
			under[i] = under[len(under)-1]
			under = under[:len(under)-1]
		}
	}
	for _, done := range under {
		done(randomEnd(rnd))
	}
}

// check fails if addr had been removed before the pick began, and was not back when it had ended.
func (s *storm) check(addr string, before int64) {
	var i int
	if _, err := fmt.Sscanf(addr, "10.0.0.%d:80", &i); err != nil {
		s.t.Error(err)
		return
	}
	if gone := s.gone[i-1].Load(); gone != 0 && gone <= before {
		s.t.Errorf("a pick that began after event %d returned %s, which was removed by event %d", before, addr, gone)
	}
}

func randomEnd(rnd *rand.Rand) gbalancer.DoneInfo {
	switch rnd.IntN(8) {
	case 0:
		return gbalancer.DoneInfo{} // discarded
	case 1:
		return gbalancer.DoneInfo{Err: fails(codes.Unavailable)}
	case 2, 3:
		return ended(fails(codes.Unavailable))
	case 4:
		return ended(fails([]codes.Code{codes.NotFound, codes.Unknown, codes.Canceled, codes.ResourceExhausted}[rnd.IntN(4)]))
	}
	end := ended(nil)
	end.ServerLoad = &load.Report{QPS: 1 + rnd.Float64(), Utilization: rnd.Float64()}
	return end
}
