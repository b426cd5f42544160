package filters

import (
	"context"
	"slices"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// NewContext returns a context in which calls to services go to instances that meet f; without services, all calls
// do. The names are those the client dialled: "orders" for lb:///orders.
//
// Name the services: a handler's context goes to everything that the handler calls, and a filter for one service
// rarely makes sense for another. The innermost binding that names the service wins, it does not add to an outer
// one: use [All] for that. The zero filter is a binding too, "every instance", and replaces an outer one. A broken
// filter fails the calls. services is copied.
func NewContext(ctx context.Context, f Filter, services ...string) context.Context {
	rec := callctx.Copy(ctx)
	b := &callctx.Binding{Filter: f, Services: slices.Clone(services)}
	if len(services) > 0 {
		b.Next = rec.Filters // a binding of all services hides what is behind it
	}
	rec.Filters = b
	return callctx.With(ctx, rec)
}

// FromContext returns the filter that ctx binds to service, and whether there is one. It is the zero filter and
// true if that was bound on purpose.
func FromContext(ctx context.Context, service string) (Filter, bool) {
	return FromRecord(callctx.From(ctx), service)
}

// FromRecord is [FromContext] for a caller that has the record already, which may be nil. It allocates nothing.
func FromRecord(rec *callctx.Record, service string) (Filter, bool) {
	if rec == nil {
		return Filter{}, false
	}
	for b := rec.Filters; b != nil; b = b.Next {
		if len(b.Services) == 0 || slices.Contains(b.Services, service) {
			f, ok := b.Filter.(Filter)
			return f, ok
		}
	}
	return Filter{}, false
}
