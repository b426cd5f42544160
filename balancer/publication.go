package balancer

import "time"

// minWindow is the shortest time between two publications that are not urgent.
const minWindow = int64(time.Millisecond)

// maxWindow bounds a window. A publication's cost is measured in time, so one that lost the processor for a while
// looks expensive, and must not keep the next change waiting for long.
const maxWindow = int64(250 * time.Millisecond)

// costShare bounds what publishing may take of one core: a window is this many times as long as the last
// publication took.
const costShare = 10

// window decides when to publish, so that a burst of state changes costs few snapshots (ADR-0007). A change is
// published at once if the last window was quiet, else once at the window's end. It is stepped by (now, event), has
// no clock of its own, and is guarded by the policy's mutex. Its zero value publishes at once.
type window struct {
	end     int64 // when the current window ends
	length  int64 // of the current window
	pending bool  // a change waits for the end
	hurried bool  // the current window was begun by a change that could not wait
}

// changed says what to do about a change at now: publish at once (wait 0), or wait so long before asking with
// expired; a negative wait means that somebody waits already.
func (w *window) changed(now int64) (wait int64) {
	if now >= w.end {
		return 0
	}
	if w.pending {
		return -1
	}
	w.pending = true
	return min(w.end-now, w.length) // a clock that went backwards does not prolong it
}

// hurry is changed for what should not wait, an ejection or its end: it is published at once even within a window. Where
// publishing is dear it is not so twice in a row, so that a storm of them is still coalesced; where it is cheap, which
// is what a window of the least length says, a storm cannot do harm, and who stays in service is exact at all times.
func (w *window) hurry(now int64) (wait int64) {
	if now < w.end && w.hurried && w.length > minWindow {
		return w.changed(now)
	}
	w.hurried = now < w.end
	return 0
}

// expired reports whether the change that waited is to be published now; it is not if a publication for another
// reason has taken it along.
func (w *window) expired() bool {
	p := w.pending
	w.pending = false
	return p
}

// published notes a publication that began at began and ended at now.
func (w *window) published(began, now int64) {
	w.hurried = w.hurried && began < w.end
	w.pending = false
	w.length = min(max(minWindow, costShare*(now-began)), maxWindow)
	w.end = now + w.length
}
