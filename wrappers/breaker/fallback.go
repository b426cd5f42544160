package breaker

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// inFallback marks the contexts that fallbacks get.
type inFallback struct{}

// fallBack asks f, which may be nil, for the reply to a call that ended with err, and returns what the call ends
// with.
func fallBack(ctx context.Context, f Fallback, fails bool, method string, req, reply any, err error) error {
	if f == nil || ctx.Value(inFallback{}) != nil { // a fallback's own calls would ask it again, without end
		return err
	}
	if other := f(context.WithValue(ctx, inFallback{}, true), method, req, reply, err); other != nil {
		return other
	}
	callctx.Report(ctx, callctx.Event{Kind: callctx.Fallback, By: "breaker", Err: err})
	if fails {
		return &FallbackError{Reply: reply, Err: err}
	}
	return nil
}

// newReply makes an empty reply of the method's type, as the descriptor that is linked into the program has it;
// nil if there is none.
func newReply(method string) proto.Message {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil
	}
	return t.New().Interface()
}

// AcceptFallback is a client interceptor for policies with FallbackFails: it ends a call that a fallback answered
// with that answer and without error. Put it outermost, so that everything between it and the breaker (trace,
// retry, metrics) sees the failure and the application sees the reply.
func AcceptFallback() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoker(ctx, method, req, reply, cc, opts...)
		var f *FallbackError
		if err == nil || !errors.As(err, &f) {
			return err
		}
		if f.Reply == reply {
			return nil
		}
		// Something in between, a hedge say, called with a reply of its own.
		from, ok := f.Reply.(proto.Message)
		to, too := reply.(proto.Message)
		if !ok || !too || from.ProtoReflect().Descriptor() != to.ProtoReflect().Descriptor() {
			return err
		}
		proto.Reset(to)
		proto.Merge(to, from)
		return nil
	}
}
