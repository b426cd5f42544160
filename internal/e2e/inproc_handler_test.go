package e2e

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
)

// A handler routes its calls to orders by a filter, and calls stock with the same context. The filter names orders,
// so stock is not filtered; one that names nobody binds stock as well.
func TestFilterBindsItsServices(t *testing.T) {
	t.Parallel()
	reg := memory.New()
	backends := func(service string) ([]*local, *grpc.ClientConn) {
		ls := fleet(t, reg, 3, func(i int) spec {
			in := registry.Instance{ID: fmt.Sprintf("%s-%d", service, i)}
			if i == 0 {
				in.Labels = map[string]string{"track": "canary"}
			}
			return spec{Instance: in, service: service}
		})
		conn := connect(t, "lb:///"+service, resolver.NewBuilder(reg, balanced(balancer.Config{})))
		warm(t, conn, ls)
		return ls, conn
	}
	orders, toOrders := backends("orders")
	stock, toStock := backends("stock")

	front := startLocal(t, reg, spec{
		Instance: registry.Instance{ID: "front-0"}, service: "front",
		work: func(ctx context.Context, bind string) error {
			if bind == "orders" {
				ctx = filters.NewContext(ctx, toCanary, "orders")
			} else {
				ctx = filters.NewContext(ctx, toCanary)
			}
			if _, err := greeter.Hello(ctx, toOrders, bind); err != nil {
				return err
			}
			_, err := greeter.Hello(ctx, toStock, bind)
			return err
		},
	})
	toFront := connect(t, "lb:///front", resolver.NewBuilder(reg, balanced(balancer.Config{})))
	ready(t, toFront, []*local{front})

	const n = 90
	for _, row := range []struct {
		bind   string
		stock0 int64 // calls that stock's canary gets
	}{{"orders", n / 3}, {"everybody", n}} {
		was, wasAll, was0 := orders[0].calls.Load(), callsOf(stock), stock[0].calls.Load()
		for range n {
			if _, err := greeter.Hello(t.Context(), toFront, row.bind); err != nil {
				t.Fatal(err)
			}
		}
		toCanaries, all, canary := orders[0].calls.Load()-was, callsOf(stock)-wasAll, stock[0].calls.Load()-was0
		t.Logf("bound to %s: %d calls to the canary of orders; %d to stock, %d of them to its canary",
			row.bind, toCanaries, all, canary)
		if toCanaries != n || all != n || canary != row.stock0 {
			t.Errorf("bound to %s: %d, %d, %d, want %d, %d, %d", row.bind, toCanaries, all, canary, n, n, row.stock0)
		}
	}
}
