package breaker

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// watcher keeps what a trace would be told.
type watcher struct {
	mu     sync.Mutex
	events []callctx.Event
	ended  bool // the span is over: what comes now is too late
	panics bool
}

func (w *watcher) Attempt(ctx context.Context, _ callctx.Attempt) context.Context { return ctx }

func (w *watcher) Event(e callctx.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		e.Detail = "late: " + e.Detail
	}
	w.events = append(w.events, e)
	if w.panics {
		panic("watcher")
	}
}

// String is what was told, in a line.
func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, e := range w.events {
		s := e.Kind.String()
		if e.Detail != "" {
			s += " " + e.Detail
		}
		if e.Delay != 0 {
			s += " " + e.Delay.String()
		}
		if e.Err != nil {
			s += " because " + status.Convert(e.Err).Message()
		}
		if e.DryRun {
			s += " dry"
		}
		if e.By != "breaker" {
			s += " by " + e.By
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

// watched is a context in which w hears what happens.
func watched(w *watcher) context.Context {
	return callctx.With(context.Background(), callctx.Record{Observer: w})
}

// four makes a call of each sort with ctx that ends with err, and names it.
func (r *rig) four(ctx context.Context, err error, each func(name string, call func())) {
	each("unary client", func() {
		_ = r.unaryClient(ctx, method, nil, nil, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return err })
	})
	each("stream client", func() {
		_, _ = r.streamClient(ctx, &grpc.StreamDesc{}, nil, method,
			func(_ context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, o ...grpc.CallOption) (grpc.ClientStream, error) {
				finished(o, err)
				return foreign{err}, err
			})
	})
	each("unary server", func() {
		_, _ = r.unaryServer(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, err })
	})
	each("stream server", func() {
		_ = r.streamServer(nil, fakeServerStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: method},
			func(any, grpc.ServerStream) error { return err })
	})
}

// TestWatchersAreTold: who watches a call is told what the call did to the breaker, and the breaker to the call.
func TestWatchersAreTold(t *testing.T) {
	type step struct {
		at   time.Duration
		err  error
		want string
	}
	for name, x := range map[string]struct {
		p     Policy
		steps []step
	}{
		"there and back": {Policy{ConsecutiveFailures: 2, Ramp: 10 * sec}, []step{
			{0, errDown, ""},
			{0, errDown, "breaker_changed B: closed to open 5s because down"},
			{sec, nil, "breaker_refused B 4s because down"},
			{6 * sec, nil, "breaker_changed B: open to half-open because down; breaker_changed B: half-open to recovering 10s"},
			{7 * sec, nil, ""},
			{17 * sec, nil, "breaker_changed B: recovering to closed"},
			{18 * sec, nil, ""},
		}},
		"a probe fails": {Policy{ConsecutiveFailures: 1}, []step{
			{0, errDown, "breaker_changed B: closed to open 5s because down"},
			{6 * sec, errDown, "breaker_changed B: open to half-open because down; breaker_changed B: half-open to open 5s because down"},
		}},
		"two probes": {Policy{ConsecutiveFailures: 1, Probes: 2, NoRamp: true}, []step{
			{0, errDown, "breaker_changed B: closed to open 5s because down"},
			{6 * sec, nil, "breaker_changed B: open to half-open because down"},
			{6 * sec, nil, "breaker_changed B: half-open to closed"},
		}},
		"dry run": {Policy{ConsecutiveFailures: 1, DryRun: true, NoRamp: true}, []step{
			{0, errDown, "breaker_changed B: closed to open 5s because down dry"},
			{sec, nil, "breaker_refused B 4s because down dry"},
			{sec, errDown, "breaker_refused B 4s because down dry"},
			{6 * sec, nil, "breaker_changed B: open to half-open because down dry; breaker_changed B: half-open to closed dry"},
		}},
	} {
		newRig(t, Config{}).four(t.Context(), nil, func(sort string, _ func()) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: x.p})
				for i, s := range x.steps {
					time.Sleep(s.at - time.Since(epoch))
					w := new(watcher)
					r.four(watched(w), s.err, func(name string, call func()) {
						if name == sort {
							call()
						}
					})
					if got := strings.ReplaceAll(w.String(), r.one().Name, "B"); got != s.want {
						t.Errorf("%s, %s, step %d: told %q\nwant %q", name, sort, i, got, s.want)
					}
				}
				r.idle()
			})
		})
	}
}

// TestWatchersAreToldOfTheRest: what only some calls meet.
func TestWatchersAreToldOfTheRest(t *testing.T) {
	run := func(name string, p Policy, want string, f func(r *rig, ctx context.Context)) {
		synctest.Test(t, func(t *testing.T) {
			r, w := newRig(t, Config{Policy: p}), new(watcher)
			f(r, watched(w))
			if got := strings.ReplaceAll(w.String(), method, "B"); got != want {
				t.Errorf("%s: told %q\nwant %q", name, got, want)
			}
		})
	}
	call := func(r *rig, ctx context.Context, err error, takes time.Duration) {
		_ = r.unaryClient(ctx, method, nil, nil, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				<-time.NewTimer(takes).C
				return err
			})
	}
	fallback := Policy{ConsecutiveFailures: 1, Fallback: func(context.Context, string, any, any, error) error { return nil }}
	run("a fallback answers a failure", fallback, "breaker_changed B: closed to open 5s because down; fallback because down",
		func(r *rig, ctx context.Context) { call(r, ctx, errDown, 0) })
	run("a fallback answers what is turned away", fallback,
		`breaker_refused B 5s because down; fallback because breaker "B" is open since 2000-01-01T00:00:00.000Z, `+
			`until 2000-01-01T00:00:05.000Z; last failure: rpc error: code = Unavailable desc = down`,
		func(r *rig, ctx context.Context) { r.call(errDown, 0); call(r, ctx, nil, 0) })
	for _, dry := range []string{"", " dry"} {
		run("full", Policy{MaxConcurrent: 1, DryRun: dry != ""}, "breaker_refused B"+dry, func(r *rig, ctx context.Context) {
			var wg sync.WaitGroup
			wg.Go(func() { r.call(nil, sec) })
			synctest.Wait()
			call(r, ctx, nil, 0)
			wg.Wait()
		})
	}
	run("a call finds that a probe hangs", Policy{ConsecutiveFailures: 1},
		"breaker_changed B: half-open to open 5s because a probe has not ended within 5s; "+
			"breaker_refused B 5s because a probe has not ended within 5s",
		func(r *rig, ctx context.Context) {
			r.trip()
			var wg sync.WaitGroup
			wg.Go(func() { r.call(nil, time.Minute) })
			sleep(5 * sec)
			call(r, ctx, nil, 0)
			wg.Wait()
		})
	run("slow calls open it", Policy{SlowCall: sec, MinCalls: 2},
		"breaker_changed B: closed to open 5s because the call took 2s, which is slow",
		func(r *rig, ctx context.Context) { r.call(nil, 2*sec); call(r, ctx, nil, 2*sec) })
	run("half-open since somebody looked", Policy{ConsecutiveFailures: 1},
		"breaker_changed B: open to half-open because down; breaker_changed B: half-open to recovering 10s",
		func(r *rig, ctx context.Context) { r.trip(); r.State(); call(r, ctx, nil, 0) })
}

// TestWatcherOfAStream: over the full stack, the breaker's news come before gRPC tells those further out that the stream
// is over, who close their books then.
func TestWatcherOfAStream(t *testing.T) {
	for _, k := range kinds[1:] {
		synctest.Test(t, func(t *testing.T) {
			r, w := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}}), new(watcher)
			s := newStack(t, echo(func() error { return errDown }), r.Breakers, nil)
			defer s.close()
			_ = s.call(watched(w), k, grpc.OnFinish(func(error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.ended = true
			}))
			synctest.Wait()
			want := "breaker_changed " + r.one().Name + ": closed to open 5s because down"
			if got := w.String(); got != want || !w.ended {
				t.Errorf("%v: told %q, ended %v, want %q", k, got, w.ended, want)
			}
		})
	}
}

// TestWatcherPanics: no place and no probe is lost with it.
func TestWatcherPanics(t *testing.T) {
	newRig(t, Config{}).four(t.Context(), nil, func(sort string, _ func()) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, MaxConcurrent: 1, NoRamp: true}})
			do := func(ctx context.Context, err error) {
				r.four(ctx, err, func(name string, call func()) {
					if name == sort {
						survive(call)
					}
				})
			}
			do(watched(&watcher{panics: true}), errDown)
			if p := r.phase(); p != Open {
				t.Errorf("%s: %v, want open", sort, p)
			}
			do(watched(&watcher{panics: true}), nil) // turned away
			time.Sleep(6 * sec)
			do(watched(&watcher{panics: true}), nil) // panics when it is told that it probes
			r.idle()
			time.Sleep(6 * sec)
			do(context.Background(), nil)
			if p := r.phase(); p != Closed {
				t.Errorf("%s: %v, want closed after the next good probe", sort, p)
			}
			r.idle()
		})
	})
}

// TestEachChangeIsToldOnce: with many callers, each change stands in exactly one call's trace.
func TestEachChangeIsToldOnce(t *testing.T) {
	r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, OpenFor: time.Microsecond, Ramp: time.Microsecond}})
	var mu sync.Mutex
	told := map[string]int{}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			w := new(watcher)
			ctx := watched(w)
			for i := range 1000 {
				_ = r.unaryClient(ctx, method, nil, nil, nil,
					func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
						if (i+g)%3 == 0 {
							return errDown
						}
						return nil
					})
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range w.events {
				if e.Kind == callctx.BreakerChanged {
					told[e.Detail]++
				}
			}
		})
	}
	wg.Wait()
	r.idle() // which delivers what is left, and may move it on itself
	want := map[string]int{}
	for _, s := range strings.Fields(r.events()) {
		from, to, _ := strings.Cut(s, ">")
		want[method+": "+from+" to "+to]++
	}
	if len(want) == 0 || told[method+": closed to open"] != want[method+": closed to open"] {
		t.Errorf("told %v, want %v", told, want)
	}
	for change, n := range want {
		if strings.HasSuffix(change, "to open") || strings.HasPrefix(change, method+": half-open") {
			if told[change] != n {
				t.Errorf("%s: told %d times, want %d", change, told[change], n)
			}
		} else if d := n - told[change]; d < 0 || d > 1 { // one that State made at the end is nobody's
			t.Errorf("%s: told %d times, want %d", change, told[change], n)
		}
	}
}
