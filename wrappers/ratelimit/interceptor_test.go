package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/outcome"
)

func isRefused(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// retryIn is what the RetryInfo of err says; negative if there is none.
func retryIn(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return -1
}

// TestRate is the row of the issue: 100 a second, burst 10, 8 callers for 5 seconds, on either side.
func TestRate(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		synctest.Test(t, func(t *testing.T) {
			l := mustNew(t, Config{Policy: Policy{Rate: 100, Burst: 10}})
			o := rigOptions{client: l}
			if side == "server" {
				o = rigOptions{server: l}
			}
			r, stop := newRig(t, o)
			defer stop()
			var admitted, refused atomic.Int64
			var callers sync.WaitGroup
			end := time.Now().Add(5 * time.Second)
			for i := range 8 {
				callers.Go(func() {
					for time.Now().Before(end) {
						switch err := r.call(t.Context(), kinds[i%4], 1); {
						case err == nil:
							admitted.Add(1)
						case isRefused(err):
							refused.Add(1)
						default:
							t.Errorf("%s: %v", side, err)
						}
						time.Sleep(3 * time.Millisecond)
					}
				})
			}
			callers.Wait()
			if n := admitted.Load(); n < 500 || n > 515 {
				t.Errorf("%s: %d admitted, want 500 to 515", side, n)
			}
			s := l.State().Scopes[0]
			if s.Admitted != uint64(admitted.Load()) || s.Refused.Rate != uint64(refused.Load()) || refused.Load() == 0 {
				t.Errorf("%s: state says %d admitted, %d refused; seen %d, %d", side, s.Admitted, s.Refused.Rate, admitted.Load(), refused.Load())
			}
		})
	}
}

// TestWait is the other half of the row: with Wait, all that can be within their deadline are served, none of them
// late, and the others are refused at once.
func TestWait(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		synctest.Test(t, func(t *testing.T) {
			l := mustNew(t, Config{Policy: Policy{Rate: 100, Burst: 10, Wait: true}})
			o := rigOptions{client: l}
			if side == "server" {
				o = rigOptions{server: l}
			}
			r, stop := newRig(t, o)
			defer stop()
			if err := r.call(t.Context(), unary, 1); err != nil { // connects
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			began := time.Now()
			var served, refused atomic.Int64
			var callers sync.WaitGroup
			for i := range 200 { // 10 at once, then one each 10 ms: 110 within the second
				callers.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second+time.Millisecond)
					defer cancel()
					switch err := r.call(ctx, kinds[i%4], 1); {
					case err == nil:
						served.Add(1)
					case isRefused(err):
						refused.Add(1)
						if took := time.Since(began); took > 0 {
							t.Errorf("%s: refused after %v, want at once", side, took)
						}
					default:
						t.Errorf("%s: %v", side, err)
					}
				})
			}
			synctest.Wait()
			if n := l.State().Scopes[0].Waiting; n != 100 {
				t.Errorf("%s: %d wait, want 100", side, n)
			}
			callers.Wait()
			if served.Load() != 110 || refused.Load() != 90 {
				t.Errorf("%s: %d served, %d refused, want 110 and 90", side, served.Load(), refused.Load())
			}
			// 8 callers with enough time: all are served, at the rate.
			began = time.Now()
			for range 8 {
				callers.Go(func() {
					for range 25 {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						if err := r.call(ctx, unary, 1); err != nil {
							t.Errorf("%s: %v, want all served", side, err)
						}
						cancel()
					}
				})
			}
			callers.Wait()
			if took := time.Since(began); took < 1900*ms || took > 2100*ms {
				t.Errorf("%s: 200 calls took %v, want 2s", side, took)
			}
			if s := l.State().Scopes[0]; s.Waiting != 0 {
				t.Errorf("%s: %d wait after the calls, want 0", side, s.Waiting)
			}
		})
	}
}

// TestWaitEndsWithTheCaller: who goes away gives its tokens to those behind it, and nobody is left waiting.
func TestWaitEndsWithTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Rate: 1, Burst: 1, Wait: true}})
		r, stop := newRig(t, rigOptions{client: l})
		defer stop()
		for _, kind := range kinds {
			time.Sleep(10 * time.Second)
			if err := r.call(t.Context(), unary, 1); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- r.call(ctx, kind, 1) }()
			synctest.Wait()
			cancel()
			if err := <-done; status.Code(err) != codes.Canceled {
				t.Errorf("%s: %v, want CANCELLED", kind, err)
			}
			began := time.Now()
			if err := r.call(t.Context(), kind, 1); err != nil || time.Since(began) != time.Second {
				t.Errorf("%s: next call: %v after %v, want success after 1s", kind, err, time.Since(began))
			}
		}
		// Without a deadline there is a bound nevertheless.
		l2 := mustNew(t, Config{Policy: Policy{Rate: 0.01, Burst: 1, Wait: true}})
		for _, want := range []codes.Code{codes.OK, codes.ResourceExhausted} {
			err := l2.UnaryClientInterceptor()(t.Context(), unary, nil, nil, nil, noCall)
			if status.Code(err) != want {
				t.Errorf("without deadline, 100 s to wait: %v, want %v", err, want)
			}
		}
	})
}

func noCall(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
	return nil
}

// TestRefusal: what a caller is told, for each kind of call on each side.
func TestRefusal(t *testing.T) {
	for _, kind := range kinds {
		for _, side := range []string{"client", "server"} {
			synctest.Test(t, func(t *testing.T) {
				var events []Event
				var l *Limiter
				l = mustNew(t, Config{Policy: Policy{Rate: 2, Burst: 1}, OnLimit: func(e Event) {
					events = append(events, e)
					_ = l.State()          // no lock is held
					_ = l.Update(Config{}) // limits nothing from now on
				}})
				o := rigOptions{client: l}
				if side == "server" {
					o = rigOptions{server: l}
				}
				r, stop := newRig(t, o)
				defer stop()
				if err := r.call(t.Context(), kind, 1); err != nil {
					t.Fatal(err)
				}
				var trailer metadata.MD
				err := r.call(t.Context(), kind, 1, grpc.Trailer(&trailer))
				if !isRefused(err) || !strings.Contains(err.Error(), kind) || !strings.Contains(err.Error(), "2 tokens a second") {
					t.Errorf("%s, %s: %v, want RESOURCE_EXHAUSTED with method and rate", kind, side, err)
				}
				if d := retryIn(err); d < 500*ms || d > 750*ms {
					t.Errorf("%s, %s: RetryInfo = %v, want 500ms and up to a half more", kind, side, d)
				}
				if got := outcome.Default(kind, err, outcome.NoDeadline); got != outcome.Soft {
					t.Errorf("%s, %s: outcome = %v, want soft", kind, side, got)
				}
				pushback := trailer.Get(pushbackKey)
				if side == "server" && (len(pushback) != 1 || pushback[0] < "500" || pushback[0] > "751") || side == "client" && len(pushback) > 0 {
					t.Errorf("%s, %s: pushback = %q, want 500 to 751 from a server", kind, side, pushback)
				}
				if len(events) != 1 || events[0].Method != kind || events[0].Reason != Rate || events[0].Scope != "*" || events[0].Cost != 1 ||
					events[0].RetryIn != retryIn(err) || events[0].DryRun {
					t.Errorf("%s, %s: events = %+v, want one", kind, side, events)
				}
				if err := r.call(t.Context(), kind, 1); err != nil {
					t.Errorf("%s, %s: after Update in the callback: %v", kind, side, err)
				}
			})
		}
	}
}

// TestGRPCRetryObeys: gRPC's own retry comes back when the server said, and succeeds.
func TestGRPCRetryObeys(t *testing.T) {
	for _, kind := range []string{unary, server} {
		synctest.Test(t, func(t *testing.T) {
			l := mustNew(t, Config{Policy: Policy{Rate: 1, Burst: 1}})
			r, stop := newRig(t, rigOptions{server: l, dial: []grpc.DialOption{grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],
				"retryPolicy":{"maxAttempts":2,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,
				"retryableStatusCodes":["RESOURCE_EXHAUSTED"]}}]}`)}})
			defer stop()
			if err := r.call(t.Context(), kind, 1); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := r.call(t.Context(), kind, 1); err != nil {
				t.Errorf("%s: %v, want success at the second attempt", kind, err)
			}
			if took := time.Since(began); took < time.Second || took > 1502*ms {
				t.Errorf("%s: took %v, want the pushback of 1s to 1.5s, not the backoff of 1ms", kind, took)
			}
			time.Sleep(10 * time.Second)
			if err := l.Update(Config{Policy: Policy{Rate: 1, Burst: 1}, CostFunc: func(context.Context, string, any) int { return 2 }}); err != nil {
				t.Fatal(err)
			}
			if err := r.call(t.Context(), kind, 1); !isRefused(err) || retryIn(err) >= 0 {
				t.Errorf("%s: %v, want a refusal without RetryInfo", kind, err)
			}
			if n := l.State().Scopes[0].Refused; n.Cost != 1 {
				t.Errorf("%s: %+v, want one attempt: the pushback is negative", kind, n)
			}
		})
	}
}

// TestMessages: with MessageCost, messages of client and bidi streams count, and nothing else does.
func TestMessages(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		for _, wait := range []bool{false, true} {
			for _, kind := range kinds {
				synctest.Test(t, func(t *testing.T) {
					var refused []Event
					l := mustNew(t, Config{Policy: Policy{Rate: 10, Burst: 5, MessageCost: 1, Wait: wait},
						OnLimit: func(e Event) { refused = append(refused, e) }})
					o := rigOptions{client: l}
					if side == "server" {
						o = rigOptions{server: l}
					}
					r, stop := newRig(t, o)
					defer stop()
					name := fmt.Sprintf("%s, %s, wait %v", side, kind, wait)
					n := 8 // messages: one with the start, four from the bucket, three too many
					if kind == unary || kind == server {
						n = 1
					}
					began := time.Now()
					var trailer metadata.MD
					var opts []grpc.CallOption
					if side == "server" { // a trailer may be read once RecvMsg has failed, and on the client SendMsg does
						opts = append(opts, grpc.Trailer(&trailer))
					}
					err := r.call(t.Context(), kind, n, opts...)
					took := time.Since(began)
					switch {
					case n == 1 || wait:
						if want := time.Duration(n-5) * 100 * ms; err != nil || took != max(0, want) {
							t.Errorf("%s: %v after %v, want success after %v", name, err, took, max(0, want))
						}
					default:
						if !isRefused(err) || len(refused) != 1 || !refused[0].Message || retryIn(err) < 0 {
							t.Errorf("%s: %v, %+v, want the sixth message refused", name, err, refused)
						}
						if p := trailer.Get(pushbackKey); len(p) > 0 {
							t.Errorf("%s: pushback %q after the handler began, want none", name, p)
						}
					}
				})
			}
		}
	}
}

// TestMessagesFollowUpdate: a stream that lives long is judged by the policy that holds.
func TestMessagesFollowUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Rate: 1, Burst: 2, MessageCost: 1}})
		s := l.settings.Load()
		m := messages{l: l, ask: ask{s: s, e: s.scopes["*"], method: bidi}}
		next := func() bool {
			_, err := m.next(t.Context(), func(*settings, *entry) id { return id{caller: "x"} })
			return err == nil
		}
		for i, want := range []bool{true, true, true, false} {
			if got := next(); got != want {
				t.Errorf("message %d: %v, want %v", i, got, want)
			}
		}
		for _, c := range []Config{{}, {Policy: Policy{Rate: 1}}, {Policy: Policy{Rate: 1, Burst: 9, MessageCost: 1, PerMethod: true}}} {
			if err := l.Update(c); err != nil || !next() {
				t.Errorf("after Update to %+v: refused, want not (%v)", c.Policy, err)
			}
		}
		if m.ask.id.caller != "x" {
			t.Errorf("caller = %q, want x: the policy that holds says who it is", m.ask.id.caller)
		}
	})
}

// TestScope: which policy holds, and who shares a bucket.
func TestScope(t *testing.T) {
	call := func(l *Limiter, method string) bool {
		_, err := l.UnaryServerInterceptor()(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { return nil, nil })
		return err == nil
	}
	one := Policy{Rate: 1e-6, Burst: 1}
	const health = "/grpc.health.v1.Health/Check"
	cases := []struct {
		name  string
		c     Config
		calls []string
		want  string // one letter a call: y or n
	}{
		{"nothing", Config{}, []string{"/a.A/X", "/a.A/X"}, "yy"},
		{"one for all", Config{Policy: one}, []string{"/a.A/X", "/a.A/Y", "/b.B/X"}, "ynn"},
		{"per method", Config{Policy: Policy{Rate: 1e-6, Burst: 1, PerMethod: true}}, []string{"/a.A/X", "/a.A/Y", "/a.A/X"}, "yyn"},
		{"service", Config{Methods: map[string]Policy{"/a.A/*": one}}, []string{"/a.A/X", "/a.A/Y", "/b.B/X", "/b.B/X"}, "ynyy"},
		{"the most exact", Config{Policy: one, Methods: map[string]Policy{"/a.A/*": one, "/a.A/X": one}},
			[]string{"/a.A/X", "/a.A/Y", "/b.B/X", "/a.A/X", "/a.A/Y", "/b.B/X"}, "yyynnn"},
		{"star", Config{Methods: map[string]Policy{"*": one}}, []string{"/a.A/X", "/b.B/X"}, "yn"},
		{"exempted by name", Config{Policy: one, Methods: map[string]Policy{"/a.A/X": {}}}, []string{"/a.A/X", "/a.A/X", "/a.A/Y", "/a.A/Y"}, "yyyn"},
		{"health passes", Config{Policy: one}, []string{health, health, "/a.A/X", health}, "yyyy"},
		{"health by name", Config{Methods: map[string]Policy{"/grpc.health.v1.Health/*": one}}, []string{health, health}, "yn"},
	}
	for _, c := range cases {
		l := mustNew(t, c.c)
		got := ""
		for _, m := range c.calls {
			got += map[bool]string{true: "y", false: "n"}[call(l, m)]
		}
		if got != c.want {
			t.Errorf("%s: %v = %s, want %s", c.name, c.calls, got, c.want)
		}
	}
}

func TestHealthPassesOverGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Rate: 1e-6, Burst: 1}
		r, stop := newRig(t, rigOptions{client: mustNew(t, Config{Policy: p}), server: mustNew(t, Config{Policy: p})})
		defer stop()
		for range 5 {
			if _, err := healthpb.NewHealthClient(r.cc).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
				t.Errorf("health check: %v", err)
			}
		}
	})
}

// TestKeys: who is a caller of its own.
func TestKeys(t *testing.T) {
	from := func(addr net.Addr) context.Context {
		return peer.NewContext(context.Background(), &peer.Peer{Addr: addr})
	}
	tcp := func(text string) context.Context { return from(net.TCPAddrFromAddrPort(mustAddrPort(text))) }
	with := func(kv ...string) context.Context {
		return metadata.NewIncomingContext(context.Background(), metadata.Pairs(kv...))
	}
	type user struct{}
	long := strings.Repeat("x", 1000)
	cases := []struct {
		key    string
		calls  []context.Context
		want   string
		caller string // of the last refusal
	}{
		{"peer", []context.Context{tcp("10.0.0.1:1"), tcp("10.0.0.1:2"), tcp("10.0.0.2:1"), tcp("[::ffff:10.0.0.1]:9")}, "ynyn", "10.0.0.1"},
		{"peer", []context.Context{tcp("[2001:db8::1]:1"), tcp("[2001:db8::2]:1"), tcp("[2001:db8::1]:2")}, "yyn", "2001:db8::1"},
		{"peer", []context.Context{from(&net.UnixAddr{Name: "/s"}), from(&net.UnixAddr{Name: "/s"}), context.Background()}, "yny", "/s"},
		{"peer", []context.Context{context.Background(), context.Background(), from(nil), from((*net.TCPAddr)(nil))}, "ynny", ""},
		{"metadata:Tenant", []context.Context{with("tenant", "a"), with("tenant", "b", "tenant", "a"), with("Tenant", "a"), with()}, "yyny", "a"},
		{"metadata:tenant", []context.Context{with(), with("other", "a"), context.Background()}, "ynn", ""},
		{"metadata:tenant", []context.Context{with("tenant", long), with("tenant", long+"y"), with("tenant", long)}, "yyn", ""},
		{"func", []context.Context{context.WithValue(context.Background(), user{}, "u"), context.WithValue(context.Background(), user{}, "v"),
			context.WithValue(context.Background(), user{}, "u")}, "yyn", "u"},
	}
	for _, c := range cases {
		last := Event{}
		l := mustNew(t, Config{Policy: Policy{Rate: 1e-6, Burst: 1, Key: c.key}, OnLimit: func(e Event) { last = e },
			KeyFunc: func(ctx context.Context, _ string) string { return ctx.Value(user{}).(string) }})
		got := ""
		for _, ctx := range c.calls {
			_, err := l.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: unary},
				func(context.Context, any) (any, error) { return nil, nil })
			got += map[bool]string{true: "y", false: "n"}[err == nil]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.key, got, c.want)
		}
		if len(last.Caller) > maxKey || c.caller != "" && last.Caller != c.caller {
			t.Errorf("%s: caller = %q, want %q", c.key, last.Caller, c.caller)
		}
	}
}

// TestClientKeys: on a client, peer is the target and metadata the outgoing one.
func TestClientKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			key  string
			want string
		}{{"peer", "nn"}, {"metadata:tenant", "yn"}, {"func", "yn"}} {
			l := mustNew(t, Config{Policy: Policy{Rate: 1e-6, Burst: 1, Key: c.key}, KeyFunc: func(ctx context.Context, _ string) string {
				md, _ := metadata.FromOutgoingContext(ctx)
				return strings.Join(md.Get("tenant"), "")
			}})
			r, stop := newRig(t, rigOptions{client: l})
			got := ""
			for i, tenant := range []string{"a", "b", "a"} {
				err := r.call(metadata.AppendToOutgoingContext(t.Context(), "tenant", tenant), kinds[i+1], 1)
				if i > 0 {
					got += map[bool]string{true: "y", false: "n"}[err == nil]
				} else if err != nil {
					t.Errorf("%s: %v", c.key, err)
				}
			}
			if got != c.want {
				t.Errorf("%s: %s, want %s", c.key, got, c.want)
			}
			stop()
		}
	})
}

func TestCallOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Rate: 10, Burst: 10, Cost: 2}})
		r, stop := newRig(t, rigOptions{client: l})
		defer stop()
		for i, c := range []struct {
			opts []grpc.CallOption
			want float64 // tokens left
			ok   bool
			wait time.Duration
		}{
			{nil, 8, true, 0},
			{[]grpc.CallOption{WithCost(5)}, 3, true, 0},
			{[]grpc.CallOption{WithCost(0)}, 3, true, 0},
			{[]grpc.CallOption{WithCost(-3)}, 3, true, 0},
			{[]grpc.CallOption{WithCost(4)}, 3, false, 0},
			{[]grpc.CallOption{WithCost(4), WithWait(true)}, 0, true, 100 * ms},
			{[]grpc.CallOption{WithCost(11), WithWait(true)}, 0, false, 0},
			{[]grpc.CallOption{WithWait(true), WithWait(false)}, 0, false, 0},
		} {
			began := time.Now()
			err := r.call(t.Context(), kinds[i%4], 1, c.opts...)
			tokens := l.State().Scopes[0].Tokens
			if (err == nil) != c.ok || time.Since(began) != c.wait || math.Abs(tokens-c.want) > 1e-6 {
				t.Errorf("call %d: %v after %v, %v tokens left; want %v, %v, %v", i, err, time.Since(began), tokens, c.ok, c.wait, c.want)
			}
		}
	})
}

func TestDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, wait := range []bool{false, true} {
			var events atomic.Int64
			c := Config{Policy: Policy{Rate: 1, Burst: 1, Wait: wait, MaxWait: 2 * time.Second,
				Adaptive: Adaptive{Enabled: true, Initial: 1, Max: 1}}, DryRun: true,
				OnLimit: func(e Event) {
					events.Add(1)
					if !e.DryRun {
						t.Error("event without DryRun")
					}
				}}
			l := mustNew(t, c)
			r, stop := newRig(t, rigOptions{server: l})
			began := time.Now()
			for _, kind := range kinds {
				if err := r.call(t.Context(), kind, 1); err != nil {
					t.Errorf("wait %v, %s: %v, want everything let through", wait, kind, err)
				}
			}
			want := uint64(3)
			if wait {
				want = 1 // two would have waited for one and two seconds
			}
			s := l.State()
			if !s.DryRun || s.Scopes[0].Admitted != 4 || s.Scopes[0].Refused.Rate != want || events.Load() != int64(want) || time.Since(began) != 0 {
				t.Errorf("wait %v: %+v, %d events after %v, want 4 admitted, %d refused at once", wait, s, events.Load(), time.Since(began), want)
			}
			stop()
		}
	})
}

// TestAdaptiveInterceptor: places are taken and given back whatever a handler does, and what is refused is told why.
func TestAdaptiveInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Adaptive: Adaptive{Enabled: true, Initial: 2, Max: 2}}})
		in := l.UnaryServerInterceptor()
		info := &grpc.UnaryServerInfo{FullMethod: unary}
		for name, handler := range map[string]grpc.UnaryHandler{
			"error":  func(context.Context, any) (any, error) { return nil, errors.New("x") },
			"panic":  func(context.Context, any) (any, error) { panic("x") },
			"goexit": func(context.Context, any) (any, error) { runtime.Goexit(); return nil, nil },
		} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = recover() }()
				_, _ = in(t.Context(), nil, info, handler)
			}()
			<-done
			if n := l.State().Scopes[0].Concurrency.InFlight; n != 0 {
				t.Errorf("%s: %d in flight afterwards, want 0", name, n)
			}
		}
		r, stop := newRig(t, rigOptions{server: l})
		defer stop()
		r.handle = func(ctx context.Context, in string) (string, error) {
			time.Sleep(100 * ms)
			return in, nil
		}
		var calls sync.WaitGroup
		for range 2 {
			calls.Go(func() {
				if err := r.call(t.Context(), unary, 1); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		for _, kind := range kinds { // streams are refused as well, though they take no place
			var trailer metadata.MD
			err := r.call(t.Context(), kind, 1, grpc.Trailer(&trailer))
			if !isRefused(err) || retryIn(err) <= 0 || len(trailer.Get(pushbackKey)) != 1 {
				t.Errorf("%s: %v, pushback %q, want a refusal", kind, err, trailer.Get(pushbackKey))
			}
		}
		calls.Wait()
		for _, kind := range kinds[1:] {
			if err := r.call(t.Context(), kind, 1); err != nil {
				t.Errorf("%s: %v, want it let in", kind, err)
			}
		}
		// A call takes 100 ms. With one in progress, who has only 50 left is refused on arrival.
		calls.Go(func() { _ = r.call(t.Context(), unary, 1) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 50*ms)
		defer cancel()
		began := time.Now()
		err := r.call(ctx, unary, 1)
		if !isRefused(err) || time.Since(began) != 0 || retryIn(err) != 0 || !strings.Contains(err.Error(), "100ms") {
			t.Errorf("call that cannot finish: %v after %v, want a refusal at once", err, time.Since(began))
		}
		calls.Wait()
		if s := l.State().Scopes[0]; s.Refused != (Refusals{Concurrency: 4, Deadline: 1}) || s.Concurrency.InFlight != 0 {
			t.Errorf("state = %+v, %+v", s, s.Concurrency)
		}
	})
}

// TestClientStreamRefused: a message that is refused ends the stream for both directions, and nothing stays behind.
func TestClientStreamRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{Policy: Policy{Rate: 1, Burst: 1, MessageCost: 1}})
		r, stop := newRig(t, rigOptions{client: l})
		defer stop()
		opts := make([]grpc.CallOption, 0, 8) // has room that is not ours
		finished := 0
		opts = append(opts, grpc.OnFinish(func(error) { finished++ }))
		cs, err := r.cc.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, bidi, opts...)
		if err != nil {
			t.Fatal(err)
		}
		if opts[:2][1] != nil {
			t.Error("the caller's slice was written to")
		}
		received := make(chan error)
		go func() {
			for {
				if err := cs.RecvMsg(text("")); err != nil {
					received <- err
					return
				}
			}
		}()
		if err := cs.SendMsg(text("1")); err != nil {
			t.Fatal(err)
		}
		if err := cs.SendMsg(text("2")); !isRefused(err) {
			t.Errorf("second message: %v, want a refusal", err)
		}
		if err := <-received; !isRefused(err) {
			t.Errorf("RecvMsg: %v, want the refusal", err)
		}
		if finished != 1 {
			t.Errorf("finished %d times, want once", finished)
		}
	})
}

// TestUpdateWhileRunning replaces policies while 8 callers run: no call may fail but by a refusal, none at all under
// the last policy, and what the policy says holds.
func TestUpdateWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Config{})
		r, stop := newRig(t, rigOptions{client: l, server: mustNew(t, Config{})})
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		var calls, refused atomic.Int64
		for i := range 8 {
			callers.Go(func() {
				for ctx.Err() == nil {
					err := r.call(t.Context(), kinds[i%4], 2)
					calls.Add(1)
					if isRefused(err) {
						refused.Add(1)
					} else if err != nil {
						t.Errorf("%v", err)
					}
					time.Sleep(ms)
				}
			})
		}
		policies := []Policy{{}, {Rate: 100}, {Rate: 100, Key: "peer"}, {Rate: 100, PerMethod: true, MessageCost: 2},
			{Rate: 50, Wait: true, MaxWait: 5 * ms}, {Adaptive: Adaptive{Enabled: true}}, {Rate: 1e6, Burst: 1e6}}
		for i := range 70 {
			p := policies[i%len(policies)]
			if err := l.Update(Config{Policy: p, Methods: map[string]Policy{client: p}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(7 * ms)
		}
		before := refused.Load()
		if before == 0 {
			t.Error("no call was refused: the policies did not hold")
		}
		time.Sleep(time.Second)
		if refused.Load() != before {
			t.Errorf("%d calls were refused under the last policy, want none", refused.Load()-before)
		}
		cancel()
		callers.Wait()
		if calls.Load() < 8*500 {
			t.Errorf("%d calls, want thousands", calls.Load())
		}
	})
}

func TestUpdateKeepsLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		allow := func(l *Limiter, n int) error {
			return l.UnaryClientInterceptor()(t.Context(), unary, nil, nil, nil, noCall, WithCost(n))
		}
		for _, c := range []struct {
			name       string
			from, to   Policy
			tokensLeft float64
		}{
			{"another rate", Policy{Rate: 1, Burst: 10}, Policy{Rate: 50, Burst: 10}, 3},
			{"a larger burst", Policy{Rate: 1, Burst: 10}, Policy{Rate: 1, Burst: 100}, 3},
			{"a smaller burst", Policy{Rate: 1, Burst: 10}, Policy{Rate: 1, Burst: 2}, 2},
			{"the way of waiting", Policy{Rate: 1, Burst: 10}, Policy{Rate: 1, Burst: 10, Wait: true}, 3},
			{"many buckets become one", Policy{Rate: 1, Burst: 10, PerMethod: true}, Policy{Rate: 1, Burst: 10}, 10},
			{"from no limit", Policy{}, Policy{Rate: 1, Burst: 10}, 10},
		} {
			l := mustNew(t, Config{Policy: c.from})
			if err := allow(l, 7); err != nil {
				t.Fatal(err)
			}
			if err := l.Update(Config{Policy: Policy{Rate: -1}}); err == nil {
				t.Error("an invalid config was taken")
			}
			if err := l.Update(Config{Policy: c.to}); err != nil {
				t.Fatal(err)
			}
			s := l.State().Scopes[0]
			admitted := uint64(1)
			if c.from == (Policy{}) {
				admitted = 0 // what nothing limits is not counted
			}
			if s.Tokens != c.tokensLeft || s.Admitted != admitted {
				t.Errorf("%s: %v tokens and %d admitted, want %v and %d", c.name, s.Tokens, s.Admitted, c.tokensLeft, admitted)
			}
		}
		// Buckets of callers, and adaptive limits.
		p := Policy{Rate: 1, Burst: 10, PerMethod: true, Adaptive: Adaptive{Enabled: true, Initial: 7}}
		l := mustNew(t, Config{Policy: p})
		if err := allow(l, 7); err != nil {
			t.Fatal(err)
		}
		p.Burst, p.Adaptive.Initial = 20, 9
		if err := l.Update(Config{Policy: p}); err != nil {
			t.Fatal(err)
		}
		if s := l.State().Scopes[0]; s.Callers != 1 || s.Concurrency.Limit != 7 {
			t.Errorf("%d buckets, limit %d, want both kept: 1, 7", s.Callers, s.Concurrency.Limit)
		}
		if err := allow(l, 4); !isRefused(err) {
			t.Errorf("4 of 3 tokens: %v", err)
		}
	})
}
