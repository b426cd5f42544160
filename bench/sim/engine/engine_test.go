package engine

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// log is a Handler that writes down what happens.
type log struct {
	s    *Sim
	seen []happening
}

type happening struct {
	at  int64
	arg uint64
}

func (l *log) Handle(_ uint8, arg uint64) { l.seen = append(l.seen, happening{l.s.now, arg}) }

// TestOrder moves, stops and adds events at random and compares with a list that is sorted anew: by time, and at one
// time by when it was scheduled or moved last.
func TestOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		type item struct {
			happening
			order int
			timer Timer
		}
		s := New()
		l := &log{s: s}
		var twin []item
		order := 0
		for i := range 500 {
			at := int64(1 + r.IntN(100))
			order++
			switch op := r.IntN(4); {
			case op == 0 && len(twin) > 0:
				k := r.IntN(len(twin))
				if !s.Stop(twin[k].timer) || s.Stop(twin[k].timer) || s.Move(twin[k].timer, at) {
					t.Fatal("Stop is not true once and then false")
				}
				twin = slices.Delete(twin, k, k+1)
			case op == 1 && len(twin) > 0:
				k := r.IntN(len(twin))
				if !s.Move(twin[k].timer, at) {
					t.Fatal("Move of a pending event reports false")
				}
				twin[k].at, twin[k].order = at, order
			default:
				twin = append(twin, item{happening{at, uint64(i)}, order, s.At(at, l, 1, uint64(i))})
			}
		}
		slices.SortFunc(twin, func(a, b item) int {
			if a.at != b.at {
				return int(a.at - b.at)
			}
			return a.order - b.order
		})
		s.Run(100)
		if len(l.seen) != len(twin) || s.Pending() != 0 {
			t.Fatalf("%d events happened and %d are left, want %d and 0", len(l.seen), s.Pending(), len(twin))
		}
		for i := range twin {
			if l.seen[i] != twin[i].happening {
				t.Fatalf("event %d is %v, want %v", i, l.seen[i], twin[i].happening)
			}
		}
	}
}

func TestTimers(t *testing.T) {
	s := New()
	l := &log{s: s}
	first := s.At(5, l, 0, 1)
	if s.Stop(Timer{}) || s.Pends(Timer{}) || s.Move(Timer{}, 9) {
		t.Error("the zero Timer names an event")
	}
	s.Run(5)
	second := s.At(9, l, 0, 2) // takes the place of the first
	if s.Stop(first) || s.Move(first, 7) || !s.Pends(second) {
		t.Error("a timer that has happened moved or stopped another")
	}
	s.At(3, l, 0, 3) // in the past: now
	s.Run(20)
	want := []happening{{5, 1}, {5, 3}, {9, 2}}
	if !slices.Equal(l.seen, want) || s.Now() != 20 || s.Events() != 3 {
		t.Errorf("saw %v, now %d, %d events; want %v, 20, 3", l.seen, s.Now(), s.Events(), want)
	}
	if s.Step() {
		t.Error("Step of an empty queue reports true")
	}
}

func TestHashTellsRunsApart(t *testing.T) {
	run := func(at int64, kind uint8, arg, note uint64) uint64 {
		s := New()
		s.At(at, &log{s: s}, kind, arg)
		s.Run(100)
		s.Note(note)
		return s.Hash()
	}
	base := run(5, 1, 2, 3)
	if base != run(5, 1, 2, 3) {
		t.Error("two equal runs have different hashes")
	}
	for _, other := range []uint64{run(6, 1, 2, 3), run(5, 2, 2, 3), run(5, 1, 3, 3), run(5, 1, 2, 4)} {
		if other == base {
			t.Error("two different runs have one hash")
		}
	}
}

func TestClock(t *testing.T) {
	s := New()
	c := s.Clock()
	var fired []int64
	c.AfterFunc(10*time.Nanosecond, func() { fired = append(fired, c.Now()) })
	stopped := c.AfterFunc(5*time.Nanosecond, func() { t.Error("a timer ran after it was stopped") })
	if !stopped.Stop() || stopped.Stop() {
		t.Error("Stop is not true once and then false")
	}
	stop := s.After(7, func() { t.Error("a timer ran after it was stopped") })
	stop()
	stop()
	s.Run(50)
	if !slices.Equal(fired, []int64{11}) {
		t.Errorf("fired at %v, want [11]", fired)
	}
	if d := c.Until(Epoch.Add(80)); d != 30 {
		t.Errorf("%d ns until 80 at 50, want 30", d)
	}
}

func TestStreamsDiffer(t *testing.T) {
	draw := func(seed uint64, purpose string, id int) uint64 { return NewStream(seed, purpose, id).Uint64() }
	seen := map[uint64]bool{}
	for seed := range uint64(10) {
		for _, purpose := range []string{"a", "b", "ab", ""} {
			for id := range 10 {
				seen[draw(seed, purpose, id)] = true
			}
		}
	}
	if len(seen) != 400 {
		t.Errorf("%d different first draws of 400 streams", len(seen))
	}
	if again := draw(1, "a", 2); again != draw(1, "a", 2) {
		t.Error("a stream depends on more than its name")
	}
}

// hop schedules itself again and again, at distances that are all different.
type hop struct {
	s *Sim
	x uint64
}

func (h *hop) Handle(uint8, uint64) {
	h.x = Mix(h.x)
	h.s.At(h.s.now+int64(h.x%1000), h, 0, 0)
}

func BenchmarkEvent(b *testing.B) {
	s := New()
	for i := range 1000 {
		(&hop{s, uint64(i)}).Handle(0, 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Step()
	}
}
