package wrappers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
)

// twin is grpc's chain, made anew in every call: slow and obviously right.
func twin(all []grpc.UnaryClientInterceptor) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		for _, i := range slices.Backward(all) {
			if i != nil {
				invoker = belowUnary(i, invoker)
			}
		}
		return invoker(ctx, method, req, reply, cc, opts...)
	}
}

func streamTwin(all []grpc.StreamClientInterceptor) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		for _, i := range slices.Backward(all) {
			if i != nil {
				streamer = belowStream(i, streamer)
			}
		}
		return streamer(ctx, desc, cc, method, opts...)
	}
}

type pathKey struct{}

// step appends name to the way that a call has come.
func step(ctx context.Context, name string) context.Context {
	path, _ := ctx.Value(pathKey{}).(string)
	return context.WithValue(ctx, pathKey{}, path+"/"+name)
}

// habit is how an interceptor of the tests behaves.
type habit struct {
	name  string
	calls int // how often it calls on
}

// script is a chain of interceptors with habits, and what has happened in it.
type script struct {
	mu  sync.Mutex
	log []string
}

func (s *script) note(ctx context.Context, format string, args ...any) {
	path, _ := ctx.Value(pathKey{}).(string)
	s.mu.Lock()
	s.log = append(s.log, path+" "+fmt.Sprintf(format, args...))
	s.mu.Unlock()
}

func (s *script) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := strings.Join(s.log, "\n")
	s.log = nil
	return log
}

func (s *script) unary(h habit) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		s.note(ctx, "%s gets %s, %v, %v, %d options", h.name, method, req, reply, len(opts))
		err := errors.New("not called")
		for k := range h.calls {
			own := append(slices.Clip(opts), grpc.WaitForReady(true))
			err = invoker(step(ctx, h.name), method+h.name, fmt.Sprint(req, k), reply, cc, own...)
			s.note(ctx, "%s hears %v", h.name, err)
		}
		return err
	}
}

func (s *script) stream(h habit) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (cs grpc.ClientStream, err error) {
		s.note(ctx, "%s gets %s, %s, %d options", h.name, desc.StreamName, method, len(opts))
		for range h.calls {
			own := append(slices.Clip(opts), grpc.WaitForReady(true))
			cs, err = streamer(step(ctx, h.name), desc, cc, method+h.name, own...)
			s.note(ctx, "%s hears %v, %v", h.name, cs, err)
		}
		return cs, err
	}
}

// namedStream tells streams apart.
type namedStream struct {
	grpc.ClientStream
	name string
}

// end is where a call arrives.
func (s *script) end(name string) grpc.UnaryInvoker {
	return func(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
		s.note(ctx, "%s ends %s, %v, %v, %d options", name, method, req, reply, len(opts))
		return errors.New("error of " + name)
	}
}

func (s *script) streamEnd(name string) grpc.Streamer {
	return func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s.note(ctx, "%s ends %s, %d options", name, method, len(opts))
		return namedStream{name: name}, nil
	}
}

// TestChainIsGRPCs has random chains, with nils, interceptors that do not call on and such that do it twice, called with
// ends that come back and ends that do not, and compares all that can be seen with grpc's way to do it.
func TestChainIsGRPCs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		var s script
		var unary []grpc.UnaryClientInterceptor
		var stream []grpc.StreamClientInterceptor
		for k := range rnd.IntN(6) {
			h := habit{string(rune('a' + k)), []int{1, 1, 1, 1, 2, 0}[rnd.IntN(6)]}
			if rnd.IntN(5) == 0 {
				unary, stream = append(unary, nil), append(stream, nil)
				continue
			}
			unary, stream = append(unary, s.unary(h)), append(stream, s.stream(h))
		}
		one, oneStream := ChainUnaryClient(unary...), ChainStreamClient(stream...)
		slow, slowStream := twin(slices.Clone(unary)), streamTwin(slices.Clone(stream))
		clear(unary) // the caller's slice is the caller's
		clear(stream)
		steady, steadyStream := s.end("steady"), s.streamEnd("steady")
		for call := range 6 {
			end, streamEnd := steady, steadyStream
			if rnd.IntN(3) == 0 {
				name := fmt.Sprint("end of call ", call)
				end, streamEnd = s.end(name), s.streamEnd(name)
			}
			run := func(i grpc.UnaryClientInterceptor, j grpc.StreamClientInterceptor) string {
				err := i(t.Context(), "m", "req", "reply", nil, end, grpc.StaticMethod())
				cs, streamErr := j(t.Context(), &grpc.StreamDesc{StreamName: "desc"}, nil, "m", streamEnd)
				return fmt.Sprintf("%s\nresults %v, %v, %v", s.take(), err, cs, streamErr)
			}
			if got, want := run(one, oneStream), run(slow, slowStream); got != want {
				t.Fatalf("round %d, call %d:\n%s\nwant\n%s", round, call, got, want)
			}
		}
	}
}

// TestEachCallHasItsOwnEnd has many callers of one chain, which calls on twice and at once as a hedge does: some share an
// end, some have a new one for each call. None may arrive at another's.
func TestEachCallHasItsOwnEnd(t *testing.T) {
	hedge := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { _ = invoker(ctx, method, req, reply, cc, opts...) })
		}
		wg.Wait()
		return nil
	}
	chain := ChainUnaryClient(pass, hedge, pass)
	counter := func() (grpc.UnaryInvoker, func() string) {
		var mu sync.Mutex
		got := make(map[any]int)
		return func(_ context.Context, _ string, req, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				mu.Lock()
				got[req]++
				mu.Unlock()
				return nil
			}, func() string {
				mu.Lock()
				defer mu.Unlock()
				return fmt.Sprint(got)
			}
	}
	const callers, calls = 8, 300
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			steady, seen := counter()
			for call := range calls {
				fresh, freshSeen := counter()
				_ = chain(t.Context(), "m", c*calls+call, nil, nil, fresh)
				if got, want := freshSeen(), fmt.Sprintf("map[%d:2]", c*calls+call); got != want {
					t.Errorf("caller %d, call %d: its own end saw %s, want %s", c, call, got, want)
				}
				_ = chain(t.Context(), "m", c, nil, nil, steady)
				_ = chain(t.Context(), "m", c, nil, nil, steady)
			}
			if got, want := seen(), fmt.Sprintf("map[%d:%d]", c, 4*calls); got != want {
				t.Errorf("caller %d: its steady end saw %s, want %s", c, got, want)
			}
		})
	}
	wg.Wait()
}

// TestMemoryIsReused has ends whose memory is collected, so that later ones stand at the same addresses.
func TestMemoryIsReused(t *testing.T) {
	chain := ChainUnaryClient(pass, pass, pass)
	for round := range 40 {
		for call := range 50 {
			want := round*1000 + call
			var got int
			end := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				got = want
				return nil
			}
			if err := chain(t.Context(), "m", nil, nil, nil, end); err != nil || got != want {
				t.Fatalf("round %d, call %d: %d, %v: another call's end", round, call, got, err)
			}
		}
		runtime.GC()
	}
}

// pass is an interceptor that only calls on.
func pass(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoker(ctx, method, req, reply, cc, opts...)
}

// TestPassingEndsAreNotKept: what a call's end has captured is free when the call is over.
func TestPassingEndsAreNotKept(t *testing.T) {
	l := newLower([]grpc.UnaryClientInterceptor{pass}, belowUnary)
	var s script
	var ends []grpc.UnaryInvoker // alive, so that no two have the same address
	for call := range 100 {
		ends = append(ends, s.end(fmt.Sprint(call)))
		l.above(ends[call])
	}
	if k := l.kept.Load(); k != nil {
		t.Errorf("an end that came once is kept")
	}
	l.above(ends[3])
	l.above(ends[3])
	if k := l.kept.Load(); k == nil || k.id != identity(ends[3]) {
		t.Errorf("%v is kept after an end came twice, want that end's", k)
	}
	for _, e := range ends[4:] {
		l.above(e)
	}
	if k := l.kept.Load(); k == nil || k.id != identity(ends[3]) {
		t.Errorf("%v is kept after some ends that came once, want the one that was", k)
	}
	l.above(ends[5])
	l.above(ends[5])
	if k := l.kept.Load(); k == nil || k.id != identity(ends[5]) {
		t.Errorf("%v is kept, want that of the end that comes now", k)
	}
	runtime.KeepAlive(ends)
}

// TestNoAllocations is what this is for. grpc's way is measured too, so that the test can fail.
func TestNoAllocations(t *testing.T) {
	unary := []grpc.UnaryClientInterceptor{pass, pass, pass, pass}
	passStream := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		return streamer(ctx, desc, cc, method, opts...)
	}
	stream := []grpc.StreamClientInterceptor{passStream, passStream, passStream, passStream}
	end := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	streamEnd := func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
		return nil, nil
	}
	ctx := t.Context()
	callUnary := func(i grpc.UnaryClientInterceptor) func() {
		return func() { _ = i(ctx, "m", nil, nil, nil, end) }
	}
	callStream := func(i grpc.StreamClientInterceptor) func() {
		return func() { _, _ = i(ctx, nil, nil, "m", streamEnd) }
	}
	for _, tc := range []struct {
		name     string
		call     func()
		min, max float64
	}{
		{"unary", callUnary(ChainUnaryClient(unary...)), 0, 0},
		{"unary, grpc's way", callUnary(twin(unary)), 3, 8},
		{"stream", callStream(ChainStreamClient(stream...)), 0, 0},
		{"stream, grpc's way", callStream(streamTwin(stream)), 3, 8},
	} {
		if got := testing.AllocsPerRun(100, tc.call); got < tc.min || got > tc.max {
			t.Errorf("%s: %v allocations a call, want %v to %v", tc.name, got, tc.min, tc.max)
		}
	}
}
