package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// row is one line of the table of semantics.
type row struct {
	name   string
	method string // empty means the kind's own
	opts   []grpc.CallOption
	// context makes the caller's context; nil means one that does not end.
	context func(context.Context) (context.Context, context.CancelFunc)
	// call is what the caller does; nil means the usual exchange of three messages.
	call func(c *caller)
	// serve is what the handler does.
	serve func(o *outcome, k kind, s grpc.ServerStream) error
	// only are the kinds that it is about; nil means all.
	only []kind
	// code is what the call ends with, and lines are some of what is seen, without wrappers.
	code  codes.Code
	lines []string
}

// check compares what is seen without wrappers with what the row says.
func (r row) check(t *testing.T, k kind, o *outcome) {
	t.Helper()
	got := o.String()
	wants := append([]string{"end " + r.code.String()}, r.lines...)
	if r.code == codes.OK && k.manyReplies() {
		wants[0] = "end EOF"
	}
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("%v, %s, without wrappers: want %q in\n%s", k, r.name, want, got)
		}
	}
}

// echo answers with all that it got, in one message, or in three if many may go.
func echo(o *outcome, k kind, s grpc.ServerStream) error {
	texts, err := requests(k, s)
	if err != nil {
		o.served("RecvMsg: %s", describe(err))
		return err
	}
	for _, text := range texts {
		o.served("request %s", digest(text))
	}
	all := strings.Join(texts, " ")
	if !k.manyReplies() {
		return send(s, all)
	}
	for i := range 3 {
		if err := send(s, fmt.Sprint(all, " ", i)); err != nil {
			return err
		}
	}
	return nil
}

var (
	someHeader  = metadata.Pairs("h", "1", "h", "2", "h-bin", "\x00\xff", "empty", "")
	someTrailer = metadata.Pairs("t", "1", "t", "2", "t-bin", "\xfe\x00")
)

// annotated sends header and trailer around next.
func annotated(next func(*outcome, kind, grpc.ServerStream) error) func(*outcome, kind, grpc.ServerStream) error {
	return func(o *outcome, k kind, s grpc.ServerStream) error {
		if err := grpc.SetHeader(s.Context(), someHeader.Copy()); err != nil {
			return err
		}
		if err := grpc.SetTrailer(s.Context(), someTrailer.Copy()); err != nil {
			return err
		}
		return next(o, k, s)
	}
}

// fails ends with err, having read nothing but what gRPC has.
func fails(err error) func(*outcome, kind, grpc.ServerStream) error {
	return func(*outcome, kind, grpc.ServerStream) error { return err }
}

// waits answers only when the context of the handler has ended.
func waits(o *outcome, _ kind, s grpc.ServerStream) error {
	<-s.Context().Done()
	o.served("context ended: %v", s.Context().Err())
	return s.Context().Err()
}

// rowsOf is the table for one kind.
func rowsOf(k kind) (rows []row) {
	all := append(basicRows(), statusRows()...)
	all = append(append(all, endRows()...), streamRows()...)
	for _, r := range all {
		if r.only == nil {
			rows = append(rows, r)
		}
		for _, o := range r.only {
			if o == k {
				rows = append(rows, r)
			}
		}
	}
	return rows
}

func basicRows() []row {
	large := strings.Repeat("0123456789abcdef", 5<<10) // 80 KiB: more than a window of HTTP/2
	sendLarge := func(c *caller) { c.exchange(large) }
	withMD := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return metadata.AppendToOutgoingContext(ctx, "k", "1", "k", "2", "other", "x y", "bytes-bin", "\x00\x01\xff"), func() {}
	}
	return []row{
		{name: "echo", serve: echo, lines: []string{"handlers 1", "peer 10.0.0.1:1", "Bearer 42", `OnFinish ["OK`}},
		{name: "header and trailer", serve: annotated(echo), lines: []string{
			`header content-type=["application/grpc"] empty=[""] h=["1" "2"] h-bin=["\x00\xff"]`,
			`trailer t=["1" "2"] t-bin=["\xfe\x00"]`}},
		{name: "metadata", context: withMD, serve: echo, lines: []string{
			`bytes-bin=["\x00\x01\xff"]`, `k=["1" "2"]`, `other=["x y"]`}},
		{name: "large messages", call: sendLarge, serve: echo, lines: []string{"81920 bytes"}},
		{name: "reply too large", call: sendLarge, serve: echo, opts: []grpc.CallOption{grpc.MaxCallRecvMsgSize(1 << 16)},
			code: codes.ResourceExhausted, lines: []string{"handlers 1"}},
		{name: "empty messages", call: func(c *caller) { c.exchange("", "") }, serve: echo},
		{name: "compression", serve: echo, opts: []grpc.CallOption{grpc.UseCompressor(gzip.Name)},
			lines: []string{`request's compression "gzip"`, `reply's compression "gzip"`}},
		{name: "large and compressed", call: sendLarge, serve: echo, opts: []grpc.CallOption{grpc.UseCompressor(gzip.Name)}},
		{name: "unknown compressor", serve: echo, opts: []grpc.CallOption{grpc.UseCompressor("none-such")},
			code: codes.Internal, lines: []string{"handlers 0"}},
		{name: "wait for ready", serve: echo, opts: []grpc.CallOption{grpc.WaitForReady(true)}},
		{name: "content subtype", serve: echo, opts: []grpc.CallOption{grpc.CallContentSubtype("proto")},
			lines: []string{`content-type=["application/grpc+proto"]`}},
		{name: "unknown method", method: "/" + plainService + "/None", serve: echo, code: codes.Unimplemented,
			lines: []string{"handlers 0"}},
		{name: "unknown service", method: "/none.Such/None", serve: echo, code: codes.Unimplemented},
	}
}

// detailed is a status with everything that one can have.
func detailed(c codes.Code) error {
	s, err := status.New(c, "text of "+c.String()+", naïve ☃").WithDetails(
		&errdetails.ErrorInfo{Reason: "BECAUSE", Domain: "example.com", Metadata: map[string]string{"k": "v"}},
		&errdetails.Help{Links: []*errdetails.Help_Link{{Description: "manual", Url: "https://example.com"}}})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// statusRows are all codes, with and without details, header and trailer.
func statusRows() (rows []row) {
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		rows = append(rows, row{name: c.String(), code: c, serve: annotated(fails(detailed(c))),
			lines: []string{"ErrorInfo", `h=["1" "2"]`, `t=["1" "2"]`, "handlers 1"}})
	}
	return append(rows,
		row{name: "a code that does not exist", serve: fails(status.Error(99, "odd")), code: 99},
		row{name: "no details, header or trailer", serve: fails(status.Error(codes.Unavailable, "no")),
			code: codes.Unavailable, lines: []string{"handlers 1"}},
		row{name: "a plain error", serve: fails(errors.New("plain")), code: codes.Unknown, lines: []string{`"plain"`}},
		row{name: "a context's error", serve: fails(context.DeadlineExceeded), code: codes.DeadlineExceeded},
		row{name: "a failure after a reply", code: codes.Aborted, only: []kind{serverStream, bidiStream},
			serve: func(o *outcome, k kind, s grpc.ServerStream) error {
				if err := echo(o, k, s); err != nil {
					return err
				}
				return status.Error(codes.Aborted, "after all")
			}, lines: []string{`reply`}},
	)
}

// endRows are calls that the caller ends.
func endRows() []row {
	// On the wire this is rounded up to 150.001 ms, so that the caller's clock strikes before the handler's and what
	// follows has one order.
	const d = 150*time.Millisecond + 1
	within := func(d time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
		return func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) }
	}
	return []row{
		{name: "deadline", context: within(d), serve: waits, code: codes.DeadlineExceeded,
			lines: []string{"deadline in 150.001ms", "after 150.000001ms", "context ended: context canceled", "handlers 1"}},
		{name: "deadline that is met", context: within(time.Minute), serve: echo, lines: []string{"deadline in 1m0s"}},
		{name: "deadline that has passed", context: within(-time.Second), serve: echo, code: codes.DeadlineExceeded,
			lines: []string{"handlers 0"}},
		{name: "cancelled before", context: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		}, serve: echo, code: codes.Canceled, lines: []string{"handlers 0"}},
		{name: "cancelled after a while", call: func(c *caller) {
			timer := time.AfterFunc(d, c.cancel)
			defer timer.Stop()
			c.exchange("one")
		}, serve: waits, code: codes.Canceled, lines: []string{"after 150.000001ms", "context ended: context canceled"}},
		{name: "deadline after a reply", context: within(d), only: []kind{serverStream, bidiStream},
			serve: func(o *outcome, k kind, s grpc.ServerStream) error {
				if err := echo(o, k, s); err != nil {
					return err
				}
				return waits(o, k, s)
			}, code: codes.DeadlineExceeded, lines: []string{"after 150.000001ms", "reply"}},
	}
}

var streams = []kind{serverStream, clientStream, bidiStream}

// streamRows are the finer points of streams.
func streamRows() []row {
	return []row{
		{name: "header before any reply", only: streams, serve: func(o *outcome, k kind, s grpc.ServerStream) error {
			if err := s.SendHeader(someHeader.Copy()); err != nil {
				return err
			}
			return echo(o, k, s)
		}, call: func(c *caller) {
			s := c.open()
			if !c.k.manyRequests() {
				c.note("SendMsg", send(s, "one"), s.CloseSend())
			}
			md, err := s.Header()
			c.said("early header %s, %s", listed(md), describe(err))
			if c.k.manyRequests() {
				c.note("SendMsg", send(s, "one"), s.CloseSend())
			}
			c.drain(s)
		}, lines: []string{`early header content-type=["application/grpc"] empty`}},
		{name: "the stream's context", only: streams, serve: echo, call: func(c *caller) {
			s := c.open()
			p, ok := peer.FromContext(s.Context())
			c.said("peer of the context: %v", ok && p.Addr != nil)
			c.note("SendMsg", send(s, "one"), s.CloseSend())
			c.drain(s)
		}, lines: []string{"peer of the context"}},
		{name: "receiving after the end", only: streams, serve: fails(status.Error(codes.Aborted, "no")),
			code: codes.Aborted, call: func(c *caller) {
				s := c.open()
				_, err := receive(s)
				_, again := receive(s)
				c.said("again %s", describe(again))
				c.endStream(s, err)
			}},
		{name: "sending after the server's end", only: []kind{clientStream, bidiStream}, code: codes.FailedPrecondition,
			serve: fails(status.Error(codes.FailedPrecondition, "enough")), call: func(c *caller) {
				s := c.open()
				var err error
				for err == nil {
					err = send(s, "more")
					synctest.Wait()
				}
				c.said("SendMsg: %s", describe(err))
				c.drain(s)
			}, lines: []string{"SendMsg: EOF"}},
		{name: "no request at all", only: []kind{clientStream, bidiStream}, serve: echo, call: func(c *caller) {
			s := c.open()
			c.note("CloseSend", s.CloseSend(), s.CloseSend())
			c.drain(s)
		}},
		{name: "by turns", only: []kind{bidiStream}, serve: answerEach, call: func(c *caller) {
			s := c.open()
			for i := range 10 {
				c.note("SendMsg", send(s, fmt.Sprint("message ", i)))
				text, err := receive(s)
				c.said("reply %q, %s", text, describe(err))
			}
			c.note("CloseSend", s.CloseSend())
			c.drain(s)
		}, lines: []string{`reply "message 9"`}},
		{name: "both ways at once", only: []kind{bidiStream}, serve: answerEach, call: func(c *caller) {
			s := c.open()
			sent := make(chan error, 1)
			go func() {
				var err error
				for i := 0; i < 100 && err == nil; i++ {
					err = send(s, fmt.Sprint("message ", i))
				}
				sent <- errors.Join(err, s.CloseSend())
			}()
			c.drain(s)
			c.note("SendMsg", <-sent)
		}, lines: []string{`reply "message 99"`}},
		{name: "cancelled after a reply", only: []kind{bidiStream}, code: codes.Canceled,
			serve: func(o *outcome, k kind, s grpc.ServerStream) error {
				text, err := receive(s)
				if err != nil {
					return err
				}
				if err := send(s, text); err != nil {
					return err
				}
				return waits(o, k, s)
			}, call: func(c *caller) {
				s := c.open()
				c.note("SendMsg", send(s, "one"))
				text, err := receive(s)
				c.said("reply %q, %s", text, describe(err))
				c.cancel()
				c.drain(s)
			}, lines: []string{"context ended: context canceled"}},
	}
}

// note writes down what sending returned.
func (c *caller) note(what string, errs ...error) {
	for _, err := range errs {
		c.said("%s: %s", what, describe(err))
	}
}

// answerEach answers each message before it reads the next.
func answerEach(_ *outcome, _ kind, s grpc.ServerStream) error {
	for {
		text, err := receive(s)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(s, text); err != nil {
			return err
		}
	}
}
