package breaker

import (
	"context"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// sleep is for functions that run in a bubble which their file does not show.
func sleep(d time.Duration) {
	synctest.Wait()
	time.Sleep(d)
}

// TestStreamEnds: however a client's stream ends, it is reported once and is no longer in flight.
func TestStreamEnds(t *testing.T) {
	type counts struct{ ok, failed uint32 }
	stream := func(s *stack, ctx context.Context, k kind, say string) grpc.ClientStream {
		cs, err := s.open(ctx, k, say)
		if err != nil {
			s.t.Error(err)
		}
		return cs
	}
	for name, x := range map[string]struct {
		end  func(s *stack, ctx context.Context, cancel func(), k kind)
		want counts
	}{
		"to its end": {func(s *stack, ctx context.Context, _ func(), k kind) {
			_ = s.call(ctx, k)
		}, counts{1, 0}},
		"error": {func(s *stack, ctx context.Context, _ func(), k kind) {
			cs := stream(s, ctx, k, "error")
			_ = cs.RecvMsg(new(wrapperspb.StringValue))
		}, counts{0, 1}},
		"cancel while reading": {func(s *stack, ctx context.Context, cancel func(), k kind) {
			cs := stream(s, ctx, k, "hang")
			time.AfterFunc(sec, cancel)
			_ = cs.RecvMsg(new(wrapperspb.StringValue))
		}, counts{0, 0}},
		"deadline": {func(s *stack, ctx context.Context, _ func(), k kind) {
			ctx, cancel := context.WithTimeout(ctx, sec)
			defer cancel()
			cs := stream(s, ctx, k, "hang")
			_ = cs.RecvMsg(new(wrapperspb.StringValue))
		}, counts{0, 1}},
		"abandoned, then cancelled": {func(s *stack, ctx context.Context, cancel func(), k kind) {
			stream(s, ctx, k, "hang")
			cancel()
		}, counts{0, 0}},
		"abandoned until the connection is closed": {func(s *stack, ctx context.Context, _ func(), k kind) {
			stream(s, ctx, k, "hang")
			s.conn.Close()
		}, counts{0, 0}},
		"panic, with a deferred cancel": {func(s *stack, ctx context.Context, cancel func(), k kind) {
			survive(func() {
				defer cancel()
				stream(s, ctx, k, "hang")
				panic("caller")
			})
		}, counts{0, 0}},
		"goexit, with a deferred cancel": {func(s *stack, ctx context.Context, cancel func(), k kind) {
			survive(func() {
				defer cancel()
				stream(s, ctx, k, "hang")
				runtime.Goexit()
			})
		}, counts{0, 0}},
		"the server stops": {func(s *stack, ctx context.Context, _ func(), k kind) {
			cs := stream(s, ctx, k, "hang")
			synctest.Wait()
			s.server.Stop()
			_ = cs.RecvMsg(new(wrapperspb.StringValue))
		}, counts{0, 1}},
	} {
		for _, k := range kinds[1:] {
			t.Run(name+"/"+k.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, err := New(Config{})
					if err != nil {
						t.Fatal(err)
					}
					s := newStack(t, asAsked, b, nil)
					defer s.close()
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					x.end(s, ctx, cancel, k)
					synctest.Wait()
					got := only(t, b)
					if (counts{got.Successes, got.Failures}) != x.want || got.InFlight != 0 {
						t.Errorf("%d ok, %d failed, %d in flight, want %+v and none", got.Successes, got.Failures,
							got.InFlight, x.want)
					}
				})
			})
		}
	}
}

// asAsked hangs, fails or echoes, as the message says.
func asAsked(ctx context.Context, k kind, s grpc.ServerStream) error {
	var m wrapperspb.StringValue
	if err := s.RecvMsg(&m); err != nil {
		return err
	}
	switch m.Value {
	case "error":
		return errDown
	case "hang":
		<-ctx.Done()
		return ctx.Err()
	}
	return s.SendMsg(&m)
}

// TestProbingStream: a stream that outlives ProbeTimeout has passed if the service sent a message, else it has
// failed.
func TestProbingStream(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		for _, speaks := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
				var client, server *Breakers
				if side == "client" {
					client = r.Breakers
				} else {
					server = r.Breakers
				}
				down := true
				s := newStack(t, func(ctx context.Context, k kind, ss grpc.ServerStream) error {
					if down {
						return errDown
					}
					if speaks {
						if err := ss.SendMsg(wrapperspb.String("I am well")); err != nil {
							return err
						}
					}
					<-ctx.Done()
					return status.FromContextError(ctx.Err()).Err()
				}, client, server)
				defer s.close()
				_ = s.call(t.Context(), bidiKind)
				synctest.Wait()
				down = false
				time.Sleep(6 * sec)
				r.events()
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { _ = s.call(ctx, bidiKind) })
				time.Sleep(sec)
				want := "open>half-open half-open>recovering"
				if !speaks {
					want = "open>half-open half-open>open"
					time.Sleep(5 * sec)
					r.State() // somebody looks
				}
				if told := r.events(); told != want {
					t.Errorf("%s, speaks %v: told %q, want %q", side, speaks, told, want)
				}
				if n := only(t, r.Breakers).InFlight; n != 1 {
					t.Errorf("%s, speaks %v: %d in flight, want the stream", side, speaks, n)
				}
				cancel()
				wg.Wait()
				synctest.Wait()
				r.idle()
				if told := r.events(); told != "" {
					t.Errorf("%s, speaks %v: its end told %q, want nothing", side, speaks, told)
				}
			})
		}
	}
}

// TestLongStreamBreaks: a stream that breaks when it is older than the window counts neither way.
func TestLongStreamBreaks(t *testing.T) {
	for _, x := range []struct {
		age  time.Duration
		want Phase
	}{{sec, Open}, {time.Hour, Closed}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1}})
			s := newStack(t, func(ctx context.Context, _ kind, _ grpc.ServerStream) error {
				time.Sleep(x.age)
				return errDown
			}, r.Breakers, nil)
			defer s.close()
			_ = s.call(t.Context(), serverKind)
			if p := r.phase(); p != x.want {
				t.Errorf("after %v: %v, want %v", x.age, p, x.want)
			}
		})
	}
}

// TestForeignStream: an interceptor further in may make streams that know no OnFinish.
func TestForeignStream(t *testing.T) {
	for _, x := range []struct {
		recv    error
		failed  uint32
		ok      uint32
		serves  bool
		pending int
	}{
		{io.EOF, 0, 1, true, 0},
		{nil, 0, 0, true, 1},
		{nil, 0, 1, false, 0},
		{errDown, 1, 0, true, 0},
	} {
		r := newRig(t, Config{})
		cs, err := r.streamClient(t.Context(), &grpc.StreamDesc{ServerStreams: x.serves}, nil, method,
			func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
				return foreign{x.recv}, nil
			})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := cs.RecvMsg(nil); err != x.recv {
				t.Errorf("RecvMsg = %v, want %v", err, x.recv)
			}
		}
		if s := r.one(); s.Successes != x.ok || s.Failures != x.failed || s.InFlight != x.pending {
			t.Errorf("%v received: %d ok, %d failed, %d in flight, want %+v", x.recv, s.Successes, s.Failures, s.InFlight, x)
		}
	}
}

// TestForeignStreamRefused: the same interceptor may refuse to make one.
func TestForeignStreamRefused(t *testing.T) {
	r := newRig(t, Config{})
	_, err := r.streamClient(t.Context(), &grpc.StreamDesc{}, nil, method,
		func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
			return nil, errDown
		})
	if s := r.one(); err != errDown || s.Failures != 1 || s.InFlight != 0 {
		t.Errorf("%v, %v, want the failure, counted, and none in flight", err, s)
	}
}

type foreign struct{ recv error }

func (f foreign) RecvMsg(any) error          { return f.recv }
func (foreign) SendMsg(any) error            { return nil }
func (foreign) CloseSend() error             { return nil }
func (foreign) Header() (metadata.MD, error) { return nil, nil }
func (foreign) Trailer() metadata.MD         { return nil }
func (foreign) Context() context.Context     { panic("asked for its context") }

// TestOptionsAreNotShared: concurrent calls may share the array of their options.
func TestOptionsAreNotShared(t *testing.T) {
	r := newRig(t, Config{})
	opts := make([]grpc.CallOption, 1, 8)
	opts[0] = grpc.WaitForReady(true)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := r.streamClient(t.Context(), &grpc.StreamDesc{}, nil, method,
				func(_ context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, o ...grpc.CallOption) (grpc.ClientStream, error) {
					finished(o, nil)
					finished(o, errDown) // heard once
					return foreign{}, nil
				}, opts...)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := r.one(); s.Successes != 8 || s.Failures != 0 || s.InFlight != 0 {
		t.Errorf("%v, want 8 successes", s)
	}
}

// TestUpdateOverStack is TestUpdateWhileCalling with real calls, one kind after the other.
func TestUpdateOverStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		s := newStack(t, echo(func() error { return nil }), b, b)
		defer s.close()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 50 {
					if err := s.call(t.Context(), kinds[(i+j)%len(kinds)]); err != nil {
						t.Errorf("a call failed: %v", err)
					}
				}
			})
		}
		wg.Go(func() {
			for i := range 100 {
				err := b.Update(Config{Policy: Policy{Key: Key(i % 3), Probes: 1 + i%3, MaxConcurrent: 16,
					SlowCall: time.Duration(i%2) * time.Hour, Window: time.Duration(1+i%2) * 10 * sec}})
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		synctest.Wait()
		if err := b.Update(Config{Policy: Policy{MaxConcurrent: 1, Key: Target}}); err != nil {
			t.Fatal(err)
		}
		for _, k := range kinds {
			if err := s.call(t.Context(), k); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		for _, st := range b.State().Breakers {
			if st.InFlight != 0 || st.Successes == 0 {
				t.Errorf("%v, want successes and none in flight", st)
			}
		}
	})
}

// TestServerTellsCode: over the wire, an open server's error is UNAVAILABLE and tells no other caller's secrets.
func TestServerTellsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(Config{Policy: Policy{ConsecutiveFailures: 1}})
		if err != nil {
			t.Fatal(err)
		}
		s := newStack(t, echo(func() error { return status.Error(codes.Unavailable, "card 1234") }), nil, b)
		defer s.close()
		for _, k := range kinds {
			_ = s.call(t.Context(), k)
			err := s.call(t.Context(), k)
			want := `breaker "` + k.method() + ` on this server" is open since 2000-01-01T00:00:00.000Z, ` +
				`until 2000-01-01T00:00:05.000Z; last failure: Unavailable`
			if st := status.Convert(err); st.Code() != codes.Unavailable || st.Message() != want {
				t.Errorf("%v: %v\nwant %s", k, err, want)
			}
		}
	})
}
