// Package beacon lets the resolver learn whether its instances reached the evenkeel policy.
//
// The resolver puts a [Beacon] into the state it hands to gRPC; the policy lights it when it receives the state.
// gRPC delivers a state before UpdateState returns, so a beacon that is dark afterwards means that another policy,
// most likely pick_first, got the instances, and that is worth one warning.
package beacon

import (
	"sync/atomic"

	"google.golang.org/grpc/attributes"
)

// Beacon is dark until Light. Its zero value is ready; it is safe for concurrent use and must not be copied.
type Beacon struct{ lit atomic.Bool }

// Lit reports whether a policy lit it.
func (b *Beacon) Lit() bool { return b.lit.Load() }

type key struct{}

// Put returns attrs with b attached.
func Put(attrs *attributes.Attributes, b *Beacon) *attributes.Attributes {
	return attrs.WithValue(key{}, b)
}

// Light lights the beacon in attrs, if there is one.
func Light(attrs *attributes.Attributes) {
	if b, _ := attrs.Value(key{}).(*Beacon); b != nil {
		b.lit.Store(true)
	}
}
