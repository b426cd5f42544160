package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// The greeter is written by hand. What protoc would have linked into an app, and the policy learns from which
// methods are streams, is registered here.
func init() {
	text := proto.String("." + string(new(wrapperspb.StringValue).ProtoReflect().Descriptor().FullName()))
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("evenkeel/e2e/greeter.proto"), Package: proto.String("evenkeel"), Syntax: proto.String("proto3"),
		Dependency: []string{wrapperspb.File_google_protobuf_wrappers_proto.Path()},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: proto.String("Greeter"),
			Method: []*descriptorpb.MethodDescriptorProto{
				{Name: proto.String("Hello"), InputType: text, OutputType: text},
				{Name: proto.String("Tell"), InputType: text, OutputType: text, ServerStreaming: proto.Bool(true)},
			},
		}},
	}, protoregistry.GlobalFiles)
	if err == nil {
		err = protoregistry.GlobalFiles.RegisterFile(file)
	}
	if err != nil {
		panic(err)
	}
}

// tell reads a stream to its end, and returns why it ended if not well.
func tell(ctx context.Context, conn *grpc.ClientConn) (answers int, err error) {
	recv, err := greeter.Tell(ctx, conn, "you")
	if err != nil {
		return 0, err
	}
	for {
		switch _, err := recv(); {
		case errors.Is(err, io.EOF):
			return answers, nil
		case err != nil:
			return answers, err
		}
		answers++
	}
}

// A stream that stays open is not a failing one: not by its length, and not when it probes an instance that is
// back from an ejection. A unary call in its place has to end in time.
func TestStreams(t *testing.T) {
	for _, row := range []struct {
		name string
		ctx  func(context.Context) context.Context
	}{
		{"stream", func(ctx context.Context) context.Context { return ctx }},
		{"switched off", func(ctx context.Context) context.Context { // the record says that it is unary
			rec := callctx.Copy(ctx)
			rec.Call = &callctx.Call{Kind: callctx.Unary}
			return callctx.With(ctx, rec)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			const probeTimeout = 100 * time.Millisecond
			reg := memory.New()
			ls := fleet(t, reg, 3, nil)
			conn := dial(t, reg, balancer.Config{Blacklist: balancer.Blacklist{BaseEjection: ejection, ProbeTimeout: probeTimeout}})
			ready(t, conn, ls)
			ctx, cancel := context.WithTimeout(row.ctx(t.Context()), time.Minute)
			defer cancel()

			streamsFail(ctx, t, ls[0], conn)
			open := make(chan struct{})
			ls[0].does(func(ctx context.Context, _ string) error {
				select {
				case <-open:
				case <-ctx.Done():
				}
				return ctx.Err()
			})
			wait := streamsUntil(ctx, t, ls[0], conn)
			elapse(t, 3*probeTimeout)
			out := ejections(t, ls[0])
			t.Logf("a stream open on probation for %v: %d ejections", 3*probeTimeout, out)
			switch unary := row.name != "stream"; {
			case !unary && out != 1:
				t.Errorf("%d ejections, want only the one by the streams that failed", out)
			case unary && out < 2:
				t.Errorf("%d ejections though the call did not end in time: this test proves nothing", out)
			}
			close(open)
			wait()
			// Streams that end well bring it back into full service.
			eventually(t, 20*time.Second, func() error {
				if _, err := tell(ctx, conn); err != nil {
					t.Fatal(err)
				}
				return healthyAgain(ls[0])
			})
		})
	}
}

// streamsUntil begins streams until one has reached l, which is on probation: the first to do so probes it. wait
// waits for all of them to end well.
func streamsUntil(ctx context.Context, t *testing.T, l *local, conn *grpc.ClientConn) (wait func()) {
	t.Helper()
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	was := l.calls.Load()
	eventually(t, 20*time.Second, func() error {
		all.Go(func() {
			if _, err := tell(ctx, conn); err != nil {
				t.Errorf("a stream: %v, want a good end", err)
			}
		})
		if l.calls.Load() == was {
			return fmt.Errorf("%s has got no stream", l.id)
		}
		return nil
	})
	return all.Wait
}

// streamsFail has streams to l fail until it is out: three after they have answered.
func streamsFail(ctx context.Context, t *testing.T, l *local, conn *grpc.ClientConn) {
	t.Helper()
	var failures atomic.Int64
	l.does(func(context.Context, string) error {
		failures.Add(1)
		return status.Error(codes.Unavailable, "told to fail")
	})
	eventually(t, 20*time.Second, func() error {
		for range 3 {
			if n, err := tell(ctx, conn); status.Code(err) == codes.Unavailable && n != 1 {
				t.Errorf("%d answers before the failure, want 1", n)
			}
		}
		if ejections(t, l) == 0 {
			return fmt.Errorf("%s: %w", l.id, errStillThere)
		}
		return nil
	})
	if n := failures.Load(); n != 3 {
		t.Errorf("%d streams failed before the ejection, want 3", n)
	}
}

// healthyAgain reports nil once the instance is neither out nor on probation.
func healthyAgain(l *local) error {
	c, err := channelOf(l)
	if err != nil {
		return err
	}
	for _, e := range c.Endpoints {
		if e.Instance.ID == l.id && (e.Ejected || e.Probing) {
			return fmt.Errorf("%s is not back", l.id)
		}
	}
	return nil
}
