package ratelimit_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
)

// TestCore steps a limit through a minute of a server that works on four calls at once, 10 ms each, and is offered
// twice what it can do. Those that come in take their turn in order.
func TestCore(t *testing.T) {
	const workers, service, gap = 4, int64(10 * time.Millisecond), int64(1250 * time.Microsecond)
	core, err := ratelimit.NewCore(ratelimit.Adaptive{Initial: 100}, func() uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	type call struct {
		began, ends int64
		place       ratelimit.Place
	}
	var open []call
	var free [workers]int64
	now, admitted, slowest := int64(1), 0, int64(0)
	for i := 0; now < int64(time.Minute); i++ {
		now += gap
		for len(open) > 0 && open[0].ends <= now {
			c := open[0]
			open = open[1:]
			core.Leave(c.ends, c.began, c.place, ratelimit.EndServed)
			if c.began > int64(30*time.Second) {
				slowest = max(slowest, c.ends-c.began)
			}
		}
		place, ok := core.Arrive(now, "/s/m", math.MaxInt64)
		if !ok {
			continue
		}
		w := i % workers
		for j := range free {
			if free[j] < free[w] {
				w = j
			}
		}
		free[w] = max(free[w], now) + service
		open = append(open, call{now, free[w], place})
		if now > int64(30*time.Second) {
			admitted++
		}
	}
	if want := int(30 * workers * int64(time.Second) / int64(service)); admitted < want*95/100 {
		t.Errorf("%d calls were admitted in 30 s, want at least 95 %% of %d", admitted, want)
	}
	if slowest > 3*service {
		t.Errorf("a call took %v, want at most thrice its work", time.Duration(slowest))
	}
	if s := core.State(); s.Limit < workers || s.Limit > 3*workers || s.InFlight != len(open) {
		t.Errorf("state %+v with %d open, want a limit near %d", s, len(open), workers)
	}
}

// TestCoreEnds: what a failure took teaches nothing.
func TestCoreEnds(t *testing.T) {
	latency := func(e ratelimit.End) time.Duration {
		core, err := ratelimit.NewCore(ratelimit.Adaptive{}, func() uint64 { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(200) {
			now := 1 + i*int64(20*time.Millisecond)
			p, ok := core.Arrive(now, "/s/m", math.MaxInt64)
			if !ok {
				t.Fatal("a call by itself is not admitted")
			}
			core.Leave(now+int64(10*time.Millisecond), now, p, e)
		}
		if n := core.State().InFlight; n != 0 {
			t.Errorf("%d in flight after all have left", n)
		}
		return core.State().Latency
	}
	for e, want := range map[ratelimit.End]time.Duration{ratelimit.EndServed: 10 * time.Millisecond,
		ratelimit.EndTimedOut: 10 * time.Millisecond, ratelimit.EndVain: 0} {
		if got := latency(e).Round(time.Millisecond); got != want {
			t.Errorf("end %d: calls are taken to last %v, want %v", e, got, want)
		}
	}
}

func TestNewCoreRejects(t *testing.T) {
	_, err := ratelimit.NewCore(ratelimit.Adaptive{Min: -1}, nil)
	if err == nil || !strings.Contains(err.Error(), "adaptive.min = -1") {
		t.Errorf("error %v, want one about adaptive.min = -1", err)
	}
}

func ExampleNewCore() {
	core, err := ratelimit.NewCore(ratelimit.Adaptive{Initial: 1}, func() uint64 { return 0 })
	if err != nil {
		panic(err)
	}
	const now = int64(time.Hour)
	place, admitted := core.Arrive(now, "/pkg.Service/Method", time.Second)
	_, another := core.Arrive(now, "/pkg.Service/Method", time.Second)
	core.Leave(now+1000, now, place, ratelimit.EndServed)
	_, later := core.Arrive(now+1000, "/pkg.Service/Method", time.Second)
	fmt.Println(admitted, another, later)
	// Output: true false true
}
