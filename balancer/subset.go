package balancer

import (
	"cmp"
	"fmt"
	"slices"

	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/registry"
)

// Subset bounds how many instances of a large service this client connects to. Its zero value connects to all.
//
// With ten thousand instances and a thousand clients every client would keep ten thousand connections and health
// checks, and every instance a thousand. With a Size of 20 a client has 20, and an instance as many as its share. All
// of the policy then happens among those 20: the strategy, the blacklist and the filters that contexts carry. So a
// filter that one instance in ten matches finds two, and one that one in a hundred matches finds none most of the time;
// give such calls a channel of their own, whose Config.Require is that filter, since the subset is drawn from what
// Require admits.
//
// If the client knows its number among all (Client of Clients: the ordinal of a StatefulSet, a task index), the subsets
// fit together: no instance has more than 1.25 times the mean number of clients. Where that number is small whole
// numbers stand in the way, since two in the mean leave no room below three; then clients connect to a few instances
// fewer than Size, never to less than four fifths of it. That cannot mend a mean below 0.8, from 1.12 to 1.6, or in the
// last 5 % before 2.4, 3.2, 4 and 4.8 (where a fifth of Size is no whole number these stretches are longer, and from a
// Size below 5 nothing can be taken away at all); [Subset.Plan] tells. All clients must be given the same Clients and
// Size, though not at the same moment. A client that does not know its number draws at random (gRFC A68); then some
// instances have two or three times the mean.
//
// Either way most connections stay when instances or clients come and go. ADR-0025 has the figures.
//
// An instance that starts to drain is replaced, and stays connected until it has left. One that fails is not replaced,
// since it is the blacklist's; so a Size should be great enough to do without some, 12 or more (Finagle's least).
type Subset struct {
	// Size is how many instances to connect to; 0 means all. With Clients it is the most: where shares would be uneven
	// some or all of the clients have fewer, by a fifth at most.
	Size int `json:"size,omitempty"`
	// Client is this client's number, from 0 to Clients - 1.
	Client int `json:"client,omitempty"`
	// Clients is how many clients there are; 0 means that nobody knows.
	Clients int `json:"clients,omitempty"`
}

// maxMatching bounds Clients times Size, and by that the time of a change of the instances to a second or two; only sizes
// of thousands that leave out next to none take longer.
const maxMatching = 1 << 20

func (s Subset) validate() error {
	switch {
	case s.Size < 0:
		return fmt.Errorf("subset.size = %d, want 1 or more, or 0 for all", s.Size)
	case s.Clients < 0 || s.Clients > maxMatching:
		return fmt.Errorf("subset.clients = %d, want 1 to %d, or 0 if it is not known", s.Clients, maxMatching)
	case s.Clients == 0 && s.Client != 0:
		return fmt.Errorf("subset.client = %d without subset.clients, want how many clients there are", s.Client)
	case s.Clients == 0:
		return nil
	case s.Client < 0 || s.Client >= s.Clients:
		return fmt.Errorf("subset.client = %d, want 0 to %d (subset.clients - 1)", s.Client, s.Clients-1)
	case s.Size == 0:
		return fmt.Errorf("subset.size = 0, want 1 or more, because subset.clients = %d", s.Clients)
	case s.Size > maxMatching/s.Clients:
		return fmt.Errorf("subset.size = %d with %d clients, want at most %d", s.Size, s.Clients, maxMatching/s.Clients)
	}
	return nil
}

// Choose returns which of the instances with these IDs a client connects to, as indices in ascending order. The order of
// ids makes no difference to who is chosen. Clients without a number are told apart by seed, which is not used
// otherwise. It is what the policy does, for tests and for planning; it panics on an invalid Subset.
func (s Subset) Choose(ids []string, seed uint64) []int {
	if err := s.validate(); err != nil {
		panic("balancer: Subset.Choose: " + err.Error())
	}
	if s.Size == 0 || len(ids) <= s.Size {
		return upTo(len(ids))
	}
	if s.Clients == 0 {
		return rendezvous(ids, s.Size, seed)
	}
	m, order := s.match(ids)
	chosen := m.of(s.Client)
	for i, rank := range chosen {
		chosen[i] = order[rank]
	}
	slices.Sort(chosen)
	return chosen
}

// Plan returns how many clients connect to each of the instances with these IDs, if all have numbers. It panics on an
// invalid Subset and on one without Clients.
func (s Subset) Plan(ids []string) []int {
	if err := s.validate(); err != nil {
		panic("balancer: Subset.Plan: " + err.Error())
	}
	if s.Clients == 0 {
		panic("balancer: Subset.Plan: subset.clients = 0, want how many clients there are")
	}
	plan := make([]int, len(ids))
	if len(ids) <= s.Size {
		for i := range plan {
			plan[i] = s.Clients
		}
		return plan
	}
	m, order := s.match(ids)
	for rank, kept := range m.kept {
		plan[order[rank]] = len(kept)
	}
	return plan
}

// match is the matching of all clients with the instances, which are in the order of their hashes there, and which
// index each of them has.
func (s Subset) match(ids []string) (m *matching, order []int) {
	servers := make([]claimant, len(ids))
	for i, id := range ids {
		servers[i] = claimantOf(id, 1)
	}
	order = upTo(len(ids))
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(servers[a].offset, servers[b].offset), cmp.Compare(ids[a], ids[b]))
	})
	ranked := make([]claimant, len(ids))
	for rank, i := range order {
		ranked[rank] = servers[i]
	}
	return match(ranked, s.Clients, s.Size), order
}

// rendezvous chooses the size instances whose hashes with seed are the greatest (gRFC A68; Thaler and Ravishankar, 1998).
func rendezvous(ids []string, size int, seed uint64) []int {
	hashes := make([]uint64, len(ids))
	for i, id := range ids {
		hashes[i] = xxh64(id, seed)
	}
	chosen := upTo(len(ids))
	slices.SortFunc(chosen, func(a, b int) int {
		return cmp.Or(cmp.Compare(hashes[b], hashes[a]), cmp.Compare(ids[a], ids[b]))
	})
	chosen = chosen[:size]
	slices.Sort(chosen)
	return chosen
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// subset is the part of the endpoints that this client connects to, and what it was chosen from.
type subset struct {
	settings Subset
	seed     uint64
	seeded   bool
	ids      []string // of those who were eligible
	chosen   map[string]struct{}
}

// narrow leaves out the endpoints that are not in this client's subset; mu is held. Those that drain, and those that
// nobody may call, have no place in it; but who drains and is connected stays.
func (p *policy) narrow(endpoints []gresolver.Endpoint) []gresolver.Endpoint {
	want := p.settings.subset
	if want.Size == 0 || len(endpoints) <= want.Size {
		p.subset.ids, p.subset.chosen = nil, nil
		return endpoints
	}
	ids := make([]string, 0, len(endpoints))
	for _, ep := range endpoints {
		if in := instanceOf(ep); in != nil && !in.Draining && p.settings.require.Match(in) {
			ids = append(ids, cmp.Or(in.ID, in.Addr))
		}
	}
	p.subset.choose(want, ids, p.rand)
	in := make([]gresolver.Endpoint, 0, want.Size)
	for _, ep := range endpoints {
		inst := instanceOf(ep)
		if inst == nil {
			continue
		}
		_, chosen := p.subset.chosen[cmp.Or(inst.ID, inst.Addr)]
		if chosen && !inst.Draining || inst.Draining && p.children[keyOf(ep)] != nil {
			in = append(in, ep)
		}
	}
	return in
}

// choose brings the choice up to date. Most updates change nothing of what it depends on.
func (s *subset) choose(want Subset, ids []string, rand func() uint64) {
	if s.chosen != nil && s.settings == want && slices.Equal(s.ids, ids) {
		return
	}
	if !s.seeded {
		s.seed, s.seeded = rand(), true
	}
	s.settings, s.ids = want, ids
	s.chosen = make(map[string]struct{}, want.Size)
	for _, i := range want.Choose(ids, s.seed) {
		s.chosen[ids[i]] = struct{}{}
	}
}

// instanceOf is the record of an endpoint, or one with nothing but its address if another resolver made it; nil if it
// has no address at all.
func instanceOf(ep gresolver.Endpoint) *registry.Instance {
	if in := registry.FromEndpoint(ep); in != nil {
		return in
	}
	if len(ep.Addresses) == 0 {
		return nil
	}
	return &registry.Instance{Addr: ep.Addresses[0].Addr}
}
