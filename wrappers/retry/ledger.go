package retry

import "time"

const (
	// budgetWindow is how long a call counts: a deposit and a withdrawal are both forgotten after it.
	budgetWindow = 10 * time.Second
	ledgerSlots  = 10
	slotLength   = int64(budgetWindow) / ledgerSlots
)

// ledger is the arithmetic of a [Budget]: a token bucket whose tokens expire, after Finagle's RetryBudget and
// tower's TpsBudget. Calls put tokens in, retries take one out each, and what happened more than ten seconds ago is
// forgotten, so a quiet night does not pay for a storm in the morning. A ledger is stepped by time, and not safe for
// concurrent use.
type ledger struct {
	ratio float64 // tokens a call puts in
	floor float64 // tokens that are there without any call
	slots [ledgerSlots]float64
	now   int64
}

// fold counts calls that began since the last fold, evenly spread over that time, since when each began is not known:
// reading the clock costs more than everything else a deposit does.
func (l *ledger) fold(now, calls int64) {
	now = max(now, l.now) // a clock that goes backwards stands still
	first, last := l.now/slotLength, now/slotLength
	oldest := max(first, last-ledgerSlots+1)
	for s := max(first+1, oldest); s <= last; s++ {
		l.slots[s%ledgerSlots] = 0
	}
	tokens := float64(calls) * l.ratio
	if first == last {
		l.slots[last%ledgerSlots] += tokens
		l.now = now
		return
	}
	for s := oldest; s <= last; s++ {
		part := min(now, (s+1)*slotLength) - max(l.now, s*slotLength)
		l.slots[s%ledgerSlots] += tokens * float64(part) / float64(now-l.now)
	}
	l.now = now
}

// balance is how many retries the ledger would pay for as of the last fold.
func (l *ledger) balance() float64 {
	sum := l.floor
	for _, t := range l.slots {
		sum += t
	}
	return max(sum, 0)
}

// withdraw pays for one retry as of the last fold, or refuses.
func (l *ledger) withdraw() bool {
	const rounding = 1e-6
	if l.balance() < 1-rounding {
		return false
	}
	l.slots[l.now/slotLength%ledgerSlots]--
	return true
}

// at is the same account on a clock that shows now.
func (l *ledger) at(now int64) ledger {
	moved := ledger{ratio: l.ratio, floor: l.floor, now: now}
	for i := range int64(ledgerSlots) { // ten slots ago and ten slots hence are the same one
		moved.slots[(now/slotLength+i)%ledgerSlots] = l.slots[(l.now/slotLength+i)%ledgerSlots]
	}
	return moved
}
