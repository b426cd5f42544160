package balancer

import (
	"math/rand/v2"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/registry"
)

// town is a fleet of instances in zones, each of which serves one call after the other.
type town struct {
	*rig
	rnd     *rand.Rand
	servers map[string]*house
}

type house struct {
	zone  string
	takes time.Duration // on average, exponentially distributed
	far   time.Duration // how long the way there and back takes
	free  int64         // when it has done what it has
	stuck bool
}

// zoned are near instances in the zone a, far ones in b, and one without a zone. Each serves 100 calls a second.
func zoned(near, far int) []registry.Instance {
	ins := fleet(near + far + 1)
	for i := range ins {
		ins[i].Zone = "a"
		if i >= near {
			ins[i].Zone = "b"
		}
	}
	ins[near+far].Zone = ""
	return ins
}

func newTown(t *testing.T, c Config, ins []registry.Instance) *town {
	w := &town{rig: newRig(t, c, ins), rnd: rand.New(rand.NewPCG(5, 5)), servers: make(map[string]*house)}
	for _, in := range ins {
		h := &house{zone: in.Zone, takes: 10 * time.Millisecond}
		if in.Zone != "a" {
			h.far = time.Millisecond
		}
		w.servers[in.ID] = h
	}
	t.Cleanup(func() { w.advance(10 * time.Second) }) // calls that are under way end
	return w
}

// in changes all servers of a zone.
func (w *town) in(zone string, f func(*house)) {
	for _, h := range w.servers {
		if h.zone == zone {
			f(h)
		}
	}
}

// live makes so many calls a second, in steady intervals, and says which part of them left the zone a and how long
// those took on average that ended.
func (w *town) live(d time.Duration, rate int) (left float64, mean time.Duration) {
	w.t.Helper()
	calls, away, ended := 0, 0, 0
	var sum time.Duration
	for range int(d.Seconds() * float64(rate)) {
		id, done, err := w.begin(ask{})
		if err != nil {
			w.t.Fatal(err)
		}
		h, now := w.servers[id], w.clock.Now()
		calls++
		if h.zone != "a" {
			away++
		}
		h.free = max(h.free, now) + int64(w.rnd.ExpFloat64()*float64(h.takes))
		latency, result := time.Duration(h.free-now)+h.far, error(nil)
		if limit := 5 * time.Second; h.stuck || latency > limit { // the caller's patience
			latency, result = limit, fails(codes.Canceled)
		}
		w.clock.AfterFunc(latency, func() {
			sum += latency
			ended++
			done(gbalancer.DoneInfo{Err: result, BytesSent: true, BytesReceived: result == nil})
		})
		w.advance(time.Second / time.Duration(rate))
	}
	return float64(away) / float64(calls), sum / time.Duration(max(ended, 1))
}

func (w *town) wantLeft(what string, got, least, most float64) {
	w.t.Helper()
	if got < least || got > most {
		w.t.Errorf("%s: %.1f %% of the calls leave the zone, want %.1f to %.1f %%", what, 100*got, 100*least, 100*most)
	}
}

func near(s Strategy) Config { return Config{Strategy: s, Zone: Zone{Local: "a"}} }
