package wrappers_test

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/evenkeel/evenkeel/wrappers"
)

func named(name string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		fmt.Println(name)
		return invoker(ctx, method, req, reply, cc, opts...)
	}
}

func namedStream(name string) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		fmt.Println(name)
		return streamer(ctx, desc, cc, method, opts...)
	}
}

// cancelled is a context of calls that end before they need a server.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func ExampleChainUnaryClient() {
	conn, err := grpc.NewClient("passthrough:///orders",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(wrappers.ChainUnaryClient(named("outermost"), named("innermost"))))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	err = conn.Invoke(cancelled(), "/shop.Orders/Get", nil, nil)
	fmt.Println("failed:", err != nil)
	// Output:
	// outermost
	// innermost
	// failed: true
}

func ExampleChainStreamClient() {
	conn, err := grpc.NewClient("passthrough:///orders",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(wrappers.ChainStreamClient(namedStream("outermost"), namedStream("innermost"))))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	_, err = conn.NewStream(cancelled(), &grpc.StreamDesc{ServerStreams: true}, "/shop.Orders/List")
	fmt.Println("failed:", err != nil)
	// Output:
	// outermost
	// innermost
	// failed: true
}
