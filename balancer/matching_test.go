package balancer

import (
	"fmt"
	"testing"
)

// TestMatchingIsStable: each client has its number of servers, no server has more than its capacity, and whoever asked a
// server and is not kept there is less preferred than all whom it keeps. That is what makes the matching one and the same
// whoever asks first. The last shapes have thousands of clients a server, for which it took minutes to look through lists.
func TestMatchingIsStable(t *testing.T) {
	for _, tt := range []struct{ clients, size, servers int }{
		{1, 3, 9}, {12, 7, 30}, {200, 20, 2000}, {300, 10, 300}, {40, 20, 22}, {100, 3, 5}, {5000, 2, 9}, {3000, 20, 30},
	} {
		t.Run(fmt.Sprintf("%d_by_%d_of_%d", tt.clients, tt.size, tt.servers), func(t *testing.T) {
			s := Subset{Size: tt.size, Clients: tt.clients}
			m, _ := s.match(idsOf(tt.servers))
			held := make([]map[uint32]bool, tt.clients)
			for c := range held {
				held[c] = make(map[uint32]bool)
			}
			for server, kept := range m.kept {
				if len(kept) > m.caps[server] {
					t.Errorf("server %d has %d clients, want %d at most", server, len(kept), m.caps[server])
				}
				for i, k := range kept {
					if k.rank < kept[0].rank {
						t.Fatalf("server %d: client %d at %d is less preferred than the first", server, k.client, i)
					}
					held[k.client][uint32(server)] = true
				}
			}
			for c := range held {
				if want := len(m.of(c)); len(held[c]) != m.sizes[c] || want != m.sizes[c] {
					t.Fatalf("client %d is kept by %d, and of says %d; want %d", c, len(held[c]), want, m.sizes[c])
				}
				for i := range m.asked[c] {
					at := m.ring.at(mix(mix(uint64(c)+golden) + uint64(i)*golden))
					kept, rank := m.kept[at], mix(m.servers[at].offset^mix(uint64(c)))
					if !held[c][at] && (len(kept) < m.caps[at] || rank > kept[0].rank) {
						t.Fatalf("server %d has %d of %d clients and turned %d away, whom it prefers", at, len(kept), m.caps[at], c)
					}
				}
			}
		})
	}
}
