package trace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opentracing/opentracing-go"
	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc/metadata"
)

// pairs is a tracer whose every context is the given pairs.
type pairs struct {
	opentracing.NoopTracer
	set map[string]string
}

func (p pairs) Inject(_ opentracing.SpanContext, _, carrier any) error {
	for k, v := range p.set {
		carrier.(opentracing.TextMapWriter).Set(k, v)
	}
	return nil
}

func injected(t *testing.T, ctx context.Context, set map[string]string) metadata.MD {
	t.Helper()
	ctx, err := inject(ctx, pairs{set: set}, nil)
	if err != nil {
		t.Fatal(err)
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	return md
}

func extracted(t *testing.T, md metadata.MD) map[string]string {
	t.Helper()
	got := make(map[string]string)
	if err := (reader{md}).ForeachKey(func(k, v string) error { got[k] = v; return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCarrier(t *testing.T) {
	big := strings.Repeat("x", 300)
	for _, c := range []struct {
		name     string
		key, val string
		as       string // the key in the metadata
	}{
		{"text", "uber-trace-id", "1:2:3:1", "uber-trace-id"},
		{"upper case", "X-B3-TraceId", "abc", "x-b3-traceid"},
		{"empty", "x-empty", "", "x-empty"},
		{"printable", "x-text", " in the middle ~"[1:], "x-text"},
		{"space at an end", "x-space", " a", binaryKey},
		{"bytes", "x-bytes", "\x00\xff\n", binaryKey},
		{"not ASCII", "x-name", "Zürich", binaryKey},
		{"binary by name", "grpc-trace-bin", "\x00\xff", "grpc-trace-bin"},
		{"odd key", "Ünï key", "v", binaryKey},
		{"no key", "", "v", binaryKey},
		{"gRPC's own key", "grpc-timeout", "1S", binaryKey},
		{"a key that servers take for another", "Host", "v", binaryKey},
		{"pseudo header", ":path", "/", binaryKey},
		{"our key", binaryKey, "\x01", binaryKey},
		{"long", "x-long", big + "\x00", binaryKey},
	} {
		md := injected(t, t.Context(), map[string]string{c.key: c.val})
		if len(md) != 1 || len(md[c.as]) != 1 {
			t.Errorf("%s: metadata %q, want one value of %q", c.name, md, c.as)
		}
		key := c.key
		if c.as != binaryKey {
			key = c.as
		}
		if got := extracted(t, md); !maps.Equal(got, map[string]string{key: c.val}) {
			t.Errorf("%s: came out as %q, want %q: %q", c.name, got, key, c.val)
		}
	}
}

func TestCarrierReplaces(t *testing.T) {
	ctx := metadata.AppendToOutgoingContext(t.Context(), "mine", "1", "X-Id", "old", "x-id", "older", binaryKey, "stale")
	md := injected(t, ctx, map[string]string{"x-id": "new"})
	want := metadata.MD{"mine": {"1"}, "x-id": {"new"}}
	if fmt.Sprint(md) != fmt.Sprint(want) {
		t.Errorf("metadata %v, want %v", md, want)
	}
	// What is not text travels elsewhere, and what was there before does not stay beside it.
	md = injected(t, ctx, map[string]string{"X-Id": "Zürich"})
	if got := extracted(t, md); md["x-id"] != nil || got["X-Id"] != "Zürich" || got["mine"] != "1" {
		t.Errorf("metadata %q, want the new value alone, in %s", md, binaryKey)
	}
	if old, _ := metadata.FromOutgoingContext(ctx); len(old["x-id"]) != 2 {
		t.Errorf("the caller's context changed to %v", old)
	}
}

func TestCarrierStopsAtAnError(t *testing.T) {
	stop := errors.New("stop")
	for _, md := range []metadata.MD{{"a": {"1", "2"}}, {binaryKey: {string(appendText(appendText(nil, "k"), "v"))}}} {
		calls := 0
		err := reader{md}.ForeachKey(func(string, string) error { calls++; return stop })
		if !errors.Is(err, stop) || calls != 1 {
			t.Errorf("%v after %d calls, want the handler's error after 1", err, calls)
		}
	}
}

// Whatever a stranger sends: no panic, nothing invented. What was written comes out.
func FuzzBinaryPairs(f *testing.F) {
	f.Add("", "", "")
	f.Add("key", "value", "\x05abc")
	f.Add("k", "\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
	f.Add("k", "v", "\x00")
	f.Fuzz(func(t *testing.T, key, value, garbage string) {
		var got []string
		note := func(k, v string) error { got = append(got, k, v); return nil }
		if err := eachPair(garbage, note); err != nil {
			t.Fatal(err)
		}
		if n := len(strings.Join(got, "")); n > len(garbage) {
			t.Fatalf("%d bytes came out of %d", n, len(garbage))
		}
		got = nil
		if err := eachPair(string(appendText(appendText(nil, key), value))+garbage, note); err != nil {
			t.Fatal(err)
		}
		if len(got) < 2 || got[0] != key || got[1] != value {
			t.Fatalf("%q came out, want %q and %q first", got, key, value)
		}
	})
}

// Baggage with any bytes crosses two hops, and spans of all three processes are one trace.
func TestTwoHopsWithBinaryBaggage(t *testing.T) {
	random := make([]byte, 256)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	baggage := map[string]string{"plain": "ada", "bytes": string(random), "name": "Zürich \n 1", "empty": ""}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tracer := mocktracer.New()
				// The mock escapes header values by itself. As a plain text map it leaves that to the carrier.
				tracer.RegisterInjector(opentracing.HTTPHeaders, &mocktracer.TextMapPropagator{})
				tracer.RegisterExtractor(opentracing.HTTPHeaders, &mocktracer.TextMapPropagator{})
				var mu sync.Mutex
				got := make(map[string]string)
				last := newRig(t, setup{config: Config{Tracer: tracer}, do: func(ctx context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					for k := range baggage {
						got[k] = opentracing.SpanFromContext(ctx).BaggageItem(k)
					}
					return nil
				}})
				first := newRig(t, setup{config: Config{Tracer: tracer}, do: func(ctx context.Context) error {
					in, _ := metadata.FromIncomingContext(ctx)
					// A handler that passes on what it received must not break the trace.
					return call(metadata.NewOutgoingContext(ctx, in.Copy()), last.cc, kind)
				}})
				root := tracer.StartSpan("root")
				for k, v := range baggage {
					root.SetBaggageItem(k, v)
				}
				if err := call(opentracing.ContextWithSpan(t.Context(), root), first.cc, kind); err != nil {
					t.Fatal(err)
				}
				root.Finish()
				synctest.Wait()
				mu.Lock()
				if !maps.Equal(got, baggage) {
					t.Errorf("baggage %q after two hops, want %q", got, baggage)
				}
				mu.Unlock()
				wantTree(t, tracer, fmt.Sprintf("\n<nil> root <nil>\n  client %[1]s OK\n    server %[1]s OK\n"+
					"      client %[1]s OK\n        server %[1]s OK\n", full(kind)))
				first.stop()
				last.stop()
			})
		})
	}
}
