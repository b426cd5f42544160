package conformance

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// kind is one of the four kinds of calls.
type kind int

const (
	unary kind = iota
	serverStream
	clientStream
	bidiStream
)

var kinds = []kind{unary, serverStream, clientStream, bidiStream}

// String is the kind's name in test names; see also heading.
func (k kind) String() string {
	return [...]string{"Unary", "ServerStream", "ClientStream", "BidiStream"}[k]
}

// manyRequests and manyReplies say what may flow.
func (k kind) manyRequests() bool { return k == clientStream || k == bidiStream }
func (k kind) manyReplies() bool  { return k == serverStream || k == bidiStream }

func (k kind) desc() *grpc.StreamDesc {
	return &grpc.StreamDesc{StreamName: k.String(), ClientStreams: k.manyRequests(), ServerStreams: k.manyReplies()}
}

// The service exists twice: in Declared every method's descriptor says that it is idempotent.
const (
	plainService    = "evenkeel.conformance.Plain"
	declaredService = "evenkeel.conformance.Declared"
)

func (k kind) plain() string    { return "/" + plainService + "/" + k.String() }
func (k kind) declared() string { return "/" + declaredService + "/" + k.String() }

func init() {
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String("evenkeel/conformance.proto"), Package: proto.String("evenkeel.conformance"),
		Dependency: []string{"google/protobuf/wrappers.proto"}, Syntax: proto.String("proto3"),
	}
	for service, level := range map[string]*descriptorpb.MethodOptions_IdempotencyLevel{
		"Plain": nil, "Declared": descriptorpb.MethodOptions_IDEMPOTENT.Enum(),
	} {
		s := &descriptorpb.ServiceDescriptorProto{Name: &service}
		for _, k := range kinds {
			m := &descriptorpb.MethodDescriptorProto{
				Name: proto.String(k.String()), InputType: proto.String(".google.protobuf.StringValue"),
				OutputType:      proto.String(".google.protobuf.StringValue"),
				ClientStreaming: proto.Bool(k.manyRequests()), ServerStreaming: proto.Bool(k.manyReplies()),
			}
			if level != nil {
				m.Options = &descriptorpb.MethodOptions{IdempotencyLevel: level}
			}
			s.Method = append(s.Method, m)
		}
		file.Service = append(file.Service, s)
	}
	fd, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err == nil {
		err = protoregistry.GlobalFiles.RegisterFile(fd)
	}
	if err != nil {
		panic(err)
	}
}

// handler serves a call of any kind: for a unary one there is one message to receive, and one to send.
type handler func(k kind, s grpc.ServerStream) error

// register makes h serve both services on s.
func register(s *grpc.Server, h handler) {
	for _, service := range []string{plainService, declaredService} {
		d := &grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
		for _, k := range kinds {
			if k == unary {
				d.Methods = append(d.Methods, grpc.MethodDesc{
					MethodName: k.String(), Handler: serveUnary(h, "/"+service+"/"+k.String())})
				continue
			}
			sd := *k.desc()
			sd.Handler = func(_ any, ss grpc.ServerStream) error { return h(k, ss) }
			d.Streams = append(d.Streams, sd)
		}
		s.RegisterService(d, struct{}{})
	}
}

func serveUnary(h handler, method string) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		serve := func(ctx context.Context, req any) (any, error) {
			o := &oneMessage{ctx: ctx, in: req.(proto.Message), out: new(wrapperspb.StringValue)}
			if err := h(unary, o); err != nil {
				return nil, err
			}
			return o.out, nil
		}
		if chain == nil {
			return serve(ctx, in)
		}
		return chain(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, serve)
	}
}

// oneMessage makes a unary call look like a stream to a handler.
type oneMessage struct {
	grpc.ServerStream // nil: what a handler uses is below
	ctx               context.Context
	in                proto.Message
	out               *wrapperspb.StringValue
}

func (o *oneMessage) Context() context.Context { return o.ctx }

func (o *oneMessage) RecvMsg(m any) error {
	proto.Merge(m.(proto.Message), o.in)
	return nil
}

func (o *oneMessage) SendMsg(m any) error {
	o.out = m.(*wrapperspb.StringValue)
	return nil
}
