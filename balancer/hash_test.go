package balancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/registry"
)

// orders makes instances orders-0, orders-1, ... with the given weights, in an order that the seed says.
func orders(seed uint64, weights ...uint32) []*Endpoint {
	es := members(weights...)
	for i, e := range es {
		e.id.ID = fmt.Sprintf("orders-%d", i)
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	rnd.Shuffle(len(es), func(i, j int) { es[i], es[j] = es[j], es[i] })
	return es
}

func buildHash(s Hash, es []*Endpoint) *hashChooser {
	return s.Build(Env{Members: es, Rand: seeded(61)}).(*hashChooser)
}

func withKey(key string, attempt int) Call {
	return Call{HashKey: key, HasHashKey: true, Attempt: attempt}
}

// TestHashGolden: which instances a key goes to, one after another, is the same in every process, version and
// language. The table was made by a program in another language, from the description in ADR-0016.
func TestHashGolden(t *testing.T) {
	for _, tt := range []struct {
		key              string
		even, by1_2_3_10 [3]int
	}{
		{"", [3]int{0, 7, 4}, [3]int{7, 4, 1}},
		{"a", [3]int{1, 8, 4}, [3]int{3, 6, 0}},
		{"user-1", [3]int{9, 7, 1}, [3]int{9, 7, 1}},
		{"user-2", [3]int{8, 2, 5}, [3]int{8, 2, 3}},
		{"user-4711", [3]int{3, 2, 0}, [3]int{3, 2, 6}},
		{"f81d4fae-7dec-11d0-a765-00a0c91e6bf6", [3]int{9, 7, 2}, [3]int{9, 7, 2}},
		{"ünïcode", [3]int{7, 1, 0}, [3]int{7, 1, 0}},
		{"orders-3", [3]int{3, 0, 8}, [3]int{3, 0, 7}}, // an instance's own ID is a key of that instance
	} {
		mixed := []uint32{1, 2, 3, 10, 1, 2, 3, 10, 1, 2}
		for seed := range uint64(3) {
			for weights, want := range map[*[3]int][]uint32{&tt.even: same(10, 4), &tt.by1_2_3_10: mixed} {
				es := orders(seed, want...)
				c := buildHash(Hash{}, es)
				for attempt, number := range weights {
					if got := es[c.Choose(withKey(tt.key, attempt))].id.ID; got != fmt.Sprintf("orders-%d", number) {
						t.Errorf("key %q, weights %v, attempt %d: %s, want orders-%d", tt.key, want, attempt, got, number)
					}
				}
			}
		}
	}
}

// TestHashBalance counts a million keys. The counts are those of random draws with the shares of the table, and the
// shares are as even as its size allows.
func TestHashBalance(t *testing.T) {
	keys := 1_000_000
	if raceEnabled {
		keys = 100_000
	}
	for _, n := range []int{10, 100, 1000, 10000} {
		c := buildHash(Hash{}, members(same(n, 1)...))
		counts := make([]int, n)
		for k := range keys {
			counts[c.Choose(withKey("user-"+strconv.Itoa(k), 0))]++
		}
		l := c.layout.Load()
		expected := make([]float64, n)
		for rank, slots := range sharesOf(l.table, n) {
			expected[l.index[rank]] = float64(slots) / float64(l.table.size) * float64(keys)
		}
		mean := float64(keys) / float64(n)
		t.Logf("%d instances: most has %.3f times the mean of the keys, and %.3f of the table", n,
			float64(slices.Max(counts))/mean, slices.Max(expected)/mean)
		checkExpected(t, fmt.Sprintf("%d instances", n), counts, expected)
		if limit := 1 + float64(n)/defaultTableSize; slices.Max(expected)/mean > limit {
			t.Errorf("%d instances: one has %.3f times its share of the table, want %.3f at most", n, slices.Max(expected)/mean, limit)
		}
	}
	c := buildHash(Hash{TableSize: 1000000}, members(same(10000, 1)...))
	c.Choose(Call{})
	shares := sharesOf(c.layout.Load().table, 10000)
	if got := float64(slices.Max(shares)) / 1000003 * 10000; got > 1.01 {
		t.Errorf("with a million slots one of 10,000 has %.3f times its share, want 1.01 at most", got)
	}
}

// TestHashWeights: keys go by weight, and so do calls without a key.
func TestHashWeights(t *testing.T) {
	for name, weights := range map[string][]uint32{"even": same(20, 3), "mixed": {1, 2, 3, 4, 10, 0, 7}, "two": {1, 9}, "one": {5}} {
		total := 0.0
		for _, w := range weights {
			total += float64(max(w, 1))
		}
		c := buildHash(Hash{}, members(weights...))
		for _, keyed := range []bool{true, false} {
			const calls = 40000
			counts, expected := make([]int, len(weights)), make([]float64, len(weights))
			for k := range calls {
				call := Call{Attempt: k % 3}
				if keyed {
					call = withKey(strconv.Itoa(k), 0)
				}
				counts[c.Choose(call)]++
			}
			for i, w := range weights {
				expected[i] = calls * float64(max(w, 1)) / total
			}
			if len(weights) == 1 {
				if counts[0] != calls {
					t.Errorf("%s: %v", name, counts)
				}
				continue
			}
			checkExpected(t, fmt.Sprintf("%s, with keys %t", name, keyed), counts, expected)
		}
	}
}

// TestHashAttempts: asked again and again, it names one instance after another until all are through, or 8 of them;
// nobody is named twice before.
func TestHashAttempts(t *testing.T) {
	for name, weights := range map[string][]uint32{
		"two": {1, 1}, "three": same(3, 1), "eight": same(8, 1), "many": same(1000, 1),
		"nearly all keys are one's": {1, math.MaxUint32, 1, 1, 1, 1},
	} {
		for _, s := range []Hash{{}, {Unbounded: true}} {
			c := buildHash(s, members(weights...))
			for k := range 200 {
				var got []int
				for attempt := range 2 * maxAsks {
					i := c.Choose(withKey(strconv.Itoa(k), attempt))
					if i < 0 || i >= len(weights) {
						t.Fatalf("%s: named %d", name, i)
					}
					if attempt < min(len(weights), maxWalk) && slices.Contains(got, i) {
						t.Fatalf("%s: attempt %d names %d again, after %v", name, attempt, i, got)
					}
					got = append(got, i)
				}
			}
		}
	}
}

// TestHashBound has instances with more and fewer calls than they may have.
func TestHashBound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		s      Hash
		flight []int // by the order in which the key's instances come
		want   []int // by attempt
	}{
		{"idle", Hash{}, []int{0, 0, 0, 0}, []int{0, 1, 2, 3}},
		{"one call is not too much", Hash{}, []int{1, 0, 0, 0}, []int{0, 1, 2, 3}},
		{"two are, among few", Hash{}, []int{2, 0, 0, 0}, []int{1, 2, 3, 0}},
		{"at the bound", Hash{}, []int{5, 4, 4, 3}, []int{0, 1, 2, 3}}, // 5 < 1.25 * 17 / 4 = 5.3
		{"above it", Hash{}, []int{6, 4, 4, 3}, []int{1, 2, 3, 0}},     // 6 > 1.25 * 18 / 4 = 5.6
		{"a wider bound", Hash{MaxLoad: 2}, []int{6, 4, 4, 3}, []int{0, 1, 2, 3}},
		{"the least", Hash{MaxLoad: 1}, []int{5, 5, 5, 4}, []int{3, 0, 1, 2}}, // 5 = 20 / 4
		{"two above it", Hash{}, []int{9, 9, 2, 3}, []int{2, 3, 0, 1}},
		{"no bound", Hash{Unbounded: true}, []int{1000, 0, 0, 0}, []int{0, 1, 2, 3}},
	} {
		es := members(same(4, 7)...)
		c := buildHash(tt.s, es)
		for k := range 100 {
			key := strconv.Itoa(k)
			for _, e := range es {
				e.started.Store(0)
			}
			var order []int
			for attempt := range es {
				order = append(order, c.Choose(withKey(key, attempt)))
			}
			for at, i := range order {
				es[i].started.Store(uint64(tt.flight[at]))
			}
			for attempt, want := range tt.want {
				if got := c.Choose(withKey(key, attempt)); got != order[want] {
					t.Fatalf("%s: key %s, attempt %d: number %d of its instances, want %d", tt.name, key, attempt,
						slices.Index(order, got), want)
				}
			}
		}
	}
}

// TestHashAllBusy: where all 8 that are looked at have too much, it is another that has not; and if everybody has,
// the one with the least for its weight.
func TestHashAllBusy(t *testing.T) {
	es := members(slices.Concat(same(100, 2), same(100, 1))...)
	c := buildHash(Hash{}, es)
	var walk []int
	for attempt := range maxWalk {
		walk = append(walk, c.Choose(withKey("hot", attempt)))
	}
	for _, i := range walk {
		es[i].started.Store(1000)
	}
	others := make(map[int]bool)
	for range 200 {
		i := c.Choose(withKey("hot", 0))
		if slices.Contains(walk, i) {
			t.Fatalf("chose %d, which has 1000 calls", i)
		}
		others[i] = true
	}
	if len(others) < 15 || len(others) > 4*maxWalk {
		t.Errorf("the calls go to %d others, want most of the 32 that come next on the walk", len(others))
	}

	for _, e := range es { // more than the meter knows of
		e.started.Store(1000 * uint64(e.Weight()))
	}
	l := c.layout.Load()
	least := walk[5]
	es[least].started.Store(900 * uint64(es[least].Weight()))
	l.meter.busy.Store(true) // and nobody can tell it
	l.meter.total.Store(0)
	for range 50 {
		if got := c.Choose(withKey("hot", 0)); got != least {
			t.Fatalf("chose %d, want %d, which has the least", got, least)
		}
	}
}

// TestHotKeys: where keys are as unequally popular as words are, no instance gets more than its bound, while
// without one some do; and a cache per instance still answers nearly as often.
func TestHotKeys(t *testing.T) {
	calls := 100_000
	if raceEnabled {
		calls = 10_000
	}
	for _, tt := range []struct {
		n, underWay int
		loss        float64 // of hits; where an instance has two calls on average, chance alone makes many too busy
	}{{10, 20, 0.1}, {10, 100, 0.05}, {100, 1000, 0.05}, {1000, 2000, 0.1}} {
		if raceEnabled && tt.n > 100 {
			continue // with so few calls most keys are new, wherever they go
		}
		above, hits := hotKeys(Hash{}, tt.n, tt.underWay, calls)
		freeAbove, freeHits := hotKeys(Hash{Unbounded: true}, tt.n, tt.underWay, calls)
		name := fmt.Sprintf("%d instances, %d calls under way", tt.n, tt.underWay)
		t.Logf("%s: %.2f calls above 1.25 times the mean, without a bound %.2f; hits %.3f, without a bound %.3f",
			name, above, freeAbove, hits, freeHits)
		if above > 1 {
			t.Errorf("%s: an instance had %.2f more than 1.25 times the mean, want 1 at most", name, above)
		}
		if freeAbove < 2 {
			t.Errorf("%s: without a bound an instance had at most %.2f more: the test proves nothing", name, freeAbove)
		}
		if freeHits-hits > tt.loss {
			t.Errorf("%s: %.3f of the calls found their key cached, %.3f without a bound, want %.2f less at most",
				name, hits, freeHits, tt.loss)
		}
	}
}

// hotKeys makes calls with keys of Zipf's distribution and ends them in no order. It returns how many calls more than
// 1.25 times the mean, or two, an instance had at most, and how many found that their instance had seen the key before.
func hotKeys(s Hash, n, underWay, calls int) (above, hits float64) {
	es := members(same(n, 1)...)
	c := buildHash(s, es)
	rnd := rand.New(rand.NewPCG(71, 72))
	zipf := rand.NewZipf(rnd, 1.1, 1, 100_000)
	type place struct {
		key uint64
		at  int
	}
	cached := make(map[place]bool)
	var open []int
	for range calls {
		if len(open) == underWay {
			i := rnd.IntN(len(open))
			es[open[i]].ended.Add(1)
			open[i] = open[len(open)-1]
			open = open[:len(open)-1]
		}
		key := zipf.Uint64()
		at := c.Choose(withKey(strconv.FormatUint(key, 10), 0))
		es[at].started.Add(1)
		open = append(open, at)
		if cached[place{key, at}] {
			hits++
		}
		cached[place{key, at}] = true
		bound := max(spare, 1.25*float64(len(open))/float64(n))
		above = max(above, float64(es[at].InFlight())-bound)
	}
	return above, hits / float64(calls)
}

// TestHashMeter: up to sweep instances the sum is exact, and among many it is once the instances have been
// looked at.
func TestHashMeter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(73, 74))
	for _, n := range []int{2, sweep, 1000} {
		es := members(same(n, 1)...)
		var m meter
		m.begin(es)
		for round := range 20 {
			sum := int64(0)
			for _, e := range es {
				e.started.Add(rnd.Uint64N(5))
				e.ended.Store(e.started.Load() - rnd.Uint64N(min(4, e.started.Load()+1)))
				sum += e.InFlight()
			}
			for range (n + sweep - 1) / sweep {
				m.read(es, uint32(rnd.IntN(n)))
			}
			if got := m.total.Load(); got != sum {
				t.Fatalf("%d instances, round %d: %d calls are under way, want %d", n, round, got, sum)
			}
		}
	}
	var m meter
	es := members(same(3, 1)...)
	m.begin(es)
	m.busy.Store(true) // somebody else is looking
	es[0].started.Store(7)
	if got := m.read(es, 0); got != 0 {
		t.Errorf("while another looks the sum is %d, want what was known", got)
	}
}

// route sends keys through a rig and says who has each.
func (r *rig) keys(n int) []string {
	r.t.Helper()
	var who []string
	for k := range n {
		who = append(who, r.call(ask{ctx: WithHashKey(r.t.Context(), fmt.Sprint("user-", k))}))
	}
	return who
}

// TestHashClientsAgree: clients with another history, and with the instances in another order, have each key at the same
// instance, and so do those for which an instance is ejected, draining or not connected, and those that have never
// heard of it. When it is back all is as before.
func TestHashClientsAgree(t *testing.T) {
	const keys = 500
	hash := Config{Strategy: Hash{}}
	ins := fleet(20)
	for i := range ins {
		ins[i].Weight = uint32(1 + i%3)
	}
	less := slices.Delete(slices.Clone(ins), 7, 8)
	reversed := slices.Clone(ins)
	slices.Reverse(reversed)
	all, without := newRig(t, hash, ins).keys(keys), newRig(t, hash, less).keys(keys)
	moved := 0
	for k := range all {
		if all[k] != without[k] && all[k] != "i7" {
			moved++
		}
		if without[k] == "i7" {
			t.Fatal("a client that does not know i7 sends calls there")
		}
	}
	if moved > keys/20 {
		t.Errorf("%d of %d keys move between instances that stay, want 5 %% at most", moved, keys)
	}
	r := newRig(t, hash, reversed[:5])
	check := func(what string, want []string) {
		t.Helper()
		for k, got := range r.keys(keys) {
			if got != want[k] {
				t.Fatalf("%s: key %d goes to %s, want %s", what, k, got, want[k])
			}
		}
	}
	r.update(hash, reversed)
	check("after growing", all)
	r.sicken("i7", fails(codes.Unavailable))
	check("ejected", without)
	delete(r.answers, "i7")
	r.serveOut("i7")
	r.call(ask{}) // the probing call
	r.flush()
	check("returned", all)
	drained := slices.Clone(ins)
	drained[7].Draining = true
	r.update(hash, drained)
	check("draining", without)
	r.update(hash, ins)
	check("no longer draining", all)
	r.cc.Refuse = func(string) error { return errRefused }
	r.drop(ins[7].Addr)
	check("not connected", without)
	r.update(hash, less)
	check("gone", without)
}

// TestHashLost: between two publications the keys of an instance that lost its connection go to their next ones.
func TestHashLost(t *testing.T) {
	r := newRig(t, Config{Strategy: Hash{}}, fleet(5))
	c, es := r.p.byConfig.set.chooser, r.p.byConfig.set.members
	r.frozen = true
	endpoint(r, "i2").connect(nil)
	for k := range 200 {
		key := fmt.Sprint("user-", k)
		want := es[c.Choose(withKey(key, 0))].id.ID
		if want == "i2" {
			want = es[c.Choose(withKey(key, 1))].id.ID
		}
		if got := r.call(ask{ctx: WithHashKey(t.Context(), key)}); got != want {
			t.Errorf("key %s goes to %s, want %s", key, got, want)
		}
	}
}

// TestHashRetries: the attempts of a call go to different instances, and those of another call, of another client with
// the same key, to the same.
func TestHashRetries(t *testing.T) {
	attempts := func(r *rig, key string) (ids []string) {
		var tried callctx.Tried
		for range 4 {
			call := &callctx.Call{Kind: callctx.Unary, Tried: &tried}
			ids = append(ids, r.call(ask{ctx: with(WithHashKey(t.Context(), key), call)}))
			tried.Add(call.Picked())
		}
		return ids
	}
	ins := fleet(10)
	one := newRig(t, Config{Strategy: Hash{}}, ins)
	slices.Reverse(ins)
	other := newRig(t, Config{Strategy: Hash{}}, ins)
	for k := range 100 {
		got, want := attempts(one, fmt.Sprint(k)), attempts(other, fmt.Sprint(k))
		if !slices.Equal(got, want) {
			t.Fatalf("key %d is tried at %v by one client and at %v by another", k, got, want)
		}
		slices.Sort(got)
		if len(slices.Compact(got)) != 4 {
			t.Fatalf("key %d is tried at %v, want four instances", k, want)
		}
	}
}

// TestHashMetadata: where the key is taken from.
func TestHashMetadata(t *testing.T) {
	ins := fleet(50)
	plain := newRig(t, Config{Strategy: Hash{}}, ins)
	r := newRig(t, Config{Strategy: Hash{Metadata: "X-User-ID"}}, ins)
	ctx := t.Context()
	for _, tt := range []struct {
		name string
		ctx  ask
		want string // the key; "-" for none
	}{
		{"nothing", ask{ctx: ctx}, "-"},
		{"no such key", ask{ctx: metadata.AppendToOutgoingContext(ctx, "x-user", "7")}, "-"},
		{"one value", ask{ctx: metadata.AppendToOutgoingContext(ctx, "x-user-id", "7")}, "7"},
		{"another spelling", ask{ctx: metadata.NewOutgoingContext(ctx, metadata.MD{"X-User-Id": {"7"}})}, "7"},
		{"empty", ask{ctx: metadata.AppendToOutgoingContext(ctx, "x-user-id", "")}, ""},
		{"two values", ask{ctx: metadata.AppendToOutgoingContext(ctx, "x-user-id", "7", "x-user-id", "8")}, "7,8"},
		{"the context's is stronger", ask{ctx: WithHashKey(metadata.AppendToOutgoingContext(ctx, "x-user-id", "7"), "9")}, "9"},
		{"with a wrapper", ask{ctx: with(metadata.AppendToOutgoingContext(ctx, "x-user-id", "7"), new(callctx.Call))}, "7"},
		{"incoming", ask{ctx: metadata.NewIncomingContext(ctx, metadata.Pairs("x-user-id", "7"))}, "-"},
	} {
		got := r.calls(60, tt.ctx)
		if tt.want == "-" {
			if len(got) < 10 {
				t.Errorf("%s: calls go to %v, want random instances", tt.name, got)
			}
			continue
		}
		want := plain.call(ask{ctx: WithHashKey(ctx, tt.want)})
		if got[want] != 60 {
			t.Errorf("%s: calls go to %v, want %s, which has key %q", tt.name, got, want, tt.want)
		}
	}
	res, err := r.cc.Picker().Pick(gbalancer.PickInfo{}) // without a context
	if err != nil {
		t.Fatal(err)
	}
	res.Done(ended(nil))
}

// TestHashLayoutIsKept: the table is made when somebody needs it, and not again while the instances and their weights
// are the same.
func TestHashLayoutIsKept(t *testing.T) {
	cfg := Config{Strategy: Hash{}}
	ins := fleet(5)
	r := newRig(t, cfg, ins)
	layout := func() *layout { return r.p.byConfig.set.chooser.(*hashChooser).layout.Load() }
	if layout() != nil {
		t.Error("a table was made although there was no call")
	}
	r.call(ask{})
	for _, tt := range []struct {
		name       string
		change     func()
		kept, made bool
	}{
		{"nothing", func() {}, true, true},
		{"labels", func() { ins[2].Labels = map[string]string{"a": "b"} }, true, true},
		{"the bound", func() { cfg.Strategy = Hash{MaxLoad: 2} }, true, true},
		{"a weight", func() { ins[2].Weight = 3 }, false, true},
		{"again, without a call", func() { ins[2].Weight = 4 }, false, false},
		{"the size of the table", func() { cfg.Strategy = Hash{TableSize: 1009} }, false, true},
		{"the ID", func() { ins[2].ID = "other" }, false, true},
		{"one fewer", func() { ins = ins[:4] }, false, true},
	} {
		before := layout()
		if tt.made {
			r.call(ask{})
			before = layout()
		}
		tt.change()
		r.update(cfg, slices.Clone(ins))
		after := layout()
		if kept, made := after == before, after != nil; kept != tt.kept || made != tt.made {
			t.Errorf("after a change of %s the table is kept %t, made %t, want %t, %t", tt.name, kept, made, tt.kept, tt.made)
		}
	}
}

// TestHashConcurrent: whoever comes first makes the table, everybody uses the same one, and keys stay where they are
// while calls begin and end.
func TestHashConcurrent(t *testing.T) {
	es := members(same(50, 1)...)
	bounded, free := buildHash(Hash{}, es), buildHash(Hash{Unbounded: true}, es)
	want := buildHash(Hash{Unbounded: true}, es)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(81, uint64(g)))
			for range 2000 {
				key := strconv.Itoa(rnd.IntN(100))
				at := bounded.Choose(withKey(key, rnd.IntN(3)))
				es[at].started.Add(1)
				if got := free.Choose(withKey(key, 0)); got != want.Choose(withKey(key, 0)) {
					t.Errorf("key %s goes to %d", key, got)
				}
				es[at].ended.Add(1)
			}
		})
	}
	wg.Wait()
	l := bounded.layout.Load()
	for range len(es) {
		l.meter.read(l.ranked, 0)
	}
	if got := l.meter.total.Load(); got != 0 {
		t.Errorf("%d calls are under way after all have ended", got)
	}
}

// TestHashSameIDTwice: two instances under one ID both get keys, and clients agree who gets which.
func TestHashSameIDTwice(t *testing.T) {
	make3 := func(order ...int) []*Endpoint {
		es := make([]*Endpoint, 0, 3)
		for _, i := range order {
			e := new(Endpoint)
			e.set(&registry.Instance{})
			e.id = callctx.Endpoint{ID: []string{"twin", "twin", ""}[i], Addr: fmt.Sprintf("10.0.0.%d:80", i)}
			es = append(es, e)
		}
		return es
	}
	a, b := make3(0, 1, 2), make3(2, 1, 0)
	ca, cb := buildHash(Hash{}, a), buildHash(Hash{}, b)
	counts := make(map[string]int)
	for k := range 300 {
		x, y := a[ca.Choose(withKey(strconv.Itoa(k), 0))].id.Addr, b[cb.Choose(withKey(strconv.Itoa(k), 0))].id.Addr
		if x != y {
			t.Fatalf("key %d goes to %s or %s", k, x, y)
		}
		counts[x]++
	}
	if len(counts) != 3 {
		t.Errorf("keys go to %v, want three instances", counts)
	}
}

func TestHashAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool drops what it is given, at random")
	}
	r := newRig(t, Config{Strategy: Hash{}}, fleet(20))
	for _, busy := range []uint64{0, 1000} { // the second time calls go past their key's first instance
		c := r.p.byConfig.set.chooser
		i := c.Choose(withKey("user-1", 0))
		e := r.p.byConfig.set.members[i]
		e.started.Add(busy)
		if got := c.Choose(withKey("user-1", 0)); (got == i) != (busy == 0) {
			t.Errorf("with %d calls at %d the key goes to %d", busy, i, got)
		}
		p, end := r.cc.Picker(), ended(nil)
		info := gbalancer.PickInfo{Ctx: WithHashKey(t.Context(), "user-1"), FullMethodName: "/orders.Orders/Get"}
		if n := testing.AllocsPerRun(1000, func() {
			res, err := p.Pick(info)
			if err != nil {
				t.Fatal(err)
			}
			res.Done(end)
		}); n > 0 {
			t.Errorf("%d calls under way: %v allocations a call, want none", busy, n)
		}
		e.ended.Add(busy)
	}
}

// BenchmarkHash is Choose alone, beside the other strategies that look at no load, on idle and on busy instances.
func BenchmarkHash(b *testing.B) {
	keys := make([]string, 1<<12)
	for i := range keys {
		keys[i] = fmt.Sprintf("f81d4fae-7dec-11d0-a765-%012x", i)
	}
	for _, n := range []int{3, 100, 1000, 10000} {
		es := members(same(n, 1)...)
		for _, tt := range []struct {
			name string
			s    Strategy
			key  bool
			busy uint64
		}{
			{"random", Random{}, false, 0}, {"weighted", Weighted{}, false, 0}, {"least_request", LeastRequest{}, false, 0},
			{"hash, no key", Hash{}, false, 0}, {"hash", Hash{}, true, 0}, {"hash, busy", Hash{}, true, 10},
			{"hash, busy, unbounded", Hash{Unbounded: true}, true, 10},
		} {
			for _, e := range es {
				e.started.Store(tt.busy)
			}
			c := tt.s.Build(Env{Members: es, Rand: seeded(1)})
			c.Choose(Call{})
			b.Run(fmt.Sprintf("n=%d/%s", n, tt.name), func(b *testing.B) {
				b.ReportAllocs()
				for k := 0; b.Loop(); k++ {
					c.Choose(Call{HashKey: keys[k%len(keys)], HasHashKey: tt.key})
				}
			})
		}
	}
}

// BenchmarkHashPick is a whole pick and its end, with the key in either place.
func BenchmarkHashPick(b *testing.B) {
	for _, tt := range []struct {
		name string
		s    Hash
	}{{"context", Hash{}}, {"metadata", Hash{Metadata: "x-user-id"}}} {
		cc := lbtest.New()
		p := lbtest.BuildWith(cc, builder{rand: seeded(1)}, "orders")
		for range 2 {
			if err := lbtest.Update(p, mustParse(b, Config{Strategy: tt.s}), lbtest.Endpoints(fleet(100)...)); err != nil {
				b.Fatal(err)
			}
			cc.Settle()
		}
		ctx := metadata.AppendToOutgoingContext(b.Context(), "x-user-id", "4711", "x-tenant", "a")
		if tt.s.Metadata == "" {
			ctx = WithHashKey(ctx, "4711")
		}
		info, end := gbalancer.PickInfo{Ctx: ctx, FullMethodName: "/orders.Orders/Get"}, ended(nil)
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				res, err := cc.Picker().Pick(info)
				if err != nil {
					b.Fatal(err)
				}
				res.Done(end)
			}
		})
		p.Close()
	}
}
