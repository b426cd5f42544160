package balancer

import (
	"context"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// WithHashKey returns a context whose calls carry key, for strategies that keep affinity by one: [Hash] sends calls with
// the same key to the same instance, and strategies of your own find it in [Call]. The others do not look at it. It
// goes before a key in metadata. An empty key is a key like any other. The innermost key wins. Calls that a handler makes
// with its own context do not inherit the key of its caller, since contexts do not cross the network.
func WithHashKey(ctx context.Context, key string) context.Context {
	rec := callctx.Copy(ctx)
	rec.HashKey, rec.HasHashKey = key, true
	return callctx.With(ctx, rec)
}
