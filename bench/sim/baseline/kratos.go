package baseline

import (
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

const (
	kratosDecay  = 600 * millisecond // mean lifetime of a sample of latency or success
	kratosForce  = 3 * second        // who was not chosen for longer is chosen once it loses
	kratosCache  = 5 * millisecond   // for how long a weight is believed
	kratosUnseen = 100_000           // latency figure of a server that has not answered yet
	kratosMargin = 5 * millisecond   // added to every latency
	kratosSlots  = 200               // calls in flight whose age is known
)

// Kratos is the p2c selector of go-kratos v3 with its EWMA node: of two different servers it takes the one with the
// greater weight, success/(sqrt(latency + 5 ms) * in flight), the first if equal; the other one if that was not chosen
// for three seconds.
//
// Kept as they are: everything is forgotten at each update of the set; the root and the 5 ms flatten differences; a
// weight is up to 5 ms old; errors other than UNAVAILABLE and DEADLINE_EXCEEDED are successes; a dead server gets a
// real call every three seconds.
func Kratos() lb.Maker {
	return simple("kratos_p2c", func(env lb.Env) lb.Balancer { return &kratos{now: env.Now, rand: env.Rand} })
}

type kratosNode struct {
	server   int
	lag      int64
	success  uint64
	inFlight int64 // begins at 1
	begun    [kratosSlots]int64
	calls    int
	updated  int64 // when lag and success were
	picked   int64
	weight   float64
	weighed  int64
}

func newKratosNode(server int) *kratosNode {
	return &kratosNode{server: server, success: 1000, inFlight: 1, updated: never, picked: never, weighed: never}
}

// overdue is the mean age of the calls in flight that take longer than the average already, if they are more than half
// of those whose age is known; otherwise 0.
func (n *kratosNode) overdue(now int64) int64 {
	var known, late, sum int64
	for _, t := range n.begun {
		if t == 0 {
			continue
		}
		known++
		if age := now - t; age > n.lag {
			late++
			sum += age
		}
	}
	if late > known/2+1 { // "more than half", as it is written there
		return sum / late
	}
	return 0
}

func (n *kratosNode) load(now int64) uint64 {
	if n.lag == 0 {
		return uint64(kratosUnseen * n.inFlight)
	}
	lag := max(n.lag, n.overdue(now)) + kratosMargin
	return uint64(math.Sqrt(float64(lag))) * uint64(n.inFlight)
}

func (n *kratosNode) value(now int64) float64 {
	if now-n.weighed > kratosCache {
		n.weight = float64(n.success*10_000) / float64(n.load(now))
		n.weighed = now
	}
	return n.weight
}

// kratosCall is what a call remembers of its begin.
type kratosCall struct {
	n     *kratosNode
	began int64
	slot  int // -1 if its age is not known
}

func (n *kratosNode) begin(now int64, c *lb.Call) int {
	n.picked = now
	n.inFlight++
	n.calls++
	slot := n.calls % kratosSlots
	if n.begun[slot] == 0 {
		n.begun[slot] = now
	} else {
		slot = -1
	}
	c.Note = &kratosCall{n, now, slot}
	return n.server
}

func (k *kratosCall) end(now int64, failed bool) {
	n := k.n
	if k.slot >= 0 {
		n.begun[k.slot] = 0
	}
	n.inFlight--
	w := 0.0
	if n.lag != 0 {
		w = math.Exp(-float64(now-n.updated) / float64(kratosDecay))
	}
	n.updated = now
	n.lag = int64(float64(n.lag)*w + float64(now-k.began)*(1-w))
	outcome := 1000.0
	if failed {
		outcome = 0
	}
	n.success = uint64(float64(n.success)*w + outcome*(1-w))
}

// kratosFails: errors become HTTP statuses, and 503 and 504 are failures.
func kratosFails(err error) bool {
	c := status.Code(err)
	return c == codes.Unavailable || c == codes.DeadlineExceeded
}

type kratos struct {
	now   func() int64
	rand  dice
	nodes []*kratosNode
}

func (b *kratos) Pick(c *lb.Call) (int, error) {
	now := b.now()
	switch len(b.nodes) {
	case 0:
		return 0, errNobody
	case 1:
		return b.nodes[0].begin(now, c), nil
	}
	i, j := b.rand.pair(len(b.nodes))
	better, worse := b.nodes[i], b.nodes[j]
	if worse.value(now) > better.value(now) {
		better, worse = worse, better
	}
	if now-worse.picked > kratosForce {
		better = worse
	}
	return better.begin(now, c), nil
}

func (b *kratos) Done(c *lb.Call, _ int, r lb.Result) {
	c.Note.(*kratosCall).end(b.now(), kratosFails(r.Err))
}

// Update makes every node anew; calls that are in flight end on nodes that nobody looks at any more.
func (b *kratos) Update(servers []lb.Server) {
	b.nodes = make([]*kratosNode, 0, len(servers))
	for _, s := range servers {
		b.nodes = append(b.nodes, newKratosNode(s.Index))
	}
}
