package real

import (
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/engine"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/bench/sim/server"
)

// The policy and a baseline of the same rule are two programs written apart from each other. If they choose alike, the
// way through the policy's plumbing, its pickers and this package's channel adds nothing and loses nothing.

// sequence makes calls that end at once and returns where they went.
func sequence(t *testing.T, m lb.Maker, servers, calls int) []int {
	t.Helper()
	b, err := m.New((&rig{sim: engine.New()}).env(1, fleet(servers)))
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for range calls {
		var c lb.Call
		s, err := b.Pick(&c)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, s)
		b.Done(&c, s, lb.Result{Latency: 1})
	}
	return got
}

// steps counts by how much the server's number grows from call to call, around the fleet.
func steps(got []int, servers int) []int {
	counts := make([]int, servers)
	for i := range got[1:] {
		counts[(got[i+1]-got[i]+servers)%servers]++
	}
	return counts
}

// differ is the chi-square statistic of two samples being of one distribution, over the classes that both together have
// ten or more of.
func differ(a, b []int) (x float64, freedom int) {
	var na, nb float64
	for i := range a {
		na, nb = na+float64(a[i]), nb+float64(b[i])
	}
	freedom = -1
	for i := range a {
		both := float64(a[i] + b[i])
		if both < 10 {
			continue
		}
		freedom++
		ea, eb := both*na/(na+nb), both*nb/(na+nb)
		x += (float64(a[i])-ea)*(float64(a[i])-ea)/ea + (float64(b[i])-eb)*(float64(b[i])-eb)/eb
	}
	return x, freedom
}

func TestRoundRobinAsTheBaseline(t *testing.T) {
	for _, m := range []lb.Maker{New("ours", balancer.Config{Strategy: balancer.RoundRobin{}}), baseline.RoundRobin()} {
		if got := steps(sequence(t, m, 7, 1001), 7); got[1] != 1000 {
			t.Errorf("%s: from call to call the server's number grows by %v, want always by 1", m.Name, got)
		}
	}
}

func TestRandomAsTheBaseline(t *testing.T) {
	const n, calls = 10, 20_000
	for _, m := range []lb.Maker{New("ours", balancer.Config{Strategy: balancer.Random{}}), baseline.Random()} {
		got := sequence(t, m, n, calls)
		shares, even := make([]int, n), make([]int, n)
		for i := range even {
			even[i] = 1e9 // as good as the distribution itself
		}
		for _, s := range got {
			shares[s]++
		}
		for what, counts := range map[string][]int{"shares": shares, "steps": steps(got, n)} {
			if x, f := differ(counts, even); f != n-1 || x > 36 { // 9 degrees of freedom: once in 25,000
				t.Errorf("%s: %s are %v, chi-square %.1f, want at most 36", m.Name, what, counts, x)
			}
		}
	}
}

// crowds notes how many calls are in flight where a call is sent, of every spread-th call.
type crowds struct {
	lb.Balancer
	inFlight map[int]int
	calls    int
	found    []int
}

const spread = 25

func (w *crowds) Pick(c *lb.Call) (int, error) {
	s, err := w.Balancer.Pick(c)
	if err != nil {
		return s, err
	}
	if w.calls++; w.calls%spread == 0 {
		w.found[min(w.inFlight[s], len(w.found)-1)]++
	}
	w.inFlight[s]++
	return s, nil
}

func (w *crowds) Done(c *lb.Call, s int, r lb.Result) {
	w.inFlight[s]--
	w.Balancer.Done(c, s, r)
}

// TestLeastRequestAsTheBaseline: at 80 % of what the servers can do, calls find as many in flight under the policy as
// under the baseline, and not as many as under a random choice. (The policy draws two different servers, gRFC A48 two
// that may be the same: with 100 servers that is one call in a hundred.)
func TestLeastRequestAsTheBaseline(t *testing.T) {
	s := scenario.Scenario{
		Name: "test", Clients: 1, Work: scenario.Exponential(25 * time.Millisecond),
		Servers: []scenario.Group{{Name: "all", Count: 100, Server: server.Config{Workers: 1}}},
		Steps:   []scenario.Step{{Name: "80 %", Load: 0.8, Measure: 4 * time.Second}},
	}
	found := func(m lb.Maker) []int {
		w := &crowds{inFlight: make(map[int]int), found: make([]int, 12)}
		watched := lb.Maker{Name: m.Name, New: func(env lb.Env) (lb.Balancer, error) {
			var err error
			w.Balancer, err = m.New(env)
			return w, err
		}}
		if _, err := scenario.Run(s, watched, 1); err != nil {
			t.Fatal(err)
		}
		return w.found
	}
	ours := found(New("ours", balancer.Config{Strategy: balancer.LeastRequest{}}))
	theirs, random := found(baseline.LeastRequest()), found(baseline.Random())
	// Six degrees of freedom or less: 36 is exceeded once in 300,000 samples of one distribution.
	if x, f := differ(ours, theirs); f > 6 || x > 36 {
		t.Errorf("calls find %v under ours and %v under the baseline, chi-square %.1f with %d degrees of freedom, want at most 36",
			ours, theirs, x, f)
	}
	if x, _ := differ(ours, random); x < 100 {
		t.Errorf("calls find %v under ours and %v under a random choice, chi-square %.1f: the test could not tell", ours, random, x)
	}
}
