package balancer

import (
	"context"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// WithHashKey returns a context whose calls carry key, for strategies that keep affinity by one: they find it in
// [Call]. The strategies of this package do not look at it; it is there for those that you register. An empty key is a
// key like any other. The innermost key wins.
func WithHashKey(ctx context.Context, key string) context.Context {
	rec := callctx.Copy(ctx)
	rec.HashKey, rec.HasHashKey = key, true
	return callctx.With(ctx, rec)
}
