package balancer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/metadata"
)

func init() { RegisterStrategy("hash", parseSettings[Hash]) }

// Hash sends calls with the same key to the same instance, in every client that sees the same instances, so that what
// the instance keeps about the key (a cache, a session, a shard) is found there again. The key is the call's
// [WithHashKey], or else the metadata that Metadata names. A call without a key goes to a random instance.
//
// Each instance has its share of the keys by its weight. When one comes or goes its own keys change hands, and
// besides them at most some 0.6 % of all. An instance that has more than MaxLoad times its share of the calls under way
// gets no further ones: they go to their key's next instance, and those of one hot key to as many as it takes. A
// retry goes to the key's next instance, too, which is the same for all retries of the key.
//
// Instances are told apart by their ID, or by their address where the registry has none. So an instance that comes
// back under the same ID gets its keys back; a new ID is another instance. package server makes a new ID for every start
// unless it is given one.
//
// Which instance has a key is a function of the IDs and weights of those that may serve the call, and of nothing
// else, so clients agree as far as they see the same instances connected and well (ADR-0016). Affinity is a
// preference and not a promise: correctness must not depend on it.
type Hash struct {
	// Metadata names the outgoing metadata that is the key of calls without [WithHashKey]; empty means none.
	// Several values are joined by commas (gRFC A76). It must not end in "-bin" or begin with "grpc-". It costs an
	// allocation for each call; WithHashKey costs none.
	Metadata string `json:"metadata,omitempty"`
	// MaxLoad is how many times its share of the calls under way an instance may have, from 1 to 100; 0 means 1.25.
	// What counts is this client's calls. Up to two calls are never too many.
	MaxLoad float64 `json:"maxLoad,omitempty"`
	// Unbounded leaves every call with its key's instance, however much that has to do.
	Unbounded bool `json:"unbounded,omitempty"`
	// TableSize is how finely the keys are shared out, from 101 to 5,000,011; 0 means 65,537, and what is no prime
	// is rounded up to one. Shares are right to one in TableSize by the number of instances: at a hundred times as
	// many as instances to 1 %. It must be the same in all clients that are to agree, and whoever changes it
	// moves all keys. Each filter in use holds a table of two bytes an entry.
	TableSize int `json:"tableSize,omitempty"`
}

const (
	defaultMaxLoad   = 1.25
	defaultTableSize = 65537
	minTableSize     = 101
	maxTableSize     = 5000011 // Envoy's limit
)

// Name returns "hash".
func (Hash) Name() string { return "hash" }

func (s Hash) validate() error {
	switch {
	case strings.HasPrefix(strings.ToLower(s.Metadata), "grpc-"): // grpc's own, which it adds below the balancer
		return fmt.Errorf(`metadata = %q, want a name that does not begin with "grpc-"`, s.Metadata)
	case strings.HasSuffix(strings.ToLower(s.Metadata), "-bin"): // gRFC A76
		return fmt.Errorf(`metadata = %q, want a name that does not end in "-bin"`, s.Metadata)
	case strings.Trim(strings.ToLower(s.Metadata), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "":
		return fmt.Errorf("metadata = %q, want a name of letters, digits, '-', '_' and '.'", s.Metadata)
	case s.MaxLoad != 0 && !(s.MaxLoad >= 1 && s.MaxLoad <= 100):
		return fmt.Errorf("maxLoad = %v, want 1 to 100", s.MaxLoad)
	case s.MaxLoad != 0 && s.Unbounded:
		return fmt.Errorf("maxLoad = %v with unbounded, want one of them", s.MaxLoad)
	case s.TableSize != 0 && (s.TableSize < minTableSize || s.TableSize > maxTableSize):
		return fmt.Errorf("tableSize = %d, want %d to %d", s.TableSize, minTableSize, maxTableSize)
	}
	return nil
}

// keyed is a strategy whose calls may have their key in outgoing metadata.
type keyed interface{ metadataKey() string }

func (s Hash) metadataKey() string { return strings.ToLower(s.Metadata) }

// fromMetadata is the key that a call's outgoing metadata has under name, in small letters (gRFC A76).
func fromMetadata(ctx context.Context, name string) (key string, ok bool) {
	if ctx == nil {
		return "", false
	}
	switch values := metadata.ValueFromOutgoingContext(ctx, name); len(values) {
	case 0:
		return "", false
	case 1:
		return values[0], true
	default:
		return strings.Join(values, ","), true
	}
}

// Build implements [Strategy]. The lookup table is the dear part. It is taken over from the previous chooser if the
// members and their weights are the same, made here if calls are using the set, so that none of them has to wait for
// it, and else made by the first call that comes (ADR-0016).
func (s Hash) Build(env Env) Chooser {
	c := &hashChooser{
		members: env.Members, rand: env.Rand,
		maxLoad: cmp.Or(s.MaxLoad, defaultMaxLoad), unbounded: s.Unbounded,
		size: cmp.Or(s.TableSize, defaultTableSize),
	}
	prev, ok := env.Previous.(*hashChooser)
	if !ok {
		return c
	}
	if l := prev.layout.Load(); l != nil && prev.size == c.size && l.covers(prev.members, c.members) {
		c.layout.Store(l)
	} else if prev.used.Load() {
		c.layout.Store(newLayout(c.members, c.size))
	}
	return c
}

type hashChooser struct {
	members   []*Endpoint
	rand      func() uint64
	maxLoad   float64
	unbounded bool
	size      int
	used      atomic.Bool
	layout    atomic.Pointer[layout]
	mu        sync.Mutex // whoever makes the layout; nobody else takes it
}

// maxWalk is how many of a key's instances are looked at for one that is not too busy.
const maxWalk = 8

// Choose implements [Chooser].
func (c *hashChooser) Choose(call Call) int {
	l := c.layout.Load()
	if l == nil {
		l = c.lay()
	}
	if !c.used.Load() { // written once, so that picks share the cache line
		c.used.Store(true)
	}
	if len(l.ranked) == 1 {
		return 0
	}
	var h uint64
	attempt := call.Attempt
	if call.HasHashKey {
		h = xxh64(call.HashKey, 0)
	} else {
		h, attempt = c.rand(), 0
	}
	if attempt == 0 {
		rank := l.table.at(scale(h, l.table.size))
		if c.unbounded || l.ranked[rank].InFlight() < spare {
			return int(l.index[rank])
		}
	}
	second := h * golden
	if call.HasHashKey {
		second = xxh64(call.HashKey, 2) // not 1: a key may be the ID of an instance, whose walk over the slots that is
	}
	return int(l.index[c.walk(l, h, second, attempt)])
}

// lay makes the layout at the first call since the members changed. Other calls wait for it, since there is nothing
// that they could do instead and still agree with other clients.
func (c *hashChooser) lay() *layout {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.layout.Load()
	if l == nil {
		l = newLayout(c.members, c.size)
		c.layout.Store(l)
	}
	return l
}

// walk goes through the instances of a key, which are those of every second'th slot from that of h on, each once, and
// names the one that comes after attempt others; those that are too busy come last.
func (c *hashChooser) walk(l *layout, h, second uint64, attempt int) uint32 {
	bound := c.boundOf(l, h)
	var seen, busy [maxWalk]uint32
	n, nBusy, skip := 0, 0, attempt
	slot, step := scale(h, l.table.size), 1+scale(second, l.table.size-1)
	for probe := 0; n < min(len(l.ranked), maxWalk); probe++ {
		rank := l.table.at(slot)
		if slot += step; slot >= l.table.size {
			slot -= l.table.size
		}
		if probe >= 4*maxWalk { // nearly all slots are those of a few: go by rank
			rank = (seen[0] + uint32(probe)) % uint32(len(l.ranked))
		}
		if slices.Contains(seen[:n], rank) {
			continue
		}
		seen[n] = rank
		n++
		switch {
		case bound.exceeded(l.ranked[rank]):
			busy[nBusy] = rank
			nBusy++
		case skip == 0:
			return rank
		default:
			skip--
		}
	}
	switch {
	case nBusy == 0:
		return seen[attempt%n]
	case nBusy == n && attempt == 0:
		return c.spill(l, bound, slot, step, busy[:n])
	}
	return busy[skip%nBusy]
}

// spill names an instance for a key that is so hot that the first maxWalk on its walk are too busy: one that is not,
// drawn from the next 32 slots of the walk, and where that fails from 4 times as many, and so on. So a key goes to
// as many instances as it needs, and in all clients to about the same. If all that were drawn are too busy, it is the
// least busy of those that were looked at.
func (c *hashChooser) spill(l *layout, b bound, slot, step uint64, busy []uint32) uint32 {
	best := busy[0]
	for _, rank := range busy[1:] {
		best = l.lessBusy(best, rank)
	}
	for reach := 4 * maxWalk; reach <= 64*4*maxWalk; reach *= 4 {
		for range maxWalk {
			rank := l.table.at((slot + uint64(below(c.rand(), reach))*step) % l.table.size)
			if !b.exceeded(l.ranked[rank]) {
				return rank
			}
			best = l.lessBusy(best, rank)
		}
	}
	return best
}

// spare is how many calls under way are too few to be turned away from. Where there are fewer calls than instances,
// one call at a time is above the mean already, and says nothing about an instance.
const spare = 2

// bound says how many calls an instance may have under way for each unit of weight.
type bound float64

// exceeded reports whether e has as many calls as it may have, so that another would be too many.
func (b bound) exceeded(e *Endpoint) bool {
	n := e.InFlight()
	return n >= spare && float64(n) >= float64(b)*float64(e.Weight())
}

// boundOf is the bound for the call that is to be placed; that call counts.
func (c *hashChooser) boundOf(l *layout, h uint64) bound {
	if c.unbounded {
		return 1 << 62
	}
	total := l.meter.read(l.ranked, l.table.at(scale(h, l.table.size)))
	return bound(c.maxLoad * float64(total+1) / l.weight)
}
