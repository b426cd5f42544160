package retry

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// attempt is one attempt. All that a first one needs is one allocation, of 256 bytes.
type attempt struct {
	room callctx.Room
	ctx  context.Context // what it is made with
	// What grpc writes here it writes before the attempt's invoker returns or, on a stream, before OnFinish.
	trailer metadata.MD
	peer    peer.Peer
	options [3]grpc.CallOption // room for the usual ones: grpc.StaticMethod of generated code, and two of ours
	extra   *extra             // nil for a first attempt on a connection that is known to pass options on

	began  int64 // 0 if it is not measured
	number int   // from 1
}

// extra is what most attempts do without.
type extra struct {
	witness witness
	hedge   *hedge
	cancel  context.CancelFunc // nil if the attempt has no context of its own
}

// untouched is what an attempt's trailer is until grpc has had a stream for it; no real trailer has an empty key.
// grpc fills the targets of its call options in (CallOption.after in grpc-go's clientStream.finish) exactly if the
// attempt got as far as a transport stream, that is if its headers were on their way to the server. So an attempt
// that ended with the trailer untouched sent nothing, provided that its options reached grpc at all.
var untouched = metadata.MD{"": nil}

// unsent reports whether grpc never had a stream for the attempt. It means nothing until grpc is done with it, or if
// something between us and grpc keeps the call options to itself.
func (a *attempt) unsent() bool {
	_, is := a.trailer[""]
	return is
}

// witness sees that grpc ends the attempt, and thereby that the attempt's call options reached it.
type witness struct{ saw atomic.Bool }

func (w *witness) finished(error) { w.saw.Store(true) }

// prepare gives the attempt its context and the options that it needs besides opts, which are not changed. proven
// says that this connection is known to pass options on.
func (a *attempt) prepare(
	ctx context.Context, kind callctx.Kind, tried *callctx.Tried, opts []grpc.CallOption, proven bool,
) []grpc.CallOption {
	a.ctx, _ = a.room.Begin(ctx, kind, tried)
	a.trailer = untouched
	own := append(append(a.options[:0], opts...), grpc.Trailer(&a.trailer), grpc.Peer(&a.peer))
	if proven {
		return own
	}
	if a.extra == nil {
		a.extra = new(extra)
	}
	return append(own, grpc.OnFinish(a.extra.witness.finished))
}

// hedge is what the attempt has of its own if it is a hedge, nil if it is not.
func (a *attempt) hedge() *hedge {
	if a.extra == nil {
		return nil
	}
	return a.extra.hedge
}

// start tells whoever watches the call that the attempt begins.
func (a *attempt) start() {
	a.ctx = callctx.StartAttempt(a.ctx, callctx.Attempt{Number: a.number, Hedge: a.hedge() != nil})
}

// over tells whoever watches the call that the attempt has ended.
func (a *attempt) over(err error) {
	callctx.Report(a.ctx, callctx.Event{
		Kind: callctx.AttemptEnded, By: "retry", Attempt: a.number, Peer: a.peer.Addr, Err: err,
	})
}

// safe reports whether it is certain that the attempt, which failed, sent nothing.
func (a *attempt) safe() bool {
	return a.unsent() && (a.extra == nil || a.extra.witness.saw.Load())
}

// proves reports whether the attempt, which succeeded, shows that the connection passes options on.
func (a *attempt) proves() bool {
	return a.extra != nil && a.extra.witness.saw.Load() && !a.unsent()
}

// report describes the attempt, which failed with err at now.
func (a *attempt) report(now int64, err error, f failure) Attempt {
	r := Attempt{Code: f.code, Err: err, Hedge: a.hedge() != nil}
	if a.began != 0 {
		r.Duration = time.Duration(max(now-a.began, 0))
	}
	if e := a.room.Call().Picked(); e != nil {
		r.Endpoint, r.Instance = e.Addr, e.ID
	} else if !a.unsent() && a.peer.Addr != nil {
		r.Endpoint = a.peer.Addr.String()
	}
	return r
}
