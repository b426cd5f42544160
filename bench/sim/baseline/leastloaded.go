package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// LeastLoaded looks at all servers and takes the one with the fewest calls in flight from this client (Prequal,
// section 5.2, "Least loaded"). Several such take turns, as in NGINX's least_conn: with many clients most servers have
// none in flight, and a fixed order would send every client to the first.
func LeastLoaded() lb.Maker {
	return simple("least_loaded", func(env lb.Env) lb.Balancer { return &leastLoaded{rand: env.Rand} })
}

// counted is a server with the calls that this client has in flight there.
type counted struct{ server, inFlight int }

func newCounted(server int) *counted { return &counted{server: server} }

// begin counts a call in; its Done counts it out, on the same node even if the server has left and come back.
func (n *counted) begin(c *lb.Call) (int, error) {
	n.inFlight++
	c.Note = n
	return n.server, nil
}

type leastLoaded struct {
	rand dice
	fleet[counted]
	next int // where the search begins
}

func (b *leastLoaded) Pick(c *lb.Call) (int, error) {
	n := len(b.nodes)
	if n == 0 {
		return 0, errNobody
	}
	best := b.next
	for i := 1; i < n && b.nodes[best].inFlight > 0; i++ {
		if at := (b.next + i) % n; b.nodes[at].inFlight < b.nodes[best].inFlight {
			best = at
		}
	}
	b.next = (best + 1) % n
	return b.nodes[best].begin(c)
}

func (b *leastLoaded) Done(c *lb.Call, _ int, _ lb.Result) { c.Note.(*counted).inFlight-- }

func (b *leastLoaded) Update(servers []lb.Server) {
	b.update(servers, newCounted)
	b.next = b.rand.below(len(servers))
}
