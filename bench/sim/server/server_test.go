package server

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
)

// ends is an Owner that writes down when and how requests ended.
type ends struct {
	sim *engine.Sim
	at  map[*Request]int64
	how map[*Request]Status
}

func newEnds(sim *engine.Sim) *ends {
	return &ends{sim, map[*Request]int64{}, map[*Request]Status{}}
}

func (e *ends) Answered(r *Request, s Status) { e.at[r], e.how[r] = e.sim.Now(), s }

// twin is a server that does not think: it knows what is left of each request, and goes from one change to the next.
type twin struct {
	now            float64
	cores, speed   float64
	workers        int
	running, queue []*job
}

type job struct{ left, end float64 }

func (w *twin) rate() float64 {
	if n := float64(len(w.running)); n > w.cores {
		return w.speed * w.cores / n
	}
	return w.speed
}

func (w *twin) fill() {
	for len(w.queue) > 0 && (w.workers == 0 || len(w.running) < w.workers) {
		w.running, w.queue = append(w.running, w.queue[0]), w.queue[1:]
	}
}

// to lets time pass.
func (w *twin) to(t float64) {
	for {
		w.fill()
		if len(w.running) == 0 {
			break
		}
		first := slices.MinFunc(w.running, func(a, b *job) int { return int(math.Copysign(1, a.left-b.left)) })
		end := w.now + first.left/w.rate()
		if end > t {
			break
		}
		w.pass(end)
		first.end = end
		w.drop(first)
	}
	w.pass(t)
}

func (w *twin) pass(t float64) {
	for _, j := range w.running {
		j.left -= (t - w.now) * w.rate()
	}
	w.now = t
}

func (w *twin) drop(j *job) {
	is := func(k *job) bool { return k == j }
	w.running, w.queue = slices.DeleteFunc(w.running, is), slices.DeleteFunc(w.queue, is)
	w.fill()
}

// TestAgainstTwin does the same at random to a server and to its twin: requests, cancellations, changes of cores and of
// speed.
func TestAgainstTwin(t *testing.T) {
	for name, cfg := range map[string]Config{
		"one core": {}, "shared": {Cores: 3.5}, "queue": {Workers: 3}, "queue of slow workers": {Workers: 2, Speed: 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			sim := engine.New()
			s, e := New(sim, cfg), newEnds(sim)
			w := &twin{now: 1, cores: s.cores, speed: s.speed, workers: cfg.Workers}
			requests, jobs := []*Request{}, []*job{}
			for range 3000 {
				at := sim.Now() + 1 + int64(r.ExpFloat64()*300e3)
				sim.Run(at)
				w.to(float64(at))
				switch op := r.IntN(20); {
				case op == 0:
					s.SetShare(0.5+4*r.Float64(), 0.5+r.Float64())
					w.cores, w.speed = s.cores, s.speed
				case op < 3 && len(requests) > 0:
					i := len(requests) - 1 - r.IntN(min(8, len(requests)))
					s.Cancel(requests[i])
					w.drop(jobs[i])
				default:
					work := r.ExpFloat64() * 700e3
					requests, jobs = append(requests, &Request{Work: work, Owner: e, Luck: 0.5}), append(jobs, &job{left: work})
					s.Start(requests[len(requests)-1])
					w.queue = append(w.queue, jobs[len(jobs)-1])
					w.fill()
				}
				if s.RIF() != len(w.running)+len(w.queue) {
					t.Fatalf("at %d %d in flight, want %d", at, s.RIF(), len(w.running)+len(w.queue))
				}
			}
			sim.Run(sim.Now() + 1e10)
			w.to(float64(sim.Now()))
			worst := 0.0
			for i, q := range requests {
				if jobs[i].end == 0 != (e.at[q] == 0) {
					t.Fatalf("request %d ended at %d, want %v", i, e.at[q], jobs[i].end)
				}
				worst = max(worst, math.Abs(float64(e.at[q])-jobs[i].end))
			}
			// A nanosecond at most is lost to rounding up at each completion that others wait for.
			if limit := float64(len(requests)); worst > limit {
				t.Errorf("an end is off by %.0f ns, want %.0f at most", worst, limit)
			}
		})
	}
}

// load has one server at a Poisson load, and returns the mean time in it as a multiple of the mean work.
func load(name string, cfg Config, rho float64, draw func(*rand.Rand) float64, n int) float64 {
	sim := engine.New()
	s := New(sim, cfg)
	mean := 1e6
	p := &poisson{sim: sim, server: s, draw: draw, left: n,
		gap: mean / (rho * s.Guaranteed()), r: engine.NewStream(3, name, 0)}
	p.Handle(0, 0)
	for p.left > 0 || s.RIF() > 0 {
		sim.Step()
	}
	return p.total / float64(n) / mean
}

// poisson is arrivals whose work has the mean 1 ms.
type poisson struct {
	sim    *engine.Sim
	server *Server
	draw   func(*rand.Rand) float64
	gap    float64
	left   int
	r      *rand.Rand
	total  float64
	free   []*Request
}

func (p *poisson) Handle(uint8, uint64) {
	if p.left == 0 {
		return
	}
	p.left--
	q := &Request{}
	if n := len(p.free); n > 0 {
		q, p.free = p.free[n-1], p.free[:n-1]
	}
	*q = Request{Work: p.draw(p.r) * 1e6, Owner: p, Luck: 0.5}
	p.server.Start(q)
	p.sim.At(p.sim.Now()+int64(p.r.ExpFloat64()*p.gap), p, 0, 0)
}

func (p *poisson) Answered(q *Request, _ Status) {
	p.total += float64(p.sim.Now() - q.arrived)
	p.free = append(p.free, q)
}

// erlangC is the mean time in M/M/c as a multiple of the mean work.
func erlangC(c int, rho float64) float64 {
	a, term, sum := float64(c)*rho, 1.0, 0.0
	for k := range c {
		sum += term
		term *= a / float64(k+1)
	}
	waits := term / (1 - rho) / (sum + term/(1-rho))
	return 1 + waits/(float64(c)*(1-rho))
}

// TestAgainstTheory compares means with formulas. With all calls the standard errors of the means are 0.2 to 0.3 % (for
// M/M/1 the asymptotic variance of the mean is known, and those of the others are alike), so 1 % is three to five of
// them. Under the race detector, with a sixteenth of the calls, the errors and the bound are four times as large.
func TestAgainstTheory(t *testing.T) {
	n, tolerance := 2_000_000, 0.01
	if raceEnabled || testing.Short() {
		n, tolerance = n/16, 4*tolerance
	}
	exponential := func(r *rand.Rand) float64 { return r.ExpFloat64() }
	clamped := func(r *rand.Rand) float64 { return max(0, 1+r.NormFloat64()) / 1.08331547 }
	bimodal := func(r *rand.Rand) float64 { // one in ten is nine times as long
		if r.IntN(10) == 0 {
			return 5
		}
		return 5. / 9
	}
	for _, c := range []struct {
		name string
		cfg  Config
		rho  float64
		draw func(*rand.Rand) float64
		want float64
	}{
		{"M/M/1 at 0.5", Config{Workers: 1}, 0.5, exponential, 2},
		{"M/M/1 at 0.6, a machine twice as fast", Config{Workers: 1, Speed: 2}, 0.6, exponential, 2.5 / 2},
		{"M/M/4 at 0.7", Config{Workers: 4}, 0.7, exponential, erlangC(4, 0.7)},
		{"M/M/1 shared", Config{}, 0.5, exponential, 2},
		{"M/M/8 shared at 0.8", Config{Cores: 8}, 0.8, exponential, erlangC(8, 0.8)},
		{"M/G/1 shared, the testbed's work", Config{}, 0.6, clamped, 2.5},
		{"M/G/1 shared, two kinds of calls", Config{}, 0.5, bimodal, 2},
		{"M/D/1, Pollaczek-Khinchine", Config{Workers: 1}, 0.6, func(*rand.Rand) float64 { return 1 }, 1 + 0.6/(2*0.4)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := load(c.name, c.cfg, c.rho, c.draw, n)
			t.Logf("%.4f, theory %.4f: %+.2f %%", got, c.want, 100*(got/c.want-1))
			if math.Abs(got/c.want-1) > tolerance {
				t.Errorf("mean time %.4f, want %.4f within %.0f %%", got, c.want, 100*tolerance)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	const ms = int64(time.Millisecond)
	type want struct {
		status Status
		at     int64
		ended  bool
	}
	for _, c := range []struct {
		name string
		cfg  Config
		luck float64
		do   func(sim *engine.Sim, s *Server) // at 2 ms, while a request of 10 ms is in service since 1 ms
		want want
	}{
		{"nothing", Config{}, 0.9, func(*engine.Sim, *Server) {}, want{OK, 11 * ms, true}},
		{"slower", Config{}, 0.9, func(_ *engine.Sim, s *Server) { s.SetSpeed(0.5) }, want{OK, 20 * ms, true}},
		{"half a core", Config{}, 0.9, func(_ *engine.Sim, s *Server) { s.SetShare(0.5, 1) }, want{OK, 20 * ms, true}},
		{"pause", Config{}, 0.9, func(_ *engine.Sim, s *Server) { s.Pause(30 * time.Millisecond) }, want{OK, 41 * ms, true}},
		{"crash", Config{}, 0.9, func(_ *engine.Sim, s *Server) { s.Crash() }, want{Refused, 2 * ms, true}},
		{"hang", Config{}, 0.9, func(_ *engine.Sim, s *Server) { s.Hang(true) }, want{}},
		{"hang for a while", Config{}, 0.9, func(sim *engine.Sim, s *Server) {
			s.Hang(true)
			sim.After(5*ms, func() { s.Hang(false) })
		}, want{OK, 16 * ms, true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sim := engine.New()
			s, e := New(sim, c.cfg), newEnds(sim)
			q := &Request{Work: float64(10 * ms), Luck: c.luck, Owner: e}
			sim.Run(ms)
			s.Start(q)
			sim.Run(2 * ms)
			c.do(sim, s)
			sim.Run(1000 * ms)
			at, ended := e.at[q]
			if got := (want{e.how[q], at, ended}); got != c.want {
				t.Errorf("ended %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestLuck: a fault hits its part of the requests, those that are unlucky, at once, and slows its part of the others.
func TestLuck(t *testing.T) {
	sim := engine.New()
	s := New(sim, Config{Cores: 1000})
	s.SetFaults(Faults{Fail: 0.3, FailAfter: time.Microsecond, Slow: 0.5, SlowBy: 10})
	e, ended := newEnds(sim), map[string]int{}
	var all []*Request
	for i := range 1000 {
		all = append(all, &Request{Work: 1e6, Luck: float64(i) / 1000, Owner: e})
		s.Start(all[i])
	}
	if s.RIF() != 1000 {
		t.Errorf("%d in flight, want 1000", s.RIF())
	}
	sim.Run(1e9)
	for _, q := range all {
		switch {
		case e.how[q] == Failed && e.at[q] == 1001:
			ended["failed"]++
		case e.how[q] == OK && e.at[q] == 1e6+1:
			ended["fine"]++
		case e.how[q] == OK && e.at[q] == 1e7+1:
			ended["slow"]++
		}
	}
	if ended["failed"] != 300 || ended["slow"] != 350 || ended["fine"] != 350 || s.RIF() != 0 {
		t.Errorf("%v and %d in flight, want 300 failed, 350 slow, 350 fine and 0", ended, s.RIF())
	}
}

func TestQueueIsBounded(t *testing.T) {
	sim := engine.New()
	s, e := New(sim, Config{Workers: 1, Queue: 2}), newEnds(sim)
	var all []*Request
	for range 4 {
		all = append(all, &Request{Work: 10, Owner: e, Luck: 0.5})
		s.Start(all[len(all)-1])
	}
	s.Cancel(all[1])
	s.Cancel(all[1]) // nothing happens
	sim.Run(100)
	for i, want := range []struct {
		at  int64
		how Status
	}{{11, OK}, {0, OK}, {21, OK}, {1, Rejected}} {
		if e.at[all[i]] != want.at || e.how[all[i]] != want.how {
			t.Errorf("request %d ended at %d as %d, want %d as %d", i, e.at[all[i]], e.how[all[i]], want.at, want.how)
		}
	}
}

// TestTruth: the lower bound's forecast is what then happens if nothing else comes.
func TestTruth(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		sim := engine.New()
		s, e := New(sim, Config{Cores: 2}), newEnds(sim)
		for range 2 + r.IntN(6) { // with its own request the cores stay busy long enough
			s.Start(&Request{Work: 5e6 + 5e6*r.Float64(), Owner: e, Luck: 0.5})
			sim.Run(sim.Now() + 1000)
		}
		began, q := sim.Now(), &Request{Work: 4e6, Owner: e, Luck: 0.5}
		told := s.Truth(q.Work)
		s.Start(q)
		sim.Run(1e9)
		if got := e.at[q] - began; math.Abs(float64(got-told.Finish)) > 10 {
			t.Fatalf("took %d, forecast %d", got, told.Finish)
		}
	}
}

// TestHarm: what the forecast says that a request does to the others is what it does. It is exact while they all have the
// same rest, which is not longer than the newcomer.
func TestHarm(t *testing.T) {
	sum := func(n int, cfg Config, w float64) (total, told float64) {
		sim := engine.New()
		s, e := New(sim, cfg), newEnds(sim)
		var all []*Request
		for range n {
			r := &Request{Work: 10e6, Owner: e, Luck: 0.5}
			s.Start(r)
			all = append(all, r)
		}
		began := sim.Now()
		sim.Run(began + 2e6)
		told = s.Truth(10e6).Harm
		if w > 0 {
			s.Start(&Request{Work: w, Owner: e, Luck: 0.5})
		}
		sim.Run(1e9)
		for _, r := range all {
			total += math.Pow(float64(e.at[r]-began), 4)
		}
		return total, told
	}
	for _, c := range []struct {
		n   int
		cfg Config
	}{{0, Config{Cores: 2}}, {1, Config{Cores: 2}}, {2, Config{Cores: 2}}, {2, Config{Cores: 2.5}}, {6, Config{Cores: 4, Speed: 1.5}},
		{20, Config{Cores: 3, Speed: 0.5}}, {6, Config{Workers: 2}}} {
		before, told := sum(c.n, c.cfg, 0)
		after, _ := sum(c.n, c.cfg, 10e6)
		if got := after - before; math.Abs(got-told) > 1e-4*after {
			t.Errorf("%d on %+v: %g more, forecast %g", c.n, c.cfg, got, told)
		}
	}
}

func TestDownAndHungAnswerNoProbe(t *testing.T) {
	sim := engine.New()
	for name, do := range map[string]func(*Server){
		"crash": (*Server).Crash, "hang": func(s *Server) { s.Hang(true) },
		"pause": func(s *Server) { s.Pause(time.Second) },
	} {
		s := New(sim, Config{})
		if _, ok := s.Probe(); !ok || !s.Truth(1).Up {
			t.Errorf("%s: no answer before", name)
		}
		do(s)
		if _, ok := s.Probe(); ok || s.Truth(1).Up {
			t.Errorf("%s: an answer", name)
		}
		s.Restart()
		if _, ok := s.Probe(); !ok {
			t.Errorf("%s: no answer after a restart", name)
		}
	}
}

// TestProbeCost: a probe takes its time from a core that is to spare, or from all requests alike.
func TestProbeCost(t *testing.T) {
	for n, want := range map[int]int64{1: 1e6 + 1, 2: 1e6 + 50e3 + 1, 4: 2e6 + 50e3 + 1} {
		sim := engine.New()
		s, e := New(sim, Config{Cores: 2, ProbeCost: 100 * time.Microsecond}), newEnds(sim)
		var q *Request
		for range n {
			q = &Request{Work: 1e6, Owner: e, Luck: 0.5}
			s.Start(q)
		}
		s.Probe()
		sim.Run(1e8)
		if e.at[q] < want-2 || e.at[q] > want+2 {
			t.Errorf("%d requests and a probe ended at %d, want %d", n, e.at[q], want)
		}
		if used := s.Used(); math.Abs(used-float64(n)*1e6-100e3) > 150e3 {
			t.Errorf("%d requests and a probe used %.0f", n, used)
		}
	}
}

func TestNewRejects(t *testing.T) {
	for _, cfg := range []Config{{Cores: -1}, {Speed: -1}, {Workers: -1}, {Queue: -1}, {Window: -1}, {Samples: -1},
		{Cores: math.NaN()}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("New(%+v) does not panic", cfg)
				}
			}()
			New(engine.New(), cfg)
		}()
	}
}
