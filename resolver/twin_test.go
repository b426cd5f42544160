package resolver

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// What holds for every history: who is reported is served; who is served is reported or vanished less than a hold
// ago without announcing it; no more than half leave unannounced within a hold; the order of those who stay is kept.
func TestInvariants(t *testing.T) {
	const hold = 30 * s
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		r := newRig(t, hold)
		r.do("start")
		twin := newTwin(hold)
		for range 60 {
			r.until(r.now + time.Duration(rnd.Int64N(int64(12*s))))
			set := randomSet(rnd)
			if _, list := r.view(); rnd.IntN(3) == 0 { // or everybody where he is, as most updates have it
				set = reweighed(rnd, list)
			}
			r.do("set " + set)
			want := twin.update(r.now, parse(set))
			_, list := r.view()
			if got := show(list); got != want {
				t.Fatalf("seed %d, at %v, after %q: served %q, the twin says %q", seed, r.now, set, got, want)
			}
		}
	}
}

// reweighed is the set that is served, in its order, with other weights for some.
func reweighed(rnd *rand.Rand, list []*registry.Instance) string {
	words := strings.Fields(show(list))
	for i := range words {
		words[i], _, _ = strings.Cut(words[i], "#")
		if rnd.IntN(3) == 0 && !strings.HasSuffix(words[i], "!") {
			words[i] += "#4"
		}
	}
	return strings.Join(words, " ")
}

func randomSet(rnd *rand.Rand) string {
	var words []string
	p := []float64{0, 0.3, 0.8, 0.95, 1}[rnd.IntN(5)]
	for _, name := range rnd.Perm(8) {
		if rnd.Float64() < p {
			w := string(rune('a' + name))
			switch rnd.IntN(12) {
			case 0:
				w += "!"
			case 1:
				w = "new" + fmt.Sprint(rnd.IntN(3)) + "@" + w
			case 2:
				w += "#5"
			}
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

// twin is the collapse rule written down slowly, from the whole history: no state but when each address was last
// reported, how, and when it was let go.
type twin struct {
	hold  time.Duration
	order []string
	last  map[string]*twinEntry
}

type twinEntry struct {
	in       registry.Instance
	vanished time.Duration // -1: is reported
	believed bool          // it left at vanished
}

func newTwin(hold time.Duration) *twin {
	return &twin{hold: hold, last: map[string]*twinEntry{}}
}

func (w *twin) update(now time.Duration, set []registry.Instance) string {
	w.forget(now)
	reported, ids := map[string]registry.Instance{}, map[string]bool{}
	for _, in := range set {
		reported[in.Addr], ids[in.ID] = in, true
	}
	all, missing := 0, 0
	for addr, e := range w.last {
		_, here := reported[addr]
		if e.believed && here {
			continue // it is simply new again
		}
		if !e.believed && (e.in.Draining || !here && ids[e.in.ID]) {
			continue
		}
		all++
		if !here {
			missing++
		}
	}
	collapse := missing > all/2
	for addr, e := range w.last {
		in, here := reported[addr]
		switch {
		case here && e.believed:
			w.drop(addr)
		case here:
			e.in, e.vanished = in, -1
		case e.believed:
		case e.in.Draining || ids[e.in.ID]:
			w.drop(addr)
		case e.vanished >= 0:
		case collapse:
			e.vanished = now
		default:
			e.vanished, e.believed = now, true
		}
	}
	for _, in := range set {
		if w.last[in.Addr] == nil {
			w.last[in.Addr] = &twinEntry{in: in, vanished: -1}
			w.order = append(w.order, in.Addr)
		}
	}
	var served []*registry.Instance
	for _, addr := range w.order {
		if e := w.last[addr]; !e.believed {
			served = append(served, &e.in)
		}
	}
	return show(served)
}

func (w *twin) drop(addr string) {
	delete(w.last, addr)
	w.order = slices.DeleteFunc(w.order, func(a string) bool { return a == addr })
}

func (w *twin) forget(now time.Duration) {
	for addr, e := range w.last {
		if e.vanished >= 0 && now-e.vanished >= w.hold {
			w.drop(addr)
		}
	}
}
