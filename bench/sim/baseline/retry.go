package baseline

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// retryAttempts is what those who retry have each call do at most, of which gRFC A6 allows up to 5.
const retryAttempts = 3

// Backoff of gRFC A6's example: 100 ms, doubled, up to 1 s, all of it at random.
const (
	retryBase = float64(100 * time.Millisecond)
	retryMax  = float64(time.Second)
)

// WithRetry is a policy with attempts that a rule decides about; it is named after the rule.
func WithRetry(m lb.Maker, name string, rule func(now func() int64, random func() uint64) (lb.Retry, error)) lb.Maker {
	m.Name, m.Retry = name, rule
	return m
}

// Retries returns ways to retry, from their specifications, over the policy m: none at all; three attempts whatever
// happens (gRFC A6 without retryThrottling); A6 with its throttle of 10 tokens, of which a failure takes one and a success
// gives a tenth; and Finagle's RetryBudget of 20 % and 10 a second.
func Retries(m lb.Maker) []lb.Maker {
	rule := func(pays func(now func() int64) purse, attempts int) func(func() int64, func() uint64) (lb.Retry, error) {
		return func(now func() int64, random func() uint64) (lb.Retry, error) {
			return &retries{purse: pays(now), rand: random, most: attempts}, nil
		}
	}
	return []lb.Maker{
		WithRetry(m, "no_retry", rule(func(func() int64) purse { return anything{} }, 1)),
		WithRetry(m, "retry_unthrottled", rule(func(func() int64) purse { return anything{} }, retryAttempts)),
		WithRetry(m, "retry_a6_throttle", rule(func(func() int64) purse { return &a6{tokens: a6Tokens} }, retryAttempts)),
		WithRetry(m, "retry_finagle_budget", rule(func(now func() int64) purse { return &finagleBudget{now: now} }, retryAttempts)),
	}
}

// purse pays for retries.
type purse interface {
	begun()     // a call
	ended(bool) // an attempt, and whether it succeeded
	pay() bool  // for a retry
}

type anything struct{}

func (anything) begun()     {}
func (anything) ended(bool) {}
func (anything) pay() bool  { return true }

// gRFC A6, "Throttling Retry Attempts and Hedged RPCs", with the numbers of its example.
const (
	a6Tokens = 10.0
	a6Ratio  = 0.1
)

type a6 struct{ tokens float64 }

func (a *a6) begun() {}
func (a *a6) ended(ok bool) {
	if ok {
		a.tokens = min(a6Tokens, a.tokens+a6Ratio)
	} else {
		a.tokens = max(0, a.tokens-1)
	}
}
func (a *a6) pay() bool { return a.tokens > a6Tokens/2 }

// Finagle's RetryBudget: each call pays in a fifth of a retry, 10 a second are there anyway, and all is forgotten after
// 10 s, in ten slots of a second.
type finagleBudget struct {
	now   func() int64
	slots [10]float64
	at    int64 // the slot that is filled
}

func (f *finagleBudget) turn() *float64 {
	for now := f.now() / second; f.at < now; {
		f.at = max(f.at+1, now-int64(len(f.slots)))
		f.slots[f.at%int64(len(f.slots))] = 0
	}
	return &f.slots[f.at%int64(len(f.slots))]
}
func (f *finagleBudget) begun()     { *f.turn() += 0.2 }
func (f *finagleBudget) ended(bool) {}
func (f *finagleBudget) pay() bool {
	slot := f.turn()
	balance := 100.0
	for _, s := range f.slots {
		balance += s
	}
	if balance < 1 {
		return false
	}
	*slot--
	return true
}

type retries struct {
	purse purse
	rand  dice
	most  int
}

// Begin implements [lb.Retry].
func (r *retries) Begin(int64, bool) lb.Attempts {
	r.purse.begun()
	return &attempts{r: r}
}

type attempts struct {
	r      *retries
	number int
}

// Began implements [lb.Attempts].
func (a *attempts) Began() int64 {
	a.number++
	return 0
}

// Hedge implements [lb.Attempts].
func (*attempts) Hedge() bool { return false }

// Stops implements [lb.Attempts]: none of them tells anything upwards.
func (*attempts) Stops() bool { return false }

// Failed implements [lb.Attempts]: what is UNAVAILABLE is tried again, unless the server wants it not to be.
func (a *attempts) Failed(f lb.Failure) (wait int64, retry bool) {
	a.r.purse.ended(false)
	if f.Code != codes.Unavailable || f.Stop || a.number >= a.r.most || !a.r.purse.pay() {
		return 0, false
	}
	bound := min(retryBase*float64(int(1)<<(a.number-1)), retryMax)
	return int64(a.r.rand.unit() * bound), true
}

// Succeeded implements [lb.Attempts].
func (a *attempts) Succeeded(int64, int) { a.r.purse.ended(true) }
