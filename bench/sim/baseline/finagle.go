package baseline

import (
	"math"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

const (
	// finagleDecay is Finagle's decayTime, the mean lifetime of a sample.
	finagleDecay = 10 * second
	// finaglePenalty is the load of a server that was called and never answered: 39 hours.
	finaglePenalty = float64(math.MaxInt64 >> 16)
)

// FinaglePeakEWMA draws two different servers and takes the one where the moving average of the latency times the
// calls in flight, with this one, is less, the first if equal. The average takes a peak over at once, and every look
// at it is a sample of 0, so that it is a decaying maximum rather than a mean: a second's hiccup of a server that
// answers in 5 ms keeps calls away for about 50 s. Failures count as fast as they came.
//
// Finagle compares the status of the two first; here every server is open.
func FinaglePeakEWMA() lb.Maker {
	return simple("finagle_peak_ewma", func(env lb.Env) lb.Balancer { return &finagle{now: env.Now, rand: env.Rand} })
}

// finagleNode is the metric of one server: Finagle's PeakEwma and its Ema.
type finagleNode struct {
	server  int
	pending int
	stamp   int64
	ema     float64
	updated int64 // of ema; 0 if it was never updated or has been reset
}

func (n *finagleNode) observe(now int64, x float64) {
	n.stamp = max(n.stamp, now)
	if x > n.ema {
		n.updated = 0 // a peak: the next update replaces the average
	}
	if n.updated == 0 {
		n.ema = x
	} else {
		w := math.Exp(-float64(n.stamp-n.updated) / float64(finagleDecay))
		n.ema = x*(1-w) + n.ema*w
	}
	n.updated = n.stamp
}

func (n *finagleNode) load(now int64) float64 {
	n.observe(now, 0)
	if n.ema == 0 && n.pending != 0 {
		return finaglePenalty + float64(n.pending)
	}
	return n.ema * float64(n.pending+1)
}

type finagle struct {
	now  func() int64
	rand dice
	fleet[finagleNode]
}

func (b *finagle) Pick(c *lb.Call) (int, error) {
	var chosen *finagleNode
	switch len(b.nodes) {
	case 0:
		return 0, errNobody
	case 1:
		chosen = b.nodes[0]
	default:
		i, j := b.rand.pair(len(b.nodes))
		chosen = b.nodes[i]
		now := b.now()
		if first, second := b.nodes[i].load(now), b.nodes[j].load(now); second < first {
			chosen = b.nodes[j]
		}
	}
	chosen.pending++
	c.Note = chosen
	return chosen.server, nil
}

func (b *finagle) Done(c *lb.Call, _ int, r lb.Result) {
	n := c.Note.(*finagleNode)
	n.pending--
	n.observe(b.now(), float64(max(r.Latency, 0)))
}

func (b *finagle) Update(servers []lb.Server) {
	b.update(servers, func(server int) *finagleNode { return &finagleNode{server: server} })
}
