package e2e

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/internal/probe"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/server"
)

// reporting is an instance that says how busy it is; probes counts who asked.
func reporting(probes *atomic.Int64, with ...grpc.ServerOption) spec {
	l := server.NewLoad(server.LoadConfig{})
	count := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if info.FullMethod == probe.Method {
			probes.Add(1)
		}
		return handler(ctx, req)
	}
	return spec{load: l, options: append(with, grpc.ChainUnaryInterceptor(count, l.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(l.StreamServerInterceptor()))}
}

// TestReportsDecide: with real servers that say how busy they are, the one that takes a hundred times as long gets few
// calls, and so does the one that fails at once, without a blacklist; and nothing is left behind.
func TestReportsDecide(t *testing.T) {
	for _, s := range []balancer.Strategy{
		// With the patience that a busy machine takes, so that the test is not about its pace.
		balancer.Keel{ProbeTimeout: time.Minute, MaxAge: time.Minute},
		balancer.Prequal{ProbeTimeout: time.Minute, MaxAge: time.Minute, RemoveRate: 0.01},
	} {
		t.Run(s.Name(), func(t *testing.T) {
			leak.Check(t)
			reg := memory.New()
			var probes atomic.Int64
			ls := fleet(t, reg, 6, func(int) spec { return reporting(&probes) })
			for _, l := range ls {
				l.does(takes(2 * time.Millisecond))
			}
			conn := dial(t, reg, balancer.Config{Strategy: s, Blacklist: balancer.Blacklist{Disabled: true}})
			eachReached(t, conn, ls)
			ls[1].does(takes(200 * time.Millisecond))
			ls[4].does(fails(status.Error(codes.Internal, "broken")))
			const calls, callers = 400, 4
			before := []int64{ls[1].calls.Load(), ls[4].calls.Load()}
			asked := probes.Load()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for range calls / callers {
						_, _ = greeter.Hello(t.Context(), conn, "x") // some fail, which is what the test is about
					}
				})
			}
			wg.Wait()
			slow, failing := ls[1].calls.Load()-before[0], ls[4].calls.Load()-before[1]
			t.Logf("%d calls went to the slow one, %d to the failing one; %d probes", slow, failing, probes.Load()-asked)
			if slow > calls/10 {
				t.Errorf("%d of %d calls went to the slow instance, want a tenth at most", slow, calls)
			}
			if failing > calls/20 {
				t.Errorf("%d of %d calls went to the failing instance, want a twentieth at most", failing, calls)
			}
			if n := probes.Load() - asked; n < calls/10 {
				t.Errorf("%d probes came with %d calls, want some", n, calls)
			}
		})
	}
}

// eachReached calls until every instance has had a call.
func eachReached(t *testing.T, conn *grpc.ClientConn, ls []*local) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for _, l := range ls {
		for l.calls.Load() == 0 {
			if _, err := greeter.Hello(t.Context(), conn, "x"); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("no call has reached %s", l.id)
			}
		}
	}
}

// TestReportsJoinORCA: where grpc's own reports are in use, the client gets one report with everything.
func TestReportsJoinORCA(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	var probes atomic.Int64
	own := orca.NewServerMetricsRecorder()
	own.SetApplicationUtilization(0.4)
	s := reporting(&probes, orca.CallMetricsServerOption(own))
	s.ID = "orders-0"
	l := startLocal(t, reg, s)
	conn := dial(t, reg, balancer.Config{Strategy: balancer.Keel{}})
	var wg sync.WaitGroup
	entered := make(chan struct{})
	l.does(func(ctx context.Context, name string) error {
		if name == "stay" {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wg.Go(func() { _, _ = greeter.Hello(ctx, conn, "stay") })
	<-entered
	md := callTrailer(t, conn)
	if len(md) != 1 {
		t.Fatalf("%d reports came with a call, want one, since clients ignore two", len(md))
	}
	report := new(orcapb.OrcaLoadReport)
	if err := proto.Unmarshal([]byte(md[0]), report); err != nil {
		t.Fatal(err)
	}
	if u, rif := report.GetApplicationUtilization(), report.GetNamedMetrics()[probe.RIF]; u != 0.4 || rif != 1 {
		t.Errorf("the report says utilization %v and %v in flight, want 0.4 and the one that stays", u, rif)
	}
	cancel()
	wg.Wait()
}

// callTrailer makes a call and returns the reports that came with it.
func callTrailer(t *testing.T, conn *grpc.ClientConn) []string {
	t.Helper()
	var md metadata.MD
	if _, err := greeter.Hello(t.Context(), conn, "go", grpc.Trailer(&md)); err != nil {
		t.Fatal(err)
	}
	return md.Get("endpoint-load-metrics-bin")
}
