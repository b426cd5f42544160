package baseline

import (
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

const (
	// linkerdDecay and linkerdRTT are what its outbound proxy sets: the mean lifetime of a sample, and what a server
	// is assumed to take before it was called.
	linkerdDecay = 10 * second
	linkerdRTT   = 30 * millisecond
	// linkerdFailure is the least latency that a failure counts as (its load biaser's base penalty).
	linkerdFailure = 5 * second
)

// LinkerdPeakEWMA draws two different servers and takes the one where the decayed average of the latency times the
// calls in flight, with this one, is less, the first if equal. Looking at the average does not change it. A peak
// replaces it; a failure counts as an answer after five seconds, or as what is expected if that is more. A server
// decays towards 0 while it is idle, and looks free in the end.
//
// The hints of a server that refuses calls (Retry-After) are left out, since the simulated servers give none.
func LinkerdPeakEWMA() lb.Maker {
	return simple("linkerd_peak_ewma", func(env lb.Env) lb.Balancer { return &linkerd{now: env.Now, rand: env.Rand} })
}

type linkerdNode struct {
	server  int
	pending int
	value   float64
	at      int64
}

// expect is the average as of now.
func (n *linkerdNode) expect(now int64) float64 {
	return n.value * math.Exp(-float64(max(now-n.at, 0))/float64(linkerdDecay))
}

// record takes a sample in; what is not below the expectation replaces it.
func (n *linkerdNode) record(now int64, x float64) {
	if x < n.expect(now) {
		w := math.Exp(-float64(max(now-n.at, 0)) / float64(linkerdDecay))
		x = x*(1-w) + n.value*w
	}
	n.value, n.at = x, now
}

func (n *linkerdNode) load(now int64) float64 { return n.expect(now) * float64(n.pending+1) }

// linkerdFails says which gRPC codes its load biaser takes for a failure of the server.
func linkerdFails(err error) bool {
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.Unavailable, codes.Unknown, codes.DeadlineExceeded, codes.Internal, codes.DataLoss:
		return true
	}
	return false
}

type linkerd struct {
	now  func() int64
	rand dice
	fleet[linkerdNode]
}

func (b *linkerd) Pick(c *lb.Call) (int, error) {
	var chosen *linkerdNode
	switch len(b.nodes) {
	case 0:
		return 0, errNobody
	case 1:
		chosen = b.nodes[0]
	default:
		i, j := b.rand.pair(len(b.nodes))
		chosen = b.nodes[i]
		now := b.now()
		if b.nodes[j].load(now) < b.nodes[i].load(now) {
			chosen = b.nodes[j]
		}
	}
	chosen.pending++
	c.Note = chosen
	return chosen.server, nil
}

func (b *linkerd) Done(c *lb.Call, _ int, r lb.Result) {
	n, now := c.Note.(*linkerdNode), b.now()
	n.pending--
	if linkerdFails(r.Err) {
		n.record(now, max(float64(linkerdFailure), n.expect(now)))
		return
	}
	n.record(now, float64(r.Latency))
}

func (b *linkerd) Update(servers []lb.Server) {
	b.update(servers, func(server int) *linkerdNode {
		return &linkerdNode{server: server, value: float64(linkerdRTT), at: b.now()}
	})
}
