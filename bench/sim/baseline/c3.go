package baseline

import (
	"fmt"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// C3Config are the parameters of [C3].
type C3Config struct {
	PoolConfig
	// Alpha is the weight of a new sample in the moving averages, above 0 and up to 1; 0 means 0.9, that of C3's
	// authors in Cassandra.
	Alpha float64
	// Name is what tables call it; empty means "c3".
	Name string
}

// C3 is the score of "C3: Cutting tail latency in cloud data stores via adaptive replica selection" (Suresh et al.,
// NSDI 2015) over Prequal's probing, as in Prequal's figure 7: it chooses the server in the pool with the least
//
//	R - T + q³ T,  q = 1 + s n + Q
//
// where s is how many calls this client has in flight there and n how many clients there are, R the moving average of
// the response times that the client has seen, and T and Q those of the latency and the RIF that the server has
// reported. While no call has come back R - T is 0.
func C3(cfg C3Config) lb.Maker {
	fill(&cfg.Name, "c3")
	fill(&cfg.Alpha, 0.9)
	return lb.Maker{Name: cfg.Name, Samples: samples, New: func(env lb.Env) (lb.Balancer, error) {
		if cfg.Alpha < 0 || cfg.Alpha > 1 {
			return nil, fmt.Errorf("%s: Alpha = %v, want above 0 and up to 1", cfg.Name, cfg.Alpha)
		}
		b := &c3{alpha: cfg.Alpha, clients: env.Clients}
		b.pool = newPool(cfg.PoolConfig, env, b)
		b.Update(env.Servers)
		return b, nil
	}}
}

// average is a moving average over samples.
type average struct {
	value float64
	seen  bool
}

func (a *average) add(alpha, x float64) {
	if !a.seen {
		a.value, a.seen = x, true
		return
	}
	a.value = alpha*x + (1-alpha)*a.value
}

type c3Node struct {
	server   int
	inFlight int
	response average // R
	service  average // T
	queue    average // Q
}

func (n *c3Node) score(clients int) float64 {
	q := 1 + float64(n.inFlight*clients) + n.queue.value
	score := q * q * q * n.service.value
	if n.response.seen {
		score += n.response.value - n.service.value
	}
	return score
}

type c3 struct {
	alpha   float64
	clients int
	pool    *pool
	fleet[c3Node]
}

// answered implements ranking.
func (b *c3) answered(server int, l lb.Load) {
	n := b.at[server]
	n.queue.add(b.alpha, float64(l.RIF))
	if l.Latency > 0 {
		n.service.add(b.alpha, float64(l.Latency))
	}
}

// better implements ranking.
func (b *c3) better(x, y *probe) bool {
	return b.at[x.server].score(b.clients) < b.at[y.server].score(b.clients)
}

// Pick implements [lb.Balancer].
func (b *c3) Pick(c *lb.Call) (int, error) {
	server, err := b.pool.choose()
	if err != nil {
		return 0, err
	}
	n := b.at[server]
	n.inFlight++
	c.Note = n
	return server, nil
}

// Done implements [lb.Balancer].
func (b *c3) Done(c *lb.Call, _ int, r lb.Result) {
	n := c.Note.(*c3Node)
	n.inFlight--
	n.response.add(b.alpha, float64(r.Latency))
}

// Update implements [lb.Balancer].
func (b *c3) Update(servers []lb.Server) {
	b.update(servers, func(server int) *c3Node { return &c3Node{server: server} })
	b.pool.update(servers)
}
