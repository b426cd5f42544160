package engine

// The queue is a heap of four children a node: it is half as deep as one of two, and the four are neighbours in memory.
// A slot knows its place, so that an event can be moved or removed; a deadline that was met is gone at once instead of
// lying in the queue for the seconds that were left of it.

type entry struct {
	at   int64
	seq  uint64
	slot int32
}

func (e entry) before(f entry) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

func (s *Sim) put(i int32, e entry) {
	s.heap[i] = e
	s.slots[e.slot].pos = i
}

func (s *Sim) push(e entry) {
	s.heap = append(s.heap, e)
	s.slots[e.slot].pos = int32(len(s.heap) - 1)
	s.up(int32(len(s.heap) - 1))
}

// remove takes the entry at i out.
func (s *Sim) remove(i int32) {
	last := int32(len(s.heap) - 1)
	e := s.heap[last]
	s.heap = s.heap[:last]
	if i == last {
		return
	}
	s.put(i, e)
	if !s.up(i) {
		s.down(i)
	}
}

// up moves the entry at i towards the root, and reports whether it moved.
func (s *Sim) up(i int32) bool {
	e, began := s.heap[i], i
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(s.heap[parent]) {
			break
		}
		s.put(i, s.heap[parent])
		i = parent
	}
	if i == began {
		return false
	}
	s.put(i, e)
	return true
}

// down moves the entry at i away from the root.
func (s *Sim) down(i int32) {
	e, n := s.heap[i], int32(len(s.heap))
	for {
		first := 4*i + 1
		if first >= n {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, n); c++ {
			if s.heap[c].before(s.heap[least]) {
				least = c
			}
		}
		if !s.heap[least].before(e) {
			break
		}
		s.put(i, s.heap[least])
		i = least
	}
	s.put(i, e)
}
