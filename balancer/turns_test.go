package balancer

import (
	"slices"
	"sync"
	"testing"
)

// TestTurnsOfOne: whoever asks alone gets every number, in order.
func TestTurnsOfOne(t *testing.T) {
	var c turns
	c.last.Store(1<<64 - 5) // across the wrap
	for k := range uint64(100) {
		if got, want := c.take(), 1<<64-4+k; got != want {
			t.Fatalf("question %d: %d, want %d", k, got, want)
		}
	}
	if c.shared.Load() {
		t.Error("a single caller is taken for several")
	}
}

// meet makes callers of a counter, that believes them to meet all the time or has to find out, and returns what each got.
func meet(c *turns, known bool, callers, each int) [][]uint64 {
	c.shared.Store(known)
	c.met.Store(meetings - 1) // the next meeting is enough
	got := make([][]uint64, callers)
	var begin, end sync.WaitGroup
	begin.Add(1)
	for i := range got {
		end.Go(func() {
			begin.Wait()
			for range each {
				got[i] = append(got[i], c.take())
			}
		})
	}
	begin.Done()
	end.Wait()
	return got
}

// TestTurnsAreGivenOnce, whatever happens at the same time, also to whoever is told in the middle of it that callers meet.
func TestTurnsAreGivenOnce(t *testing.T) {
	var c turns
	const callers, each = 8, 5000
	for round := range 4 {
		got := slices.Concat(meet(&c, round%2 == 0, callers, each)...)
		slices.Sort(got)
		if n := len(slices.Compact(slices.Clone(got))); n != len(got) {
			t.Fatalf("%d calls got %d numbers, want one each", len(got), n)
		}
		if last := c.last.Load(); got[len(got)-1] > last {
			t.Errorf("number %d was given out, want none above %d", got[len(got)-1], last)
		}
	}
}

// TestTurnsCalmDown: once the others are gone, who is left gets all numbers in order again.
func TestTurnsCalmDown(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools lose a quarter of what they are given, so nobody takes many blocks in a row")
	}
	var c turns
	meet(&c, true, 4, 100)
	c.shared.Store(true)
	for k := 0; c.shared.Load(); k++ {
		if k > 1_000_000 { // a collection may lose a block, so that it begins anew
			t.Fatal("a single caller is taken for several, a million calls long")
		}
		c.take()
	}
	before := c.take()
	for range 1000 {
		now := c.take()
		if now != before+1 {
			t.Fatalf("%d follows %d, want the next number", now, before)
		}
		before = now
	}
}

// TestTurnsInBlocks: those who have met are given runs, and share them out evenly.
func TestTurnsInBlocks(t *testing.T) {
	const n, callers, each = 5, 4, 20000
	c := RoundRobin{}.Build(Env{Members: members(same(n, 1)...), Rand: seeded(1)}).(*roundRobinChooser)
	var counts [n]int
	for _, got := range meet(c.turn, true, callers, each) {
		for _, turn := range got {
			counts[turn%n]++
		}
	}
	// What a lost block leaves out begins anywhere, so the counts differ by chance, not by more.
	checkUniform(t, "the calls of several", counts[:])
}
