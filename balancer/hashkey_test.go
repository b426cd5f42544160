package balancer

import (
	"encoding/json"
	"hash/fnv"
	"testing"

	"github.com/evenkeel/evenkeel/filters"
)

func init() {
	RegisterStrategy("test-affinity", func(json.RawMessage) (Strategy, error) { return affinity{}, nil })
}

// affinity sends a key to the same place each time.
type affinity struct{}

func (affinity) Name() string          { return "test-affinity" }
func (affinity) Build(env Env) Chooser { return affinityChooser(len(env.Members)) }

type affinityChooser int

func (n affinityChooser) Choose(c Call) int {
	if !c.HasHashKey {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(c.HashKey))
	return (int(h.Sum32()%uint32(n)) + c.Attempt) % int(n)
}

func TestHashKeyReachesTheStrategy(t *testing.T) {
	ins := fleet(10)
	r := newRig(t, Config{Strategy: affinity{}}, ins)
	if got := r.calls(20, ask{}); len(got) != 1 || got["i0"] != 20 {
		t.Errorf("without a key calls go to %v, want i0", got)
	}
	seen := make(map[string]bool)
	for _, key := range []string{"", "a", "b", "c", "d", "e", "f"} {
		ctx := WithHashKey(WithHashKey(t.Context(), "other"), key)
		ctx = filters.NewContext(ctx, filters.Filter{}) // what else a context carries does not hide the key
		got := r.calls(20, ask{ctx: ctx})
		if len(got) != 1 {
			t.Errorf("calls with key %q go to %v, want one instance", key, got)
		}
		for id := range got {
			seen[id] = true
		}
	}
	if len(seen) < 3 {
		t.Errorf("seven keys go to %v, want several instances", seen)
	}
}
