package baseline

const (
	strideMax    = 1<<16 - 1
	strideOffset = strideMax / 2
)

// stride is the static stride scheduler of gRFC A58: it walks over the servers again and again, and on each round
// skips those whose turn it is not, so that each is taken in proportion to its weight and at even distances. It walks
// max/mean rounds for a pick on average. As in grpc-go weights are not clamped: one that is less than 1/131070 of the
// greatest starves.
type stride struct {
	weights []uint64 // the greatest is strideMax
}

// newStride returns nil if the weights do not call for a schedule: fewer than two are known, or all are the same after
// scaling. An unknown weight is 0 and counts as the mean of the others.
func newStride(weights []float64) *stride {
	known, sum, most := 0, 0.0, 0.0
	for _, w := range weights {
		if w > 0 {
			known++
			sum += w
			most = max(most, w)
		}
	}
	if known < 2 {
		return nil
	}
	scale := strideMax / most
	mean := uint64(scale*sum/float64(known) + 0.5)
	s := &stride{weights: make([]uint64, len(weights))}
	same := true
	for i, w := range weights {
		s.weights[i] = mean
		if w > 0 {
			s.weights[i] = uint64(scale*w + 0.5)
		}
		same = same && s.weights[i] == s.weights[0]
	}
	if same {
		return nil
	}
	return s
}

// next is the index to take. sequence counts all steps of the walk, of all schedules that the client ever had.
func (s *stride) next(sequence *uint32) int {
	for {
		at := uint64(*sequence)
		*sequence++
		n := uint64(len(s.weights))
		i, round := at%n, at/n
		if (s.weights[i]*round+i*strideOffset)%strideMax >= strideMax-s.weights[i] {
			return int(i)
		}
	}
}
