package baseline

import "github.com/evenkeel/evenkeel/bench/sim/lb"

// SameZone is least request among the servers of the client's own zone, and among all where there are none: the rule of
// Kubernetes' trafficDistribution PreferSameZone. It does not look at load, so a zone with too many clients for its
// servers stays overloaded beside idle ones.
func SameZone() lb.Maker {
	return simple("same_zone", func(env lb.Env) lb.Balancer { return &zoned{env: env} })
}

// EnvoyZone is Envoy's zone-aware routing over least request (load_balancer_impl.cc, zone_aware.rst), as if every client
// made as many calls. While a zone has at least its share of the servers its clients stay in it. Otherwise as large a
// part of their calls stays as the zone has of the servers it would need, and the rest goes to zones that have more than
// their share, in proportion to that. It counts servers and not load: nothing changes when one zone is called more often
// or works more slowly. zones are where the clients are, one for each client or in turn.
func EnvoyZone(zones ...string) lb.Maker {
	callers := make(map[string]float64)
	for _, z := range zones {
		callers[z] += 1 / float64(len(zones))
	}
	return simple("envoy_zone", func(env lb.Env) lb.Balancer { return &zoned{env: env, callers: callers} })
}

// zoned has a least request for each zone.
type zoned struct {
	env     lb.Env
	callers map[string]float64 // by zone, the part of the clients; nil to stay at home
	names   []string           // of the zones that have servers
	inside  map[string]*leastRequest
	local   float64 // part of the calls
	below   []float64
}

func (b *zoned) zone() string {
	rand := dice(b.env.Rand)
	if b.inside[b.env.Zone] != nil && (b.local >= 1 || rand.unit() < b.local) {
		return b.env.Zone
	}
	u := rand.unit() * b.below[len(b.below)-1]
	for i, limit := range b.below {
		if u < limit {
			return b.names[i]
		}
	}
	return b.names[len(b.names)-1]
}

// picked is what an attempt remembers: whose choice it was, and what that remembers itself.
type picked struct {
	by   *leastRequest
	note any
}

func (b *zoned) Pick(c *lb.Call) (int, error) {
	if len(b.names) == 0 {
		return 0, errNobody
	}
	by := b.inside[b.zone()]
	s, err := by.Pick(c)
	c.Note = picked{by, c.Note}
	return s, err
}

func (b *zoned) Done(c *lb.Call, server int, r lb.Result) {
	p := c.Note.(picked)
	c.Note = p.note
	p.by.Done(c, server, r)
}

// Update keeps what is known about servers that stay in their zone.
func (b *zoned) Update(servers []lb.Server) {
	old, sets := b.inside, make(map[string][]lb.Server)
	b.names, b.inside, b.below = nil, make(map[string]*leastRequest), nil
	for _, s := range servers {
		z := s.Instance.Zone
		if sets[z] == nil {
			b.names = append(b.names, z)
		}
		sets[z] = append(sets[z], s)
	}
	for _, z := range b.names {
		if b.inside[z] = old[z]; b.inside[z] == nil {
			b.inside[z] = &leastRequest{rand: b.env.Rand}
		}
		b.inside[z].Update(sets[z])
	}
	b.route(sets, float64(len(servers)))
}

// route works out which part of the calls goes where.
func (b *zoned) route(sets map[string][]lb.Server, all float64) {
	home := b.env.Zone
	has := func(z string) float64 { return float64(len(sets[z])) / all }
	b.local = 1
	if b.callers != nil && has(home) < b.callers[home] {
		b.local = has(home) / b.callers[home]
	}
	sum := 0.0
	for _, z := range b.names {
		spare := has(z) // for a client without servers at home
		if b.callers != nil {
			spare = max(0, has(z)-b.callers[z])
		}
		if z != home {
			sum += spare
		}
		b.below = append(b.below, sum)
	}
	if sum == 0 { // nobody has anything to spare
		for i := range b.below {
			b.below[i] = float64(i + 1)
		}
	}
}
