package retry

import (
	"context"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/scope"
)

// state is what one Config made: replaced as a whole by Update.
type state struct {
	config Config
	table  *scope.Table[*rules]

	front [frontSlots]atomic.Pointer[method] // of known; each is set once
	known atomic.Pointer[map[string]*method] // replaced, never changed, so that calls take no lock
	mu    sync.Mutex                         // orders those who replace known
}

// frontSlots is how many of a client's methods, which come first, are found without the map: hashing a name costs
// three times as much as comparing it with itself. BenchmarkSuccess shows it.
const frontSlots = 16

// slot is where name is in front, if it is there.
func (s *state) slot(name string) *atomic.Pointer[method] {
	n := uint(len(name))
	if n > 0 {
		n += 5 * uint(name[n-1])
	}
	return &s.front[n%frontSlots]
}

// method is what holds for one method under one state.
type method struct {
	name       string
	rules      *rules
	exempt     bool
	idempotent bool // declared by the descriptor or the policy
	*history
}

// budget is what a call under rules is paid from. Those of a call option may have none of their own.
func (m *method) budget(r *rules) *Budget {
	if r.budget != nil {
		return r.budget
	}
	return m.rules.budget
}

// maxMethods bounds how many methods are remembered: a proxy passes on methods by the thousand. Those beyond it work,
// more slowly, and share one history.
const maxMethods = 4096

// method returns what holds for the full method name.
func (r *Retrier) method(s *state, name string) *method {
	slot := s.slot(name)
	if m := slot.Load(); m != nil && m.name == name {
		return m
	}
	if m, ok := (*s.known.Load())[name]; ok {
		return m
	}
	return r.newMethod(s, name, slot)
}

// newMethod finds out what holds for the full method name, and remembers it.
func (r *Retrier) newMethod(s *state, name string, slot *atomic.Pointer[method]) *method {
	m := &method{name: name}
	m.rules, m.exempt = s.table.Applies(name)
	m.exempt = !m.exempt
	m.idempotent = m.rules.idempotent || declared(name)
	m.history = r.historyOf(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := *s.known.Load(); len(known) < maxMethods {
		next := make(map[string]*method, len(known)+1)
		maps.Copy(next, known)
		next[name] = m
		s.known.Store(&next)
		slot.CompareAndSwap(nil, m)
	}
	return m
}

// declared reports whether the linked protobuf descriptors declare method ("/pkg.Service/Method") idempotent.
func declared(name string) bool {
	full := strings.ReplaceAll(strings.TrimPrefix(name, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(full))
	if err != nil {
		return false
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return false
	}
	options, _ := m.Options().(*descriptorpb.MethodOptions)
	return options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
}

// history is what has been learnt about a method; it outlives policies. It is safe for concurrent use.
type history struct {
	calls atomic.Int64
	// timedUntil is the number of the call up to which every first attempt is measured.
	timedUntil atomic.Int64
	// proven is a connection whose inner interceptors were seen to pass call options on to grpc; nil if none was yet.
	proven atomic.Pointer[proven]

	retries, hedges, hedgesWon, gaveUp, refused atomic.Int64

	mu         sync.Mutex // guards what follows; nothing else is locked or called under it
	latencies  *window
	experience experience
}

// Of a calm method one call of sampleEvery is measured; after a failure, or at first, the next timedAfter all are.
const (
	sampleEvery = 16
	timedAfter  = 1024
)

func newHistory() *history {
	h := new(history)
	h.timedUntil.Store(timedAfter)
	return h
}

// begin counts a call and reports whether it is to be measured.
func (h *history) begin() (timed bool) {
	n := h.calls.Add(1)
	return n%sampleEvery == 0 || n <= h.timedUntil.Load()
}

// trouble has the next calls measured.
func (h *history) trouble() { h.timedUntil.Store(h.calls.Load() + timedAfter) }

// retried takes account of how a retry ended, with its hedges: once for all of them.
func (h *history) retried(now int64, succeeded bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.experience.add(now, succeeded)
}

// retriesHelp reports whether most retries succeed lately.
func (h *history) retriesHelp(now int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.experience.helps(now)
}

// record adds the latency of a first attempt.
func (h *history) record(now, latency int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.latencies == nil {
		h.latencies = new(window)
	}
	h.latencies.add(now, latency)
}

// succeeded notes what the first attempt, which succeeded, teaches.
func (h *history) succeeded(c clock.Clock, a *attempt, cc *grpc.ClientConn) {
	if a.extra != nil && a.extra.began != 0 {
		now := c.Now()
		h.record(now, now-a.extra.began)
	}
	if k := h.proven.Load(); k == nil || k.conn != cc {
		if cc != nil && a.proves() {
			h.proven.Store(&proven{cc, a.picked()})
		}
	} else if k.picks != a.picked() { // another balancer, by a new service config
		h.proven.Store(&proven{cc, a.picked()})
	}
}

// proven is what is known about a connection. It is immutable.
type proven struct {
	conn  *grpc.ClientConn
	picks bool // its balancer says whom it picks
}

// first prepares the first attempt of a call that needs no more than that. It began at began, 0 if that is not known.
func (h *history) first(ctx context.Context, cc *grpc.ClientConn, opts []grpc.CallOption, began int64) (*attempt, []grpc.CallOption) {
	k := h.proven.Load()
	known := k != nil && k.conn == cc
	switch {
	case began != 0 || !known:
		a := new(whole)
		a.init(0, began)
		a.more.witness.saw.Store(known)
		return &a.attempt, a.prepare(ctx, callctx.Unary, nil, a.options[:0], opts, known)
	case k.picks:
		a := new(slim)
		return &a.attempt, a.prepare(ctx, callctx.Unary, nil, a.options[:0], opts, true)
	}
	a := new(full)
	a.peer = &a.addr
	return &a.attempt, a.prepare(ctx, callctx.Unary, nil, a.options[:0], opts, true)
}

// quantile is a latency as [window.quantile] gives it.
func (h *history) quantile(now int64, q float64, least int) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.latencies == nil {
		return 0
	}
	return h.latencies.quantile(now, q, least)
}

// leastTypical is how many latencies must be known before a retry is refused because there is no time for it.
const leastTypical = 16

// typical is the median latency of a first attempt, 0 if too few are known.
func (h *history) typical(now int64) int64 { return int64(h.quantile(now, 0.5, leastTypical)) }

// hedgeDelay is how long to wait for an attempt before the next is sent; 0 means for good.
func (h *history) hedgeDelay(r *rules, now int64) time.Duration {
	if r.hedgeQuantile == 0 {
		return r.hedgeDelay
	}
	if d := h.quantile(now, r.hedgeQuantile, r.leastSamples()); d > 0 {
		return max(d, minHedge)
	}
	return r.hedgeDelay
}
