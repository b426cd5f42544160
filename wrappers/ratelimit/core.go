package ratelimit

import (
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// This file decides about tokens. It knows no gRPC and reads no clock: now is always an argument, in nanoseconds
// since a moment that the caller chose.

// never is what a caller is told that may come back as late as it likes: the call costs more than a full bucket.
const never = time.Duration(-1)

// bucket is a token bucket, a [rate.Limiter] whose time is an argument and does not run backwards. It is safe for
// concurrent use.
type bucket struct {
	lim    *rate.Limiter
	latest atomic.Int64 // the latest now seen
	// queueing makes looking at the waiting time and reserving one step for those who wait, so that nobody is
	// refused for the sake of a reservation that is about to be given back. Only lim's lock is taken under it.
	queueing sync.Mutex
}

func newBucket(perSecond float64, burst int) *bucket {
	return &bucket{lim: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

var epoch = time.Unix(0, 0)

// at is now as a time that is not before any earlier one: rate.Limiter would count what lies between twice.
func (b *bucket) at(now int64) time.Time {
	for {
		latest := b.latest.Load()
		if now <= latest {
			return epoch.Add(time.Duration(latest))
		}
		if b.latest.CompareAndSwap(latest, now) {
			return epoch.Add(time.Duration(now))
		}
	}
}

// allow takes n tokens if they are there. It does not allocate. n of 0 or less is free.
func (b *bucket) allow(now int64, n int) bool {
	return n <= 0 || b.lim.AllowN(b.at(now), n)
}

// reserve takes n tokens that will be there within patience: the caller has to wait that long before it goes on, or
// give them back. If it is not ok nothing was taken, and wait says how long it would have been, never if no
// waiting helps. Callers are served in the order in which they reserved.
func (b *bucket) reserve(now int64, n int, patience time.Duration) (wait time.Duration, back *rate.Reservation,
	ok bool) {

	if n <= 0 {
		return 0, nil, true
	}
	b.queueing.Lock()
	defer b.queueing.Unlock()
	t := b.at(now)
	if wait = b.delay(t, n); wait == never || wait > patience {
		return wait, nil, false
	}
	back = b.lim.ReserveN(t, n)
	if wait = back.DelayFrom(t); !back.OK() || wait > patience {
		// allow came between; that makes a difference only if it took the last tokens.
		back.CancelAt(t)
		return b.delay(t, n), nil, false
	}
	return wait, back, true
}

// giveBack returns the tokens of a reservation that is not used, as far as others have not reserved after it.
func (b *bucket) giveBack(now int64, back *rate.Reservation) {
	if back != nil {
		back.CancelAt(b.at(now))
	}
}

// shortfall is how long from now until n tokens are there, if nobody takes any before; never if they cannot be.
func (b *bucket) shortfall(now int64, n int) time.Duration { return b.delay(b.at(now), n) }

func (b *bucket) delay(t time.Time, n int) time.Duration {
	if n > b.lim.Burst() {
		return never
	}
	missing := float64(n) - b.lim.TokensAt(t)
	if missing <= 0 {
		return 0
	}
	ns := math.Ceil(missing / float64(b.lim.Limit()) * float64(time.Second))
	if !(ns < math.MaxInt64) {
		return math.MaxInt64
	}
	return time.Duration(ns)
}

// spread is d, later by up to a half, so that those who were refused together do not come back together; r is
// random.
func spread(d time.Duration, r uint64) time.Duration {
	if d <= 0 || d > math.MaxInt64/2 {
		return d
	}
	return d + time.Duration(float64(d)/2*float64(r>>11)/(1<<53))
}

// pushbackMillis is d in milliseconds, rounded up so that a retry is not too early, and a year at most: gRPC multiplies
// it without looking, and what overflows there is a retry at once. Negative stays negative.
func pushbackMillis(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	d = min(d, maxTime)
	return int64(d/time.Millisecond) + min(1, int64(d%time.Millisecond))
}

// tokens is how many tokens are there; negative while callers wait.
func (b *bucket) tokens(now int64) float64 { return b.lim.TokensAt(b.at(now)) }

// change sets another rate and burst; what is in the bucket stays, up to the new burst.
func (b *bucket) change(now int64, perSecond float64, burst int) {
	t := b.at(now)
	b.lim.SetLimitAt(t, rate.Limit(perSecond))
	b.lim.SetBurstAt(t, burst)
}

// id says whose bucket it is. Unused fields are empty.
type id struct {
	method string
	caller string
	ip     netip.Addr // a caller's address, so that the usual key costs no string
}

// owned is a bucket in the list of a [buckets], most recently used first.
type owned struct {
	bucket
	id         id
	used       int64 // when it was asked for last
	prev, next *owned
}

// buckets is a bounded number of buckets, one for each id, made on demand. It is safe for concurrent use.
//
// A bucket is forgotten when it has been idle for so long that it is full again (or for idle, if that is less):
// then the owner gets exactly the same new one. Until then it stays, even if there are too many, and new ids share
// one bucket for all of them. So a caller who sends a new key with each call gains nothing from it, and cannot
// make the table forget others. Every operation takes constant time. ADR-0013.
type buckets struct {
	mu sync.Mutex // guards everything below; only a bucket's own locks are taken under it

	perSecond float64
	burst     int
	limit     int   // how many, beside the shared one
	idle      int64 // ns

	byID   map[id]*owned
	root   owned // of the ring of the list: root.next was used last, root.prev is the next to go
	shared *bucket
	shares uint64 // how often an id was given the shared bucket
}

func newBuckets(p resolved) *buckets {
	bs := &buckets{byID: make(map[id]*owned), shared: newBucket(p.Rate, p.Burst)}
	bs.root.prev, bs.root.next = &bs.root, &bs.root
	bs.configure(p)
	return bs
}

func (bs *buckets) configure(p resolved) {
	bs.perSecond, bs.burst, bs.limit, bs.idle = p.Rate, p.Burst, p.MaxKeys, int64(p.KeyIdle)
}

// get returns the bucket of k. It allocates only for an id that it does not know.
func (bs *buckets) get(now int64, k id) *bucket {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if o := bs.byID[k]; o != nil {
		o.used = max(o.used, now)
		bs.unlinkLocked(o)
		bs.frontLocked(o)
		return &o.bucket
	}
	// Two for one: the table shrinks after a flood, at a cost that does not depend on its size.
	bs.forgetLocked(now)
	bs.forgetLocked(now)
	if len(bs.byID) >= bs.limit {
		bs.shares++
		return bs.shared
	}
	k.caller = strings.Clone(k.caller) // which may be a small part of a request that need not stay
	o := &owned{id: k, used: now}
	o.lim = rate.NewLimiter(rate.Limit(bs.perSecond), bs.burst)
	bs.byID[k] = o
	bs.frontLocked(o)
	return &o.bucket
}

// forgetLocked forgets the bucket that was not used for longest, if that changes nothing for its owner. A bucket
// whose tokens are reserved by callers who wait is refilled later than this says by as long as they wait; so its
// own level decides.
func (bs *buckets) forgetLocked(now int64) {
	o := bs.root.prev
	if o == &bs.root {
		return
	}
	if now-o.used < bs.idle && o.tokens(now) < float64(bs.burst) {
		return
	}
	bs.unlinkLocked(o)
	delete(bs.byID, o.id)
}

func (bs *buckets) unlinkLocked(o *owned) { o.prev.next, o.next.prev = o.next, o.prev }

func (bs *buckets) frontLocked(o *owned) {
	o.prev, o.next = &bs.root, bs.root.next
	o.prev.next, o.next.prev = o, o
}

// change applies another policy to all buckets, which keep their levels. Its cost is linear. If there are more of
// them than the policy wants, the least recently used go.
func (bs *buckets) change(now int64, p resolved) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.configure(p)
	bs.shared.change(now, p.Rate, p.Burst)
	for len(bs.byID) > bs.limit {
		o := bs.root.prev
		bs.unlinkLocked(o)
		delete(bs.byID, o.id)
	}
	for _, o := range bs.byID {
		o.change(now, p.Rate, p.Burst)
	}
}

// size is how many buckets there are, and how often the shared one was given out.
func (bs *buckets) size() (n int, shares uint64) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	return len(bs.byID), bs.shares
}
