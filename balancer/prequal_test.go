package balancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// loads is what the servers of a rig say of themselves, by address.
type loads map[string]load.Report

// probedRig is a rig whose servers answer probes with what is in loads; none is none.
func probedRig(t *testing.T, c Config, n int) (*rig, loads) {
	t.Helper()
	cc, l := lbtest.New(), make(loads)
	for i, in := range fleet(n) {
		l[in.Addr] = load.Report{RIF: 1, Latency: int64(10+i) * int64(time.Millisecond)}
	}
	cc.Load = func(addr string) (load.Report, bool) { r, ok := l[addr]; return r, ok }
	r := bareRig(t, cc)
	r.update(c, fleet(n))
	return r, l
}

// set changes what instance i says.
func (l loads) set(i int, rif int64, latency time.Duration) {
	l[fleet(i + 1)[i].Addr] = load.Report{RIF: rif, Latency: int64(latency)}
}

// paced makes n calls, one each 2 ms, which end at once.
func (r *rig) paced(n int) map[string]int {
	r.t.Helper()
	got := make(map[string]int)
	for range n {
		got[r.call(ask{})]++
		r.advance(2 * time.Millisecond)
	}
	return got
}

// TestReuse is equation 1 of the paper, with the values that its experiments had, and small fleets.
func TestReuse(t *testing.T) {
	rate := func(r float64) Prequal { return Prequal{ProbeRate: r, RemoveRate: 0.25} }
	for _, tt := range []struct {
		s    Prequal
		n    int
		want float64
	}{
		{Prequal{}, 100, 2 / 1.52}, {Prequal{}, 1e6, 1},
		{rate(4), 100, 1}, {rate(2), 100, 1.398}, {rate(math.Sqrt2), 100, 2.132}, {rate(1), 100, 3.390}, {rate(0.5), 100, 11.76},
		{Prequal{}, 48, 2}, {Prequal{}, 30, 2}, {Prequal{}, 25, 2}, {Prequal{}, 24, 1}, {Prequal{}, 10, 1}, {Prequal{}, 2, 1},
	} {
		if got := tt.s.filled().reuse(tt.n); math.Abs(got-tt.want) > 1e-3*tt.want {
			t.Errorf("%+v with %d members: %v uses, want %v", tt.s, tt.n, got, tt.want)
		}
	}
}

// TestRIFQuantile against a twin that sorts.
func TestRIFQuantile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, at := range []float64{1e-9, 0.5, 0.84, 0.99} {
		q := rifQuantile{at: at}
		if q.limit() != math.MaxInt64 {
			t.Errorf("before the first answer the limit is %d, want that nobody is hot", q.limit())
		}
		var all []int64
		for range 500 {
			x := rnd.Int64N(40)
			q.add(x)
			all = append(all, x)
			last := slices.Clone(all[max(0, len(all)-rifWindow):])
			slices.Sort(last)
			if want := last[max(0, int(math.Ceil(at*float64(len(last))))-1)]; q.limit() != want {
				t.Fatalf("quantile %v of %v: %d, want %d", at, last, q.limit(), want)
			}
		}
	}
	q := rifQuantile{at: 1}
	q.add(5)
	if q.limit() != math.MaxInt64 {
		t.Errorf("the limit of the quantile 1 is %d, want that nobody is hot", q.limit())
	}
}

// TestHotCold: the cold are taken by latency, the hot only if there is nobody else, and then by load.
func TestHotCold(t *testing.T) {
	hot := func(rif float64) prospect { return prospect{hot: true, rif: rif} }
	cold := func(cost float64) prospect { return prospect{cost: cost} }
	worse := func(p prospect) prospect { p.averse = true; return p }
	order := []prospect{cold(1), cold(2), hot(3), hot(4), worse(cold(0.5)), worse(cold(1)), worse(hot(0)), worse(hot(1))}
	for i := range order {
		for j := range order {
			if got := order[i].before(&order[j]); got != (i < j) {
				t.Errorf("%+v before %+v: %v, want %v", order[i], order[j], got, i < j)
			}
		}
	}
}

// TestPrequalFollowsReports: most calls go to the fastest that has little to do, hardly any to the busiest.
func TestPrequalFollowsReports(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Keel{}} {
		t.Run(s.Name(), func(t *testing.T) {
			r, l := probedRig(t, Config{Strategy: s}, 10)
			for i := range 10 {
				l.set(i, 2, 100*time.Millisecond)
			}
			l.set(3, 1, time.Millisecond)
			l.set(7, 50, time.Microsecond) // fast, it says, but choking
			r.paced(300)                   // it hears
			got := r.paced(2000)
			if got["i3"] < 400 { // Prequal uses a probe once in a fleet so small
				t.Errorf("%d of 2000 calls went to the fastest, want twice its share and more: %v", got["i3"], got)
			}
			if got["i7"] > 100 {
				t.Errorf("%d of 2000 calls went to the busiest, want hardly any: %v", got["i7"], got)
			}
			l.set(3, 50, 500*time.Millisecond)
			r.paced(100)
			if got := r.paced(1000); got["i3"] > 100 {
				t.Errorf("%d of 1000 calls went to the one that has become slow and busy: %v", got["i3"], got)
			}
		})
	}
}

// TestProbeRates: the rate of probes holds in the long run, fractions included, and none is sent where nobody chooses.
func TestProbeRates(t *testing.T) {
	for want, s := range map[float64]Strategy{
		3: Prequal{}, 0.25: Prequal{ProbeRate: 0.25}, 1: Keel{}, 0.5: Keel{ProbeRate: 0.5}, 2.5: Keel{ProbeRate: 2.5},
	} {
		r, _ := probedRig(t, Config{Strategy: s}, 30)
		probes := 0
		answer := r.cc.Load
		r.cc.Load = func(addr string) (load.Report, bool) { probes++; return answer(addr) }
		r.paced(400)
		// Two at the same endpoint at a time are one.
		if got := float64(probes) / 400; got > want*1.01 || got < want*0.9 {
			t.Errorf("%+v: %v probes a call, want about %v", s, got, want)
		}
		r.update(Config{Strategy: s}, fleet(1))
		probes = 0
		r.paced(10)
		if probes > 0 {
			t.Errorf("%+v: %d probes for a single member, want none", s, probes)
		}
	}
}

// TestNobodyAnswers: with servers that know nothing of probes, and with old news, calls spread over all.
func TestNobodyAnswers(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Prequal{Reports: true}, Keel{}} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			r, l := probedRig(t, Config{Strategy: s}, 5)
			l.set(2, 0, time.Microsecond)
			r.paced(200)
			clear(l)
			r.advance(3 * time.Second)
			got := r.paced(1000)
			for i := range 5 {
				if n := got[fmt.Sprint("i", i)]; n < 100 {
					t.Errorf("%d of 1000 calls went to i%d, want about 200: %v", n, i, got)
				}
			}
		})
	}
}

// TestReportsSinkHole: an instance that fails at once and says that it is idle gets next to nothing, without a blacklist.
func TestReportsSinkHole(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Keel{}} {
		for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.ResourceExhausted} {
			r, l := probedRig(t, Config{Strategy: s, Blacklist: Blacklist{Disabled: true}}, 10)
			l.set(4, 0, time.Microsecond)
			r.answers["i4"] = fails(code)
			if got := r.paced(2000); got["i4"] > 40 {
				t.Errorf("%s, %v: %d of 2000 calls fell into the sink-hole: %v", s.Name(), code, got["i4"], got)
			}
		}
	}
}

// TestAllShed: an instance that sheds a little more than the others is not left for it, while they have more to do; one
// that sheds far more is, and so is one that rejects all while nobody else rejects anything.
func TestAllShed(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Keel{}} {
		for _, tt := range []struct {
			others, one float64
			avoided     bool
		}{{0.18, 0.25, false}, {0.5, 0.65, false}, {0.9, 0.94, false}, {0, 0.25, true}, {0.18, 0.5, true}, {0.6, 0.9, true}} {
			r, l := probedRig(t, Config{Strategy: s}, 10)
			for i, in := range fleet(10) {
				l[in.Addr] = load.Report{RIF: 20, Latency: 50e6, QPS: 100, EPS: 100 * tt.others}
				if i == 4 {
					l[in.Addr] = load.Report{RIF: 1, Latency: 5e6, QPS: 100, EPS: 100 * tt.one}
				}
			}
			r.paced(500) // it hears what is usual
			if got := r.paced(1000)["i4"]; got > 200 == tt.avoided || tt.avoided && got > 50 {
				t.Errorf("%s: %v fail at one and %v at the others: it got %d of 1000 calls, avoided: %v",
					s.Name(), tt.one, tt.others, got, tt.avoided)
			}
		}
	}
}

// TestAversion: what usually fails is near the median, but that of two halves the better one counts.
func TestAversion(t *testing.T) {
	for _, tt := range []struct {
		parts    []float64
		low, top float64 // of the limit
	}{
		{[]float64{0}, 0.2, 0.2},
		{[]float64{0, 0, 1}, 0.2, 0.3},
		{[]float64{0, 1}, 0.2, 0.6},
		{[]float64{0.3, 0.35, 0.4, 0.4, 1}, 0.5, 0.7},
		{[]float64{0.9}, 0.95, 0.95},
		{[]float64{1}, 1, 1},
	} {
		var a aversion
		rnd := rand.New(rand.NewPCG(3, 4))
		for k := range 3000 {
			a.hear(tt.parts[rnd.IntN(len(tt.parts))])
			if got := a.limit(); k > 500 && (got < tt.low-1e-9 || got > tt.top+1e-9) {
				t.Fatalf("of %v the limit is %v after %d, want %v to %v", tt.parts, got, k, tt.low, tt.top)
			}
		}
		for range 100 {
			a.hear(0)
		}
		if got := a.limit(); math.Abs(got-moreThanUsual) > 1e-9 {
			t.Errorf("when nothing fails any more the limit is %v", got)
		}
	}
}

// TestFailuresAreForgotten: an instance that failed its first calls, and says so for as long as its window of 10 s
// lasts, gets calls afterwards, although no call that succeeds ever gave it a latency.
func TestFailuresAreForgotten(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Keel{}} {
		t.Run(s.Name(), func(t *testing.T) {
			r, l := probedRig(t, Config{Strategy: s, Blacklist: Blacklist{Disabled: true}}, 3)
			addr := fleet(3)[2].Addr
			r.answers["i2"] = fails(codes.Unavailable)
			l[addr] = load.Report{RIF: 0, QPS: 0.3, EPS: 0.3}
			r.paced(500) // 1 s
			r.answers["i2"] = nil
			if got := r.paced(1000); got["i2"] > 20 {
				t.Errorf("%d of 1000 calls went to the one that says that all fail there: %v", got["i2"], got)
			}
			r.advance(7 * time.Second)
			l[addr] = load.Report{RIF: 0}
			if got := r.paced(1000); got["i2"] < 50 {
				t.Errorf("%d of 1000 calls went to the one that has nothing to do any more: %v", got["i2"], got)
			}
		})
	}
}

// TestChurnForgetsNothing: while instances come and go what is known about the others stays.
func TestChurnForgetsNothing(t *testing.T) {
	for _, s := range []Strategy{Prequal{}, Keel{}} {
		t.Run(s.Name(), func(t *testing.T) {
			r, l := probedRig(t, Config{Strategy: s}, 20)
			for i := range 20 {
				l.set(i, 2, 100*time.Millisecond)
			}
			l.set(5, 0, time.Millisecond)
			r.paced(300)
			before := known(r)
			clear(l) // what is known now is all there is
			ins := fleet(20)
			r.update(Config{Strategy: s}, slices.Delete(slices.Clone(ins), 1, 3))
			r.update(Config{Strategy: s}, slices.Insert(slices.Delete(slices.Clone(ins), 1, 3), 0, ins[2]))
			want := slices.DeleteFunc(before, func(id string) bool { return id == "i1" || id == "i2" })
			if got := known(r); !slices.Equal(got, want) || len(got) < 4 {
				t.Errorf("after the change it knows of %v, want %v", got, want)
			}
			if _, ok := s.(Keel); ok {
				if got := r.call(ask{}); got != "i5" {
					t.Errorf("the call after the change went to %s, want i5, which was known to be the best", got)
				}
			}
		})
	}
}

// known are the members that a chooser goes by.
func known(r *rig) []string {
	var ids []string
	switch c := r.p.byConfig.set.chooser.(type) {
	case *prequalChooser:
		for _, b := range c.pool.probes {
			ids = append(ids, c.members[b.i].Instance().ID)
		}
	case *keelChooser:
		for i := range c.recent {
			if at := c.recent[i].Load(); at > 0 {
				ids = append(ids, c.members[at-1].Instance().ID)
			}
		}
	}
	return ids
}

// TestReportsOfCalls: what servers say with their answers joins the pool.
func TestReportsOfCalls(t *testing.T) {
	r, l := probedRig(t, Config{Strategy: Prequal{Reports: true, ProbeRate: 1e-9, RemoveRate: 0.25}}, 4)
	clear(l)
	for range 200 {
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(5 * time.Millisecond)
		info := ended(nil)
		rep := load.Report{RIF: 3, Latency: int64(50 * time.Millisecond)}
		if id == "i2" {
			rep = load.Report{RIF: 0, Latency: int64(time.Millisecond)}
		}
		info.ServerLoad = &rep
		done(info)
	}
	if st := r.state("i1"); st.Load != 3 {
		t.Errorf("the load of i1 is %v, want the 3 that it reported", st.Load)
	}
	p := r.p.byConfig.set.chooser.(*prequalChooser).pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.probes) == 0 {
		t.Errorf("nothing is in the pool, want reports of calls there")
	}
}

// TestMixedFleet: instances that do not know of probes, half of them, get about half of the calls.
func TestMixedFleet(t *testing.T) {
	r, _ := probedRig(t, Config{Strategy: Keel{}}, 10)
	for i, e := range r.p.known {
		if i >= 5 {
			e.conn.Load().muteUntil.Store(math.MaxInt64)
		}
	}
	r.paced(100)
	old := 0
	for id, n := range r.paced(2000) {
		if id >= "i5" {
			old += n
		}
	}
	if old < 400 || old > 1000 {
		t.Errorf("%d of 2000 calls went to the half without probes, want 400 to 1000", old)
	}
}

// TestChoosersConcurrently: choices, answers and rebuilds at the same time, for the race detector; all are in range.
func TestChoosersConcurrently(t *testing.T) {
	for _, s := range []Strategy{Prequal{Reports: true}, Keel{}} {
		members := make([]*Endpoint, 20)
		for i, in := range fleet(20) {
			members[i] = &Endpoint{}
			members[i].set(&in)
		}
		answer := func(e *Endpoint, now int64, _ time.Duration, to Answerer) bool {
			to.Answer(e, now, int64(time.Second), load.Report{RIF: int64(e.Weight()), Latency: 1e6}, true)
			return true
		}
		var rnd sync.Mutex
		draw := seeded(1)
		env := Env{Members: members, Probe: answer, Rand: func() uint64 { rnd.Lock(); defer rnd.Unlock(); return draw() }}
		c := s.Build(env)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for k := range 500 {
					i := c.Choose(Call{Now: int64(time.Second), Attempt: k % 7 / 6})
					if i < 0 || i >= len(members) {
						t.Errorf("%s chose %d of %d", s.Name(), i, len(members))
						return
					}
					s.(Measurer).Record(members[i], load.Sample{Now: int64(time.Second), Latency: 1e6, Failed: k%9 == 0})
				}
			})
		}
		for n := 19; n > 2; n-- {
			next := env
			next.Members, next.Previous = members[:n], c
			s.Build(next)
		}
		wg.Wait()
	}
}
