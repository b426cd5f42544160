package baseline

import (
	"math"
	"testing"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// TestA58Weight: times in seconds; values computed by hand from gRFC A58.
func TestA58Weight(t *testing.T) {
	type row struct {
		at   int64
		load *lb.Load
		want float64
	}
	good := &lb.Load{QPS: 100, Utilization: 0.5}
	for name, rows := range map[string][]row{
		"blackout": {
			{at: 0, want: 0},
			{at: 1, load: good, want: 0},
			{at: 10, load: good, want: 0},
			{at: 11, want: 200}, // ten seconds after the first report
		},
		"errors are utilization": {
			{at: 1, load: good},
			{at: 12, load: &lb.Load{QPS: 100, EPS: 50, Utilization: 0.5}, want: 100 / (0.5 + 0.5)},
			{at: 13, load: &lb.Load{QPS: 100, EPS: 100, Utilization: 0.1}, want: 100 / 1.1},
		},
		"a report without queries or utilization is ignored": {
			{at: 1, load: &lb.Load{QPS: 100}},
			{at: 2, load: &lb.Load{Utilization: 1}},
			{at: 15, want: 0},
			{at: 15, load: good},
			{at: 20, load: &lb.Load{}},
			{at: 25, want: 200},
		},
		"three minutes without a report, and the blackout begins anew": {
			{at: 1, load: good},
			{at: 20, load: good},
			{at: 199, want: 200},
			{at: 200, want: 0},
			{at: 201, load: good, want: 0},
			{at: 210, want: 0},
			{at: 211, want: 200},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := &a58{began: never, updated: never}
			for i, r := range rows {
				if r.load != nil {
					a.report(r.at*second+1, r.load)
				}
				if r.want == 0 && r.load != nil {
					continue
				}
				if got := a.weight(r.at*second + 1); math.Abs(got-r.want) > 1e-9 {
					t.Errorf("row %d: weight is %v, want %v", i, got, r.want)
				}
			}
		})
	}
}

func TestSmoothedWeight(t *testing.T) {
	s := new(smoothed)
	if s.weight(1) != 0 {
		t.Errorf("weight without a report is %v, want 0", s.weight(1))
	}
	s.report(1, &lb.Load{QPS: 100, EPS: 50, Utilization: 0.5})
	if s.weight(1) != 100 {
		t.Errorf("weight is %v, want 100 at once: errors are utilization", s.weight(1))
	}
	s.report(10*second+1, &lb.Load{QPS: 50, Utilization: 1})
	e := 1 / math.E
	if got, want := s.weight(1), (100*e+50*(1-e))/(e+1-e); math.Abs(got-want) > 1e-9 {
		t.Errorf("weight after ten seconds is %v, want %v", got, want)
	}
}

func TestStrideNeedsTwoDifferentWeights(t *testing.T) {
	for _, c := range []struct {
		weights []float64
		want    []uint64 // nil for none
	}{
		{nil, nil},
		{[]float64{1, 0, 0}, nil}, // one is known
		{[]float64{2, 2, 2}, nil},
		{[]float64{2, 0, 2}, nil}, // the unknown one is the mean
		{[]float64{1, 2}, []uint64{32768, 65535}},
		{[]float64{1, 3, 0}, []uint64{21845, 65535, 43690}},
		{[]float64{1, 1e6}, []uint64{0, 65535}},
	} {
		s := newStride(c.weights)
		if (s == nil) != (c.want == nil) {
			t.Errorf("%v: schedule %v, want %v", c.weights, s, c.want)
			continue
		}
		for i := range c.want {
			if s.weights[i] != c.want[i] {
				t.Errorf("%v: scaled to %v, want %v", c.weights, s.weights, c.want)
				break
			}
		}
	}
}

// TestStrideWalk follows gRFC A58's walk for weights 65535, 32768: in even rounds the second one's turn is decided by
// (32768 round + 32767) mod 65535 >= 32767.
func TestStrideWalk(t *testing.T) {
	s := newStride([]float64{2, 1})
	sequence := uint32(0)
	for i, want := range []int{
		0, 1, // 32767 >= 32767
		0,    // round 1: 65535 mod 65535 = 0: skipped
		0, 1, // round 2: 98303 mod 65535 = 32768
		0,    // round 3: 131071 mod 65535 = 1: skipped
		0, 1, // round 4: 163839 mod 65535 = 32769
	} {
		if got := s.next(&sequence); got != want {
			t.Fatalf("pick %d is %d, want %d", i, got, want)
		}
	}
	if sequence != 10 {
		t.Errorf("the walk took %d steps, want 10", sequence)
	}
}

// TestStrideShares: whole cycles of the walk give every server exactly its weight.
func TestStrideShares(t *testing.T) {
	s := newStride([]float64{1, 2, 3, 10})
	var got [4]uint64
	sequence := uint32(0)
	for sequence < 4*strideMax {
		got[s.next(&sequence)]++
	}
	for i, w := range s.weights {
		if d := int64(got[i]) - int64(w); d < -1 || d > 1 { // the last pick may lie beyond the cycle
			t.Errorf("%v picks, want %v", got, s.weights)
			break
		}
	}
}

// TestStrideFlaws holds what is known of the unclamped schedule: one great weight makes a pick take max/mean steps, and
// starves the others if it is great enough.
func TestStrideFlaws(t *testing.T) {
	weights := make([]float64, 100)
	for i := range weights {
		weights[i] = 1
	}
	weights[0] = 100
	s, sequence := newStride(weights), uint32(0)
	const picks = 10_000
	for range picks {
		s.next(&sequence)
	}
	if steps := float64(sequence) / picks; steps < 49 || steps > 51 {
		t.Errorf("%.1f steps for a pick, want 100/1.99", steps)
	}
	weights[0] = 1e6
	s = newStride(weights)
	for range 20_000 {
		if i := s.next(&sequence); i != 0 {
			t.Fatalf("server %d was picked, want it starved", i)
		}
	}
}

func TestWRRTakesWeightsUpEverySecond(t *testing.T) {
	w := newWorld(t)
	w.draws = []uint64{1 << 63, 0} // the first second begins in its middle; the walk begins at 0
	b := w.make(WRR(), 0, 1)
	slow, fast := &lb.Load{QPS: 50, Utilization: 1}, &lb.Load{QPS: 50, Utilization: 0.5}
	play(t, w, b, []step{
		{at: 100, pick: "a", want: 0},
		{at: 100, pick: "b", want: 1},
		{at: 200, done: "a", load: fast},
		{at: 200, done: "b", load: slow},
		{at: 10_100, pick: "a", want: 0}, // blackout: plain turns
		{at: 10_100, pick: "b", want: 1},
		{at: 10_100, pick: "c", want: 0},
		{at: 10_400, pick: "d", want: 1}, // over, but not looked at yet
		// From 10.5 s on the walk goes on at step 6, round 3, of TestStrideWalk.
		{at: 10_500, pick: "e", want: 0},
		{at: 10_500, pick: "f", want: 0},
		{at: 10_500, pick: "g", want: 1},
		{at: 10_500, pick: "h", want: 0}, // and 1 is skipped in round 5
		{at: 10_500, pick: "i", want: 0},
		// A new server has no weight: it counts as the mean of the others. The walk begins at 0 again.
		{at: 10_600, draws: []uint64{0}, set: []int{0, 1, 2}, pick: "j", want: 0},
		// An answer without a report changes nothing.
		{at: 10_600, done: "c"},
	})
	if got := b.(*wrr).schedule.weights; got[0] != 65535 || got[1] != 32768 || got[2] != 49151 {
		t.Errorf("weights are %v, want 65535, 32768 and their mean", got)
	}
}
