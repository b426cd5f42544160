package balancer

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

// members makes endpoints with the given weights, without a policy.
func members(weights ...uint32) []*Endpoint {
	es := make([]*Endpoint, len(weights))
	for i, w := range weights {
		es[i] = new(Endpoint)
		es[i].set(&registry.Instance{ID: fmt.Sprint(i), Addr: fmt.Sprint(i), Weight: w})
		es[i].id.ID = fmt.Sprint(i)
	}
	return es
}

func same(n int, w uint32) []uint32 { return slices.Repeat([]uint32{w}, n) }

func TestRandomIsUniform(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 100} {
		c := Random{}.Build(Env{Members: members(same(n, 1)...), Rand: seeded(11)})
		counts := make([]int, n)
		for range 2000 * n {
			counts[c.Choose(Call{})]++
		}
		if n > 1 {
			checkUniform(t, fmt.Sprintf("random over %d", n), counts)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 10000, 1 << 30} {
		for _, r := range []uint64{0, 1, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64} {
			if got := below(r, n); got < 0 || got >= n {
				t.Errorf("below(%d, %d) = %d", r, n, got)
			}
		}
		if below(math.MaxUint64, n) != n-1 || below(0, n) != 0 {
			t.Errorf("below does not reach both ends of %d", n)
		}
	}
}

// TestRoundRobinExact: any n choices in a row are n different members, wherever the turn begins.
func TestRoundRobinExact(t *testing.T) {
	for _, begin := range []uint64{0, 1, 1 << 32, 1 << 63, math.MaxUint64, math.MaxUint64 - 5, 0xFFFFFFFE_00000000} {
		for _, n := range []int{1, 2, 3, 7, 1000} {
			c := RoundRobin{}.Build(Env{Members: members(same(n, 1)...), Rand: func() uint64 { return begin }})
			last := make(map[int]int)
			for k := range 5 * n {
				i := c.Choose(Call{})
				if before, ok := last[i]; ok && k-before != n || !ok && k >= n {
					t.Fatalf("begun at %x, member %d of %d comes after %d calls", begin, i, n, k-before)
				}
				last[i] = k
			}
		}
	}
}

// TestRoundRobinConcurrent: callers who meet may take turns in runs, so the counts are even and not equal (ADR-0018).
func TestRoundRobinConcurrent(t *testing.T) {
	const n, callers, each = 7, 8, 700
	c := RoundRobin{}.Build(Env{Members: members(same(n, 1)...), Rand: seeded(1)})
	var wg sync.WaitGroup
	got := make([][n]int, callers)
	for i := range callers {
		wg.Go(func() {
			for range each {
				got[i][c.Choose(Call{})]++
			}
		})
	}
	wg.Wait()
	var total [n]int
	for _, g := range got {
		for i := range g {
			total[i] += g[i]
		}
	}
	checkUniform(t, "the calls of all", total[:])
}

// TestTurnsAreIndependent: calls with a filter do not disturb the turn of calls without, and an update does not
// begin it anew.
func TestTurnsAreIndependent(t *testing.T) {
	r := newRig(t, Config{}, shop())
	var order []string
	for i := range 40 {
		order = append(order, r.call(ask{}))
		for range i % 3 {
			r.call(ask{ctx: bind(t, "zone=eu")})
		}
		if i%10 == 5 {
			r.update(Config{Blacklist: Blacklist{Failures: 3 + i}}, shop())
		}
	}
	for i := 10; i < len(order); i++ {
		if order[i] != order[i-10] {
			t.Fatalf("the turn is disturbed at call %d: %v", i, order)
		}
	}
}

// TestDraw: draws are distinct and uniform, as are those of a twin that picks from a list.
func TestDraw(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 10, 11, 1000} {
		rnd := seeded(uint64(n))
		counts := make([]int, n)
		pairs := make([]int, n*n)
		for range 3000 {
			d := newDraw(rnd, n)
			var got []int
			for range min(n, maxChoices) {
				i := d.next()
				if i < 0 || i >= n || slices.Contains(got, i) {
					t.Fatalf("of %d: drew %d after %v", n, i, got)
				}
				got = append(got, i)
			}
			counts[got[0]]++
			if len(got) > 1 {
				pairs[got[0]*n+got[1]]++
			}
		}
		if n > 1 {
			checkUniform(t, fmt.Sprintf("first of %d", n), counts)
		}
		if n > 2 && n < 20 {
			var possible []int
			for i, k := range pairs {
				if i/n != i%n {
					possible = append(possible, k)
				}
			}
			checkUniform(t, fmt.Sprintf("first two of %d", n), possible)
		}
	}
	// A pair is as good as two draws.
	for _, n := range []int{2, 3, 5, 11} {
		rnd := seeded(uint64(100 + n))
		pairs := make([]int, n*n)
		for range 10000 {
			i, j := pair(rnd(), n)
			if i == j || min(i, j) < 0 || max(i, j) >= n {
				t.Fatalf("of %d: drew %d and %d", n, i, j)
			}
			pairs[i*n+j]++
		}
		var possible []int
		for i, k := range pairs {
			if i/n != i%n {
				possible = append(possible, k)
			}
		}
		checkUniform(t, fmt.Sprintf("pairs of %d", n), possible)
	}
	// The twin draws the same random numbers from a list of what is left.
	a, b := seeded(99), seeded(99)
	for range 2000 {
		n := 1 + int(a()%30)
		b()
		d := newDraw(a, n)
		left := make([]int, n)
		for i := range left {
			left[i] = i
		}
		for range min(n, maxChoices) {
			at := below(b(), len(left))
			if got := d.next(); got != left[at] {
				t.Fatalf("of %d: drew %d, want %d of %v", n, got, left[at], left)
			}
			left = slices.Delete(left, at, at+1)
		}
	}
}

func TestLeastRequest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		weights []uint32
		flight  []int
		choices int
		want    int // the member chosen always; -1 for all alike
	}{
		{"idle", same(10, 1), make([]int, 10), 2, -1},
		{"idle, more choices", same(10, 1), make([]int, 10), 10, -1},
		{"one", same(1, 1), []int{5}, 2, 0},
		{"the less busy of two", same(2, 1), []int{3, 2}, 2, 1},
		{"of two with weights", []uint32{4, 1}, []int{6, 1}, 2, 0},                // 7/4 < 2/1
		{"a tie with weights goes to either", []uint32{2, 1}, []int{1, 0}, 2, -1}, // 2/2 = 1/1
		{"all drawn", same(5, 1), []int{2, 2, 1, 2, 2}, 5, 2},
		{"the greatest weight there is", []uint32{math.MaxUint32, 1}, []int{math.MaxInt32, 0}, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			es := members(tt.weights...)
			for i, n := range tt.flight {
				es[i].started.Store(uint64(n))
			}
			c := LeastRequest{Choices: tt.choices}.Build(Env{Members: es, Rand: seeded(21)})
			counts := make([]int, len(es))
			for range 1000 * len(es) {
				counts[c.Choose(Call{})]++
			}
			if tt.want < 0 {
				checkUniform(t, tt.name, counts)
			} else if counts[tt.want] != 1000*len(es) {
				t.Errorf("chosen %v, want always member %d", counts, tt.want)
			}
		})
	}
}

// drawn are the indices that a chooser with so many choices looks at.
func drawn(rnd func() uint64, n, choices int) []int {
	if choices == 2 {
		i, j := pair(rnd(), n)
		return []int{i, j}
	}
	d := newDraw(rnd, n)
	var all []int
	for range choices {
		all = append(all, d.next())
	}
	return all
}

// TestLeastRequestAgainstTwin draws as the chooser does, and compares exactly.
func TestLeastRequestAgainstTwin(t *testing.T) {
	rnd := rand.New(rand.NewPCG(31, 32))
	for round := range 500 {
		n := 1 + rnd.IntN(20)
		es := members(same(n, 1)...)
		for _, e := range es {
			e.set(&registry.Instance{Weight: rnd.Uint32N(5)})
			e.started.Store(rnd.Uint64N(8))
		}
		choices := 2 + rnd.IntN(9)
		c := LeastRequest{Choices: choices}.Build(Env{Members: es, Rand: seeded(uint64(round))})
		twin := seeded(uint64(round))
		for range 50 {
			best, least := -1, math.Inf(1)
			for _, i := range drawn(twin, n, min(choices, n)) {
				if cost := float64(es[i].InFlight()+1) / float64(es[i].Weight()); cost < least {
					best, least = i, cost
				}
			}
			if got := c.Choose(Call{}); got != best {
				t.Fatalf("round %d: chose %d, want %d", round, got, best)
			}
		}
	}
}

// TestLeastRequestAvoidsTheSlow: an instance ten times as slow gets far less than its share, through the policy.
func TestLeastRequestAvoidsTheSlow(t *testing.T) {
	r := newRig(t, Config{Strategy: LeastRequest{}}, fleet(5))
	counts := simulate(t, r, 5000, func(id string) (int64, error) {
		if id == "i2" {
			return 100e6, nil
		}
		return 10e6, nil
	})
	if counts["i2"] > 5000/5/3 {
		t.Errorf("calls went to %v, want far fewer to i2, which is ten times as slow", counts)
	}
}

// slotKey is a strategy's key.
type slotKey struct{}

func TestSlot(t *testing.T) {
	e := members(1)[0]
	made := 0
	var wg sync.WaitGroup
	var mu sync.Mutex
	values := make(map[any]bool)
	for range 8 {
		wg.Go(func() {
			v := e.Slot(slotKey{}, func() any { made++; return new(int) })
			mu.Lock()
			defer mu.Unlock()
			values[v] = true
		})
	}
	wg.Wait()
	if made != 1 || len(values) != 1 {
		t.Errorf("made %d values, %d different ones seen, want 1 and 1", made, len(values))
	}
	other := e.Slot("another", func() any { return "x" })
	if other != "x" || e.Slot("another", nil) != "x" || !values[e.Slot(slotKey{}, nil)] {
		t.Error("slots get mixed up")
	}
}

func TestRegisterStrategyPanics(t *testing.T) {
	parse := func(json.RawMessage) (Strategy, error) { return Random{}, nil }
	for name, f := range map[string]func(){
		"empty name": func() { RegisterStrategy("", parse) },
		"nil parser": func() { RegisterStrategy("x", nil) },
		"taken":      func() { RegisterStrategy("round_robin", parse) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
