package peers

import (
	"context"
	"fmt"

	"github.com/go-kratos/kratos/v2/middleware/circuitbreaker"
	"github.com/go-kratos/kratos/v2/middleware/recovery"
	"github.com/go-kratos/kratos/v2/middleware/tracing"
	kregistry "github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/filter"
	"github.com/go-kratos/kratos/v2/selector/p2c"
	kgrpc "github.com/go-kratos/kratos/v2/transport/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/bench"
	"github.com/evenkeel/evenkeel/registry"
)

// kratosP2C is kratos' policy with its p2c selector. kratos has one selector for a process; [TestMain] sets it.
func kratosP2C() bench.Policy {
	return bench.Policy{Label: "kratos_p2c", Name: "selector", Address: kratosAddress, Bind: bindKratos}
}

func setKratosSelector() { selector.SetGlobalSelector(p2c.NewBuilder()) }

// kratosInstance has the label slot as its version, because kratos' own filter is one for versions.
func kratosInstance(in *registry.Instance) *kregistry.ServiceInstance {
	return &kregistry.ServiceInstance{
		ID: in.ID, Name: "orders", Version: in.Labels["slot"], Endpoints: []string{"grpc://" + in.Addr},
		Metadata: map[string]string{"weight": fmt.Sprint(in.Weight)},
	}
}

// tenth is kratos' filter that the same instances meet as bench.Tenth.
func tenth() selector.NodeFilter { return filter.Version("0") }

// kratosAddress is what kratos' resolver makes of an instance.
func kratosAddress(in *registry.Instance) gresolver.Address {
	return gresolver.Address{
		Addr: in.Addr, ServerName: "orders",
		Attributes: attributes.New("rawServiceInstance", kratosInstance(in)),
	}
}

// bindKratos returns the context that kratos' client hands to grpc-go for a call with ctx: the filter is in there, and
// nobody else can put it in.
func bindKratos(ctx context.Context) context.Context {
	bound := ctx
	keep := func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
		bound = ctx
		return nil
	}
	conn, err := kgrpc.DialInsecure(context.Background(), kgrpc.WithEndpoint("passthrough:///127.0.0.1:1"),
		kgrpc.WithTimeout(0), kgrpc.WithNodeFilter(tenth()), kgrpc.WithUnaryInterceptor(keep))
	if err != nil {
		panic(err) // nothing is dialled yet
	}
	defer conn.Close()
	if err := conn.Invoke(ctx, "/shop.Orders/Get", nil, nil); err != nil {
		panic(err) // keep returns none
	}
	return bound
}

// kratosStack is a kratos client with discovery, its p2c and a filter, and three of its middlewares.
func kratosStack() bench.Stack {
	dial := func(fleet []registry.Instance) (*grpc.ClientConn, func(), error) {
		var d discovery
		for i := range fleet {
			d = append(d, kratosInstance(&fleet[i]))
		}
		conn, err := kgrpc.DialInsecure(context.Background(), kgrpc.WithEndpoint("discovery:///orders"),
			kgrpc.WithDiscovery(d), kgrpc.WithNodeFilter(tenth()), kgrpc.WithPrintDiscoveryDebugLog(false),
			kgrpc.WithMiddleware(recovery.Recovery(), tracing.Client(), circuitbreaker.Client()))
		return conn, func() {}, err
	}
	return bench.Stack{Label: "kratos", Dial: dial, Filtered: true}
}

// discovery is a registry of kratos' in which nothing changes.
type discovery []*kregistry.ServiceInstance

func (d discovery) GetService(context.Context, string) ([]*kregistry.ServiceInstance, error) {
	return d, nil
}

func (d discovery) Watch(context.Context, string) (kregistry.Watcher, error) {
	w := &watcher{news: make(chan discovery, 1)}
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.news <- d
	return w, nil
}

type watcher struct {
	news chan discovery
	ctx  context.Context
	stop context.CancelFunc
}

func (w *watcher) Next() ([]*kregistry.ServiceInstance, error) {
	select {
	case d := <-w.news:
		return d, nil
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
}

func (w *watcher) Stop() error {
	w.stop()
	return nil
}
