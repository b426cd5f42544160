package retry

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const milli = time.Millisecond

// unruly is a handler that does whatever a handler can do wrong, and now and then its work.
func unruly(i int, _ kind, s grpc.ServerStream) error {
	ctx := s.Context()
	_ = grpc.SetTrailer(ctx, metadata.Pairs("by", string(rune('0'+i))))
	if err := takes(ctx, rand.N(8*milli)); err != nil {
		return err
	}
	switch rand.IntN(8) {
	case 0:
		return errDown
	case 1:
		pushbacks := []string{"3", "0", "-1", "soon"}
		_ = grpc.SetTrailer(ctx, metadata.Pairs(pushbackKey, pushbacks[rand.IntN(len(pushbacks))]))
		return errDown
	case 2:
		return takes(ctx, time.Minute)
	case 3:
		_ = grpc.SendHeader(ctx, metadata.Pairs("header", "early"))
		return errDown
	}
	return echo(i, s)
}

// TestChaos: calls of every kind fail, hang, are pushed back, cancelled and hedged at every moment while policies change.
// Each ends once, in its time, with what one attempt said, and nothing is left.
func TestChaos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTest(t, Config{})
		f := newFleet(t, 3, noBlacklist, r, unruly)
		defer f.warm().close()
		var wg sync.WaitGroup
		var stop atomic.Bool
		for i := range 8 {
			wg.Go(func() {
				for j := 0; !stop.Load(); j++ {
					f.wild(kinds[(i+j)%len(kinds)], j)
				}
			})
		}
		for i := range 60 {
			p := Policy{MaxAttempts: 1 + i%5, Backoff: Backoff{Base: milli, Max: 4 * milli}, Budget: budget(t, 1000, 1000), DryRun: i%13 == 0}
			if i%3 == 0 {
				p.Hedge = Hedge{Delay: time.Duration(1+i%4) * milli, Max: 1 + i%3}
			}
			if i%4 == 0 {
				p.AttemptTimeout = time.Duration(1+i%9) * milli
			}
			if i%5 == 0 {
				p.Timeout = 40 * milli
			}
			if err := r.Update(Config{Policy: p}); err != nil {
				t.Error(err)
			}
			_ = r.State()
			time.Sleep(5 * milli)
		}
		stop.Store(true)
		wg.Wait()
		time.Sleep(milli)
		f.idle()
		tried := int64(0)
		for _, m := range r.State().Methods {
			tried += m.Retries + m.Hedges
		}
		if tried == 0 {
			t.Error("nothing was tried again, so this shows nothing")
		}
	})
}

// wild makes the call number j of a caller, of kind k, and looks at how it ends.
func (f *fleet) wild(k kind, j int) {
	ctx, cancel := context.WithCancel(context.Background())
	if j%3 == 0 {
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), rand.N(30*milli))
	}
	defer cancel()
	defer time.AfterFunc(rand.N(100*milli), cancel).Stop()
	var ends atomic.Int64
	var trailer metadata.MD
	var from peer.Peer
	opts := []grpc.CallOption{grpc.Trailer(&trailer), grpc.Peer(&from)}
	if j%2 == 0 { // the others go the way of calls that nobody watches
		opts = append(opts, grpc.OnFinish(func(error) { ends.Add(1) }))
	}
	began := time.Now()
	if k == unaryKind {
		_, err := f.hello(ctx, k.declared(), opts...)
		if by := trailer.Get("by"); err == nil && (len(by) != 1 || from.Addr == nil || from.Addr.String() != "s"+by[0]+":1") {
			f.t.Errorf("the trailer is from server %v and the peer %v, want one and the same", by, from.Addr)
		}
	} else {
		f.chat(ctx, k, j, opts)
	}
	if took := time.Since(began); took > 150*milli {
		f.t.Errorf("%v: ended after %v, want 100ms at most, when it is cancelled", k, took)
	}
	cancel()
	_ = takes(context.Background(), milli)
	if j%2 == 0 && ends.Load() != 1 {
		f.t.Errorf("%v: OnFinish is told %d times, want once", k, ends.Load())
	}
}

// chat uses a stream in one of many ways.
func (f *fleet) chat(ctx context.Context, k kind, j int, opts []grpc.CallOption) {
	s, err := f.conn.NewStream(ctx, k.desc(), k.declared(), opts...)
	if err != nil {
		return
	}
	talk := func() {
		if j%4 == 0 {
			_ = takes(ctx, milli)
		}
		for range 1 + j%2 {
			if s.SendMsg(wrapperspb.String("hello")) != nil || !k.desc().ClientStreams {
				break
			}
		}
		_ = s.CloseSend()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if j%2 == 0 {
		wg.Go(talk)
	} else {
		talk()
	}
	if j%3 == 1 {
		_, _ = s.Header()
	}
	if j%7 == 1 {
		_ = s.Context()
	}
	if j%11 == 3 {
		return // and leaves the stream alone
	}
	for {
		if err := s.RecvMsg(new(wrapperspb.StringValue)); err != nil {
			_ = s.Trailer()
			return
		}
	}
}
