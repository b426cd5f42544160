//go:build no_k8s

package peers

import (
	"strings"

	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/bench"
	"github.com/evenkeel/evenkeel/registry"
)

// go-zero's policy comes with all of its client, and that with Kubernetes' client, 450 packages, unless go-zero's own
// build tag no_k8s is set. make bench sets it; who does not has neither.
func init() {
	goZeroPolicies = []bench.Policy{{
		Label: "go_zero_p2c", Name: "p2c_ewma",
		Address: func(in *registry.Instance) gresolver.Address { return gresolver.Address{Addr: in.Addr} },
	}}
	goZeroStacks = []bench.Stack{{Label: "go_zero", Dial: dialGoZero}}
}

// dialGoZero is a go-zero client with its default middlewares: trace, duration, metrics, breaker and timeout.
func dialGoZero(fleet []registry.Instance) (*grpc.ClientConn, func(), error) {
	var addrs []string
	for _, in := range fleet {
		addrs = append(addrs, in.Addr)
	}
	c, err := zrpc.NewClientWithTarget("direct:///"+strings.Join(addrs, ","), zrpc.WithNonBlock())
	if err != nil {
		return nil, nil, err
	}
	return c.Conn(), func() {}, nil
}
