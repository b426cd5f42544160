package baseline

import (
	"math"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// PoolConfig are the parameters of asynchronous probing (Prequal, section 4). Zero values mean those of the paper's
// testbed.
type PoolConfig struct {
	// Size is how many probes are kept at most (m); 0 means 16.
	Size int
	// Probes is how many are sent for each call (r_probe); fractions hold in the long run. 0 means 3.
	Probes float64
	// Remove is how many are removed for each call (r_remove), the oldest and the worst by turns. 0 means 1, a
	// negative number none.
	Remove float64
	// Delta is by how many the pool is to grow with each call (δ); 0 means 1.
	Delta float64
	// Age is how old a probe may be; 0 means 1 s.
	Age time.Duration
	// Least is with how few probes the choice is random instead; 0 means 2.
	Least int
	// Timeout is how long an answer is waited for; 0 means 3 ms, YouTube's.
	Timeout time.Duration
}

func (c PoolConfig) filled() PoolConfig {
	fill(&c.Size, 16)
	fill(&c.Probes, 3)
	fill(&c.Remove, 1)
	fill(&c.Delta, 1)
	fill(&c.Age, time.Second)
	fill(&c.Least, 2)
	fill(&c.Timeout, 3*time.Millisecond)
	c.Remove = max(c.Remove, 0)
	return c
}

func fill[T comparable](v *T, standard T) {
	var zero T
	if *v == zero {
		*v = standard
	}
}

// reuse is how often a probe may be used, b_reuse of the paper's equation 1, with n servers:
//
//	max(1, (1+δ) / ((1 - m/n) r_probe - r_remove))
//
// The denominator is what a call adds to the pool of probes that are new to it, less what it removes. The paper has
// 100 servers and more. With few (24 or less by the published parameters) the pool would hold most of them and the
// denominator is 0 or negative; read to the letter the maximum is 1 then, which also lets the clients of a small fleet
// follow each other least. Just above that the formula asks for many uses (25 with 25 servers), and gets them.
func (c PoolConfig) reuse(n int) float64 {
	gain := (1-float64(c.Size)/float64(n))*c.Probes - c.Remove
	if gain < 1e-9 {
		return 1
	}
	return max(1, (1+c.Delta)/gain)
}

// samples make the median that Prequal's servers answer probes with. The paper takes the queries that ended in the last few
// hundredths of a second; at the 56 to 130 queries a second that a server of its testbed answers these are some two to
// six. Figure 9 tells 2, 3, 4 and 12 apart: by quantile 0.99, which goes by latency nearly alone, it is 4.
const samples = 4

// probe is the answer of one server.
type probe struct {
	server  int
	at      int64 // of the receipt: that of the answer would need clocks that agree
	rif     int   // with what this client has sent since
	latency int64
	left    int // uses
}

// ranking is what a policy does with the pool.
type ranking interface {
	// answered takes notice of every answer, whether or not it stays in the pool for long.
	answered(server int, l lb.Load)
	// better says whether a is to be used before b.
	better(a, b *probe) bool
}

// pool is asynchronous probing: what all policies with a pool of probes have in common.
type pool struct {
	cfg     PoolConfig
	env     lb.Env
	rand    dice
	rank    ranking
	servers []int
	deck    []int        // servers again, shuffled as far as the last probing needed it
	known   map[int]bool // servers once more; never iterated over
	probes  []probe      // oldest first
	budget  float64      // uses of a probe
	sends   float64      // parts of probes that are owed
	removes float64
	worst   bool // the next to remove is the worst, not the oldest
}

func newPool(cfg PoolConfig, env lb.Env, rank ranking) *pool {
	return &pool{cfg: cfg.filled(), env: env, rand: env.Rand, rank: rank}
}

// choose is a call's way through the pool: remove, select, probe (the paper's order of these is that of its text; that
// a probe is removed before it can be selected is what keeps bad ones from being selected).
func (p *pool) choose() (int, error) {
	if len(p.servers) == 0 {
		return 0, errNobody
	}
	p.expire()
	for p.removes += p.cfg.Remove; p.removes >= 1; p.removes-- {
		p.remove()
	}
	server := p.selected()
	p.sends += p.cfg.Probes
	k := int(p.sends)
	p.sends -= float64(k)
	p.send(k)
	return server, nil
}

// expire drops what is too old.
func (p *pool) expire() {
	oldest := p.env.Now() - int64(p.cfg.Age)
	i := 0
	for i < len(p.probes) && p.probes[i].at < oldest {
		i++
	}
	p.probes = slices.Delete(p.probes, 0, i)
}

// remove drops the oldest and the worst by turns.
func (p *pool) remove() {
	if len(p.probes) == 0 {
		return
	}
	at := 0
	if p.worst {
		for i := range p.probes {
			if p.rank.better(&p.probes[at], &p.probes[i]) {
				at = i
			}
		}
	}
	p.worst = !p.worst
	p.probes = slices.Delete(p.probes, at, at+1)
}

// selected chooses among the probes, and notes that one was used. Of two that are as good the later one counts.
func (p *pool) selected() int {
	if len(p.probes) < p.cfg.Least {
		return p.servers[p.rand.below(len(p.servers))]
	}
	at := len(p.probes) - 1
	for i := at - 1; i >= 0; i-- {
		if p.rank.better(&p.probes[i], &p.probes[at]) {
			at = i
		}
	}
	b := &p.probes[at]
	server := b.server
	b.rif++ // section 4: the client knows of the request that it is about to send
	if b.left--; b.left <= 0 {
		p.probes = slices.Delete(p.probes, at, at+1)
	}
	return server
}

// send probes k different servers.
func (p *pool) send(k int) {
	for i := range min(k, len(p.deck)) {
		j := i + p.rand.below(len(p.deck)-i)
		p.deck[i], p.deck[j] = p.deck[j], p.deck[i]
		server := p.deck[i]
		p.env.Probe(server, int64(p.cfg.Timeout), func(l lb.Load, ok bool) {
			if ok {
				p.receive(server, l)
			}
		})
	}
}

// receive puts an answer into the pool in place of an earlier one of the same server, or else of the oldest.
func (p *pool) receive(server int, l lb.Load) {
	if !p.known[server] {
		return
	}
	p.rank.answered(server, l)
	out := slices.IndexFunc(p.probes, func(b probe) bool { return b.server == server })
	if out < 0 && len(p.probes) >= p.cfg.Size {
		out = 0
	}
	if out >= 0 {
		p.probes = slices.Delete(p.probes, out, out+1)
	}
	p.probes = append(p.probes, probe{server: server, at: p.env.Now(), rif: l.RIF, latency: l.Latency, left: p.uses()})
}

// uses is the budget of one probe: rounded up or down at random, so that it is right on average.
func (p *pool) uses() int {
	whole := math.Floor(p.budget)
	if part := p.budget - whole; part > 0 && p.rand.unit() < part {
		whole++
	}
	return int(whole)
}

func (p *pool) update(servers []lb.Server) {
	p.servers = indices(servers)
	p.deck = slices.Clone(p.servers)
	p.known = make(map[int]bool, len(servers))
	for _, s := range p.servers {
		p.known[s] = true
	}
	p.probes = slices.DeleteFunc(p.probes, func(b probe) bool { return !p.known[b.server] })
	p.budget = p.cfg.reuse(max(len(servers), 1))
}
