package retry

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// Budget bounds how much load retries and hedges may add: at any moment at most a share of the calls of the last ten
// seconds, plus a floor that lets clients with few calls retry at all. When it is spent it refuses, at once and
// without queueing, and the call ends with the error it has. That is what keeps a service that answers nothing but
// errors from being asked three times as often just then.
//
// One Budget may be given to any number of policies and [Retrier]s, and then bounds them together: give the clients
// of one backend one Budget. Make it with [NewBudget] or load it from JSON ({"percent":20,"perSecond":10}, which are
// the defaults of the two fields); the zero Budget refuses everything. It is safe for concurrent use.
type Budget struct {
	percent, perSecond float64
	clock              clock.Clock
	pending            atomic.Int64 // calls that are not in the ledger yet

	mu     sync.Mutex // guards the ledger; nothing else is locked or called under it
	ledger ledger
}

const (
	defaultPercent   = 20
	defaultPerSecond = 10
	maxPercent       = 1000
	maxPerSecond     = 1e6
)

// NewBudget returns a budget of percent retries for a hundred calls plus perSecond retries a second, both 0 or more;
// 20 and 10 are the defaults of a policy without a budget. An error says which is out of range: percent goes up to
// 1000, perSecond up to a million.
func NewBudget(percent, perSecond float64) (*Budget, error) {
	return newBudget(percent, perSecond, clock.New())
}

func newBudget(percent, perSecond float64, c clock.Clock) (*Budget, error) {
	if math.IsNaN(percent) || percent < 0 || percent > maxPercent {
		return nil, fmt.Errorf("budget.percent = %v, want 0 to %v", percent, float64(maxPercent))
	}
	if math.IsNaN(perSecond) || perSecond < 0 || perSecond > maxPerSecond {
		return nil, fmt.Errorf("budget.perSecond = %v, want 0 to %v", perSecond, float64(maxPerSecond))
	}
	b := new(Budget)
	b.set(percent, perSecond, c)
	return b, nil
}

func (b *Budget) set(percent, perSecond float64, c clock.Clock) {
	b.percent, b.perSecond, b.clock = percent, perSecond, c
	b.ledger = ledger{ratio: percent / 100, floor: perSecond * budgetWindow.Seconds(), now: c.Now()}
}

// Balance is how many retries the budget would pay for now.
func (b *Budget) Balance() float64 {
	if b.clock == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.foldLocked()
	return b.ledger.balance()
}

// String says what the budget allows.
func (b *Budget) String() string {
	return fmt.Sprintf("%v%% of calls plus %v a second", b.percent, b.perSecond)
}

// foldEvery is how many calls are entered into the ledger at once when nobody withdraws. It bounds how far off their
// times can be taken to be, and makes a deposit cost one atomic addition.
const foldEvery = 1024

// deposit counts a call.
func (b *Budget) deposit() {
	if b.pending.Add(1)%foldEvery == 0 && b.clock != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.foldLocked()
	}
}

// withdraw pays for one retry or hedge; false means that it must not be sent.
func (b *Budget) withdraw() bool {
	if b.clock == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.foldLocked()
	return b.ledger.withdraw()
}

// foldLocked enters the pending calls into the ledger.
func (b *Budget) foldLocked() { b.ledger.fold(b.clock.Now(), b.pending.Swap(0)) }

// adopt continues the account of old, if b has the same numbers and has not been used: loading the same configuration
// again must not refill a budget.
func (b *Budget) adopt(old *Budget) {
	if b == old || b.clock == nil || old.clock == nil || b.percent != old.percent || b.perSecond != old.perSecond {
		return
	}
	old.mu.Lock()
	old.foldLocked()
	account := old.ledger
	old.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() == 0 && b.ledger.slots == ([ledgerSlots]float64{}) {
		b.ledger = account.at(b.clock.Now())
	}
}
