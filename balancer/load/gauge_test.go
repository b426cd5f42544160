package load_test

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
)

// TestGaugeRIF: what the server said, and what was begun and ended here since.
func TestGaugeRIF(t *testing.T) {
	var g load.Gauge
	if rif, age := g.RIF(begin, 3); rif != 0 || age >= 0 {
		t.Errorf("before the first report: %d, %d ns old, want 0 and a negative age", rif, age)
	}
	for _, tt := range []struct {
		name          string
		rif, own      int64 // reported, with so many of ours
		now, later    int64
		want, wantAge int64
	}{
		{"as reported", 7, 2, 2, 0, 7, 0},
		{"two more of ours", 7, 2, 4, 0, 9, 0},
		{"ours have ended", 7, 2, 0, 0, 5, 0},
		{"never less than ours", 0, 5, 3, 0, 3, 0},
		{"nothing at all", 0, 0, 0, 0, 0, 0},
		{"a second later", 4, 0, 0, s, 4, s},
		{"the clock went backwards", 4, 0, 0, -s, 4, 0},
		{"more than fits", 1 << 40, 1 << 40, 1 << 40, 0, 1 << 40, 0},
	} {
		g.Heard(begin, load.Report{RIF: tt.rif}, tt.own)
		rif, age := g.RIF(begin+tt.later, tt.now)
		if rif != tt.want || math.Abs(float64(age-tt.wantAge)) > 2*float64(ms) {
			t.Errorf("%s: %d, %d ns old, want %d, %d", tt.name, rif, age, tt.want, tt.wantAge)
		}
	}
	g.Heard(begin+s, load.Report{RIF: -1, Latency: s}, 0)
	if _, age := g.RIF(begin+s, 0); age < s-2*ms {
		t.Errorf("a report that does not say how many are in flight made the age %d, want it to stay", age)
	}
	g.Lost(begin - 10*ms)
	if _, age := g.RIF(begin, 0); age < 0 {
		t.Error("a report that came after the question of a lost probe was lost with it")
	}
	g.Lost(begin + s)
	if _, age := g.RIF(begin, 0); age >= 0 {
		t.Errorf("after the server did not answer its report is %d ns old, want none", age)
	}
}

// TestGaugePatience: who usually takes longer gets more time for an answer, within bounds; one slow answer does little.
func TestGaugePatience(t *testing.T) {
	var g load.Gauge
	wait := func(what string, want time.Duration) {
		t.Helper()
		if got := g.Patience(20*time.Millisecond, time.Second); got.Round(time.Millisecond) != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	wait("before the first answer", 20*time.Millisecond)
	g.Answered(30 * ms)
	wait("the first took 30 ms", 60*time.Millisecond)
	for range 100 {
		g.Answered(ms)
	}
	wait("a hundred took 1 ms", 20*time.Millisecond)
	g.Answered(81 * ms)
	wait("one in a hundred took 81 ms", 22*time.Millisecond)
	for range 100 {
		g.Answered(10 * s)
	}
	wait("a hundred took 10 s", time.Second)
	g.Answered(-s) // a clock that went backwards
	wait("and one minus a second", time.Second)
}

// TestGaugeLatency is a mean over reports, the first of which counts whole.
func TestGaugeLatency(t *testing.T) {
	var g load.Gauge
	want := 0.0
	for i, l := range []int64{0, 10 * ms, 20 * ms, 0, 20 * ms} {
		g.Heard(begin, load.Report{Latency: l}, 0)
		switch {
		case i == 1:
			want = float64(l)
		case l > 0:
			want += 0.3 * (float64(l) - want)
		}
		if got := g.Latency(); math.Abs(got-want) > want*1e-6 {
			t.Errorf("after report %d: %v, want %v", i, got, want)
		}
	}
}

// TestGaugeFailing: two failures in a row are more than a fifth, by whoever counts; and they are forgotten.
func TestGaugeFailing(t *testing.T) {
	var g load.Gauge
	const bad = 0.2
	step := func(what string, now int64, failed, want bool) {
		t.Helper()
		g.Ended(now, failed)
		if got := g.Failing(now); got > bad != want {
			t.Errorf("%s: %v fail, want more than %v: %v", what, got, bad, want)
		}
	}
	step("a success", begin, false, false)
	step("one failure", begin, true, false)
	step("two in a row", begin, true, true)
	step("and a success", begin, false, true)
	step("and another", begin, false, false)
	step("and a failure", begin, true, true)
	if g.Failing(begin+5*s) > bad {
		t.Error("5 s later the failures are not forgotten")
	}
	for i := range 100 {
		g.Ended(begin+10*s, i%20 == 0)
		if got := g.Failing(begin + 10*s); got > bad {
			t.Fatalf("a call in 20 fails: %v after %d", got, i)
		}
	}
	var said load.Gauge
	for eps, want := range map[float64]float64{1: 0.1, 3: 0.3, 0: 0, 20: 1} {
		said.Heard(begin, load.Report{QPS: 10, EPS: eps}, 0)
		if got := said.Failing(begin); math.Abs(got-want) > 1e-6 {
			t.Errorf("the server says that %v of 10 calls fail: %v, want %v", eps, got, want)
		}
	}
	said.Heard(begin, load.Report{QPS: 10, EPS: 1}, 0)
	for range 20 {
		said.Ended(begin, true)
	}
	if got := said.Failing(begin); got < 0.9 {
		t.Errorf("all calls from here fail, and a tenth of all: %v, want what is more", got)
	}
}

// TestGaugeForgetsReportedFailures: a server that failed all that it got, and gets nothing since, says that nothing fails
// there. It is not avoided for ever for what it said before.
func TestGaugeForgetsReportedFailures(t *testing.T) {
	for _, tt := range []struct {
		name string
		says load.Report
		want float64
	}{
		{"nobody is served there", load.Report{RIF: 0}, 0},
		{"and a latency from before", load.Report{RIF: 0, Latency: ms}, 0},
		{"it fails still", load.Report{RIF: 0, QPS: 1, EPS: 1}, 1},
		{"it says nothing of itself", load.Report{RIF: -1}, 1},
	} {
		var g load.Gauge
		g.Heard(begin, load.Report{RIF: 0, QPS: 5, EPS: 5}, 0)
		g.Heard(begin+s, tt.says, 0)
		if got := g.Failing(begin + s); got != tt.want {
			t.Errorf("%s: %v fail, want %v", tt.name, got, tt.want)
		}
	}
}

// TestGaugeConcurrent: whatever is read was reported by somebody.
func TestGaugeConcurrent(t *testing.T) {
	var g load.Gauge
	g.Heard(begin, load.Report{RIF: 1, Latency: s}, 0)
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for range 2000 {
				g.Heard(begin, load.Report{RIF: int64(k), Latency: s, QPS: 1}, 0)
				g.Ended(begin, k%2 == 0)
				if rif, age := g.RIF(begin, 0); rif > 3 || age != 0 {
					t.Errorf("%d in flight, %d old", rif, age)
				}
				if l := g.Latency(); math.Abs(l-float64(s)) > 1e3 {
					t.Errorf("latency %v, want %v", l, s)
				}
				g.Failing(begin)
			}
		})
	}
	wg.Wait()
}

func ExampleGauge() {
	var g load.Gauge
	now := int64(time.Hour)
	g.Heard(now, load.Report{RIF: 12, Latency: int64(8 * time.Millisecond)}, 2) // two of the twelve are ours
	rif, _ := g.RIF(now, 3)                                                     // one more has left since
	fmt.Println(rif, "in flight,", time.Duration(g.Latency()), "a request")
	g.Ended(now, true)
	g.Ended(now, true)
	fmt.Printf("failing: %.2f\n", g.Failing(now))
	// Output:
	// 13 in flight, 8ms a request
	// failing: 0.23
}
