package ratelimit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

const ms = time.Millisecond

type bucketStep struct {
	at       time.Duration
	n        int
	patience time.Duration // negative: do not wait
	ok       bool
	wait     time.Duration // if ok; else how long it would have been
}

func TestBucket(t *testing.T) {
	cases := []struct {
		name  string
		rate  float64
		burst int
		steps []bucketStep
	}{
		{"burst, then one each 100 ms", 10, 2, []bucketStep{
			{0, 1, -1, true, 0},
			{0, 1, -1, true, 0},
			{0, 1, -1, false, 100 * ms},
			{99 * ms, 1, -1, false, 1 * ms},
			{100 * ms, 1, -1, true, 0},
			{10 * time.Second, 3, -1, false, never},
			{10 * time.Second, 2, -1, true, 0},
			{10 * time.Second, 1, -1, false, 100 * ms},
		}},
		{"the clock goes backwards", 10, 2, []bucketStep{
			{10 * time.Second, 2, -1, true, 0},
			{5 * time.Second, 1, -1, false, 100 * ms},
			{10 * time.Second, 1, -1, false, 100 * ms}, // five seconds did not pass twice
			{10*time.Second + 100*ms, 1, -1, true, 0},
		}},
		{"waiting in order", 10, 1, []bucketStep{
			{0, 1, 0, true, 0},
			{0, 1, 50 * ms, false, 100 * ms}, // refused at once, nothing taken
			{0, 1, 100 * ms, true, 100 * ms},
			{0, 1, 150 * ms, false, 200 * ms},
			{0, 1, -1, false, 200 * ms}, // who does not wait does not overtake
			{100 * ms, 1, -1, false, 100 * ms},
			{100 * ms, 1, time.Second, true, 100 * ms},
			{0, 2, math.MaxInt64, false, never},
		}},
		{"weights", 10, 5, []bucketStep{
			{0, 5, -1, true, 0},
			{0, 5, time.Second, true, 500 * ms},
			{500 * ms, 3, -1, false, 300 * ms},
			{500 * ms, 0, -1, true, 0},
			{500 * ms, -7, -1, true, 0}, // gives nothing back
			{500 * ms, 1, -1, false, 100 * ms},
		}},
		{"hardly ever", 1e-300, 1, []bucketStep{
			{0, 1, -1, true, 0},
			{time.Hour, 1, -1, false, math.MaxInt64},
			{time.Hour, 1, 24 * time.Hour, false, math.MaxInt64},
		}},
	}
	for _, c := range cases {
		b := newBucket(c.rate, c.burst)
		for i, s := range c.steps {
			now := int64(s.at) + 1
			var ok bool
			var wait time.Duration
			if s.patience < 0 {
				if ok = b.allow(now, s.n); !ok {
					wait = b.shortfall(now, s.n)
				}
			} else {
				wait, _, ok = b.reserve(now, s.n, s.patience)
			}
			if ok != s.ok || (wait-s.wait).Abs() > 10*time.Nanosecond {
				t.Errorf("%s: step %d, at %v: ok = %v, wait = %v; want %v, %v", c.name, i, s.at, ok, wait, s.ok, s.wait)
			}
		}
	}
}

func TestBucketGiveBack(t *testing.T) {
	b := newBucket(10, 1)
	b.allow(1, 1)
	_, first, _ := b.reserve(1, 1, time.Second)
	if wait, _, _ := b.reserve(1, 1, time.Millisecond); wait.Round(ms) != 200*ms {
		t.Errorf("behind one who waits: %v, want 200ms", wait)
	}
	b.giveBack(1, first)
	if wait, _, ok := b.reserve(1, 1, time.Second); !ok || wait.Round(ms) != 100*ms {
		t.Errorf("after it went away: %v, %v, want 100ms", wait, ok)
	}
	b.giveBack(1, nil) // what reserve returns with no wait and no tokens
}

func TestBucketChangeKeepsTheLevel(t *testing.T) {
	b := newBucket(10, 10)
	b.allow(1, 6)
	for _, c := range []struct {
		rate  float64
		burst int
		want  float64
	}{{10, 100, 4}, {1000, 100, 4}, {1000, 3, 3}, {1000, 100, 3}} {
		b.change(1, c.rate, c.burst)
		if got := b.tokens(1); got != c.want {
			t.Errorf("after change to %v, %d: %v tokens, want %v", c.rate, c.burst, got, c.want)
		}
	}
}

// TestBucketAgainstLimiter: without waiting and with a clock that runs forward, a bucket is a rate.Limiter.
func TestBucketAgainstLimiter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	b, twin := newBucket(50, 7), rate.NewLimiter(50, 7)
	now := int64(1)
	for i := range 100_000 {
		now += rng.Int64N(int64(30 * ms))
		n := 1 + rng.IntN(8)
		if got, want := b.allow(now, n), twin.AllowN(epoch.Add(time.Duration(now)), n); got != want {
			t.Fatalf("call %d of %d tokens: %v, want %v", i, n, got, want)
		}
	}
}

func testBuckets(t *testing.T, p Policy) *buckets {
	t.Helper()
	p.Key = "peer"
	r, err := p.resolve(false)
	if err != nil {
		t.Fatal(err)
	}
	return newBuckets(r)
}

func TestBuckets(t *testing.T) {
	steps := []struct {
		at     time.Duration
		caller string
		ok     bool
		keys   int
		shares uint64
	}{
		{0, "a", true, 1, 0},
		{0, "a", false, 1, 0},
		{0, "b", true, 2, 0},          // each has its own
		{500 * ms, "c", true, 2, 1},   // the table is full: c is one of the others
		{500 * ms, "d", false, 2, 2},  // as is d, in the same bucket
		{600 * ms, "a", false, 2, 2},  // and a's was not forgotten for them
		{1000 * ms, "c", true, 1, 2},  // a's and b's are full again, which is the same as none
		{1000 * ms, "c", false, 1, 2}, // c has its own now
		{1000 * ms, "b", true, 2, 2},  //
		{0, "b", false, 2, 2},         // the clock goes backwards
		{0, "e", true, 2, 3},          // the shared one has refilled by 500 ms after 500 ms
		{61 * time.Second, "e", true, 1, 3},
	}
	bs := testBuckets(t, Policy{Rate: 1, Burst: 1, MaxKeys: 2, KeyIdle: time.Minute})
	for i, s := range steps {
		now := int64(s.at) + 1
		if got := bs.get(now, id{caller: s.caller}).allow(now, 1); got != s.ok && s.caller != "e" {
			t.Errorf("step %d, %v, %s: %v, want %v", i, s.at, s.caller, got, s.ok)
		}
		if keys, shares := bs.size(); keys != s.keys || shares != s.shares {
			t.Errorf("step %d, %v, %s: %d buckets, %d shares, want %d, %d", i, s.at, s.caller, keys, shares, s.keys, s.shares)
		}
	}
}

// TestBucketsIdle: a bucket that would be full only in a year is forgotten nevertheless.
func TestBucketsIdle(t *testing.T) {
	bs := testBuckets(t, Policy{Rate: 1e-9, Burst: 1, MaxKeys: 1, KeyIdle: time.Minute})
	if !bs.get(1, id{caller: "a"}).allow(1, 1) {
		t.Fatal("a was refused")
	}
	now := int64(59 * time.Second)
	bs.get(now, id{caller: "b"})
	if _, shares := bs.size(); shares != 1 {
		t.Errorf("shares = %d before a minute, want 1", shares)
	}
	now = int64(61 * time.Second)
	bs.get(now, id{caller: "b"})
	if keys, shares := bs.size(); keys != 1 || shares != 1 || bs.byID[id{caller: "b"}] == nil {
		t.Errorf("after a minute: %d keys, %d shares, want b's alone", keys, shares)
	}
}

// TestBucketsNobodyGains: a caller who invents a name for each call gets no more than the table and one bucket
// hold, and does not cost an honest caller its bucket.
func TestBucketsNobodyGains(t *testing.T) {
	bs := testBuckets(t, Policy{Rate: 10, Burst: 5, MaxKeys: 100})
	passed, honest := 0, 0
	const second = int64(time.Second)
	for now := int64(1); now < 20*second; now += second / 1000 {
		if bs.get(now, id{caller: fmt.Sprint(now)}).allow(now, 1) {
			passed++
		}
		if now/1_000_000%20 == 0 && bs.get(now, id{caller: "honest"}).allow(now, 1) { // 50 a second
			honest++
		}
	}
	// A name is used once, so its bucket is full again after 100 ms: 100 names and 10 a second of those who share.
	if most := 20 * (100*10 + 10); passed > most {
		t.Errorf("%d calls of the inventor passed in 20 s, want at most %d", passed, most)
	}
	if honest < 195 || honest > 210 {
		t.Errorf("%d calls of the honest caller passed in 20 s, want 10 a second and a burst of 5", honest)
	}
	if keys, _ := bs.size(); keys > 100 {
		t.Errorf("%d buckets, want at most 100", keys)
	}
}

// TestBucketsAgainstTwin compares with a table that forgets nothing, for as many callers as there is room for.
func TestBucketsAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	bs := testBuckets(t, Policy{Rate: 5, Burst: 3, MaxKeys: 50})
	twin := make(map[id]*bucket)
	now := int64(1)
	for i := range 100_000 {
		now += rng.Int64N(int64(20 * ms))
		k := id{caller: fmt.Sprint(rng.IntN(50))}
		if twin[k] == nil {
			twin[k] = newBucket(5, 3)
		}
		if got, want := bs.get(now, k).allow(now, 1), twin[k].allow(now, 1); got != want {
			t.Fatalf("call %d of %s: %v, want %v", i, k.caller, got, want)
		}
	}
	n := 0
	for o := bs.root.next; o != &bs.root; o = o.next {
		n++
	}
	if n != len(bs.byID) {
		t.Errorf("%d in the list, %d in the map", n, len(bs.byID))
	}
}

func TestBucketsChange(t *testing.T) {
	bs := testBuckets(t, Policy{Rate: 10, Burst: 10, MaxKeys: 3})
	for i, c := range []string{"a", "b", "c", "d"} { // d shares
		bs.get(int64(i+1), id{caller: c}).allow(int64(i+1), 10)
	}
	p, _ := Policy{Rate: 100, Burst: 20, MaxKeys: 2, Key: "peer"}.resolve(false)
	bs.change(10, p)
	if keys, _ := bs.size(); keys != 2 || bs.byID[id{caller: "a"}] != nil {
		t.Errorf("%d buckets, want 2 without a's, which was not used for longest", keys)
	}
	now := int64(110 * ms)
	for _, c := range []string{"b", "c"} {
		if got := bs.get(now, id{caller: c}).tokens(now); math.Abs(got-11) > 0.01 {
			t.Errorf("%s has %v tokens, want 11: it was empty 110 ms ago", c, got)
		}
	}
	if got := bs.shared.tokens(now); math.Abs(got-11) > 0.01 {
		t.Errorf("the shared bucket has %v tokens, want 11", got)
	}
}

func TestSpreadAndPushback(t *testing.T) {
	for _, d := range []time.Duration{never, 0, 1, ms, time.Hour, math.MaxInt64} {
		for _, r := range []uint64{0, 1 << 63, math.MaxUint64} {
			if got := spread(d, r); got < d || d > 0 && got-d > d/2+1 || d <= 0 && got != d {
				t.Errorf("spread(%v, %x) = %v, want %v or up to a half more", d, r, got, d)
			}
		}
	}
	for d, want := range map[time.Duration]int64{never: -1, -5 * time.Second: -1, 0: 0, 1: 1, ms: 1, ms + 1: 2, time.Second: 1000,
		math.MaxInt64: 365 * 24 * 3600 * 1000} {
		if got := pushbackMillis(d); got != want {
			t.Errorf("pushbackMillis(%v) = %d, want %d", d, got, want)
		} else if wait := time.Millisecond * time.Duration(got); d >= 0 && wait < 0 { // so gRPC computes it
			t.Errorf("pushbackMillis(%v): gRPC would wait %v", d, wait)
		}
	}
}
