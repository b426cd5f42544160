package outlier

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// standard is A50 with its defaults and both algorithms.
func standard(t testing.TB, seed uint64) *Standard {
	return a50(t, A50{SuccessRateEjection: &SuccessRateEjection{}, FailurePercentageEjection: &FailurePercentageEjection{}}, seed)
}

// TestHealthyFleet is an hour of a fleet in which all fail alike, a little by chance. The goal is that at most 0.1 % of
// it is out of service on average. A50 is shown beside it, for a figure that does not depend on who reads it.
func TestHealthyFleet(t *testing.T) {
	for _, n := range []int{10, 20, 100} {
		for _, p := range []float64{0.001, 0.01} {
			t.Run(fmt.Sprintf("%d/%v", n, p), func(t *testing.T) {
				w := newWorld(t, ours(t, Config{}), n, 20, p)
				w.run(time.Hour)
				theirs := newWorld(t, standard(t, 1), n, 20, p)
				theirs.run(time.Hour)
				t.Logf("out of service: ours %.3f %% (%d ejections), A50 %.1f %% (%d)", 100*w.outOfService(), w.ejected,
					100*theirs.outOfService(), theirs.ejected)
				if out := w.outOfService(); out > 0.001 {
					t.Errorf("%.3f %% of a healthy fleet are out of service, want at most 0.1 %%", 100*out)
				}
				if out := theirs.outOfService(); out < 0.04 || out > 0.10 {
					t.Errorf("A50 keeps %.1f %% out, want 4 to 10 %%: it is not A50, or not the same fleet", 100*out)
				}
			})
		}
	}
}

// TestEverybodyFails is the case in which whoever is ejected is the wrong one: something behind all endpoints fails.
func TestEverybodyFails(t *testing.T) {
	for _, n := range []int{2, 3, 10, 40} {
		for _, p := range []float64{0.1, 0.3, 0.6, 1} {
			for _, rate := range []float64{0.5, 10} {
				w := newWorld(t, ours(t, Config{}), n, rate, p)
				w.run(5 * time.Minute)
				if out := w.outOfService(); out > 0.01 {
					t.Errorf("%d endpoints that fail %v of their calls, %v a second: %.2f %% are out, want 1 %% at most",
						n, p, rate, 100*out)
				}
			}
		}
	}
}

// TestOutageBegins: after a good while everybody fails at once. Nobody is to blame for it.
func TestOutageBegins(t *testing.T) {
	for _, n := range []int{2, 3, 10, 100} {
		for _, rate := range []float64{1, 20, 200} {
			w := newWorld(t, ours(t, Config{}), n, rate, 0.001)
			w.run(2 * time.Minute)
			for i := range w.fails {
				w.fails[i] = 0.5
			}
			w.run(time.Minute)
			if most := max(1, n/20); w.ejected > most {
				t.Errorf("%d of %d endpoints, with %v calls a second, are ejected by an outage of all, want %d at most",
					w.ejected, n, rate, most)
			}
		}
	}
}

// TestOneBad has one endpoint go bad after two good minutes, by how much of its calls it fails. rate 0.5 is five calls to
// each endpoint in ten seconds, the interval of A50.
func TestOneBad(t *testing.T) {
	for _, tt := range []struct {
		n      int
		rate   float64 // calls a second
		fails  float64
		within time.Duration
		calls  uint64 // or within so many, if that is longer
	}{
		{2, 0.5, 1, time.Second, 5},
		{3, 0.5, 1, time.Second, 5},
		{10, 0.5, 1, time.Second, 5},
		{100, 0.5, 1, time.Second, 5},
		{2, 10, 1, time.Second, 5},
		{3, 10, 1, time.Second, 5},
		{10, 10, 1, time.Second, 5},
		{100, 10, 1, time.Second, 5},
		{2, 1000, 1, time.Second, 5},
		{100, 1000, 1, time.Second, 5},
		{2, 0.5, 0.5, 2 * time.Minute, 0},
		{10, 0.5, 0.5, 2 * time.Minute, 0},
		{10, 0.5, 0.3, 5 * time.Minute, 0},
		{100, 0.5, 0.3, 5 * time.Minute, 0},
		{3, 10, 0.3, 15 * time.Second, 0},
		{10, 10, 0.3, 15 * time.Second, 0},
		{10, 10, 0.1, 2 * time.Minute, 0},
		{10, 100, 0.1, 15 * time.Second, 0},
	} {
		t.Run(fmt.Sprintf("%d at %v a second fail %v", tt.n, tt.rate, tt.fails), func(t *testing.T) {
			w := newWorld(t, ours(t, Config{}), tt.n, tt.rate, 0.001)
			w.run(2 * time.Minute)
			if w.ejected > 0 {
				t.Fatal("ejected before anything happened")
			}
			began, calls := w.now, w.hosts[0].Calls
			w.fails[0] = tt.fails
			for w.first[0] == 0 && w.now-began < int64(10*time.Minute) {
				w.step()
			}
			took, asked := time.Duration(w.now-began), w.hosts[0].Calls-calls
			t.Logf("out after %v and %d calls", took, asked)
			if w.first[0] == 0 || took > tt.within && asked > tt.calls {
				t.Errorf("out after %v and %d calls, want %v or %d calls", took, asked, tt.within, tt.calls)
			}
			if w.ejected != 1 {
				t.Errorf("%d ejections, want 1", w.ejected)
			}
		})
	}
}

// TestDeadFleet kills a part of the fleet at once: all of that must go, and nobody else. A50 ejects nobody.
func TestDeadFleet(t *testing.T) {
	for _, n := range []int{20, 100} {
		for _, part := range []float64{0.25, 0.40} {
			for _, rate := range []float64{0.5, 20} {
				t.Run(fmt.Sprintf("%v of %d at %v a second", part, n, rate), func(t *testing.T) {
					dead := int(part * float64(n))
					w := newWorld(t, ours(t, Config{}), n, rate, 0.005)
					theirs := newWorld(t, a50(t, A50{SuccessRateEjection: &SuccessRateEjection{}}, 1), n, 20, 0)
					for _, w := range []*world{w, theirs} {
						w.length = time.Hour
						w.run(2 * time.Minute)
						for i := range dead {
							w.fails[i] = 1
						}
					}
					began := w.now
					for sick := 0; sick < dead && w.now-began < int64(2*time.Minute); {
						w.step()
						sick, _ = w.outNow(dead)
					}
					sick, well := w.outNow(dead)
					took := time.Duration(w.now - began)
					t.Logf("all %d out after %v, %d others", sick, took, well)
					if sick != dead || well != 0 {
						t.Errorf("%d of %d dead ones are out, and %d healthy ones, want all and none", sick, dead, well)
					}
					if limit := max(2*time.Second, time.Duration(20/rate*1e9)); took > limit {
						t.Errorf("it took %v, want %v at most", took, limit)
					}
					theirs.run(2 * time.Minute)
					if theirs.ejected > 0 {
						t.Errorf("A50 ejected %d, want none: the dead widen its deviation", theirs.ejected)
					}
				})
			}
		}
	}
}

// TestSmallFleetsKeepOne: the cap is that of the blacklist.
func TestSmallFleetsKeepOne(t *testing.T) {
	for n, most := range map[int]int{1: 0, 2: 1, 3: 1, 4: 2, 5: 2} {
		w := newWorld(t, ours(t, Config{}), n, 20, 0)
		w.length = time.Hour
		w.run(time.Minute)
		for i := range n - 1 { // one after the other, so that each is worse than the rest
			w.fails[i] = 1
			w.run(10 * time.Second)
		}
		if n == 1 {
			w.fails[0] = 1
			w.run(time.Minute)
		}
		if out, _ := w.outNow(n); out != most {
			t.Errorf("of %d endpoints of which all but one fail %d are out, want %d", n, out, most)
		}
	}
}

// TestRecordBeginsAnew: who is back is not judged by what was before, and an ejection is not repeated for it.
func TestRecordBeginsAnew(t *testing.T) {
	w := newWorld(t, ours(t, Config{}), 10, 20, 0)
	w.run(time.Minute)
	w.fails[0] = 1
	w.run(2 * time.Second)
	w.fails[0] = 0
	w.run(2 * time.Minute)
	if w.ejected != 1 || w.hosts[0].Out {
		t.Errorf("%d ejections, out %t; want 1 and false", w.ejected, w.hosts[0].Out)
	}
}

// TestClock: what a strange clock, or counters that run backwards, must not do is eject anybody, or stop it for good.
func TestClock(t *testing.T) {
	for name, jump := range map[string]time.Duration{
		"an hour on": time.Hour, "an hour back": -time.Hour, "before the epoch": -2000 * time.Hour, "a second back": -time.Second,
	} {
		w := newWorld(t, ours(t, Config{}), 5, 20, 0.02)
		w.run(time.Minute)
		w.now += int64(jump)
		w.run(time.Minute)
		if w.ejected > 0 {
			t.Errorf("%s: %d are ejected, want none", name, w.ejected)
		}
		w.fails[0] = 1
		w.run(2 * time.Second)
		if w.first[0] == 0 {
			t.Errorf("%s: a dead one is still in after 2s", name)
		}
	}
	w := newWorld(t, ours(t, Config{}), 5, 20, 0.02)
	w.run(time.Minute)
	for _, h := range w.hosts {
		h.Calls, h.Failures = 1, 1
	}
	w.step()
	if w.ejected > 0 {
		t.Errorf("counters that began anew ejected %d", w.ejected)
	}
}

// TestPauseForgets: after a pause longer than it looks back, the difference of the counters is of no known time.
func TestPauseForgets(t *testing.T) {
	d := ours(t, Config{})
	hosts := []*Host{{}, {}, {}}
	now := begun
	d.Step(now, hosts)
	for _, h := range hosts {
		h.Calls += 1000
	}
	hosts[0].Failures += 1000
	if got := d.Step(now+int64(Span)+1, hosts); len(got) != 0 {
		t.Errorf("verdicts after a pause: %+v, want none", got)
	}
	for _, h := range hosts {
		h.Calls += 10
	}
	hosts[0].Failures += 10
	got := d.Step(now+int64(Span)+int64(interval), hosts)
	if len(got) != 1 || got[0].Host != 0 || got[0].Return || got[0].For != 0 {
		t.Fatalf("verdicts are %+v, want one about host 0", got)
	}
	if !strings.Contains(got[0].Reason, "10 of 10 calls failed") {
		t.Errorf("reason %q does not say what was seen", got[0].Reason)
	}
}

// TestVerdictIsRepeated: one that is not put into effect, as in a dry run, is given again.
func TestVerdictIsRepeated(t *testing.T) {
	d := ours(t, Config{})
	hosts := []*Host{{}, {}, {}}
	for i := range int64(4) {
		got := d.Step(begun+i*int64(interval), hosts)
		if want := min(int(i), 1); len(got) != want {
			t.Fatalf("step %d: %+v, want %d", i, got, want)
		}
		for _, h := range hosts {
			h.Calls += 10
		}
		hosts[2].Failures += 10
	}
}

// TestAnyCounts: whatever the counters do, also run backwards or contradict each other, and whoever comes and goes, no more
// are convicted than may be out, each once, and nobody who is out.
func TestAnyCounts(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for range 50 {
		d := ours(t, Config{Slow: 2})
		s := standard(t, 3)
		var hosts []*Host
		now := begun
		for range 40 {
			for len(hosts) < 1+rnd.IntN(12) {
				hosts = append(hosts, &Host{Calls: rnd.Uint64N(1000)})
			}
			if rnd.IntN(10) == 0 {
				hosts = hosts[1:]
			}
			for _, h := range hosts {
				h.Calls += rnd.Uint64N(300)
				h.Failures += rnd.Uint64N(1 + rnd.Uint64N(300))
				h.Timed += rnd.Uint64N(50)
				h.Latency += rnd.Uint64N(1 << 40)
				h.Out = rnd.IntN(5) == 0
				if rnd.IntN(50) == 0 {
					h.Calls, h.Failures, h.Timed = 0, rnd.Uint64(), 0
				}
			}
			now += rnd.Int64N(int64(2*Span)) - int64(Span)/2
			room := d.room(hosts)
			seen := make(map[int]bool)
			for _, v := range d.Step(now, hosts) {
				if seen[v.Host] || hosts[v.Host].Out || len(seen) >= room {
					t.Fatalf("verdict %+v after %v, of %d with room for %d", v, seen, len(hosts), room)
				}
				seen[v.Host] = true
			}
			for _, h := range hosts {
				if sh := h.Share(); !(sh >= 0.1-1e-9 && sh <= 1) {
					t.Fatalf("share %v, want 0.1 to 1", sh)
				}
			}
			for _, v := range s.Step(now, hosts) {
				if !v.Return && hosts[v.Host].Out {
					t.Fatalf("A50 ejects %d, which is out", v.Host)
				}
			}
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Margin: -1}, "outlier: margin = -1, want 0.001 to 1"},
		{Config{Margin: 1.5}, "outlier: margin = 1.5, want 0.001 to 1"},
		{Config{OddsRatio: 0.5}, "outlier: oddsRatio = 0.5, want 1 to 1000"},
		{Config{Confidence: 1}, "outlier: confidence = 1, want 0.9 to less than 1"},
		{Config{Confidence: 0.5}, "outlier: confidence = 0.5, want 0.9 to less than 1"},
		{Config{MaxEjectedPercent: 101}, "outlier: maxEjectedPercent = 101, want 1 to 100"},
		{Config{MaxEjectedPercent: -1}, "outlier: maxEjectedPercent = -1, want 1 to 100"},
		{Config{Slow: 1}, "outlier: slow = 1, want 1.5 to 1000, or 0 for not looking at latency"},
	} {
		if d, err := New(tt.c); err == nil || err.Error() != tt.want || d != nil {
			t.Errorf("New(%+v): %v, %v; want the error %q", tt.c, d, err, tt.want)
		}
	}
}

// TestAllocStep: a step of which nothing comes allocates nothing, however many endpoints there are.
func TestAllocStep(t *testing.T) {
	w := newWorld(t, ours(t, Config{Slow: 3}), 50, 20, 0.3)
	w.run(time.Minute)
	now := w.now
	if n := testing.AllocsPerRun(100, func() {
		now += int64(interval)
		for _, h := range w.hosts {
			h.Calls, h.Timed, h.Latency = h.Calls+10, h.Timed+10, h.Latency+10_000_000
			h.Failures += 3
		}
		w.judge.Step(now, w.hosts)
	}); n > 0 {
		t.Errorf("a step allocates %v times, want none", n)
	}
}

func BenchmarkStep(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		for _, p := range []float64{0, 0.001, 0.3} {
			b.Run(fmt.Sprintf("hosts=%d/fails=%v", n, p), func(b *testing.B) {
				w := newWorld(b, ours(b, Config{}), n, 20, p)
				w.run(Span)
				i := 0
				for b.Loop() {
					w.now += int64(interval)
					for range n / 10 {
						h := w.hosts[i%n]
						i++
						h.Calls += 100
						h.Failures += w.failures(100, p)
					}
					w.judge.Step(w.now, w.hosts)
				}
			})
		}
	}
}
