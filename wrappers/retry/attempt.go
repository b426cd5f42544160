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

// attempt is one attempt, and one allocation, as slim, full or whole. Allocating is the better part of what a call
// costs that succeeds, and goes by size.
type attempt struct {
	room callctx.Room
	// What grpc writes into trailer and peer it writes before the attempt's invoker returns or, on a stream, before
	// OnFinish.
	trailer metadata.MD
	peer    *peer.Peer // nil if it is not asked for
	extra   *extra     // nil if the attempt is slim or full
}

// slim is a plain first attempt on a connection that is known to pass options on, and whose balancer says whom it
// picks, so that the peer need not be asked for. It has room for the usual options: grpc.StaticMethod of generated
// code, and ours.
type slim struct {
	attempt
	options [2]grpc.CallOption
}

// full is one on a connection with another balancer.
type full struct {
	attempt
	options [3]grpc.CallOption
	addr    peer.Peer
}

// whole is any other attempt: one that is measured, or not the first, or of a call with timeouts or hedges, or of a
// stream, or on a connection that is not known.
type whole struct {
	attempt
	options [4]grpc.CallOption
	addr    peer.Peer
	more    extra
}

// extra is what slim and full attempts do without.
type extra struct {
	earlier int             // how many attempts there were before
	began   int64           // 0 if it is not measured
	ctx     context.Context // what it is made with, if that is not the room's
	witness witness
	hedge   *hedge             // nil if it is none
	cancel  context.CancelFunc // nil if the attempt has no context of its own
}

// init makes w the attempt that follows so many.
func (w *whole) init(earlier int, began int64) {
	w.peer, w.extra = &w.addr, &w.more
	w.more.earlier, w.more.began = earlier, began
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

// witness sees that grpc ends the attempt, and thereby that the attempt's call options reached it. On a connection
// that is known to pass options on, saw is true from the start.
type witness struct{ saw atomic.Bool }

func (w *witness) finished(error) { w.saw.Store(true) }

// prepare gives the attempt its context and the options that it needs besides opts, which are not changed; own is
// empty, and room for them. proven says that this connection is known to pass options on.
func (a *attempt) prepare(
	ctx context.Context, kind callctx.Kind, tried *callctx.Tried, own, opts []grpc.CallOption, proven bool,
) []grpc.CallOption {
	a.room.Begin(ctx, kind, tried)
	a.trailer = untouched
	own = append(append(own, opts...), grpc.Trailer(&a.trailer))
	if a.peer != nil {
		own = append(own, grpc.Peer(a.peer))
	}
	if proven {
		return own
	}
	return append(own, grpc.OnFinish(a.extra.witness.finished))
}

// number counts from 1.
func (a *attempt) number() int {
	if a.extra == nil {
		return 1
	}
	return a.extra.earlier + 1
}

// context is what the attempt is made with.
func (a *attempt) context() context.Context {
	if a.extra == nil || a.extra.ctx == nil {
		return a.room.Context()
	}
	return a.extra.ctx
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
	ctx := callctx.StartAttempt(a.context(), callctx.Attempt{Number: a.number(), Hedge: a.hedge() != nil})
	if a.extra == nil {
		a.extra = new(extra)
		a.extra.witness.saw.Store(true)
	}
	a.extra.ctx = ctx
}

// over tells whoever watches the call that the attempt has ended.
func (a *attempt) over(err error) {
	e := callctx.Event{Kind: callctx.AttemptEnded, By: "retry", Attempt: a.number(), Err: err}
	if a.peer != nil {
		e.Peer = a.peer.Addr
	}
	callctx.Report(a.context(), e)
}

// safe reports whether it is certain that the attempt, which failed, sent nothing.
func (a *attempt) safe() bool {
	return a.unsent() && (a.extra == nil || a.extra.witness.saw.Load())
}

// proves reports whether the attempt, which succeeded, shows that the connection passes options on.
func (a *attempt) proves() bool {
	return a.extra != nil && a.extra.witness.saw.Load() && !a.unsent()
}

// picked reports whether the balancer said whom it picked.
func (a *attempt) picked() bool { return a.room.Call().Picked() != nil }

// report describes the attempt, which failed with err at now.
func (a *attempt) report(now int64, err error, f failure) Attempt {
	r := Attempt{Code: f.code, Err: err, Hedge: a.hedge() != nil}
	if a.extra != nil && a.extra.began != 0 {
		r.Duration = time.Duration(max(now-a.extra.began, 0))
	}
	if e := a.room.Call().Picked(); e != nil {
		r.Endpoint, r.Instance = e.Addr, e.ID
	} else if !a.unsent() && a.peer != nil && a.peer.Addr != nil {
		r.Endpoint = a.peer.Addr.String()
	}
	return r
}
