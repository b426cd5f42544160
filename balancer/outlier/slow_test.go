package outlier

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// clinic times the calls of a fleet.
type clinic struct {
	rand  *rand.Rand
	d     *Detector
	now   int64
	hosts []*Host
	mean  []time.Duration // of each endpoint's calls, which vary as much as their mean
	calls []uint64        // at each endpoint in a step
	least float64         // the smallest share that any of the endpoints from 1 on had
}

func newClinic(t testing.TB, slow float64, n int, calls uint64) *clinic {
	c := &clinic{rand: rand.New(rand.NewPCG(3, 9)), d: ours(t, Config{Slow: slow}), now: begun, least: 1}
	for range n {
		c.hosts = append(c.hosts, new(Host))
		c.mean = append(c.mean, 10*time.Millisecond)
		c.calls = append(c.calls, calls)
	}
	return c
}

func (c *clinic) run(t testing.TB, d time.Duration) {
	t.Helper()
	for end := c.now + int64(d); c.now < end; {
		c.now += int64(interval)
		for i, h := range c.hosts {
			for range c.calls[i] {
				h.Calls++
				h.Timed++
				h.Latency += uint64(c.rand.ExpFloat64() * float64(c.mean[i]))
			}
		}
		if v := c.d.Step(c.now, c.hosts); len(v) > 0 {
			t.Fatalf("slowness is no reason for %+v", v)
		}
		for _, h := range c.hosts[1:] {
			c.least = min(c.least, h.Share())
		}
	}
}

// TestSlowLosesWeight: an endpoint that is slow gets less in proportion, down to a tenth, within some seconds, and all of
// it back when it is fast again. The others keep theirs, and nobody is ejected.
func TestSlowLosesWeight(t *testing.T) {
	for _, n := range []int{2, 3, 10} {
		for factor, want := range map[time.Duration]float64{1: 1, 2: 1, 6: 0.5, 10: 0.3, 100: 0.1} {
			c := newClinic(t, 3, n, 20)
			c.run(t, 30*time.Second)
			c.mean[0] *= factor
			c.run(t, 12*time.Second)
			if got := c.hosts[0].Share(); math.Abs(got-want) > 0.2*want {
				t.Errorf("%d endpoints, %d times as slow: share %.2f, want about %v", n, factor, got, want)
			}
			c.mean[0] /= factor
			c.run(t, 12*time.Second)
			if got := c.hosts[0].Share(); got != 1 {
				t.Errorf("%d endpoints, fast again after %d times as slow: share %.2f, want 1", n, factor, got)
			}
			if c.least < 1 {
				t.Errorf("%d endpoints, one %d times as slow: another has had a share of %.2f, want 1", n, factor, c.least)
			}
		}
	}
}

// TestTooFewToTell: a share is not taken away for a few slow calls, and it comes back to who is not asked any more.
func TestTooFewToTell(t *testing.T) {
	c := newClinic(t, 3, 5, 20)
	c.run(t, 10*time.Second)
	c.hosts[0].begin()
	c.hosts[0].Timed += leastTimed - 1
	c.hosts[0].Latency += uint64(time.Hour)
	c.calls[0] = 0
	c.run(t, time.Second)
	if got := c.hosts[0].Share(); got != 1 {
		t.Errorf("share %.2f after %d slow calls, want 1", got, leastTimed-1)
	}
	c.mean[0] *= 100
	c.calls[0] = 20
	c.run(t, 12*time.Second)
	if got := c.hosts[0].Share(); got > 0.11 {
		t.Fatalf("share %.2f at a hundred times as slow, want 0.1", got)
	}
	c.calls[0] = 0
	c.run(t, time.Minute)
	if got := c.hosts[0].Share(); got < 0.5 {
		t.Errorf("share %.2f of who was not asked for a minute, want most of it back", got)
	}
	c.hosts[0].Out = true
	c.run(t, time.Second)
	if got := c.hosts[0].Share(); got != 1 {
		t.Errorf("share %.2f of who is out, want 1: it is judged anew when it is back", got)
	}
}

// TestSlowIsOff: without a limit latencies change nothing.
func TestSlowIsOff(t *testing.T) {
	c := newClinic(t, 0, 5, 20)
	c.mean[0] *= 100
	c.run(t, time.Minute)
	if got := c.hosts[0].Share(); got != 1 {
		t.Errorf("share %v, want 1", got)
	}
}
