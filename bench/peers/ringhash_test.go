package peers

import (
	"context"
	"testing"

	"google.golang.org/grpc/balancer/ringhash"
	"google.golang.org/grpc/metadata"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/bench"
)

// keyHeader is the metadata that is the key of a call, for policies that look there.
const keyHeader = "x-user"

func withKeyHeader(ctx context.Context, key string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, keyHeader, key)
}

// ringHash is grpc-go's ring_hash_experimental with its key in the metadata (gRFC A76), which is the only place from
// which it takes one without xDS.
func ringHash() bench.Policy {
	return bench.Policy{
		Label: "grpc_ring_hash", Name: ringhash.Name, Config: `{"requestHashHeader":"` + keyHeader + `"}`,
		Key: withKeyHeader, Lazy: true,
	}
}

// ringHashLimit is up to how many endpoints it is measured with: unless a process is started with another limit, a ring
// has 4,096 places, and whoever has none there gets no calls.
const ringHashLimit = 1000

// hashByMetadata is evenkeel's hash with its key in the same place.
func hashByMetadata() bench.Policy {
	p := bench.Evenkeel(balancer.Hash{Metadata: keyHeader})
	p.Label, p.Key = p.Label+"_metadata", withKeyHeader
	return p
}

// TestKeys makes sure that all of them go by the key: by anything else the first endpoint would get a share of the calls,
// and not those of certain keys each time.
func TestKeys(t *testing.T) {
	const n = 40
	for _, p := range []bench.Policy{ringHash(), hashByMetadata(), bench.Evenkeel(balancer.Hash{})} {
		r, err := bench.NewWorn(p, n)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var before []int
		for round := range 3 {
			now, err := r.Places()
			if err != nil {
				t.Fatal(err)
			}
			different := make(map[int]bool)
			for i, at := range now {
				different[at] = true
				if round > 0 && at != before[i] {
					t.Fatalf("%s: key %d went to endpoint %d and then to %d, want the same", p.Label, i, before[i], at)
				}
			}
			if before = now; len(different) < n {
				t.Errorf("%s: the keys went to %d endpoints, want all %d", p.Label, len(different), n)
			}
		}
	}
}
