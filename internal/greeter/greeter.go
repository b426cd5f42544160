// Package greeter is the small gRPC service that the examples and the end-to-end tests call.
//
// It is what protoc-gen-go-grpc would generate for
//
//	service Greeter {
//	  rpc Hello (google.protobuf.StringValue) returns (google.protobuf.StringValue);
//	  rpc Tell  (google.protobuf.StringValue) returns (stream google.protobuf.StringValue);
//	}
//
// written by hand, so that no example needs a protobuf compiler. Messages are strings in their well-known wrapper.
// A server is anything with the two methods, see [Server]; a client is the two functions [Hello] and [Tell].
package greeter

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Service is the full name of the gRPC service.
const Service = "evenkeel.Greeter"

// Full names of its methods.
const (
	HelloMethod = "/" + Service + "/Hello"
	TellMethod  = "/" + Service + "/Tell"
)

// Server answers calls. Implementations are safe for concurrent use.
type Server interface {
	// Hello answers a greeting.
	Hello(ctx context.Context, name string) (string, error)
	// Tell sends any number of answers.
	Tell(ctx context.Context, name string, send func(string) error) error
}

// HelloFunc is a [Server] that answers both methods with one function, Tell with a single answer.
type HelloFunc func(ctx context.Context, name string) (string, error)

// Hello implements [Server].
func (f HelloFunc) Hello(ctx context.Context, name string) (string, error) { return f(ctx, name) }

// Tell implements [Server].
func (f HelloFunc) Tell(ctx context.Context, name string, send func(string) error) error {
	s, err := f(ctx, name)
	if err != nil {
		return err
	}
	return send(s)
}

// Register makes s serve the service on r.
func Register(r grpc.ServiceRegistrar, s Server) { r.RegisterService(&desc, s) }

// Hello calls the service.
func Hello(ctx context.Context, cc grpc.ClientConnInterface, name string, opts ...grpc.CallOption) (string, error) {
	out := new(wrapperspb.StringValue)
	err := cc.Invoke(ctx, HelloMethod, wrapperspb.String(name), out, opts...)
	return out.GetValue(), err
}

// Tell calls the service; the function that it returns receives the next answer.
func Tell(ctx context.Context, cc grpc.ClientConnInterface, name string, opts ...grpc.CallOption) (recv func() (string, error), err error) {
	stream, err := cc.NewStream(ctx, &desc.Streams[0], TellMethod, opts...)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(wrapperspb.String(name)); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return func() (string, error) {
		out := new(wrapperspb.StringValue)
		err := stream.RecvMsg(out)
		return out.GetValue(), err
	}, nil
}

var desc = grpc.ServiceDesc{
	ServiceName: Service,
	HandlerType: (*Server)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Hello", Handler: hello}},
	Streams:     []grpc.StreamDesc{{StreamName: "Tell", Handler: tell, ServerStreams: true}},
}

func hello(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	in := new(wrapperspb.StringValue)
	if err := decode(in); err != nil {
		return nil, err
	}
	handler := func(ctx context.Context, req any) (any, error) {
		out, err := srv.(Server).Hello(ctx, req.(*wrapperspb.StringValue).GetValue())
		if err != nil {
			return nil, err
		}
		return wrapperspb.String(out), nil
	}
	if interceptor == nil {
		return handler(ctx, in)
	}
	return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: HelloMethod}, handler)
}

func tell(srv any, stream grpc.ServerStream) error {
	in := new(wrapperspb.StringValue)
	if err := stream.RecvMsg(in); err != nil {
		return err
	}
	return srv.(Server).Tell(stream.Context(), in.GetValue(), func(s string) error {
		return stream.SendMsg(wrapperspb.String(s))
	})
}
