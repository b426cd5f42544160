package trace

import (
	"context"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/opentracing/opentracing-go"
)

// Below a span that is not sampled nothing is recorded, but the decision and the baggage have to travel on, or the
// next server would decide for itself and record half a trace. To put them into the metadata costs allocations, and
// with a sampling rate of 1 in 1,000 nearly every call would pay. So the server wrapper, which meets the decision
// first, puts them into the handler's outgoing metadata once, and calls made with that context find them there.
// (A handler that then replaces its outgoing metadata by metadata.NewOutgoingContext, instead of appending to it,
// loses them, as it loses whatever else stood there.)

// prepared says that the outgoing metadata of a context has what span carries.
type prepared struct {
	span    opentracing.Span // a pointer, so that it can be compared
	baggage uint64           // fingerprint when it was prepared
	// Most spans have no baggage, and that they still have none costs less to find out: look notes what it is shown.
	none  bool
	found atomic.Bool
	look  func(key, value string) bool
}

type preparedKey struct{}

// prepare marks ctx, whose outgoing metadata has the context of ot.
func prepare(ctx context.Context, ot opentracing.Span) context.Context {
	if reflect.TypeOf(ot).Kind() != reflect.Pointer {
		return ctx
	}
	p := &prepared{span: ot, baggage: fingerprint(ot.Context())}
	p.look = func(string, string) bool {
		p.found.Store(true)
		return false
	}
	p.none = p.baggage == 0
	return context.WithValue(ctx, preparedKey{}, p)
}

// holds reports whether the metadata still say what sc says. Baggage only ever grows.
func (p *prepared) holds(sc opentracing.SpanContext) bool {
	if !p.none {
		return p.baggage == fingerprint(sc)
	}
	sc.ForeachBaggageItem(p.look)
	return !p.found.Load()
}

// unsampled returns the context for a call below parent, whose context sc is not sampled.
func (t *Tracing) unsampled(ctx context.Context, tracer opentracing.Tracer, parent opentracing.Span, sc opentracing.SpanContext) context.Context {
	if p, ok := ctx.Value(preparedKey{}).(*prepared); ok && p.span == parent && p.holds(sc) {
		return ctx
	}
	return t.inject(ctx, tracer, sc)
}

// baggageSum sums up baggage. It comes from a pool and its function is bound once, so that nothing is allocated.
type baggageSum struct {
	sum uint64
	add func(key, value string) bool
}

var baggageSums = sync.Pool{New: func() any {
	b := new(baggageSum)
	b.add = func(key, value string) bool {
		b.sum += mix(mix(fnvOffset, key)*fnvPrime, value) // a sum, since the order is arbitrary
		return true
	}
	return b
}}

// fingerprint changes when the baggage of sc does, but for chances of 1 in 2^64.
func fingerprint(sc opentracing.SpanContext) uint64 {
	b := baggageSums.Get().(*baggageSum)
	b.sum = 0
	sc.ForeachBaggageItem(b.add)
	sum := b.sum
	baggageSums.Put(b)
	return sum
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// mix is FNV-1a, continued from h.
func mix(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return h
}
