package retry

import (
	"context"
	"reflect"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/internal/callctx"
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

// picking makes an invoker one of a connection whose balancer is ours: it says whom it picks.
func picking(invoker grpc.UnaryInvoker) grpc.UnaryInvoker {
	e := &callctx.Endpoint{ID: "i1", Addr: "s1:1"}
	return func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
		if rec := callctx.From(ctx); rec != nil {
			rec.Call.SetPicked(e)
		}
		return invoker(ctx, name, req, reply, cc, opts...)
	}
}

// warm returns an interceptor whose method is past its first calls, which were all made by invoker.
func warm(p Policy, cc *grpc.ClientConn, invoker grpc.UnaryInvoker) grpc.UnaryClientInterceptor {
	ic := UnaryClientInterceptor(p)
	for range timedAfter + 1 {
		_ = ic(context.Background(), "/pkg.Service/Method", nil, nil, cc, invoker)
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
		ours bool
		opts []grpc.CallOption
	}{
		{"zero policy", Policy{}, true, nil},
		{"one option", Policy{}, true, []grpc.CallOption{grpc.StaticMethod()}},
		{"foreign balancer", Policy{}, false, []grpc.CallOption{grpc.StaticMethod()}},
		{"attempt timeout", Policy{AttemptTimeout: 1e9}, true, nil},
		{"hedging", Policy{Idempotent: true, Hedge: Hedge{Delay: 1e9}}, true, nil},
	} {
		b.Run(bb.name, func(b *testing.B) {
			first, later := grpc.UnaryInvoker(answer), grpc.UnaryInvoker(nothing)
			if bb.ours {
				first, later = picking(answer), picking(nothing)
			}
			ic := warm(bb.p, cc, first)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				_ = ic(ctx, "/pkg.Service/Method", req, reply, cc, later, bb.opts...)
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
		for balancer, of := range map[string]func(grpc.UnaryInvoker) grpc.UnaryInvoker{
			"ours": picking, "foreign": func(i grpc.UnaryInvoker) grpc.UnaryInvoker { return i },
		} {
			ic, invoker := warm(Policy{}, cc, of(answer)), of(nothing)
			ctx := context.Background()
			n := testing.AllocsPerRun(1000, func() { _ = ic(ctx, "/pkg.Service/Method", req, reply, cc, invoker, opts...) })
			if n != 1 {
				t.Errorf("%s, %s balancer: %v allocations, want 1", name, balancer, n)
			}
		}
	}
}

// TestSizes: what a call that succeeds allocates is as small as the documentation says.
func TestSizes(t *testing.T) {
	if strconv.IntSize != 64 {
		t.Skip("the sizes are those of 64 bits")
	}
	if s, f, w := reflect.TypeFor[slim]().Size(), reflect.TypeFor[full]().Size(), reflect.TypeFor[whole]().Size(); s > 160 || f > 224 || w > 320 {
		t.Errorf("attempts take %d, %d and %d bytes, want 160, 224 and 320 at most", s, f, w)
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
