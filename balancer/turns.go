package balancer

import (
	"sync"
	"sync/atomic"
)

// turns numbers calls: each number is given once. As long as nobody else asks at the same moment, whoever asks gets the
// next one, so a single caller, or several that take turns, see them all and in order.
//
// One counter for all cores does not scale. To write to it a core has to get its cache line from the core that wrote
// last, which takes longer than all the rest of a pick, so that two cores together do less than one alone. So when
// callers keep meeting, each core takes blockSize numbers at once and gives those out by itself, until one core has taken
// calmBlocks in a row: then it is alone again. What is left of the others' blocks then is given out when they meet the next
// time, or never. (ADR-0018)
//
// Its zero value begins at 1. It is safe for concurrent use and must not be copied.
type turns struct {
	blocks sync.Pool     // of *block, which keeps one for each core
	shared atomic.Bool   // callers meet all the time
	met    atomic.Uint32 // how often they have
	_      [64]byte      // what is written often is on a cache line of its own
	last   atomic.Uint64
	_      [64]byte
}

// blockSize bounds how far the numbers that a core gives out can be from those of the others.
const blockSize = 16

// meetings is after how many of them callers are believed to meet all the time. Now and then two do in any server.
const meetings = 8

// calmBlocks is how many blocks a core takes in a row until it believes to be alone. A core that loses its processor for
// a moment takes none meanwhile, and to find out that callers meet takes longer than to find out that they do not.
const calmBlocks = 64

// block are the numbers from next to last, which belong to one core.
type block struct {
	next, last uint64
	alone      int      // how many blocks the core has taken in a row
	_          [40]byte // fill a cache line
}

// take returns a number.
func (t *turns) take() uint64 {
	for !t.shared.Load() {
		if last := t.last.Load(); t.last.CompareAndSwap(last, last+1) {
			return last + 1
		}
		if t.met.Add(1)%meetings == 0 {
			t.shared.Store(true)
		}
	}
	return t.takeOwn()
}

// takeOwn returns a number of this core's block.
func (t *turns) takeOwn() uint64 {
	b, _ := t.blocks.Get().(*block)
	if b == nil {
		b = &block{next: 1} // empty
	}
	if b.next > b.last {
		before := b.last
		b.last = t.last.Add(blockSize)
		b.next = b.last - blockSize + 1
		if b.next != before+1 { // somebody else took one
			b.alone = 0
		}
		if b.alone++; b.alone == calmBlocks {
			b.alone = 0
			t.shared.Store(false)
		}
	}
	n := b.next
	b.next++
	t.blocks.Put(b)
	return n
}
