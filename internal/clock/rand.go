package clock

import "math/rand/v2"

// Rand is the randomness that the library's shells use when nothing else is injected: uniform over 64 bits, without
// a lock, not for secrets. It is safe for concurrent use.
func Rand() uint64 { return rand.Uint64() }
