package ratelimit

import (
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

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
		for _, fixed := range []bool{false, true} {
			m.fixed, m.ask.wait = fixed, false
			for _, wait := range []bool{true, false} {
				c := Config{Policy: Policy{Rate: 1, Burst: 9, MessageCost: 1, PerMethod: true, Wait: wait}}
				if err := l.Update(c); err != nil || !next() || m.ask.wait != (wait && !fixed) {
					t.Errorf("after Update to Wait = %v: messages wait: %v; an option says no: %v (%v)", wait, m.ask.wait, fixed, err)
				}
			}
		}
		if m.ask.id.caller != "x" {
			t.Errorf("caller = %q, want x: the policy that holds says who it is", m.ask.id.caller)
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
		var e ends
		opts = append(opts, e.option())
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
		synctest.Wait()
		if told := e.codes(); !slices.Equal(told, []codes.Code{codes.ResourceExhausted}) {
			t.Errorf("OnFinish was told of %v, want once of the refusal, not of the cancellation that follows", told)
		}
	})
}

// TestMessagesOfOlderStreams: a stream is judged by the policy that holds even if nothing counted its messages when it
// began: no limit at all, one without MessageCost, or none on any method that has it.
func TestMessagesOfOlderStreams(t *testing.T) {
	counted := Policy{Rate: 0.001, Burst: 2, MessageCost: 1}
	for name, row := range map[string]struct {
		from, to Config
		opts     []grpc.CallOption
		passes   bool // on the client's side
	}{
		"no limit":     {Config{}, Config{Policy: counted}, nil, false},
		"starts only":  {Config{Policy: Policy{Rate: 1000}}, Config{Policy: counted}, nil, false},
		"from waiting": {Config{Policy: Policy{Wait: true}}, Config{Policy: counted}, nil, false},
		"others only":  {Config{Methods: map[string]Policy{unary: counted}}, Config{Methods: map[string]Policy{"/t.T/*": counted}}, nil, false},
		"dry run":      {Config{Policy: counted, DryRun: true}, Config{Policy: counted}, nil, false},
		"bypassed":     {Config{}, Config{Policy: counted}, []grpc.CallOption{Bypass()}, true},
	} {
		for _, side := range []string{"client", "server"} {
			for _, kind := range []string{client, bidi} {
				synctest.Test(t, func(t *testing.T) {
					name := name + ", " + side + ", " + kind
					l := mustNew(t, row.from)
					o := rigOptions{client: l}
					if side == "server" {
						o = rigOptions{server: l}
					}
					r, stop := newRig(t, o)
					defer stop()
					var e ends
					cs, err := r.cc.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, kind, append(row.opts, e.option())...)
					if err != nil {
						t.Fatal(err)
					}
					send := func() (err error) {
						for range 5 { // the bucket holds two of them at most
							if err = cs.SendMsg(text("x")); err != nil {
								return err
							}
							synctest.Wait()
						}
						return nil
					}
					if err := send(); err != nil {
						t.Fatalf("%s: %v before Update, want success", name, err)
					}
					if err := l.Update(row.to); err != nil {
						t.Fatal(err)
					}
					err = send()
					if row.passes && side == "client" {
						if err == nil {
							err = cs.CloseSend()
						}
						if err != nil {
							t.Errorf("%s: %v, want it to pass", name, err)
						}
						return
					}
					if err == nil {
						t.Errorf("%s: five messages passed after Update, want a refusal", name)
					}
					for err == nil || err == io.EOF {
						err = cs.RecvMsg(text(""))
					}
					synctest.Wait()
					if told := e.codes(); !isRefused(err) || !slices.Equal(told, []codes.Code{codes.ResourceExhausted}) {
						t.Errorf("%s: %v, and OnFinish was told of %v, want the refusal once", name, err, told)
					}
				})
			}
		}
	}
}

// TestMessagesOfExemptMethods: a health check's or a reflection stream's messages pass until a policy names it.
func TestMessagesOfExemptMethods(t *testing.T) {
	const reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	p := Policy{Rate: 0.001, Burst: 1, MessageCost: 1}
	l := mustNew(t, Config{Policy: p})
	var s scripted
	cs, err := l.StreamClientInterceptor()(t.Context(), &grpc.StreamDesc{ClientStreams: true}, nil, reflection, s.start)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := cs.SendMsg(nil); err != nil {
			t.Errorf("exempt: %v, want it to pass", err)
		}
	}
	for _, step := range []struct {
		methods map[string]Policy
		refused bool
	}{{nil, false}, {map[string]Policy{reflection: {}}, false}, {map[string]Policy{reflection: p}, true}} {
		if err := l.Update(Config{Policy: p, Methods: step.methods}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			err = cs.SendMsg(nil)
		}
		if (err != nil) != step.refused {
			t.Errorf("methods %v: the third message: %v, want refused: %v", step.methods, err, step.refused)
		}
	}
	s.end(nil)
}
