package conformance

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// outcome is what a caller and a handler saw of one call, a line for each thing. Two outcomes that are equal cannot be
// told apart by either.
type outcome struct {
	mu              sync.Mutex
	caller, handler []string
}

func (o *outcome) said(format string, args ...any)   { o.add(&o.caller, format, args...) }
func (o *outcome) served(format string, args ...any) { o.add(&o.handler, format, args...) }

func (o *outcome) add(to *[]string, format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	*to = append(*to, fmt.Sprintf(format, args...))
}

// String is all lines, the caller's first.
func (o *outcome) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return "caller: " + strings.Join(o.caller, "\ncaller: ") + "\nhandler: " + strings.Join(o.handler, "\nhandler: ")
}

// caller makes one call and writes down what it sees.
type caller struct {
	*outcome
	k      kind
	conn   *grpc.ClientConn
	method string
	ctx    context.Context
	cancel context.CancelFunc
	opts   []grpc.CallOption

	header, trailer metadata.MD
	peer            peer.Peer
	began           time.Time
	ends            []string // what grpc.OnFinish was told
	seen            observation
}

// start prepares a call of r.
func (r *rig) start(ctx context.Context, k kind, o *outcome) *caller {
	c := &caller{outcome: o, k: k, conn: r.conn, method: k.plain(), began: time.Now()}
	c.ctx, c.cancel = context.WithCancel(observe(ctx, &c.seen))
	c.opts = []grpc.CallOption{grpc.Header(&c.header), grpc.Trailer(&c.trailer), grpc.Peer(&c.peer),
		grpc.OnFinish(func(err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.ends = append(c.ends, describe(err))
		})}
	return c
}

// describe is an error as a gRPC caller sees it.
func describe(err error) string {
	if err == io.EOF {
		return "EOF"
	}
	st, ok := status.FromError(err)
	text := fmt.Sprintf("%v %q", st.Code(), st.Message())
	if !ok {
		text += " (no status)"
	}
	for _, d := range st.Proto().GetDetails() {
		text += fmt.Sprintf(" %s=%x", d.GetTypeUrl(), d.GetValue())
	}
	return text
}

// digest is a message, shortened if it is long.
func digest(text string) string {
	if len(text) <= 100 {
		return fmt.Sprintf("%q", text)
	}
	return fmt.Sprintf("%d bytes, %x", len(text), sha256.Sum256([]byte(text)))
}

// listed is metadata as text, in one order. Keys that begin with one of skip are left out.
func listed(md metadata.MD, skip ...string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(md)) {
		if !slices.ContainsFunc(skip, func(s string) bool { return strings.HasPrefix(key, s) }) {
			fmt.Fprintf(&b, "%s=%q ", key, md[key])
		}
	}
	return b.String()
}

// exchange makes a call in the usual way: it sends the requests, the first only if the kind has one, and receives until
// the end.
func (c *caller) exchange(requests ...string) {
	if c.k == unary {
		out := new(wrapperspb.StringValue)
		err := c.conn.Invoke(c.ctx, c.method, wrapperspb.String(requests[0]), out, c.opts...)
		if err == nil {
			c.said("reply %s", digest(out.GetValue()))
		}
		c.end(err)
		return
	}
	s := c.open()
	if s == nil {
		return
	}
	if !c.k.manyRequests() {
		requests = requests[:1]
	}
	for _, text := range requests {
		// io.EOF says that the stream has ended; whether it comes here or only in RecvMsg is a matter of luck.
		if err := s.SendMsg(wrapperspb.String(text)); err != nil {
			if err != io.EOF {
				c.said("SendMsg: %s", describe(err))
			}
			break
		}
	}
	if err := s.CloseSend(); err != nil {
		c.said("CloseSend: %s", describe(err))
	}
	c.drain(s)
}

// open opens the stream, or ends the call.
func (c *caller) open() grpc.ClientStream {
	s, err := c.conn.NewStream(c.ctx, c.k.desc(), c.method, c.opts...)
	if err != nil {
		c.end(err)
		return nil
	}
	return s
}

// drain receives until the end.
func (c *caller) drain(s grpc.ClientStream) {
	for {
		text, err := receive(s)
		if err == nil {
			c.said("reply %s", digest(text))
			if c.k.manyReplies() {
				continue
			}
		}
		c.endStream(s, err)
		return
	}
}

func (c *caller) endStream(s grpc.ClientStream, err error) {
	header, headerErr := s.Header()
	c.said("stream's header %s, %s", listed(header), describe(headerErr))
	c.said("stream's trailer %s", listed(s.Trailer()))
	c.end(err)
}

// end writes down how the call ended.
func (c *caller) end(err error) {
	c.said("end %s", describe(err))
	c.said("after %v", time.Since(c.began))
	synctest.Wait() // for OnFinish and for the handler
	c.said("header %s", listed(c.header))
	c.said("trailer %s", listed(c.trailer))
	c.said("peer %v", c.peer.Addr)
	if e := c.seen.reply.Load(); e != nil {
		c.said("reply's compression %q", *e)
	}
	c.mu.Lock()
	ends := c.ends
	c.mu.Unlock()
	c.said("OnFinish %q", ends)
	c.cancel()
	synctest.Wait()
}

// receive receives one message, at the caller or at the handler.
func receive(s interface{ RecvMsg(any) error }) (string, error) {
	m := new(wrapperspb.StringValue)
	err := s.RecvMsg(m)
	return m.GetValue(), err
}

// send sends one.
func send(s interface{ SendMsg(any) error }, text string) error {
	return s.SendMsg(wrapperspb.String(text))
}

// requests receives all there is from the caller.
func requests(k kind, s grpc.ServerStream) (texts []string, err error) {
	for {
		text, err := receive(s)
		if err == io.EOF {
			return texts, nil
		}
		if err != nil {
			return texts, err
		}
		texts = append(texts, text)
		if !k.manyRequests() {
			return texts, nil
		}
	}
}
