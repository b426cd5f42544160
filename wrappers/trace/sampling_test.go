package trace

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opentracing/opentracing-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// coin is a tracer whose spans know whether they are sampled, as those of real tracers do; the mock's do not. A root
// is sampled if heads. Its context is a pointer, so that asking for it allocates nothing.
type coin struct {
	opentracing.NoopTracer
	heads bool

	mu    sync.Mutex
	spans []*coinSpan
}

type coinSpan struct {
	opentracing.Span // of NoopTracer
	tracer           *coin
	context          coinContext
	finished         int
}

type coinContext struct {
	id      string
	sampled bool
	baggage map[string]string
}

func (c *coinContext) IsSampled() bool { return c.sampled }

func (c *coinContext) ForeachBaggageItem(f func(k, v string) bool) {
	for k, v := range c.baggage {
		if !f(k, v) {
			return
		}
	}
}

func (s *coinSpan) Context() opentracing.SpanContext { return &s.context }
func (s *coinSpan) Tracer() opentracing.Tracer       { return s.tracer }
func (s *coinSpan) Finish()                          { s.finished++ }
func (s *coinSpan) FinishWithOptions(opentracing.FinishOptions) {
	s.finished++
}
func (s *coinSpan) SetTag(string, any) opentracing.Span { return s }
func (s *coinSpan) SetBaggageItem(k, v string) opentracing.Span {
	if s.context.baggage == nil {
		s.context.baggage = make(map[string]string)
	}
	s.context.baggage[k] = v
	return s
}

func (t *coin) StartSpan(_ string, opts ...opentracing.StartSpanOption) opentracing.Span {
	var o opentracing.StartSpanOptions
	for _, opt := range opts {
		opt.Apply(&o)
	}
	s := &coinSpan{Span: opentracing.NoopTracer{}.StartSpan(""), tracer: t, context: coinContext{sampled: t.heads}}
	for _, ref := range o.References {
		parent := ref.ReferencedContext.(*coinContext)
		s.context.sampled = parent.sampled
		for k, v := range parent.baggage {
			s.SetBaggageItem(k, v)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans = append(t.spans, s)
	s.context.id = strconv.Itoa(len(t.spans))
	return s
}

func (t *coin) Inject(sc opentracing.SpanContext, _, carrier any) error {
	w, c := carrier.(opentracing.TextMapWriter), sc.(*coinContext)
	if c.sampled {
		w.Set("x-coin", "heads")
	} else {
		w.Set("x-coin", "tails")
	}
	w.Set("x-id", c.id)
	for k, v := range c.baggage {
		w.Set("x-baggage-"+k, v)
	}
	return nil
}

func (t *coin) Extract(_, carrier any) (opentracing.SpanContext, error) {
	var c *coinContext
	baggage := make(map[string]string)
	err := carrier.(opentracing.TextMapReader).ForeachKey(func(k, v string) error {
		if k == "x-coin" {
			c = &coinContext{sampled: v == "heads"}
			if v != "heads" && v != "tails" {
				return opentracing.ErrSpanContextCorrupted
			}
		}
		if k, ok := strings.CutPrefix(k, "x-baggage-"); ok {
			baggage[k] = v
		}
		return nil
	})
	if err == nil && c == nil {
		err = opentracing.ErrSpanContextNotFound
	}
	if err != nil {
		return nil, err
	}
	c.baggage = baggage
	return c, nil
}

// started is how many spans the tracer has started; each must have been finished once.
func (t *coin) started(tb testing.TB) int {
	tb.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range t.spans {
		if s.finished != 1 {
			tb.Errorf("span %d was finished %d times, want once", i, s.finished)
		}
	}
	return len(t.spans)
}

func newCoin(tb testing.TB, heads bool) (*Tracing, *coin) {
	tb.Helper()
	tracer := &coin{heads: heads}
	tracing, err := New(Config{Tracer: tracer})
	if err != nil {
		tb.Fatal(err)
	}
	return tracing, tracer
}

// sent makes a unary call and returns the metadata that it is sent with.
func sent(ctx context.Context, tracing *Tracing) (md metadata.MD) {
	_ = tracing.unaryClient(ctx, "/a/B", nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			md, _ = metadata.FromOutgoingContext(ctx)
			return nil
		})
	return md
}

// handle runs f as a handler that was called with these metadata.
func handle(tb testing.TB, tracing *Tracing, f func(context.Context), kv ...string) {
	tb.Helper()
	ctx := metadata.NewIncomingContext(tb.Context(), metadata.Pairs(kv...))
	_, err := tracing.unaryServer(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/a/B"},
		func(ctx context.Context, _ any) (any, error) { f(ctx); return nil, nil })
	if err != nil {
		tb.Error(err)
	}
	err = tracing.streamServer(nil, noStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/a/C"},
		func(_ any, s grpc.ServerStream) error { f(s.Context()); return nil })
	if err != nil {
		tb.Error(err)
	}
}

func TestUnsampledRoot(t *testing.T) {
	tracing, tracer := newCoin(t, false)
	if md := sent(t.Context(), tracing); md.Get("x-coin")[0] != "tails" {
		t.Errorf("sent %v, want the decision", md)
	}
	_, err := tracing.streamClient(t.Context(), streams["BidiStream"], nil, "/a/C",
		func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if md, _ := metadata.FromOutgoingContext(ctx); md.Get("x-coin")[0] != "tails" || len(opts) != 0 {
				t.Errorf("sent %v with %d options, want the decision, and nothing to watch the stream by", md, len(opts))
			}
			return nil, nil
		})
	if err != nil || tracer.started(t) != 2 {
		t.Errorf("%v and %d spans, want 2: the tracer has to be asked", err, tracer.started(t))
	}
	if s := tracing.State(); s.Client.Started != 0 {
		t.Errorf("state %+v, want no span, since none is recorded", s)
	}
}

func TestUnsampledServer(t *testing.T) {
	tracing, tracer := newCoin(t, true)
	handle(t, tracing, func(ctx context.Context) {
		if sc := opentracing.SpanFromContext(ctx).Context(); sc.(*coinContext).IsSampled() {
			t.Error("the handler's span is sampled, want the caller's decision")
		}
		before := len(tracer.spans)
		want := func(step string, ctx context.Context, baggage string) {
			t.Helper()
			md := sent(ctx, tracing)
			span := opentracing.SpanFromContext(ctx).Context().(*coinContext)
			if id := md.Get("x-id"); len(id) != 1 || id[0] != span.id {
				t.Errorf("%s: sent the context of span %v, want that of %s", step, id, span.id)
			}
			if d, b := md.Get("x-coin"), md.Get("x-baggage-user"); len(d) != 1 || d[0] != "tails" || len(b) != 1 || b[0] != baggage {
				t.Errorf("%s: sent %v, want one decision and the baggage %q", step, md, baggage)
			}
		}
		want("as it is", ctx, "ada")
		want("with more metadata", metadata.AppendToOutgoingContext(ctx, "mine", "1"), "ada")
		span := tracer.StartSpan("other", opentracing.ChildOf(opentracing.SpanFromContext(ctx).Context()))
		before++
		want("a span of the handler's with the same baggage", opentracing.ContextWithSpan(ctx, span), "ada")
		span.SetBaggageItem("user", "bob")
		want("a span of the handler's", opentracing.ContextWithSpan(ctx, span), "bob")
		span.Finish()
		opentracing.SpanFromContext(ctx).SetBaggageItem("user", "eve")
		want("new baggage", ctx, "eve")
		if got := len(tracer.spans); got != before {
			t.Errorf("the client started %d spans below one that is not sampled, want none", got-before)
		}
	}, "x-coin", "tails", "x-baggage-user", "ada")
	tracer.started(t)
}

func TestSampledFunction(t *testing.T) {
	for _, sampled := range []bool{false, true} {
		asked := 0
		tracing, tracer := newTracing(t, Config{Sampled: func(opentracing.SpanContext) bool { asked++; return sampled }})
		sent(t.Context(), tracing)
		if got := tracing.State().Client.Started == 1; got != sampled || asked == 0 {
			t.Errorf("recorded %v after %d questions, want %v", got, asked, sampled)
		}
		if len(tracer.FinishedSpans()) != 1 {
			t.Errorf("%d spans were finished, want 1", len(tracer.FinishedSpans()))
		}
	}
}

// A broken context costs the trace its connection, not the call its success.
func TestBrokenContext(t *testing.T) {
	tracing, tracer := newCoin(t, true)
	handle(t, tracing, func(ctx context.Context) {
		if !opentracing.SpanFromContext(ctx).Context().(*coinContext).IsSampled() {
			t.Error("the handler has no span of its own")
		}
	}, "x-coin", "edge")
	if got := tracing.State().Lost; got != 2 || tracer.started(t) != 2 {
		t.Errorf("lost %d contexts with %d spans, want 2 and 2", got, tracer.started(t))
	}
	tracing, _ = newTracing(t, Config{})
	if err := tracing.Update(Config{Tracer: deaf{}}); err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "mine", "1")
	if md := sent(ctx, tracing); len(md) != 1 || tracing.State().Lost != 1 {
		t.Errorf("sent %v, lost %d, want the caller's metadata and 1", md, tracing.State().Lost)
	}
}

// deaf is a tracer that cannot inject.
type deaf struct{ opentracing.NoopTracer }

func (deaf) StartSpan(string, ...opentracing.StartSpanOption) opentracing.Span {
	return (&coin{heads: true}).StartSpan("")
}
func (deaf) Inject(opentracing.SpanContext, any, any) error { return errors.New("no") }
func (deaf) Extract(any, any) (opentracing.SpanContext, error) {
	return nil, opentracing.ErrSpanContextNotFound
}
