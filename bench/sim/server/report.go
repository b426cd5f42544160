package server

const panes = 10

// window is the difference of running totals between now and about one window ago.
type window struct {
	step int64
	next int64
	i    int
	ring [panes]totals
}

type totals struct {
	at           int64
	used         float64
	done, failed uint64
}

func (w *window) init(length, now int64) {
	w.step = max(length/panes, 1)
	w.next = now + w.step
	for i := range w.ring {
		w.ring[i].at = now
	}
}

func (w *window) roll(now int64, used float64, done, failed uint64) {
	for n := 0; now >= w.next; n++ {
		if n == panes { // all panes are from now: nothing happened for a whole window
			w.next = now + w.step
			return
		}
		w.ring[w.i] = totals{now, used, done, failed}
		w.i = (w.i + 1) % panes
		w.next += w.step
	}
}

// rates are the busy cores, requests per second and failures per second.
func (w *window) rates(now int64, used float64, done, failed uint64) (cores, qps, eps float64) {
	old := w.ring[w.i]
	dt := float64(now - old.at)
	if dt <= 0 {
		return 0, 0, 0
	}
	return (used - old.used) / dt, float64(done-old.done) * 1e9 / dt, float64(failed-old.failed) * 1e9 / dt
}
