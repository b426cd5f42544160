package retry

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/scope"
)

// state is what one Config made: replaced as a whole by Update.
type state struct {
	config Config
	table  *scope.Table[*rules]

	known atomic.Pointer[map[string]*method] // replaced, never changed, so that calls take no lock
	mu    sync.Mutex                         // orders those who replace known
}

// method is what holds for one method under one state.
type method struct {
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
	if m, ok := (*s.known.Load())[name]; ok {
		return m
	}
	m := new(method)
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
	// proven is the connection whose inner interceptors were seen to pass call options on to grpc.
	proven atomic.Pointer[grpc.ClientConn]

	retries, hedges, hedgesWon, gaveUp, refused atomic.Int64

	mu        sync.Mutex // guards latencies; nothing else is locked or called under it
	latencies *window
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
	if a.began != 0 {
		now := c.Now()
		h.record(now, now-a.began)
	}
	if a.proves() {
		h.proven.Store(cc)
	}
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
