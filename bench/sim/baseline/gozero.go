package baseline

import (
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

const (
	goZeroDecay   = 10 * second // mean lifetime of a sample of latency or success
	goZeroForce   = second      // who was not chosen for longer is chosen once it loses
	goZeroSuccess = 1000        // no failures
	goZeroHealthy = goZeroSuccess / 2
	goZeroTries   = 3 // draws of a pair, for one of which both are healthy
)

// GoZero is go-zero's p2c_ewma: of two different servers it takes the one with the smaller load, sqrt(latency + 1) *
// (in flight + 1), the first if equal; the other one if that was not chosen for a second. The share of successes only
// makes it draw again, up to three times.
//
// Kept as they are: everything is forgotten at each update of the set; a server that has not answered yet has load 1
// and wins every comparison; with few calls for each server the forced choice is the rule, and it is the worse one.
func GoZero() lb.Maker {
	return simple("gozero_p2c", func(env lb.Env) lb.Balancer { return &goZero{now: env.Now, rand: env.Rand} })
}

type goZeroNode struct {
	server   int
	lag      uint64
	success  uint64
	inFlight int64
	updated  int64
	picked   int64
}

func (n *goZeroNode) load() int64 { return int64(math.Sqrt(float64(n.lag+1))) * (n.inFlight + 1) }

func (n *goZeroNode) healthy() bool { return n.success > goZeroHealthy }

// goZeroFails are the codes that it does not accept.
func goZeroFails(err error) bool {
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Internal, codes.Unavailable, codes.DataLoss, codes.Unimplemented,
		codes.ResourceExhausted:
		return true
	}
	return false
}

type goZero struct {
	now   func() int64
	rand  dice
	nodes []*goZeroNode
}

func (b *goZero) Pick(c *lb.Call) (int, error) {
	var chosen *goZeroNode
	switch len(b.nodes) {
	case 0:
		return 0, errNobody
	case 1:
		chosen = b.nodes[0]
		chosen.picked = b.now()
	case 2:
		chosen = choose(b.now(), b.nodes[0], b.nodes[1])
	default:
		var first, second *goZeroNode
		for range goZeroTries {
			i, j := b.rand.pair(len(b.nodes))
			if first, second = b.nodes[i], b.nodes[j]; first.healthy() && second.healthy() {
				break
			}
		}
		chosen = choose(b.now(), first, second)
	}
	chosen.inFlight++
	c.Note = chosen
	return chosen.server, nil
}

func choose(now int64, better, worse *goZeroNode) *goZeroNode {
	if better.load() > worse.load() {
		better, worse = worse, better
	}
	if now-worse.picked > goZeroForce {
		better = worse
	}
	better.picked = now
	return better
}

func (b *goZero) Done(c *lb.Call, _ int, r lb.Result) {
	n, now := c.Note.(*goZeroNode), b.now()
	n.inFlight--
	w := 0.0
	if n.lag != 0 {
		w = math.Exp(-float64(now-n.updated) / float64(goZeroDecay))
	}
	n.updated = now
	n.lag = uint64(float64(n.lag)*w + float64(max(r.Latency, 0))*(1-w))
	outcome := float64(goZeroSuccess)
	if goZeroFails(r.Err) {
		outcome = 0
	}
	n.success = uint64(float64(n.success)*w + outcome*(1-w))
}

// Update makes every node anew; calls that are in flight end on nodes that nobody looks at any more.
func (b *goZero) Update(servers []lb.Server) {
	b.nodes = make([]*goZeroNode, 0, len(servers))
	for _, s := range servers {
		b.nodes = append(b.nodes, &goZeroNode{server: s.Index, success: goZeroSuccess, picked: never})
	}
}
