// Package subsets compares rules by which each of many clients connects to a few of many servers (scenario S10).
//
// No call is simulated. A rule is a function from the IDs of the servers and the number of a client to the servers that
// it connects to, and what matters of it can be counted: how many clients the server with the most has, how many
// connections move when a server comes, when a tenth of them comes or goes, and when a client comes. The least that has
// to move is known too: of n servers that become m, the part 1 - n/m (or 1 - m/n) of the connections, since each server
// is to have as many as the others.
//
//   - [A68] is gRPC's random_subsetting: each client draws for itself, by rendezvous hashing. Nobody needs a number, nothing
//     moves that need not, and the spread is that of dice.
//   - [SRE] is the deterministic rule of chapter 20 of the SRE book: clients are dealt out in rounds over a shuffle of the
//     servers. Even to one within each round; one server more shuffles anew.
//   - [Aperture] is Finagle's deterministic aperture with whole connections: servers in order on a circle, each client has
//     the stretch that begins at its own place. Even; one server more moves every stretch a little.
//   - [Ours] is balancer.Subset with numbers, as the policy does it; with few clients a server it takes a few servers fewer
//     than the size (18 of 20 where a server would have two clients).
//
// [Compare] counts; it is a pure function. What it costs is the rules' own cost times the clients, so churn is counted
// over a sample of the clients.
package subsets

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench/sim/engine"
)

// Rule is one way to choose.
type Rule struct {
	// Name is what tables call it.
	Name string
	// Choose returns the indices of the servers that a client of so many connects to, size of them.
	Choose func(ids []string, client, clients, size int) []int
	// Counts returns how many clients each server has; nil means to ask Choose for each client.
	Counts func(ids []string, clients, size int) []int
}

// Rules are all, in the order of tables.
func Rules() []Rule { return []Rule{A68(), SRE(), Aperture(), Ours()} }

// A68 is gRPC's random_subsetting (gRFC A68): the servers whose hashes with the client's seed are the least. gRPC's hash
// is XXH64; here it is FNV-1a and a finalizer, which is as uniform.
func A68() Rule {
	return Rule{Name: "A68 (rendezvous)", Choose: func(ids []string, client, _, size int) []int {
		type ranked struct {
			hash uint64
			i    int
		}
		seed := engine.Mix(uint64(client) + 1)
		all := make([]ranked, len(ids))
		for i, id := range ids {
			all[i] = ranked{engine.Mix(hashOf(id) ^ seed), i}
		}
		slices.SortFunc(all, func(a, b ranked) int { return cmp.Compare(a.hash, b.hash) })
		out := make([]int, min(size, len(all)))
		for i := range out {
			out[i] = all[i].i
		}
		return out
	}}
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s)) // it never fails
	return engine.Mix(h.Sum64())
}

// SRE is the deterministic subsetting of "Site Reliability Engineering", chapter 20. Servers that are left over after
// whole subsets serve nobody in that round. How many connections move when the servers become more depends on the
// shuffle; the book's moves 40 % of 300 servers with 10 each, this one more.
func SRE() Rule {
	return Rule{Name: "SRE book (rounds)", Choose: func(ids []string, client, _, size int) []int {
		subsets := max(1, len(ids)/size)
		round := client / subsets
		order := make([]int, len(ids))
		for i := range order {
			order[i] = i
		}
		rand.New(rand.NewPCG(uint64(round), 20)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		from := client % subsets * size
		return order[from:min(from+size, len(order))]
	}}
}

// Aperture is Finagle's deterministic aperture (ProcessCoordinate), without its fractions of a connection: Finagle gives
// the servers at both ends of a stretch less of the load, which a count of connections does not show.
func Aperture() Rule {
	return Rule{Name: "Finagle aperture", Choose: func(ids []string, client, clients, size int) []int {
		from := client * len(ids) / clients
		out := make([]int, min(size, len(ids)))
		for i := range out {
			out[i] = (from + i) % len(ids)
		}
		return out
	}}
}

// Ours is balancer.Subset with numbers.
func Ours() Rule {
	return Rule{
		Name: "evenkeel (matching)",
		Choose: func(ids []string, client, clients, size int) []int {
			return balancer.Subset{Size: size, Client: client, Clients: clients}.Choose(ids, 0)
		},
		Counts: func(ids []string, clients, size int) []int {
			return balancer.Subset{Size: size, Clients: clients}.Plan(ids)
		},
	}
}

// Shape is how many there are of each.
type Shape struct{ Servers, Clients, Size int }

// Shapes are those of the tables: the two that figures are published for, and a large fleet.
func Shapes() []Shape { return []Shape{{100, 100, 25}, {300, 300, 10}, {10_000, 1000, 20}} }

// Figures are what is counted of one rule and shape.
type Figures struct {
	// MaxMean and MinMean are the connections of the server with the most and with the fewest, by the mean.
	MaxMean, MinMean float64
	// One, More, Fewer and Client are the parts of the connections that move when there is one server more, a tenth more,
	// a tenth fewer, and one client more; Least are those of the first three that have to.
	One, More, Fewer, Client float64
	Least                    [3]float64
}

// servers are the IDs of n; those of fewer are among those of more, and they come and go anywhere in the order of IDs.
func servers(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%08x", engine.Mix(uint64(i))>>32)
	}
	return slices.Sorted(slices.Values(ids))
}

// Compare counts. Churn is that of so many clients, spread evenly over all, or of all if sample is 0.
func Compare(r Rule, s Shape, sample int) Figures {
	var f Figures
	counts := r.counts(servers(s.Servers), s)
	most, least := slices.Max(counts), slices.Min(counts)
	mean := 0.0
	for _, n := range counts {
		mean += float64(n) / float64(len(counts))
	}
	f.MaxMean, f.MinMean = float64(most)/mean, float64(least)/mean
	if sample == 0 || sample > s.Clients {
		sample = s.Clients
	}
	tenth := max(1, s.Servers/10)
	base := r.pairs(s.Servers, s.Clients, s.Size, sample, s.Clients)
	moved := func(servers, clients int) float64 {
		after, gone := r.pairs(servers, clients, s.Size, sample, s.Clients), 0
		for p := range base {
			if !after[p] {
				gone++
			}
		}
		return float64(gone) / float64(len(base))
	}
	n := float64(s.Servers)
	f.One, f.More, f.Fewer = moved(s.Servers+1, s.Clients), moved(s.Servers+tenth, s.Clients), moved(s.Servers-tenth, s.Clients)
	f.Client = moved(s.Servers, s.Clients+1)
	f.Least = [3]float64{1 / (n + 1), float64(tenth) / (n + float64(tenth)), float64(tenth) / n}
	return f
}

func (r Rule) counts(ids []string, s Shape) []int {
	if r.Counts != nil {
		return r.Counts(ids, s.Clients, s.Size)
	}
	counts := make([]int, len(ids))
	for c := range s.Clients {
		for _, i := range r.Choose(ids, c, s.Clients, s.Size) {
			counts[i]++
		}
	}
	return counts
}

// pair is a connection.
type pair struct {
	client int
	server string
}

// pairs are the connections of a sample of the first from clients.
func (r Rule) pairs(n, clients, size, sample, from int) map[pair]bool {
	ids, out := servers(n), make(map[pair]bool)
	for k := range sample {
		c := k * from / sample
		for _, i := range r.Choose(ids, c, clients, size) {
			out[pair{c, ids[i]}] = true
		}
	}
	return out
}

// Markdown writes the table of all rules and shapes. Churn in large ones is that of a sample of the clients.
func Markdown(w io.Writer, shapes []Shape, sample int) error {
	for _, s := range shapes {
		rows := ""
		var least [3]float64
		of := sample
		if s.Servers*s.Clients <= 100_000 { // all are cheap
			of = 0
		}
		for _, r := range Rules() {
			f := Compare(r, s, of)
			least = f.Least
			rows += fmt.Sprintf("| %s | %.2f | %.2f | %.2f %% | %.2f %% | %.2f %% | %.2f %% |\n", r.Name, f.MaxMean, f.MinMean,
				100*f.One, 100*f.More, 100*f.Fewer, 100*f.Client)
		}
		_, err := fmt.Fprintf(w, "\n**%d servers, %d clients of %d each** (%d connections instead of %d)\n\n"+
			"| rule | most/mean | fewest/mean | moved by one server more (%.2f %% must) | by a tenth more (%.1f %%) | "+
			"by a tenth fewer (%.1f %%) | by one client more |\n|---|---:|---:|---:|---:|---:|---:|\n%s", s.Servers, s.Clients, s.Size,
			s.Clients*s.Size, s.Clients*s.Servers, 100*least[0], 100*least[1], 100*least[2], rows)
		if err != nil {
			return err
		}
	}
	return nil
}
