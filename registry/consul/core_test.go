package consul

import (
	"testing"
	"time"
)

// TestCursor follows watches through answers and new connections.
func TestCursor(t *testing.T) {
	t.Parallel()
	type event struct {
		got   uint64 // the index of an answer
		moved int    // instead: the query goes over a new connection, for the first or second time
		yes   bool   // the answer can be new; the watch starts over
		next  uint64
	}
	const max = 1<<64 - 1
	for _, c := range []struct {
		what   string
		events []event
	}{
		{"a quiet life", []event{{got: 17, yes: true, next: 17}, {got: 17, next: 17}, {got: 18, yes: true, next: 18}}},
		{"restarted or restored: start over", []event{
			{got: 17, yes: true, next: 17}, {got: 3, yes: true, next: 0}, {got: 3, yes: true, next: 3}}},
		{"backwards by one", []event{{got: 17, yes: true, next: 17}, {got: 16, yes: true, next: 0}}},
		{"an answer without an index must not make the next query spin", []event{
			{got: 0, yes: true, next: 1}, {got: 1, next: 1}, {got: 0, yes: true, next: 0}, {got: 0, yes: true, next: 1}}},
		{"the largest", []event{{got: max, yes: true, next: max}, {got: max, next: max}}},
		{"another connection at the first query", []event{{moved: 1, next: 0}, {got: 17, yes: true, next: 17}}},
		{"another connection right after a query without an index", []event{
			{got: 17, yes: true, next: 17}, {moved: 1, next: 17}, {got: 18, yes: true, next: 18}}},
		{"another connection later", []event{
			{got: 17, yes: true, next: 17}, {got: 18, yes: true, next: 18}, {moved: 1, yes: true, next: 0},
			{moved: 1, next: 0}, {got: 5, yes: true, next: 5}, {moved: 1, next: 5}}},
		{"net/http repeats a query that is under way", []event{
			{got: 17, yes: true, next: 17}, {moved: 1, next: 17}, {moved: 2, yes: true, next: 0}}},
		{"net/http repeats a query without an index", []event{{moved: 1, next: 0}, {moved: 2, next: 0}}},
	} {
		var cur cursor
		for i, e := range c.events {
			var yes bool
			if e.moved > 0 {
				yes = cur.moved(e.moved > 1)
			} else {
				yes = cur.answered(e.got)
			}
			if yes != e.yes || cur.index != e.next {
				t.Errorf("%s: event %d, %+v: %v and index %d", c.what, i, e, yes, cur.index)
				break
			}
		}
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	var p pace
	for _, c := range []struct {
		at, want time.Duration
	}{
		{10 * time.Second, 0}, {10 * time.Second, 0}, {10 * time.Second, 0}, {10 * time.Second, 0}, // the burst
		{10 * time.Second, 500 * time.Millisecond},
		{10*time.Second + 500*time.Millisecond, 500 * time.Millisecond},
		{11 * time.Second, 500 * time.Millisecond},
		{11*time.Second + 600*time.Millisecond, 400 * time.Millisecond},
		{20 * time.Second, 0}, // full again, and not fuller than that
		{20 * time.Second, 0}, {20 * time.Second, 0}, {20 * time.Second, 0}, {20 * time.Second, 500 * time.Millisecond},
		{1 * time.Second, 0}, // the clock goes backwards: nobody waits for it to catch up
		{1 * time.Second, 0}, {1 * time.Second, 0}, {1 * time.Second, 0},
		{1 * time.Second, 500 * time.Millisecond},
	} {
		if got := p.reserve(c.at); got != c.want {
			t.Errorf("at %v: reserve = %v, want %v", c.at, got, c.want)
		}
	}
}

// step is one row of a keeper's life: at a moment, what next says, and what became of it.
type step struct {
	at     time.Duration
	want   action
	wait   time.Duration // if want is actWait
	res    result        // else
	change bool          // the record is changed before next is asked
}

func TestKeeper(t *testing.T) {
	t.Parallel()
	const s, ms = time.Second, time.Millisecond
	for _, c := range []struct {
		what  string
		ttl   bool
		steps []step
	}{
		{"a quiet life with a TTL", true, []step{
			{at: 0, want: actPut}, {at: 0, want: actBeat}, {at: 0, want: actRead},
			{at: 0, want: actWait, wait: 5 * s}, {at: 4 * s, want: actWait, wait: s},
			{at: 5 * s, want: actBeat}, {at: 5 * s, want: actRead}, {at: 6 * s, want: actWait, wait: 4 * s},
		}},
		{"a quiet life without", false, []step{
			{at: 0, want: actPut}, {at: 0, want: actWait, wait: 5 * s},
			{at: 5 * s, want: actRead}, {at: 5 * s, want: actWait, wait: 5 * s}, {at: 10 * s, want: actRead},
		}},
		{"away from the start: it never gives up, and never pauses for more than 2 s", true, []step{
			{at: 0, want: actPut, res: resUnreachable}, {at: 0, want: actWait, wait: 100 * ms},
			{at: 100 * ms, want: actPut, res: resUnreachable}, {at: 100 * ms, want: actWait, wait: 200 * ms},
			{at: s, want: actPut, res: resUnreachable}, {at: s, want: actWait, wait: 400 * ms},
			{at: 2 * s, want: actPut, res: resUnreachable}, {at: 2 * s, want: actWait, wait: 800 * ms},
			{at: 3 * s, want: actPut, res: resUnreachable}, {at: 3 * s, want: actWait, wait: 1600 * ms},
			{at: 5 * s, want: actPut, res: resUnreachable}, {at: 5 * s, want: actWait, wait: 2 * s},
			{at: 7 * s, want: actPut, res: resRefused}, {at: 7 * s, want: actWait, wait: 2 * s},
			{at: 9 * s, want: actPut}, {at: 9 * s, want: actBeat}, {at: 9 * s, want: actRead},
			{at: 14 * s, want: actBeat, res: resUnreachable}, {at: 14 * s, want: actWait, wait: 100 * ms},
		}},
		{"the agent restarted empty: the record is back with the next beat", true, []step{
			{at: 0, want: actPut}, {at: 0, want: actBeat}, {at: 0, want: actRead},
			{at: 5 * s, want: actBeat, res: resUnreachable}, {at: 6 * s, want: actBeat, res: resUnreachable},
			{at: 7 * s, want: actBeat, res: resGone},
			{at: 7 * s, want: actPut}, {at: 7 * s, want: actBeat}, {at: 7 * s, want: actRead},
			{at: 7 * s, want: actWait, wait: 5 * s},
		}},
		{"deleted, with a check that does not beat", false, []step{
			{at: 0, want: actPut}, {at: 5 * s, want: actRead, res: resGone}, {at: 5 * s, want: actPut},
			{at: 5 * s, want: actWait, wait: 5 * s}, {at: 10 * s, want: actRead},
		}},
		{"somebody changes it again and again: no faster than the rounds", true, []step{
			{at: 0, want: actPut}, {at: 0, want: actBeat}, {at: 0, want: actRead, res: resGone},
			{at: 0, want: actWait, wait: 5 * s},
			{at: 5 * s, want: actPut}, {at: 5 * s, want: actBeat}, {at: 5 * s, want: actRead, res: resGone},
			{at: 5 * s, want: actWait, wait: 5 * s},
		}},
		{"an update is written at once, whatever was planned", true, []step{
			{at: 0, want: actPut}, {at: 0, want: actBeat}, {at: 0, want: actRead},
			{at: 2 * s, want: actWait, wait: 3 * s},
			{at: 2 * s, change: true, want: actPut}, {at: 2 * s, want: actBeat}, {at: 2 * s, want: actRead},
			{at: 2 * s, want: actWait, wait: 5 * s},
			{at: 7 * s, want: actBeat, res: resUnreachable}, {at: 8 * s, want: actBeat, res: resUnreachable},
			{at: 8 * s, change: true, want: actPut, res: resUnreachable}, {at: 8 * s, want: actWait, wait: 100 * ms},
		}},
		{"an update while a lost record waits its turn", false, []step{
			{at: 0, want: actPut}, {at: 5 * s, want: actRead, res: resGone}, {at: 5 * s, want: actPut},
			{at: 6 * s, change: true, want: actPut}, {at: 6 * s, want: actWait, wait: 5 * s},
		}},
		{"the clock goes backwards: the beats do not wait for it to catch up", true, []step{
			{at: 1000 * s, want: actPut}, {at: 1000 * s, want: actBeat}, {at: 1000 * s, want: actRead},
			{at: 10 * s, want: actWait, wait: 5 * s}, {at: 15 * s, want: actBeat, res: resGone},
			{at: 15 * s, want: actWait, wait: 5 * s}, {at: 20 * s, want: actPut}, {at: 20 * s, want: actBeat},
		}},
		{"the clock jumps forward", true, []step{
			{at: 0, want: actPut}, {at: 0, want: actBeat}, {at: 0, want: actRead},
			{at: 9000 * s, want: actBeat}, {at: 9000 * s, want: actRead}, {at: 9000 * s, want: actWait, wait: 5 * s},
		}},
	} {
		k := keeper{ttl: c.ttl, every: 5 * s, random: func() float64 { return 0 }}
		for i, st := range c.steps {
			if st.change {
				k.change(st.at)
			}
			act, wait := k.next(st.at)
			if act != st.want || wait != st.wait {
				t.Errorf("%s: step %d at %v: next = %d, %v, want %d, %v", c.what, i, st.at, act, wait, st.want, st.wait)
				break
			}
			if act != actWait {
				k.done(st.at, act, st.res)
			}
		}
	}
}

// TestKeeperJitter checks the bounds of a retry's pause at both ends of the randomness.
func TestKeeperJitter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		random float64
		want   time.Duration
	}{{0, 2 * time.Second}, {0.999, 1001 * time.Millisecond}} {
		k := keeper{ttl: true, every: 5 * time.Second, random: func() float64 { return c.random }}
		now := time.Duration(0)
		var wait time.Duration
		for range 20 {
			k.done(now, actPut, resUnreachable)
			_, wait = k.next(now)
			now += wait
		}
		if wait != c.want {
			t.Errorf("random %v: the pause grows to %v, want %v", c.random, wait, c.want)
		}
	}
}
