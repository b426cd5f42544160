package retry

import (
	"encoding/json"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const sec = int64(time.Second)

func TestLedger(t *testing.T) {
	type step struct {
		at    int64 // ms
		calls int64
		asks  int // how many retries are asked for
		want  int // and granted
	}
	for _, tt := range []struct {
		name         string
		ratio, floor float64
		steps        []step
	}{
		{"the floor is there without calls", 0.2, 100, []step{{0, 0, 150, 100}, {9999, 0, 5, 0}, {10000, 0, 150, 100}}},
		{"a share of the calls", 0.2, 0, []step{{0, 0, 1, 0}, {0, 10, 5, 2}, {100, 4, 1, 0}, {200, 1, 1, 1}}},
		{"calls are forgotten", 0.2, 0, []step{{0, 100, 0, 0}, {9999, 0, 1, 1}, {10000, 0, 20, 0}}},
		{"what was spent is remembered as long", 0.5, 0, []step{
			{0, 100, 0, 0}, {9000, 0, 50, 50}, {9500, 20, 0, 0}, {10000, 0, 1, 0}, {19000, 0, 20, 0}, {19000, 2, 2, 1},
		}},
		{"calls since long ago are spread over that time", 0.1, 0, []step{{100000, 1000, 100, 9}}},
		{"the clock goes backwards", 0.2, 0, []step{{5000, 10, 1, 1}, {1000, 10, 9, 3}, {5001, 5, 9, 1}}},
		{"nothing at all", 0, 0, []step{{0, 1e6, 1, 0}, {5000, 1e6, 1, 0}}},
		{"more than every call", 10, 0, []step{{0, 3, 40, 30}}},
	} {
		l := ledger{ratio: tt.ratio, floor: tt.floor}
		for i, s := range tt.steps {
			l.fold(s.at*ms, s.calls)
			got := 0
			for range s.asks {
				if l.withdraw() {
					got++
				}
			}
			if got != s.want {
				t.Errorf("%s: step %d at %d ms: %d of %d granted, want %d", tt.name, i, s.at, got, s.asks, s.want)
			}
		}
	}
}

// TestLedgerBound compares the ledger with a slow twin that remembers every call: however calls come, what is granted
// within any nine seconds, the shortest time that a full window can be, is at most the share of the calls of ten
// seconds before its end, plus the floor.
func TestLedgerBound(t *testing.T) {
	const ratio, floor = 0.2, 20.0
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := ledger{ratio: ratio, floor: floor}
		var calls, grants []int64
		now := int64(0)
		for range 2000 {
			now += rng.Int64N(100 * ms)
			if rng.IntN(200) == 0 {
				now += rng.Int64N(20) * sec
			}
			n := rng.Int64N(10)
			for range n {
				calls = append(calls, now)
			}
			l.fold(now, n)
			for range rng.IntN(20) {
				if !l.withdraw() {
					break
				}
				grants = append(grants, now)
				paid, spent := floor, 0.0
				for _, c := range calls {
					if c > now-10*sec {
						paid += ratio
					}
				}
				for _, g := range grants {
					if g > now-9*sec {
						spent++
					}
				}
				if spent > paid+1e-6+ratio*10 { // one fold's calls can be counted up to a slot later than they came
					t.Fatalf("seed %d at %v: %v granted in 9 s, want %v at most", seed, time.Duration(now), spent, paid)
				}
			}
		}
		if len(grants) == 0 {
			t.Fatalf("seed %d: nothing was granted", seed)
		}
	}
}

func TestLedgerAt(t *testing.T) {
	l := ledger{ratio: 1}
	for s := range int64(10) {
		l.fold(s*sec, s+1)
	}
	moved := l.at(1234*sec + 5)
	for range 12 {
		if a, b := l.balance(), moved.balance(); a != b {
			t.Fatalf("balance = %v, moved to another clock %v, want the same", a, b)
		}
		l.fold(l.now+sec, 0)
		moved.fold(moved.now+sec, 0)
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBudget(20, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 * foldEvery { // more than one entry into the ledger, at one moment
			b.deposit()
		}
		if got, want := b.Balance(), 0.2*10*foldEvery; got < want-1e-6 || got > want+1e-6 {
			t.Errorf("balance = %v, want %v", got, want)
		}
		time.Sleep(11 * time.Second)
		if b.Balance() != 0 || b.withdraw() {
			t.Error("eleven seconds later there is something left, want nothing")
		}

		// Eight callers share it without losing a token.
		var wg sync.WaitGroup
		granted := make([]int, 8)
		for i := range granted {
			wg.Go(func() {
				for range 1000 {
					b.deposit()
					if b.withdraw() {
						granted[i]++
					}
				}
			})
		}
		wg.Wait()
		for b.withdraw() {
			granted[0]++
		}
		sum := 0
		for _, g := range granted {
			sum += g
		}
		if sum != 1600 {
			t.Errorf("%d granted for 8000 calls at 20 %%, want 1600", sum)
		}
	})
}

func TestZeroBudget(t *testing.T) {
	var b Budget
	for range 2 * foldEvery {
		b.deposit()
	}
	if b.withdraw() || b.Balance() != 0 {
		t.Error("the zero budget grants, want it to refuse")
	}
}

func TestBudgetAdopts(t *testing.T) {
	load := func(js string) *Budget {
		b := new(Budget)
		if err := json.Unmarshal([]byte(js), b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	const js = `{"percent":20,"perSecond":1}`
	r, err := New(Config{Policy: Policy{Budget: load(js)}})
	if err != nil {
		t.Fatal(err)
	}
	b := r.state.Load().config.Policy.Budget
	for b.withdraw() {
	}
	again := load(js)
	if err := r.Update(Config{Policy: Policy{Budget: again}}); err != nil {
		t.Fatal(err)
	}
	if again.Balance() >= 1 {
		t.Errorf("the same numbers loaded again have %v left, want what was left before", again.Balance())
	}
	other := load(`{"percent":20,"perSecond":2}`)
	if err := r.Update(Config{Policy: Policy{Budget: other}}); err != nil {
		t.Fatal(err)
	}
	if other.Balance() != 20 {
		t.Errorf("other numbers have %v left, want 20", other.Balance())
	}
}
