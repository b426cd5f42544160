package balancer_test

import (
	"encoding/json"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/balancer/load"
)

// Forgiving is a strategy of one's own: it takes the instances in their order, and passes over those that failed more
// than Tolerance times in a row. Its fields are its JSON: {"forgiving":{"tolerance":2}}.
type Forgiving struct {
	Tolerance int64 `json:"tolerance"`
}

func init() { balancer.RegisterStrategy("forgiving", parseForgiving) }

func parseForgiving(js json.RawMessage) (balancer.Strategy, error) {
	var s Forgiving
	if err := json.Unmarshal(js, &s); err != nil {
		return nil, err
	}
	if s.Tolerance < 0 {
		return nil, fmt.Errorf("tolerance = %d, want 0 or more", s.Tolerance)
	}
	return s, nil
}

func (Forgiving) Name() string { return "forgiving" }

// failuresKey is where the strategy keeps what it knows about an endpoint: there it outlives pickers and reconnects.
type failuresKey struct{}

func failures(e *balancer.Endpoint) *atomic.Int64 {
	return e.Slot(failuresKey{}, func() any { return new(atomic.Int64) }).(*atomic.Int64)
}

// Record makes it a [balancer.Measurer]: it is told how each call ended.
func (Forgiving) Record(e *balancer.Endpoint, s load.Sample) {
	if n := failures(e); s.Failed {
		n.Add(1)
	} else if n.Load() > 0 {
		n.Store(0)
	}
}

// Build fetches each member's counter once, so that a choice looks nothing up.
func (s Forgiving) Build(env balancer.Env) balancer.Chooser {
	c := &forgivingChooser{tolerance: s.Tolerance}
	for _, m := range env.Members {
		c.failures = append(c.failures, failures(m))
	}
	return c
}

type forgivingChooser struct {
	tolerance int64
	failures  []*atomic.Int64
}

// Choose names a member; the policy asks again, with a higher Attempt, if it cannot use that one.
func (c *forgivingChooser) Choose(call balancer.Call) int {
	skip := call.Attempt
	for i, n := range c.failures {
		if n.Load() > c.tolerance {
			continue
		}
		if skip--; skip < 0 {
			return i
		}
	}
	return call.Attempt // nobody is tolerable: the policy takes it modulo the members
}

func Example_strategy() {
	ch := dial(balancer.Config{Strategy: Forgiving{Tolerance: 1}}, "a", "b", "c")
	defer ch.close()
	down := map[string]bool{"a": true}
	for range 6 {
		fmt.Print(ch.call(func(id string) error {
			if down[id] {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		}), " ")
	}
	// Output:
	// a a b b b b
}

// Servers say how busy they are (server.Load), and each call asks about one more of them.
func ExampleKeel() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{Strategy: balancer.Keel{}}))
	_, err := balancer.LoadBalancingConfig(balancer.Config{Strategy: balancer.Keel{ProbeRate: 100}})
	fmt.Println(err)
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"keel":{}}}}]}
	// evenkeel: strategy keel: probeRate = 100, want 0 to 10
}

// The published parameters, but for a hotter quantile; and what servers say with their answers counts as well.
func ExamplePrequal() {
	fmt.Println(balancer.ServiceConfig(balancer.Config{Strategy: balancer.Prequal{RIFQuantile: 0.9, Reports: true}}))
	// Output:
	// {"loadBalancingConfig":[{"evenkeel":{"strategy":{"prequal":{"rifQuantile":0.9,"reports":true}}}}]}
}
