package baseline

import (
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// The defaults of gRFC A58.
const (
	wrrUpdate     = second       // weight_update_period
	wrrBlackout   = 10 * second  // blackout_period
	wrrExpiration = 180 * second // weight_expiration_period
	wrrPenalty    = 1.0          // error_utilization_penalty
)

// smoothing is the time constant of the smoothed variant.
const smoothing = 10 * second

// WRR is gRPC's weighted round robin (gRFC A58) with the reports that come with every answer: a server's weight is the
// queries that it handles a second for each unit of utilization, with errors counting as utilization. Weights come
// into force every second, not before a server has reported for ten, and are forgotten after three minutes without a
// report.
func WRR() lb.Maker {
	return simple("wrr", func(env lb.Env) lb.Balancer {
		return newWRR(env, func() weigher { return &a58{began: never, updated: never} })
	})
}

// SmoothedWRR is the weighted round robin that Prequal is compared with (its sections 2 and 5): weights are queries
// over utilization, both smoothed over ten seconds. The paper gives neither the window nor a blackout, so there is no
// blackout. It has errors count and does not say how; here they count as utilization, as in gRFC A58, which is of the
// same house. Where they do not, a server that is overloaded looks good by the calls that time out there, since these
// are queries without any use of the processor, and gets twice its share.
func SmoothedWRR() lb.Maker {
	return simple("wrr_smoothed", func(env lb.Env) lb.Balancer {
		return newWRR(env, func() weigher { return &smoothed{} })
	})
}

// penalized is the utilization with the errors (gRFC A58, error_utilization_penalty).
func penalized(l *lb.Load) float64 { return l.Utilization + l.EPS/l.QPS*wrrPenalty }

// weigher makes a weight of what one server reports.
type weigher interface {
	report(now int64, l *lb.Load)
	weight(now int64) float64 // 0 if it is not known
}

// a58 is the weight of gRFC A58, section "Subchannel weights".
type a58 struct {
	value   float64
	began   int64 // of the reports; never if there is none that counts
	updated int64
}

func (a *a58) report(now int64, l *lb.Load) {
	if l.Utilization <= 0 || l.QPS <= 0 {
		return
	}
	a.value, a.updated = l.QPS/penalized(l), now
	if a.began == never {
		a.began = now
	}
}

func (a *a58) weight(now int64) float64 {
	switch {
	case now-a.updated >= wrrExpiration:
		a.began = never // the blackout begins anew with the next report
		return 0
	case now-a.began < wrrBlackout:
		return 0
	}
	return a.value
}

// smoothed is the weight of the paper.
type smoothed struct {
	qps, utilization float64
	at               int64
}

func (s *smoothed) report(now int64, l *lb.Load) {
	if l.Utilization <= 0 || l.QPS <= 0 {
		return
	}
	utilization := penalized(l)
	w := 0.0
	if s.at != 0 {
		w = math.Exp(-float64(now-s.at) / float64(smoothing))
	}
	s.qps = w*s.qps + (1-w)*l.QPS
	s.utilization = w*s.utilization + (1-w)*utilization
	s.at = now
}

func (s *smoothed) weight(int64) float64 {
	if s.at == 0 {
		return 0
	}
	return s.qps / s.utilization
}

type weighed struct {
	server int
	weigher
}

type wrr struct {
	now      func() int64
	rand     dice
	fresh    func() weigher
	sequence uint32
	schedule *stride // nil for plain turns
	fleet[weighed]
}

func newWRR(env lb.Env, fresh func() weigher) *wrr {
	b := &wrr{now: env.Now, rand: env.Rand, fresh: fresh}
	every(env, wrrUpdate, b.reschedule)
	return b
}

func (b *wrr) reschedule() {
	now, weights := b.now(), make([]float64, len(b.nodes))
	for i, n := range b.nodes {
		weights[i] = n.weight(now)
	}
	b.schedule = newStride(weights)
}

func (b *wrr) Pick(c *lb.Call) (int, error) {
	if len(b.nodes) == 0 {
		return 0, errNobody
	}
	var i int
	if b.schedule != nil {
		i = b.schedule.next(&b.sequence)
	} else {
		i = int(b.sequence % uint32(len(b.nodes)))
		b.sequence++
	}
	c.Note = b.nodes[i]
	return b.nodes[i].server, nil
}

func (b *wrr) Done(c *lb.Call, _ int, r lb.Result) {
	if r.Load != nil {
		c.Note.(*weighed).report(b.now(), r.Load)
	}
}

// Update begins a new walk anywhere; the weights of servers that stay are kept.
func (b *wrr) Update(servers []lb.Server) {
	b.update(servers, func(server int) *weighed { return &weighed{server, b.fresh()} })
	b.sequence = uint32(b.rand() >> 32)
	b.reschedule()
}
