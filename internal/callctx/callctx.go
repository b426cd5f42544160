// Package callctx is what the wrappers, the filters and the picker tell each other about one call.
//
// A pick may look into its context once. So everything that a pick can want to know stands in one [Record] under
// one key: the filters that the caller bound, the key to hash by, and, only when a wrapper needs it, the [Call],
// through which a retry says which endpoints were tried and learns who was picked. Whoever adds something to a
// context copies the record it finds there and changes the copy; records in a context are never modified.
package callctx

import (
	"context"
	"sync"
	"sync/atomic"
)

// Record is what a context says about a call. A Record that is in a context is immutable.
type Record struct {
	// Filters are the filters bound to the context, innermost first; nil means none.
	Filters *Binding
	// HashKey is the key that consistent hashing goes by, if HasHashKey.
	HashKey    string
	HasHashKey bool
	// Call is the live state of the call, nil if no wrapper has started one.
	Call *Call
	// Observer hears what happens to the call; nil means that nobody listens.
	Observer Observer
}

// Binding binds a filter to services; Services empty means all of them. It is immutable.
type Binding struct {
	Filter   any // a filters.Filter, which this package cannot name without an import cycle
	Services []string
	Next     *Binding
}

type key struct{}

type recordContext struct {
	context.Context
	rec Record
}

func (c *recordContext) Value(k any) any {
	if _, ok := k.(key); ok {
		return &c.rec
	}
	return c.Context.Value(k)
}

// With returns a context that carries rec. It allocates once.
func With(ctx context.Context, rec Record) context.Context {
	return &recordContext{Context: ctx, rec: rec}
}

// Begin starts a call: a context that carries what ctx carried and a new Call. It allocates once. tried is shared by
// the attempts of one logical call. Wrappers nest: where ctx carries a Call already, that one too learns who was
// picked, and a nil tried and an unknown kind mean what it says.
func Begin(ctx context.Context, kind Kind, tried *Tried) (context.Context, *Call) {
	return new(Room).Begin(ctx, kind, tried)
}

// Room is room for one call's context within something larger that a wrapper allocates for the call anyway. Its zero
// value is ready, for one Begin; it must not be copied, and must not be used again, since a context may outlive its
// call.
type Room struct{ c callContext }

// Begin is the function [Begin] without its allocation.
func (r *Room) Begin(ctx context.Context, kind Kind, tried *Tried) (context.Context, *Call) {
	c := &r.c
	c.Context = ctx
	c.call.Kind, c.call.Tried = kind, tried
	if rec := From(ctx); rec != nil {
		c.rec = *rec
		if outer := rec.Call; outer != nil {
			c.call.outer = outer
			if tried == nil {
				c.call.Tried = outer.Tried
			}
			if kind == UnknownKind {
				c.call.Kind = outer.Kind
			}
		}
	}
	c.rec.Call = &c.call
	return c, &c.call
}

// Context is the context of the call that began here.
func (r *Room) Context() context.Context { return &r.c }

// Call is the call that began here.
func (r *Room) Call() *Call { return &r.c.call }

// Observer is who watches the call that began here, nil if nobody does.
func (r *Room) Observer() Observer { return r.c.rec.Observer }

// callContext is a recordContext with room for the call, so that both are one allocation.
type callContext struct {
	recordContext
	call Call
}

// From returns the record in ctx, or nil. The record must not be modified.
func From(ctx context.Context) *Record {
	r, _ := ctx.Value(key{}).(*Record)
	return r
}

// Copy returns the record in ctx as a value to change and hand to With; an empty one if there is none.
func Copy(ctx context.Context) Record {
	if r := From(ctx); r != nil {
		return *r
	}
	return Record{}
}

// Kind is what sort of call it is.
type Kind uint8

const (
	// UnknownKind: nobody said; the picker looks at the linked descriptors.
	UnknownKind Kind = iota
	// Unary has one request and one reply, so its duration is a latency.
	Unary
	// Stream lasts as long as it lasts.
	Stream
)

// Endpoint identifies an endpoint to the wrappers. There is one *Endpoint for each life of an endpoint, so pointers
// can be compared; the fields are immutable.
type Endpoint struct {
	ID   string // the instance's ID, empty for endpoints of foreign resolvers
	Addr string // its first address
}

// Call is the live state of one attempt of a call. Its zero value is ready. It is safe for concurrent use.
type Call struct {
	// Kind is set before the call starts.
	Kind Kind
	// Tried are the endpoints to avoid; shared by the attempts of one logical call, nil means none.
	Tried *Tried

	picked atomic.Pointer[Endpoint]
	outer  *Call
}

// SetPicked is called by the picker with the endpoint it chose; a later pick of the same attempt replaces it.
func (c *Call) SetPicked(e *Endpoint) {
	for ; c != nil; c = c.outer {
		c.picked.Store(e)
	}
}

// Picked is the endpoint chosen last, nil if none was.
func (c *Call) Picked() *Endpoint { return c.picked.Load() }

// Tried is the set of endpoints that a logical call has been sent to. Its zero value is empty and ready; it is safe
// for concurrent use. It is small, so it is a list.
type Tried struct {
	mu   sync.Mutex
	list []*Endpoint
}

// Add adds e; nil is ignored.
func (t *Tried) Add(e *Endpoint) {
	if e == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.list {
		if x == e {
			return
		}
	}
	t.list = append(t.list, e)
}

// Has reports whether e is in the set. A nil set is empty.
func (t *Tried) Has(e *Endpoint) bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.list {
		if x == e {
			return true
		}
	}
	return false
}

// Len is the number of endpoints in the set. A nil set is empty.
func (t *Tried) Len() int {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.list)
}
