package retry

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// answer is an invoker that answers at once, as grpc would: with the options' OnFinish and Trailer served.
func answer(_ context.Context, _ string, _, _ any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.TrailerCallOption:
			*o.TrailerAddr = nil
		case grpc.OnFinishCallOption:
			o.OnFinish(nil)
		}
	}
	return nil
}

func nothing(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
	return nil
}

// warm returns an interceptor whose method is past its first calls.
func warm(p Policy, cc *grpc.ClientConn) grpc.UnaryClientInterceptor {
	ic := UnaryClientInterceptor(p)
	for range timedAfter + 1 {
		_ = ic(context.Background(), "/pkg.Service/Method", nil, nil, cc, answer)
	}
	return ic
}

// BenchmarkSuccess is what the wrapper adds to a call that succeeds: the goal is 80 ns and 1 allocation.
func BenchmarkSuccess(b *testing.B) {
	cc := new(grpc.ClientConn)
	req, reply := new(wrapperspb.StringValue), new(wrapperspb.StringValue)
	for _, bb := range []struct {
		name string
		p    Policy
		opts []grpc.CallOption
	}{
		{"zero policy", Policy{}, nil},
		{"one option", Policy{}, []grpc.CallOption{grpc.StaticMethod()}},
		{"attempt timeout", Policy{AttemptTimeout: 1e9}, nil},
		{"hedging", Policy{Idempotent: true, Hedge: Hedge{Delay: 1e9}}, nil},
	} {
		b.Run(bb.name, func(b *testing.B) {
			ic := warm(bb.p, cc)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				_ = ic(ctx, "/pkg.Service/Method", req, reply, cc, nothing, bb.opts...)
			}
		})
	}
}

// TestAllocations: the success path allocates the attempt, and nothing else.
func TestAllocations(t *testing.T) {
	cc := new(grpc.ClientConn)
	req, reply := new(wrapperspb.StringValue), new(wrapperspb.StringValue)
	static := []grpc.CallOption{grpc.StaticMethod()} // as generated code has it
	for name, opts := range map[string][]grpc.CallOption{"no option": nil, "one option": static} {
		ic := warm(Policy{}, cc)
		ctx := context.Background()
		n := testing.AllocsPerRun(1000, func() { _ = ic(ctx, "/pkg.Service/Method", req, reply, cc, nothing, opts...) })
		if n != 1 {
			t.Errorf("%s: %v allocations, want 1", name, n)
		}
	}
}

// BenchmarkBudget is what its two operations cost.
func BenchmarkBudget(b *testing.B) {
	budget, err := NewBudget(20, 10)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("deposit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			budget.deposit()
		}
	})
	b.Run("withdraw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			budget.withdraw()
		}
	})
}

// BenchmarkWindow is what the live quantile costs a hedged call.
func BenchmarkWindow(b *testing.B) {
	h := newHistory()
	now := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		now += 1e5
		h.record(now, now%(50e6))
		h.quantile(now, 0.95, 100)
	}
}
