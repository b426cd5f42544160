// Package engine is the discrete-event machine under the simulator: a virtual clock, a queue of events, and streams of
// randomness that do not depend on each other.
//
// A [Sim] runs on one goroutine, its caller's. Time stands still while an event is handled and then jumps to the next
// one, so an hour of a fleet takes as long as its events take to handle, about half a microsecond each. Events at the
// same time run in the order in which they were scheduled. Nothing else decides an order: there is no map to iterate,
// no goroutine and no machine's clock, hence the same inputs give the same run, bit for bit. [Sim.Hash] proves it. It
// covers the time, kind and argument of every event, so two runs that differ anywhere differ there.
//
// What happens often is scheduled by [Sim.At] with a [Handler], a kind and a number: that allocates nothing, since
// the handler is a pointer that the caller has anyway and the event itself is recycled. A timer can be moved
// ([Sim.Move]), which is what a server's next completion needs whenever a request comes or goes. What happens rarely,
// such as a timer of the library's own policy, takes a closure ([Sim.After]); [Sim.Clock] wraps that as the
// library's internal/clock.Clock, so the real code runs here.
//
// Randomness is drawn from streams ([NewStream]), one for each purpose and each client or server, derived from the seed
// by splitmix64. A policy that draws more than another therefore changes nobody else's numbers: two policies under one
// seed meet the same arrivals, the same work and the same antagonists, and their difference is theirs. What depends on
// a single call rather than on an order of draws uses [Mix] of that call's own number.
//
// Times are nanoseconds from 1, the start. Nothing here is safe for concurrent use; simulations that run side by side
// each have a Sim of their own.
package engine

import "math"

// Handler is whatever an event happens to. kind and arg are as given to [Sim.At]; the time is [Sim.Now].
type Handler interface {
	Handle(kind uint8, arg uint64)
}

// Timer names a scheduled event. Its zero value names none. One that has happened or was stopped stays harmless,
// whatever its place in the queue is used for later.
type Timer struct {
	slot int32 // from 1
	gen  uint32
}

// Sim is one simulation's clock and queue. Use [New].
type Sim struct {
	now    int64
	seq    uint64
	events uint64
	hash   uint64
	heap   []entry
	slots  []slot
	free   []int32
}

type slot struct {
	h    Handler
	arg  uint64
	gen  uint32
	pos  int32 // in the heap
	kind uint8
}

// New returns a Sim at time 1, with nothing scheduled.
func New() *Sim { return &Sim{now: 1, hash: 14695981039346656037, slots: make([]slot, 1)} }

// Now is the virtual time.
func (s *Sim) Now() int64 { return s.now }

// Events is how many events have happened.
func (s *Sim) Events() uint64 { return s.events }

// Pending is how many are scheduled.
func (s *Sim) Pending() int { return len(s.heap) }

// Hash covers all events that have happened, in order.
func (s *Sim) Hash() uint64 { return s.hash }

// Note puts a number of the caller's into the hash, such as which server was chosen.
func (s *Sim) Note(x uint64) { s.hash = (s.hash ^ x) * 1099511628211 }

// At schedules h.Handle(kind, arg) for the time t, or for now if t has passed.
func (s *Sim) At(t int64, h Handler, kind uint8, arg uint64) Timer {
	var i int32
	if n := len(s.free); n > 0 {
		i, s.free = s.free[n-1], s.free[:n-1]
	} else {
		i = int32(len(s.slots))
		s.slots = append(s.slots, slot{})
	}
	sl := &s.slots[i]
	sl.h, sl.kind, sl.arg = h, kind, arg
	s.seq++
	s.push(entry{at: max(t, s.now), seq: s.seq, slot: i})
	return Timer{slot: i, gen: sl.gen}
}

// Move schedules a timer's event for another time, after those already scheduled for that time. It reports false, and
// does nothing, if there is no such event any more.
func (s *Sim) Move(t Timer, at int64) bool {
	if !s.Pends(t) {
		return false
	}
	i := s.slots[t.slot].pos
	s.seq++
	s.heap[i].at, s.heap[i].seq = max(at, s.now), s.seq
	if !s.up(i) {
		s.down(i)
	}
	return true
}

// Stop cancels a timer's event; it reports false if there is no such event any more.
func (s *Sim) Stop(t Timer) bool {
	if !s.Pends(t) {
		return false
	}
	s.remove(s.slots[t.slot].pos)
	s.release(t.slot)
	return true
}

// Pends reports whether a timer's event is still to come.
func (s *Sim) Pends(t Timer) bool { return t.slot != 0 && s.slots[t.slot].gen == t.gen }

func (s *Sim) release(i int32) {
	sl := &s.slots[i]
	sl.h = nil
	sl.gen++
	s.free = append(s.free, i)
}

// Step handles the next event; it reports false if there is none.
func (s *Sim) Step() bool {
	if len(s.heap) == 0 {
		return false
	}
	e := s.heap[0]
	s.remove(0)
	sl := s.slots[e.slot]
	s.release(e.slot)
	s.now = e.at
	s.events++
	s.Note(uint64(e.at))
	s.Note(sl.arg ^ uint64(sl.kind)<<56)
	sl.h.Handle(sl.kind, sl.arg)
	return true
}

// Run handles all events up to the time until, and then it is that time.
func (s *Sim) Run(until int64) {
	for len(s.heap) > 0 && s.heap[0].at <= until {
		s.Step()
	}
	s.now = max(s.now, until)
}

// After calls f after d nanoseconds; stop prevents that.
func (s *Sim) After(d int64, f func()) (stop func()) {
	t := s.At(s.now+d, callback(f), kindCallback, 0)
	return func() { s.Stop(t) }
}

// callback is a function as a Handler.
type callback func()

const kindCallback = math.MaxUint8

// Handle implements Handler.
func (f callback) Handle(uint8, uint64) { f() }
