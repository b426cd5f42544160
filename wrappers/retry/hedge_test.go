package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// p99 is the latency that 99 of 100 are at most.
func p99(latencies []time.Duration) time.Duration {
	slices.Sort(latencies)
	return latencies[len(latencies)*99/100]
}

// load makes calls at a steady rate and returns how long each took. All must succeed.
func load(f *fleet, n int, every time.Duration) []time.Duration {
	var wg sync.WaitGroup
	took := make([]time.Duration, n)
	for i := range n {
		wg.Go(func() {
			began := time.Now()
			if _, err := f.hello(context.Background(), unaryKind.declared()); err != nil {
				f.t.Errorf("call %d: %v", i, err)
			}
			took[i] = time.Since(began)
		})
		_ = takes(context.Background(), every)
	}
	wg.Wait()
	return took
}

// median is what a usual call takes.
const median = 10 * time.Millisecond

// Row: every endpoint takes 20 times as long in 1 call of 40, hedging at the live p95: p99 falls by 5 times or more;
// extra load 6 % at most; race-free.
func TestHedgeAtQuantile(t *testing.T) {
	const calls = 4000
	run := func(h Hedge, policy string) (slow time.Duration, extra float64) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(3, 4))
			f := newFleet(t, 5, policy, newTest(t, Config{Policy: Policy{Hedge: h}}), func(i int, _ kind, s grpc.ServerStream) error {
				mu.Lock()
				d := median*8/10 + time.Duration(rng.Int64N(int64(median*4/10)))
				if rng.IntN(40) == 0 {
					d *= 20
				}
				mu.Unlock()
				if err := takes(s.Context(), d); err != nil {
					return err
				}
				return echo(i, s)
			})
			defer f.warm().close()
			load(f, 1000, 2*time.Millisecond) // so that the quantile is known
			before := f.total()
			took := load(f, calls, 2*time.Millisecond)
			slow, extra = p99(took), float64(f.total()-before)/calls-1
		})
		return slow, extra
	}
	without, _ := run(Hedge{}, ours)
	for _, policy := range policies {
		with, extra := run(Hedge{Quantile: 0.95}, policy)
		t.Logf("%s: p99 = %v, without hedging %v, extra load %.2f %%", policy, with, without, 100*extra)
		if with*5 > without {
			t.Errorf("%s: p99 = %v, without hedging %v, want a fifth of it at most", policy, with, without)
		}
		if extra > 0.06 || extra < 0.02 {
			t.Errorf("%s: extra load %.2f %%, want 2 to 6 %%", policy, 100*extra)
		}
	}
}

// Row: one endpoint of 5 always takes 20 times as long, hedging after a fixed delay of 3 medians, budget 25 %: p99
// falls by 3.5 times or more; the slow endpoint is not hedged onto.
func TestHedgeOneSlow(t *testing.T) {
	run := func(h Hedge) (slow time.Duration, onto int64) {
		synctest.Test(t, func(t *testing.T) {
			var hedged atomic.Int64
			p := Policy{Hedge: h, Budget: budget(t, 25, 1)}
			f := newFleet(t, 5, ours, newTest(t, Config{Policy: p}), func(i int, _ kind, s grpc.ServerStream) error {
				d := median*8/10 + time.Duration(rand.Int64N(int64(median*4/10)))
				if i == 0 {
					d *= 20
					hedged.Add(int64(PreviousAttempts(s.Context())))
				}
				if err := takes(s.Context(), d); err != nil {
					return err
				}
				return echo(i, s)
			})
			defer f.warm().close()
			load(f, 500, 2*time.Millisecond)
			slow, onto = p99(load(f, 4000, 2*time.Millisecond)), hedged.Load()
		})
		return slow, onto
	}
	without, _ := run(Hedge{})
	with, onto := run(Hedge{Delay: 3 * median})
	t.Logf("p99 = %v, without hedging %v, %d hedges onto the slow endpoint", with, without, onto)
	if with*7 > without*2 {
		t.Errorf("p99 = %v, without hedging %v, want 3.5 times less", with, without)
	}
	if onto != 0 {
		t.Errorf("%d hedges were sent to the slow endpoint, want none", onto)
	}
}

// TestQuantileDoesNotSink: losers must count in the quantile, or it sinks with every hedge until the budget stops it.
func TestQuantileDoesNotSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{Policy: Policy{Hedge: Hedge{Quantile: 0.9}, Budget: budget(t, 1000, 0)}})
		f := newFleet(t, 3, ours, r, func(i int, _ kind, s grpc.ServerStream) error {
			if err := takes(s.Context(), time.Duration(rand.ExpFloat64()*float64(median))); err != nil {
				return err
			}
			return echo(i, s)
		})
		defer f.warm().close()
		load(f, 2000, 2*time.Millisecond)
		before := f.total()
		load(f, 6000, 2*time.Millisecond)
		extra := float64(f.total()-before)/6000 - 1
		t.Logf("%.2f %% hedged, state %+v", 100*extra, r.State().Methods)
		if extra < 0.04 || extra > 0.11 {
			t.Errorf("%.2f %% of the calls were hedged, want a tenth at most, and not none", 100*extra)
		}
	})
}

// told is what a caller's targets have.
type told struct {
	reply           string
	header, trailer metadata.MD
	peer            peer.Peer
	err             error
}

func (o *told) text() string {
	addr := "nobody"
	if o.peer.Addr != nil {
		addr = o.peer.Addr.String()
	}
	return fmt.Sprintf("%q by %v/%v/%s: %v", o.reply, o.header.Get("server"), o.trailer.Get("server"), addr, status.Code(o.err))
}

// ask makes a call with all targets, which have something in them from before.
func (f *fleet) ask(ctx context.Context, method string, opts ...grpc.CallOption) *told {
	o := &told{header: metadata.Pairs("server", "stale"), trailer: metadata.Pairs("server", "stale")}
	o.peer.Addr = name("stale")
	out := wrapperspb.String("stale")
	opts = append(opts, grpc.Header(&o.header), grpc.Trailer(&o.trailer), grpc.Peer(&o.peer))
	o.err = f.conn.Invoke(ctx, method, wrapperspb.String("hello"), out, opts...)
	o.reply = out.GetValue()
	return o
}

// sign puts the server's name into header and trailer.
func sign(i int, s grpc.ServerStream) {
	md := metadata.Pairs("server", fmt.Sprintf("i%d", i))
	_ = grpc.SetHeader(s.Context(), md)
	_ = grpc.SetTrailer(s.Context(), md)
}

// TestHedgeDelivers: whoever wins, the caller gets one attempt's reply, header, trailer and peer, and the others are
// cancelled and have ended when the call returns.
func TestHedgeDelivers(t *testing.T) {
	fatal := status.Error(codes.InvalidArgument, "no")
	for _, tt := range []struct {
		name  string
		first func(i int, s grpc.ServerStream) error // what happens to the first attempt
		hedge func(i int, s grpc.ServerStream) error
		want  string // with F and H for the servers of the first attempt and of the hedge
		took  time.Duration
		gone  int64 // how many attempts were cancelled
	}{
		{"no hedge is needed", after(5, nil), after(5, nil), `"F" by [F]/[F]/F: OK`, 5, 0},
		{"the hedge wins", after(100, nil), after(5, nil), `"H" by [H]/[H]/H: OK`, 25, 1},
		{"the first wins", after(30, nil), after(100, nil), `"F" by [F]/[F]/F: OK`, 30, 1},
		{"the first fails, the hedge wins", after(30, errDown), after(50, nil), `"H" by [H]/[H]/H: OK`, 70, 0},
		{"the hedge fails, the first wins", after(50, nil), after(5, errDown), `"F" by [F]/[F]/F: OK`, 50, 0},
		{"the first fails for good", after(30, fatal), after(50, nil), `"stale" by [F]/[F]/F: InvalidArgument`, 30, 1},
		{"the hedge fails for good", after(50, nil), after(5, fatal), `"stale" by [H]/[H]/H: InvalidArgument`, 25, 1},
		{"both fail, the hedge last", after(30, errDown), after(50, errDown), `"stale" by [H]/[H]/H: Unavailable`, 70, 0},
		{"both fail, the hedge first", after(50, errDown), after(5, errDown), `"stale" by [F]/[F]/F: Unavailable`, 50, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var gone, running atomic.Int64
			var first, hedge atomic.Value
			p := Policy{MaxAttempts: 2, Hedge: Hedge{Delay: 20 * time.Millisecond}}
			f := newFleet(t, 3, ours, newTest(t, Config{Policy: p}), func(i int, _ kind, s grpc.ServerStream) error {
				running.Add(1)
				defer running.Add(-1)
				work, who := tt.first, &first
				if PreviousAttempts(s.Context()) > 0 {
					work, who = tt.hedge, &hedge
				}
				who.Store(fmt.Sprintf("%d", i))
				sign(i, s)
				err := work(i, s)
				if s.Context().Err() != nil {
					gone.Add(1)
				}
				return err
			})
			defer f.warm().close()
			began := time.Now()
			got := f.ask(context.Background(), unaryKind.declared())
			took := time.Since(began)
			synctest.Wait()
			f.idle()
			text := got.text()
			want := tt.want
			for letter, who := range map[rune]*atomic.Value{'F': &first, 'H': &hedge} {
				i, _ := who.Load().(string)
				want = replaceServer(want, letter, i)
			}
			if text != want {
				t.Errorf("%s: %s, want %s", tt.name, text, want)
			}
			if took != tt.took*time.Millisecond {
				t.Errorf("%s: took %v, want %d ms", tt.name, took, tt.took)
			}
			if gone.Load() != tt.gone || running.Load() != 0 {
				t.Errorf("%s: %d were cancelled and %d still run, want %d and none", tt.name, gone.Load(), running.Load(), tt.gone)
			}
		})
	}
}

// after is a handler that takes a while and then ends with err, or answers.
func after(ms int, err error) func(int, grpc.ServerStream) error {
	return func(i int, s grpc.ServerStream) error {
		if err := takes(s.Context(), time.Duration(ms)*time.Millisecond); err != nil {
			return err
		}
		if err != nil {
			return err
		}
		return echo(i, s)
	}
}

// replaceServer puts server i's names where the letter stands: its address after a slash alone, else its ID.
func replaceServer(want string, letter rune, i string) string {
	out := []rune{}
	prev := rune(0)
	for _, r := range want {
		if r == letter && (prev == '"' || prev == '[') {
			out = append(out, []rune("i"+i)...)
		} else if r == letter && prev == '/' {
			out = append(out, []rune("s"+i+":1")...)
		} else {
			out = append(out, r)
		}
		prev = r
	}
	return string(out)
}

// TestHedgeRefused: what is not hedged, and why.
func TestHedgeRefused(t *testing.T) {
	delay := Hedge{Delay: 20 * time.Millisecond}
	for _, tt := range []struct {
		name   string
		p      Policy
		method string
		opts   []grpc.CallOption
		want   int64 // attempts
		hedges int64 // counted
	}{
		{"it is hedged", Policy{Hedge: delay}, unaryKind.declared(), nil, 2, 1},
		{"it may have more", Policy{Hedge: Hedge{Delay: 20 * time.Millisecond, Max: 2}}, unaryKind.declared(), nil, 3, 2},
		{"but not more than MaxAttempts", Policy{MaxAttempts: 3, Hedge: Hedge{Delay: 10 * time.Millisecond, Max: 5}}, unaryKind.declared(), nil, 3, 2},
		{"not declared idempotent", Policy{Hedge: delay}, unaryKind.plain(), nil, 1, 0},
		{"declared by the policy", Policy{Hedge: delay, Idempotent: true}, unaryKind.plain(), nil, 2, 1},
		{"one attempt only", Policy{Hedge: delay, MaxAttempts: 1}, unaryKind.declared(), nil, 1, 0},
		{"no budget", Policy{Hedge: delay, Budget: budget(t, 0, 0)}, unaryKind.declared(), nil, 1, 0},
		{"dry run", Policy{Hedge: delay, DryRun: true}, unaryKind.declared(), nil, 1, 1},
		{"quantile not known", Policy{Hedge: Hedge{Quantile: 0.9}}, unaryKind.declared(), nil, 1, 0},
		{"quantile not known, but a delay", Policy{Hedge: Hedge{Quantile: 0.9, Delay: 20 * time.Millisecond}}, unaryKind.declared(), nil, 2, 1},
		{"not a proto.Message", Policy{Hedge: delay}, unaryKind.declared(), []grpc.CallOption{grpc.ForceCodec(rawCodec{})}, 1, 0},
		{"for this call", Policy{}, unaryKind.declared(), []grpc.CallOption{WithPolicy(Policy{Hedge: delay})}, 2, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newTest(t, Config{Policy: tt.p})
			f := newFleet(t, 5, ours, r, func(i int, _ kind, s grpc.ServerStream) error {
				return after(100, nil)(i, s)
			})
			defer f.warm().close()
			before := f.total()
			var err error
			if len(tt.opts) == 1 && tt.name == "not a proto.Message" {
				reply := new(raw)
				err = f.conn.Invoke(context.Background(), tt.method, &raw{}, reply, tt.opts...)
				if len(reply.data) == 0 {
					t.Errorf("%s: no reply", tt.name)
				}
			} else {
				_, err = f.hello(context.Background(), tt.method, tt.opts...)
			}
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if got := f.total() - before; got != tt.want {
				t.Errorf("%s: %d attempts, want %d", tt.name, got, tt.want)
			}
			var hedges int64
			for _, m := range r.State().Methods {
				hedges += m.Hedges
			}
			if hedges != tt.hedges {
				t.Errorf("%s: %d hedges counted, want %d", tt.name, hedges, tt.hedges)
			}
		})
	}
}

// raw is a message that is no proto.Message, and rawCodec passes it on.
type raw struct{ data []byte }

type rawCodec struct{ encoding.Codec }

func (rawCodec) Name() string                    { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error)   { return v.(*raw).data, nil }
func (rawCodec) Unmarshal(b []byte, v any) error { v.(*raw).data = slices.Clone(b); return nil }

// TestHedgeCallerCancels: all attempts end with the caller's context, and the call before it returns.
func TestHedgeCallerCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int64
		p := Policy{MaxAttempts: 3, Hedge: Hedge{Delay: 10 * time.Millisecond, Max: 2}}
		f := newFleet(t, 3, ours, newTest(t, Config{Policy: p}), func(i int, _ kind, s grpc.ServerStream) error {
			running.Add(1)
			defer running.Add(-1)
			return after(1000, nil)(i, s)
		})
		defer f.warm().close()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := f.hello(ctx, unaryKind.declared())
		var tried *Error
		if code := status.Code(err); code != codes.DeadlineExceeded || time.Since(began) != 50*time.Millisecond ||
			!errors.As(err, &tried) || len(tried.Attempts) != 3 {
			t.Errorf("%v after %v, want DEADLINE_EXCEEDED after 50ms with an account of 3 attempts", err, time.Since(began))
		}
		synctest.Wait()
		f.idle()
		if running.Load() != 0 {
			t.Errorf("%d attempts still run, want none", running.Load())
		}
	})
}

// TestHedgeGoroutineEnds: a panic or an exit of a goroutine, the caller's or a hedge's, leaves nothing running, and a
// hedge's panic arrives at the caller.
func TestHedgeGoroutineEnds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func()
		hedge func()
		panic string
	}{
		{"the caller's panics", func() { panic("ouch") }, func() {}, "ouch"},
		{"the caller's exits", runtime.Goexit, func() {}, ""},
		{"the hedge's panics", func() {}, func() { panic("oops") }, "oops"},
		{"the hedge's exits", func() {}, runtime.Goexit, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var started, ended atomic.Int64
			r := newTest(t, Config{Policy: Policy{Idempotent: true, Hedge: Hedge{Delay: 10 * time.Millisecond}}})
			ic := r.UnaryClientInterceptor()
			invoke := func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
				defer ended.Add(1)
				if started.Add(1) == 1 {
					err := takes(ctx, 30*time.Millisecond)
					tt.first()
					return err
				}
				err := takes(ctx, 10*time.Millisecond)
				tt.hedge()
				_ = takes(ctx, time.Hour) // until it is cancelled
				return err
			}
			finished := make(chan struct{})
			go func() {
				defer close(finished)
				defer func() {
					got := ""
					if p := recover(); p != nil {
						got = fmt.Sprint(p)
					}
					if got != tt.panic {
						t.Errorf("%s: the caller sees the panic %q, want %q", tt.name, got, tt.panic)
					}
				}()
				reply := new(wrapperspb.StringValue)
				_ = ic(context.Background(), "/a.B/C", reply, reply, nil, invoke)
			}()
			<-finished
			if started.Load() != 2 || ended.Load() != 2 {
				t.Errorf("%s: %d attempts started and %d ended, want 2 each", tt.name, started.Load(), ended.Load())
			}
		})
	}
}

// TestHedgeAccount: when one attempt has the call fail for good, the account has those that were cancelled for it.
func TestHedgeAccount(t *testing.T) {
	fatal := status.Error(codes.InvalidArgument, "no")
	for _, tt := range []struct {
		name  string
		first func(int, grpc.ServerStream) error
		hedge func(int, grpc.ServerStream) error
		want  string // of the attempts: F or H, code, how long
	}{
		{"the first fails for good", after(30, fatal), after(100, nil), "H CANCELLED 10ms, F INVALID_ARGUMENT 30ms"},
		{"the hedge fails for good", after(100, nil), after(5, fatal), "F CANCELLED 25ms, H INVALID_ARGUMENT 5ms"},
		{"both fail", after(50, errDown), after(5, errDown), "H UNAVAILABLE 5ms, F UNAVAILABLE 50ms"},
		{"the first answers, the hedge has failed", after(50, nil), after(5, errDown), ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var last Attempt
			p := Policy{MaxAttempts: 2, Hedge: Hedge{Delay: 20 * time.Millisecond}}
			c := Config{Policy: p, OnGiveUp: func(e Event) { last = e.Last }}
			f := newFleet(t, 3, noBlacklist, newTest(t, c), func(i int, _ kind, s grpc.ServerStream) error {
				if PreviousAttempts(s.Context()) > 0 {
					return tt.hedge(i, s)
				}
				return tt.first(i, s)
			})
			defer f.warm().close()
			_, err := f.hello(context.Background(), unaryKind.declared())
			var tried *Error
			var got []string
			if errors.As(err, &tried) {
				for _, a := range tried.Attempts {
					who := map[bool]string{true: "H", false: "F"}[a.Hedge]
					got = append(got, fmt.Sprintf("%s %s %v", who, codeName(a.Code), a.Duration))
					if a.Instance == "" {
						t.Errorf("%s: %v, want where", tt.name, a)
					}
				}
				if end := tried.Attempts[len(tried.Attempts)-1]; last != end || end.Code != status.Code(err) {
					t.Errorf("%s: %v, OnGiveUp is told of %v, want both to be of the last in the account", tt.name, err, last)
				}
			}
			if account := strings.Join(got, ", "); account != tt.want {
				t.Errorf("%s: %v with the account %q, want %q", tt.name, err, account, tt.want)
			}
		})
	}
}

// TestHedgeThenRetry: when all attempts of a race have failed, the retry follows, elsewhere.
func TestHedgeThenRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l log
		r := newTest(t, Config{
			Policy:   Policy{MaxAttempts: 4, Hedge: Hedge{Delay: 10 * time.Millisecond}},
			OnRetry:  func(e Event) { l.add("retry after %d, last %v", e.Attempts, e.Last.Code) },
			OnHedge:  func(e Event) { l.add("hedge after %d in %v", e.Attempts, e.Wait) },
			OnGiveUp: func(e Event) { l.add("gave up after %d: %s", e.Attempts, e.Reason) },
		})
		f := newFleet(t, 5, noBlacklist, r, func(i int, _ kind, s grpc.ServerStream) error {
			return after(15, errDown)(i, s)
		})
		defer f.warm().close()
		_, err := f.hello(context.Background(), unaryKind.declared())
		var tried *Error
		if !errors.As(err, &tried) || len(tried.Attempts) != 4 {
			t.Fatalf("%v, want an account of 4 attempts", err)
		}
		endpoints := make(map[string]bool)
		for _, a := range tried.Attempts {
			endpoints[a.Instance] = true
			if a.Duration != 15*time.Millisecond || a.Code != codes.Unavailable {
				t.Errorf("%v, want UNAVAILABLE after 15ms", a)
			}
		}
		if len(endpoints) != 4 {
			t.Errorf("the attempts went to %v, want 4 different endpoints", endpoints)
		}
		want := "hedge after 1 in 10ms; retry after 2, last Unavailable; hedge after 3 in 10ms; gave up after 4: attempts exhausted"
		if l.String() != want {
			t.Errorf("events: %s, want %s", l.String(), want)
		}
	})
}

// TestHedgeAtTheSameMoment: attempts fail in the very moment in which the next hedge is due.
func TestHedgeAtTheSameMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 10 * time.Millisecond
		r := newTest(t, Config{Policy: Policy{
			MaxAttempts: 4, Idempotent: true, Hedge: Hedge{Delay: delay, Max: 3},
			Budget: budget(t, 1000, 0), Backoff: Backoff{Base: 1},
		}})
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 200 {
					var attempts atomic.Int64
					reply := new(wrapperspb.StringValue)
					err := r.unary()(context.Background(), "/a.B/C", reply, reply, nil,
						func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
							attempts.Add(1)
							if err := takes(ctx, delay); err != nil {
								return err
							}
							return errDown
						})
					if n := attempts.Load(); n != 4 || status.Code(err) != codes.Unavailable {
						t.Errorf("%d attempts, %v, want 4 and UNAVAILABLE", n, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// TestHedgeReplaces: a hedge's answer takes the place of what was in the caller's reply, and is not added to it.
func TestHedgeReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{Policy: Policy{Idempotent: true, Hedge: Hedge{Delay: time.Millisecond}}})
		reply := wrapperspb.String("half an answer of the first attempt")
		var n atomic.Int64
		err := r.unary()(context.Background(), "/a.B/C", reply, reply, nil,
			func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				if n.Add(1) == 1 {
					return takes(ctx, time.Hour)
				}
				return nil // with an empty answer
			})
		if err != nil || reply.GetValue() != "" {
			t.Errorf("%q, %v, want the hedge's empty answer", reply.GetValue(), err)
		}
	})
}
