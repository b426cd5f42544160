package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
)

// TestWeightsFromLoadReports: servers report with grpc's own package, in the trailers of calls that succeed and of calls
// that fail with an answer, and get calls in proportion to what they can handle.
func TestWeightsFromLoadReports(t *testing.T) {
	reg := memory.New()
	utilization := []float64{0.9, 0.3, 0.3} // at 90 calls a second
	ls := fleet(t, reg, len(utilization), func(i int) spec {
		metrics := orca.NewServerMetricsRecorder()
		metrics.SetQPS(90)
		metrics.SetApplicationUtilization(utilization[i])
		return spec{
			options: []grpc.ServerOption{orca.CallMetricsServerOption(metrics)},
			work: func(ctx context.Context, _ string) error {
				orca.CallMetricsRecorderFromContext(ctx) // or grpc sends no report
				if i == 2 {
					return status.Error(codes.NotFound, "it reports nevertheless")
				}
				return nil
			},
		}
	})
	conn := connect(t, "lb:///orders", resolver.NewBuilder(reg, balanced(balancer.Config{
		Strategy: balancer.Weighted{Load: "orca", Blackout: 1, Update: 100 * time.Millisecond},
	})))
	ready(t, conn, ls)
	eventually(t, 30*time.Second, func() error {
		before := ls[0].calls.Load()
		call(t.Context(), conn, 70)
		if n := ls[0].calls.Load() - before; n < 7 || n > 13 {
			return fmt.Errorf("who handles 100 calls besides two that handle 300 got %d of 70 calls, want about 10", n)
		}
		return nil
	})
	c, err := channelOf(ls[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range c.Endpoints {
		if want := 90 / utilization[i]; e.Load < want-1 || e.Load > want+1 {
			t.Errorf("%s weighs %v by its reports, want %v", e.Instance.ID, e.Load, want)
		}
	}
}
