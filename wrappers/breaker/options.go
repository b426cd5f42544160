package breaker

import "google.golang.org/grpc"

// callOption is a call's own wish. gRPC passes it along and ignores it.
type callOption struct {
	grpc.EmptyCallOption
	bypass   bool
	key      string
	fallback Fallback
}

// Bypass lets this call pass the breakers, neither counted nor turned away.
func Bypass() grpc.CallOption { return &callOption{bypass: true} }

// WithKey gives this call, and all others with the same key, target and policy, a breaker of their own, whatever
// the policy's Key says: for a shard, say. An empty key changes nothing. Keys count toward Config.MaxBreakers.
func WithKey(key string) grpc.CallOption { return &callOption{key: key} }

// WithFallback answers this call, if it is unary, by f instead of the policy's Fallback. A nil f changes nothing.
func WithFallback(f Fallback) grpc.CallOption { return &callOption{fallback: f} }

// noWishes is what most calls have.
var noWishes callOption

// wishes puts together what opts say; the last one counts.
func wishes(opts []grpc.CallOption) *callOption {
	w := &noWishes
	for _, o := range opts {
		x, ok := o.(*callOption)
		if !ok {
			continue
		}
		if w == &noWishes {
			w = new(callOption)
		}
		w.bypass = w.bypass || x.bypass
		if x.key != "" {
			w.key = x.key
		}
		if x.fallback != nil {
			w.fallback = x.fallback
		}
	}
	return w
}
