package server

// panes are how many seconds rates look back.
const panes = 10

// rates counts what ended in each of the last seconds. It is stepped by the time, has no clock and no lock of its own, and
// its zero value is ready.
type rates struct {
	first int64         // when the first ended
	pane  int64         // the second that ring's current entry is of
	ring  [panes]counts // by second
}

type counts struct{ done, failed uint64 }

const second = int64(1e9)

// roll forgets what is too old. A clock that was set back keeps counting into the current second.
func (r *rates) roll(now int64) {
	at := now / second
	if at-r.pane >= panes {
		r.ring = [panes]counts{}
		r.pane = at
	}
	for r.pane < at {
		r.pane++
		r.ring[r.pane%panes] = counts{}
	}
}

func (r *rates) count(now int64, failed bool) {
	r.roll(now)
	if r.first == 0 {
		r.first = now
	}
	c := &r.ring[r.pane%panes]
	c.done++
	if failed {
		c.failed++
	}
}

// perSecond is how many ended in a second, and failed, over nine seconds and the one that has begun, or since the first if
// that is not as long ago; a second at least, so that a single call is not a flood.
func (r *rates) perSecond(now int64) (done, failed float64) {
	r.roll(now)
	var sum counts
	for _, c := range r.ring {
		sum.done += c.done
		sum.failed += c.failed
	}
	span := float64(max(min(now-r.first, now-(r.pane-panes+1)*second), second)) / float64(second)
	return float64(sum.done) / span, float64(sum.failed) / span
}
