package server

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// at is one step of a scenario: what happens when, what is to be done about it, and the state after.
type at struct {
	now   time.Duration
	ev    event
	acts  []action
	state state
}

const (
	delay   = 5 * time.Second
	timeout = 30 * time.Second
)

func TestShutdownScenarios(t *testing.T) {
	acts := func(a ...action) []action { return a }
	up := []at{
		{0, accepting, acts(healthUp), starting},
		{0, ready, acts(announce), serving},
	}
	then := func(steps ...at) []at { return append(slices.Clone(up), steps...) }
	for name, tc := range map[string]struct {
		steps  []at
		ending ending
		stuck  bool
	}{
		"signal, everything answers": {steps: then(
			at{10 * time.Second, signalled, acts(notServing, mark), marking},
			at{11 * time.Second, marked, nil, waiting},
			at{15 * time.Second, tick, nil, waiting},
			at{16 * time.Second, tick, acts(deregister), leaving},
			at{16 * time.Second, deregistered, acts(gracefulStop), stopping},
			at{20 * time.Second, drained, nil, stopped},
		)},
		"context ends, and the same signal counts once": {steps: then(
			at{time.Second, ctxEnded, acts(notServing, mark), marking},
			at{time.Second, signalled, nil, marking},
			at{time.Second, marked, nil, waiting},
			at{6 * time.Second, tick, acts(deregister), leaving},
			at{6 * time.Second, deregistered, acts(gracefulStop), stopping},
			at{6 * time.Second, drained, nil, stopped},
		)},
		"second signal during the delay": {ending: forced, steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{0, marked, nil, waiting},
			at{time.Second, signalled, acts(stop, deregister), killing},
			at{time.Second, signalled, nil, killing},
			at{time.Second, killed, nil, killing},
			at{time.Second, deregistered, nil, stopped},
		)},
		"second signal while the registry hangs in both": {ending: forced, steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{time.Second, signalled, acts(stop, deregister), killing},
			at{time.Second, killed, nil, killing},
			at{2*time.Second - 1, tick, nil, killing},
			at{2 * time.Second, tick, nil, stopped},
		)},
		"second signal during GracefulStop does not deregister again": {ending: forced, steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{0, marked, nil, waiting},
			at{delay, tick, acts(deregister), leaving},
			at{delay, deregistered, acts(gracefulStop), stopping},
			at{delay, signalled, acts(stop), killing},
			at{delay, killed, nil, killing},
			at{delay, drained, nil, stopped},
		)},
		"second signal while being deregistered": {ending: forced, steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{0, marked, nil, waiting},
			at{delay, tick, acts(deregister), leaving},
			at{delay, signalled, acts(stop), killing},
			at{delay, deregistered, nil, killing},
			at{delay, killed, nil, stopped},
		)},
		"registry hangs in Update and Close": {steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{3*time.Second - 1, tick, nil, marking},
			at{3 * time.Second, tick, nil, waiting},
			at{4 * time.Second, marked, nil, waiting},
			at{8 * time.Second, tick, acts(deregister), leaving},
			at{11 * time.Second, tick, acts(gracefulStop), stopping},
			at{12 * time.Second, deregistered, nil, stopping},
			at{13 * time.Second, drained, nil, stopped},
		)},
		"calls outlast StopTimeout": {ending: timedOut, steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{0, marked, nil, waiting},
			at{delay, tick, acts(deregister), leaving},
			at{delay, deregistered, acts(gracefulStop), stopping},
			at{delay + timeout - 1, tick, nil, stopping},
			at{delay + timeout, tick, acts(stop), killing},
			at{delay + timeout, killed, nil, killing},
			at{delay + timeout, drained, nil, stopped},
		)},
		"a handler ignores even Stop": {ending: timedOut, stuck: true, steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{0, marked, nil, waiting},
			at{delay, tick, acts(deregister), leaving},
			at{delay, deregistered, acts(gracefulStop), stopping},
			at{delay + timeout, tick, acts(stop), killing},
			at{delay + timeout, killed, nil, killing},
			at{delay + timeout + time.Second, tick, nil, stopped},
		)},
		"the listener breaks": {steps: then(
			at{0, broken, acts(notServing, deregister), leaving},
			at{0, broken, nil, leaving},
			at{0, deregistered, acts(gracefulStop), stopping},
			at{0, drained, nil, stopped},
		)},
		"the listener breaks during the delay": {steps: then(
			at{0, signalled, acts(notServing, mark), marking},
			at{0, marked, nil, waiting},
			at{1, broken, acts(deregister), leaving},
			at{1, deregistered, acts(gracefulStop), stopping},
			at{1, broken, nil, stopping}, // grpc closes the listener
			at{1, drained, nil, stopped},
		)},
		"the listener breaks and a signal comes: one signal only": {steps: then(
			at{0, broken, acts(notServing, deregister), leaving},
			at{0, signalled, nil, leaving},
			at{0, deregistered, acts(gracefulStop), stopping},
			at{0, drained, nil, stopped},
		)},
		"stopped before it served": {steps: []at{
			{0, ctxEnded, acts(notServing, deregister), leaving},
			{0, accepting, nil, leaving},
			{0, ready, nil, leaving},
			{0, deregistered, acts(gracefulStop), stopping},
			{0, drained, nil, stopped},
		}},
		"the clock goes backwards": {steps: then(
			at{10 * time.Second, signalled, acts(notServing, mark), marking},
			at{10 * time.Second, marked, nil, waiting},
			at{2 * time.Second, tick, nil, waiting},
			at{15 * time.Second, tick, acts(deregister), leaving},
			at{-time.Hour, deregistered, acts(gracefulStop), stopping},
			at{-time.Hour, tick, nil, stopping},
			at{-time.Hour, drained, nil, stopped},
		)},
	} {
		t.Run(name, func(t *testing.T) {
			c := core{drainDelay: delay, stopTimeout: timeout}
			for i, s := range tc.steps {
				got := c.step(int64(s.now), s.ev)
				if !slices.Equal(got, s.acts) || c.state != s.state {
					t.Fatalf("step %d, at %v event %d: actions %v, state %d, want %v, %d", i, s.now, s.ev, got, c.state, s.acts, s.state)
				}
			}
			if c.ending != tc.ending || c.stuck != tc.stuck {
				t.Errorf("ending %d, stuck %v, want %d, %v", c.ending, c.stuck, tc.ending, tc.stuck)
			}
		})
	}
}

func TestNoDelay(t *testing.T) {
	c := core{drainDelay: -1, stopTimeout: timeout, state: serving}
	c.step(0, signalled)
	if got := c.step(0, marked); !slices.Equal(got, []action{deregister}) {
		t.Errorf("after the mark: actions %v, want deregister at once", got)
	}
}

func TestHugeDelayDoesNotWrapRound(t *testing.T) {
	c := core{drainDelay: math.MaxInt64, stopTimeout: timeout, state: serving}
	c.step(100, signalled)
	c.step(100, marked)
	if got := c.step(int64(1000*time.Hour), tick); got != nil || c.state != waiting {
		t.Errorf("after 1000 h of an endless delay: actions %v, state %d, want none, %d", got, c.state, waiting)
	}
}

// TestAnyOrderOfEventsEndsInOrder throws random events at the core, and then lets only time pass: it always stops,
// and does nothing twice or in a wrong order.
func TestAnyOrderOfEventsEndsInOrder(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		c := core{drainDelay: delay, stopTimeout: timeout}
		var now int64
		var done []action
		var events []event
		step := func(ev event) {
			events = append(events, ev)
			done = append(done, c.step(now, ev)...)
		}
		for range 30 {
			now += rnd.Int64N(int64(4 * time.Second))
			step(event(rnd.IntN(int(tick) + 1)))
		}
		step(ctxEnded)
		for range 5 { // at most marking, waiting, leaving, stopping and killing are left
			now += int64(time.Minute)
			step(tick)
		}
		if err := checkOrder(c, done); err != nil {
			t.Fatalf("seed %d: events %v, actions %v: %v", seed, events, done, err)
		}
	}
}

func checkOrder(c core, done []action) error {
	if c.state != stopped {
		return fmt.Errorf("state %d, want stopped", c.state)
	}
	first := map[action]int{}
	for i, a := range done {
		if _, twice := first[a]; twice {
			return fmt.Errorf("action %d twice", a)
		}
		first[a] = i
	}
	for _, need := range []action{notServing, deregister} {
		if _, ok := first[need]; !ok {
			return fmt.Errorf("action %d never", need)
		}
	}
	_, g := first[gracefulStop]
	_, s := first[stop]
	if !g && !s {
		return fmt.Errorf("neither GracefulStop nor Stop")
	}
	for _, pair := range [][2]action{
		{healthUp, announce}, {announce, notServing}, {notServing, mark}, {mark, deregister},
		{deregister, gracefulStop}, {gracefulStop, stop},
	} {
		a, okA := first[pair[0]]
		b, okB := first[pair[1]]
		if okA && okB && a > b {
			return fmt.Errorf("action %d before %d", pair[1], pair[0])
		}
	}
	return nil
}
