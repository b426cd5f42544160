package server

// Requests in service are a heap by target; those that wait are a list. Both give up any request, since a caller may
// cancel.

func (s *Server) pushRunning(r *Request) {
	s.running = append(s.running, r)
	r.pos = int32(len(s.running) - 1)
	s.upRunning(r.pos)
}

func (s *Server) removeRunning(i int32) {
	last := int32(len(s.running) - 1)
	s.running[i].pos = nowhere
	moved := s.running[last]
	s.running[last] = nil
	s.running = s.running[:last]
	if i == last {
		return
	}
	s.running[i], moved.pos = moved, i
	s.upRunning(i)
	s.downRunning(moved.pos)
}

func (s *Server) upRunning(i int32) {
	for i > 0 && s.running[i].target < s.running[(i-1)/2].target {
		s.swapRunning(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (s *Server) downRunning(i int32) {
	n := int32(len(s.running))
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if s.running[c].target < s.running[least].target {
				least = c
			}
		}
		if least == i {
			return
		}
		s.swapRunning(i, least)
		i = least
	}
}

func (s *Server) swapRunning(i, j int32) {
	s.running[i], s.running[j] = s.running[j], s.running[i]
	s.running[i].pos, s.running[j].pos = i, j
}

func (s *Server) enqueue(r *Request) {
	r.pos, r.prev, r.next = waiting, s.tail, nil
	if s.tail == nil {
		s.head = r
	} else {
		s.tail.next = r
	}
	s.tail = r
	s.queued++
}

func (s *Server) unqueue(r *Request) {
	if r.prev == nil {
		s.head = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		s.tail = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
	s.queued--
}
