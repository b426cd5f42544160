// Package leak checks that a test leaves no goroutine behind.
//
// One line at a test's start does it:
//
//	leak.Check(t)
//
// It notes which goroutines exist, and when the test and its other cleanups are over it waits until every later one
// that has to do with this module or with gRPC is gone. Closing is rarely instant (gRPC's server returns from Stop a
// moment before its last connection goroutine does), so Check asks again for up to ten seconds before it fails the
// test with the stacks of those that stayed.
//
// What counts is a goroutine with a function of this module or of google.golang.org/grpc anywhere on its stack, or as
// the one that started it. Others are left alone: the idle connections of an HTTP client, for one, belong to its
// pool and not to the test.
//
// Call Check before whatever the test starts, since cleanups run in reverse order and Check must look last. It cannot
// tell the goroutines of tests that run at the same time apart, so a test that calls it may not be parallel, and the
// testing package enforces that. A test in a testing/synctest bubble needs no Check: its bubble fails by itself when
// a goroutine is left in it.
package leak

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines have to end after the test.
const patience = 10 * time.Second

// ours are the prefixes of function names that make a goroutine count.
var ours = []string{"github.com/evenkeel/evenkeel/", "google.golang.org/grpc.", "google.golang.org/grpc/"}

// Check fails t, with their stacks, if goroutines that started after it are still there ten seconds after t's end.
// It panics in a parallel test.
func Check(t testing.TB) {
	t.Helper()
	t.Setenv("EVENKEEL_LEAK_CHECK", "on") // the way to have package testing refuse Parallel, before and after
	check(t, patience)
}

func check(t testing.TB, wait time.Duration) {
	t.Helper()
	before := make(map[string]bool)
	for _, g := range goroutines() {
		before[g.id] = true
	}
	t.Cleanup(func() {
		t.Helper()
		deadline := time.Now().Add(wait)
		for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
			left := leaked(before)
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("leak: %d goroutines are left %v after the test, want none:\n\n%s",
					len(left), wait, strings.Join(left, "\n\n"))
				return
			}
			time.Sleep(pause)
		}
	})
}

// leaked returns the stacks of the goroutines that count and are not in before, the calling one excepted.
func leaked(before map[string]bool) (stacks []string) {
	for i, g := range goroutines() {
		if i > 0 && !before[g.id] && g.counts() {
			stacks = append(stacks, g.stack)
		}
	}
	return stacks
}

type goroutine struct {
	id    string // never used twice in a process
	stack string
}

// goroutines returns all of them, the calling one first.
func goroutines() (all []goroutine) {
	buf := make([]byte, 1<<16)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for stack := range bytes.SplitSeq(bytes.TrimSpace(buf), []byte("\n\n")) {
		// "goroutine 7 [chan receive]:", then a line for each function and a line for its place.
		id, _, _ := strings.Cut(strings.TrimPrefix(string(stack), "goroutine "), " ")
		all = append(all, goroutine{id: id, stack: string(stack)})
	}
	return all
}

// counts reports whether one of its functions, or the one that started it, is ours.
func (g goroutine) counts() bool {
	for line := range strings.Lines(g.stack) {
		line = strings.TrimPrefix(line, "created by ")
		for _, prefix := range ours {
			if strings.HasPrefix(line, prefix) {
				return true
			}
		}
	}
	return false
}
