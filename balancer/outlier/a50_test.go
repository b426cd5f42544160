package outlier

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// counts are the calls and failures of some endpoints in one interval.
type counts [][2]uint64

// same is n endpoints with the same counts.
func same(n int, calls, failures uint64) counts {
	return slices.Repeat(counts{{calls, failures}}, n)
}

// ledger runs a Standard for tables: it adds counts, takes a sweep and says who is ejected.
type ledger struct {
	s       *Standard
	now     int64
	hosts   []*Host
	ejected map[int]bool
	length  map[int]time.Duration
	order   []int // of the ejections of the last sweep
}

func newLedger(t testing.TB, c A50, seed uint64, n int) *ledger {
	l := &ledger{s: a50(t, c, seed), now: begun, ejected: make(map[int]bool), length: make(map[int]time.Duration)}
	for range n {
		l.hosts = append(l.hosts, new(Host))
	}
	l.sweep(nil)
	return l
}

func (l *ledger) sweep(c counts) []int {
	for i, n := range c {
		l.hosts[i].Calls += n[0]
		l.hosts[i].Failures += n[1]
	}
	l.now += int64(l.s.Interval())
	l.order = nil
	for _, v := range l.s.Step(l.now, l.hosts) {
		l.ejected[v.Host], l.hosts[v.Host].Out = !v.Return, !v.Return
		if !v.Return {
			l.length[v.Host] = v.For
			l.order = append(l.order, v.Host)
		}
	}
	return l.out()
}

func (l *ledger) out() []int {
	var out []int
	for i := range l.hosts {
		if l.ejected[i] {
			out = append(out, i)
		}
	}
	return out
}

func bySuccess(s SuccessRateEjection) A50       { return A50{SuccessRateEjection: &s} }
func byFailure(f FailurePercentageEjection) A50 { return A50{FailurePercentageEjection: &f} }

// TestA50Rules are the rules of gRFC A50's text, section "Algorithm", one sweep each. The bad endpoint is the first.
func TestA50Rules(t *testing.T) {
	bad := func(calls, failures uint64, rest counts) counts { return append(counts{{calls, failures}}, rest...) }
	percent := func(c A50, p int) A50 { c.MaxEjectionPercent = p; return c }
	tests := []struct {
		name string
		c    A50
		in   counts
		want int // how many are out
	}{
		{"success rate: one that fails all", bySuccess(SuccessRateEjection{}), bad(100, 100, same(9, 100, 0)), 1},
		{"success rate: any single one that differs, of 5", bySuccess(SuccessRateEjection{}), bad(100, 1, same(4, 100, 0)), 1},
		{"success rate: all alike", bySuccess(SuccessRateEjection{}), same(10, 100, 50), 0},
		{"success rate: 99 calls are below the volume", bySuccess(SuccessRateEjection{}), bad(99, 99, same(9, 100, 0)), 0},
		{"success rate: the volume can be set", bySuccess(SuccessRateEjection{RequestVolume: 10}), bad(10, 10, same(9, 10, 0)), 1},
		{"success rate: 4 hosts are below the minimum", bySuccess(SuccessRateEjection{}), bad(100, 100, same(3, 100, 0)), 0},
		{"success rate: hosts without the volume do not count as hosts", bySuccess(SuccessRateEjection{}),
			bad(100, 100, append(same(3, 100, 0), same(6, 99, 0)...)), 0},
		{"success rate: the minimum can be set", bySuccess(SuccessRateEjection{MinimumHosts: 4, StdevFactor: 1500}), bad(100, 100, same(3, 100, 0)), 1},
		// Of 5 hosts one stands out by 2 standard deviations, whatever it does.
		{"success rate: at the factor is not below", bySuccess(SuccessRateEjection{StdevFactor: 2001}), bad(100, 100, same(4, 100, 0)), 0},
		{"success rate: a factor that is just exceeded", bySuccess(SuccessRateEjection{StdevFactor: 1999}), bad(100, 100, same(4, 100, 0)), 1},
		{"success rate: who succeeds more than the mean is no outlier", bySuccess(SuccessRateEjection{}), bad(100, 0, same(9, 100, 50)), 0},
		{"success rate: with 25 % dead nobody is", percent(bySuccess(SuccessRateEjection{}), 100),
			append(same(5, 100, 100), same(15, 100, 0)...), 0},
		{"failure percentage: 86 of 100", byFailure(FailurePercentageEjection{}), bad(100, 86, same(9, 100, 0)), 1},
		{"failure percentage: 85 of 100 are not above 85 %", byFailure(FailurePercentageEjection{}), bad(100, 85, same(9, 100, 0)), 0},
		{"failure percentage: the threshold can be set", byFailure(FailurePercentageEjection{Threshold: 10}), bad(100, 11, same(9, 100, 0)), 1},
		{"failure percentage: 49 calls are below the volume", byFailure(FailurePercentageEjection{}), bad(49, 49, same(9, 100, 0)), 0},
		{"failure percentage: 50 are not", byFailure(FailurePercentageEjection{}), bad(50, 50, same(9, 100, 0)), 1},
		{"failure percentage: 4 hosts are below the minimum", byFailure(FailurePercentageEjection{}), bad(100, 100, same(3, 100, 0)), 0},
		{"cap: 10 % of 5 hosts is less than one, and one goes", byFailure(FailurePercentageEjection{}), same(5, 100, 100), 1},
		{"cap: 10 % of 20", byFailure(FailurePercentageEjection{}), same(20, 100, 100), 2},
		{"cap: asked before, so 10 % of 21 lets a third go", byFailure(FailurePercentageEjection{}), same(21, 100, 100), 3},
		{"cap: 50 % of 20", percent(byFailure(FailurePercentageEjection{}), 50), same(20, 100, 100), 10},
		{"cap: 100 % takes all", percent(byFailure(FailurePercentageEjection{}), 100), same(20, 100, 100), 20},
		{"both: one ejection, not two", A50{SuccessRateEjection: &SuccessRateEjection{}, FailurePercentageEjection: &FailurePercentageEjection{}},
			bad(100, 100, same(9, 100, 0)), 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLedger(t, tt.c, 1, len(tt.in))
			out := l.sweep(tt.in)
			if len(out) != tt.want || tt.want == 1 && tt.in[0] != tt.in[1] && out[0] != 0 {
				t.Fatalf("out are %v, want %d, the first first", out, tt.want)
			}
			for _, i := range out {
				if l.length[i] != 30*time.Second {
					t.Errorf("host %d is out for %v, want the base of 30s", i, l.length[i])
				}
			}
		})
	}
}

// TestA50Interval: what counts is the interval, and a host's first sight begins one.
func TestA50Interval(t *testing.T) {
	l := newLedger(t, byFailure(FailurePercentageEjection{}), 1, 6)
	spread := append(counts{{30, 30}}, same(5, 30, 0)...)
	for range 5 {
		if out := l.sweep(spread); out != nil {
			t.Fatalf("out are %v with 30 calls an interval, want none: each begins with 0", out)
		}
	}
	l.hosts = append(l.hosts, &Host{Calls: 1000, Failures: 1000})
	if out := l.sweep(same(6, 100, 0)); out != nil {
		t.Fatalf("out are %v, want none: what the new one did was before", out)
	}
	if out := l.sweep(append(same(6, 100, 0), [2]uint64{100, 100})); !slices.Equal(out, []int{6}) {
		t.Fatalf("out are %v, want the new one", out)
	}
}

// TestA50Times follows one bad host: how long each ejection lasts, by the multiplier, which a good sweep lowers.
func TestA50Times(t *testing.T) {
	c := byFailure(FailurePercentageEjection{})
	c.MaxEjectionTime = 70 * time.Second
	l := newLedger(t, c, 1, 6)
	bad, well := append(counts{{100, 100}}, same(5, 100, 0)...), same(6, 100, 0)
	idle := append(counts{{0, 0}}, same(5, 100, 0)...)
	serve := func(length time.Duration, sweeps int) {
		t.Helper()
		if out := l.sweep(bad); !slices.Equal(out, []int{0}) || l.length[0] != length {
			t.Fatalf("out are %v for %v, want host 0 for %v", out, l.length[0], length)
		}
		for i := 1; len(l.sweep(idle)) > 0; i++ {
			if i > sweeps {
				t.Fatalf("still out after %d sweeps", i)
			}
			if i == sweeps {
				t.Fatalf("out after %d sweeps, want it to return with sweep %d", i, sweeps)
			}
		}
	}
	// "If the current time is greater than": after 30 s it is not greater yet, so the fourth sweep returns it.
	serve(30*time.Second, 4)
	serve(60*time.Second, 7) // the second in a row
	serve(70*time.Second, 8) // 90 s, but for the maximum
	for range 2 {            // the multiplier is 3, two good sweeps make it 1
		l.sweep(well)
	}
	serve(60*time.Second, 7)
	for range 10 { // and it does not fall below 0
		l.sweep(well)
	}
	serve(30*time.Second, 4)
}

// TestA50MaxBelowBase: the longer of the two bounds an ejection.
func TestA50MaxBelowBase(t *testing.T) {
	c := byFailure(FailurePercentageEjection{})
	c.BaseEjectionTime, c.MaxEjectionTime = 40*time.Second, 5*time.Second
	l := newLedger(t, c, 1, 6)
	for range 12 {
		l.sweep(append(counts{{100, 100}}, same(5, 100, 0)...))
		if l.length[0] != 40*time.Second {
			t.Fatalf("out for %v, want 40s each time", l.length[0])
		}
	}
}

// TestA50Enforcement: of those that are found, so many of a hundred are ejected. 8,000 draws at 30 % have a standard
// deviation of 0.51 %, so five of those are 2.6 %.
func TestA50Enforcement(t *testing.T) {
	const sweeps = 8_000
	c := byFailure(FailurePercentageEjection{EnforcementPercentage: 30})
	l := newLedger(t, c, 4, 6)
	n := 0
	for range sweeps {
		if l.sweep(append(counts{{100, 100}}, same(5, 100, 0)...)); len(l.order) > 0 {
			n++
			l.hosts[0].Out, l.hosts[0].a50.ejected = false, false
		}
	}
	if got := float64(n) / sweeps; math.Abs(got-0.30) > 0.026 {
		t.Errorf("ejected in %.3f of the sweeps, want 0.30", got)
	}
}

// TestA50Order: the success rate comes first, who is out for another reason counts as ejected, and where the cap lets
// only some go they are not always the same.
func TestA50Order(t *testing.T) {
	both := A50{SuccessRateEjection: &SuccessRateEjection{}, FailurePercentageEjection: &FailurePercentageEjection{Threshold: 30}}
	// Host 0 is an outlier by its success rate and not by the threshold; 1 is neither.
	l := newLedger(t, both, 1, 10)
	in := append(counts{{1000, 290}}, same(9, 1000, 0)...)
	if out := l.sweep(in); !slices.Equal(out, []int{0}) {
		t.Fatalf("out are %v, want host 0", out)
	}
	l = newLedger(t, byFailure(FailurePercentageEjection{}), 1, 10)
	l.hosts[9].Out = true
	if out := l.sweep(append(counts{{100, 100}}, same(9, 100, 0)...)); out != nil {
		t.Fatalf("out are %v, want nobody: one of ten is out already", out)
	}
	seen := make(map[int]bool)
	for seed := range uint64(200) {
		l := newLedger(t, byFailure(FailurePercentageEjection{}), seed, 10)
		for _, i := range l.sweep(same(10, 100, 100)) {
			seen[i] = true
		}
	}
	if len(seen) != 10 {
		t.Errorf("in 200 fleets that fail as a whole only %d of 10 places were ever ejected", len(seen))
	}
}

func TestA50ConfigErrors(t *testing.T) {
	f := func(p FailurePercentageEjection) A50 { return byFailure(p) }
	for _, tt := range []struct {
		c    A50
		want string
	}{
		{A50{}, "successRateEjection and failurePercentageEjection are both missing"},
		{A50{Interval: -1}, "interval = -1ns, want 1ms to"},
		{A50{Interval: time.Microsecond}, "interval = 1µs, want 1ms to"},
		{A50{BaseEjectionTime: -1}, "baseEjectionTime = -1ns, want 1ns to"},
		{A50{MaxEjectionTime: 9000 * time.Hour}, "maxEjectionTime = 9000h0m0s, want 1ns to 8760h0m0s"},
		{A50{MaxEjectionPercent: 101}, "maxEjectionPercent = 101, want 1 to 100"},
		{bySuccess(SuccessRateEjection{StdevFactor: -1}), "successRateEjection.stdevFactor = -1"},
		{bySuccess(SuccessRateEjection{EnforcementPercentage: 101}), "successRateEjection.enforcementPercentage = 101, want 1 to 100"},
		{bySuccess(SuccessRateEjection{MinimumHosts: -1}), "successRateEjection.minimumHosts = -1"},
		{bySuccess(SuccessRateEjection{RequestVolume: -1}), "successRateEjection.requestVolume = -1"},
		{f(FailurePercentageEjection{Threshold: 101}), "failurePercentageEjection.threshold = 101, want 1 to 100"},
		{f(FailurePercentageEjection{MinimumHosts: -2}), "failurePercentageEjection.minimumHosts = -2"},
	} {
		s, err := NewA50(tt.c, nil)
		if err == nil || s != nil || !strings.HasPrefix(err.Error(), "outlier: a50.") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("NewA50(%+v): %v, want an error with %q", tt.c, err, tt.want)
		}
	}
}

// TestA50KeepsItsConfig: the caller's struct is not written to.
func TestA50KeepsItsConfig(t *testing.T) {
	c := byFailure(FailurePercentageEjection{})
	a50(t, c, 1)
	if got := fmt.Sprint(*c.FailurePercentageEjection); got != "{0 0 0 0}" {
		t.Errorf("the configuration is now %s, want it as it was", got)
	}
}
