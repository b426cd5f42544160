package trace

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opentracing/opentracing-go/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

func TestStory(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(1000, 0).Add(d) }
	a, b := &callctx.Endpoint{ID: "a"}, &callctx.Endpoint{ID: "b"}
	s := new(story)
	steps := []struct {
		name string
		do   func() bool
		want bool
	}{
		{"a log", func() bool { return s.note(at(1), []log.Field{log.Int("n", 1)}) }, true},
		{"an attempt", func() bool { return s.attempt(1) }, true},
		{"a hedge", func() bool { return s.attempt(3) }, true},
		{"an attempt whose number comes late", func() bool { return s.attempt(2) }, true},
		{"the clock goes backwards", func() bool { return s.note(at(-time.Hour), []log.Field{log.Int("n", 2)}) }, true},
		{"the first fails", func() bool { s.attemptEnded(a, false); return true }, true},
		{"the second answers", func() bool { s.attemptEnded(b, true); return true }, true},
		{"the first again", func() bool { s.attemptEnded(a, true); return true }, true},
		{"the end", func() bool {
			e, first := s.end()
			if len(e.logs) != 2 || e.attempts != 3 || e.endpoint != b || e.dropped != 0 ||
				!e.logs[0].Timestamp.Equal(at(1)) || !e.logs[1].Timestamp.Equal(at(-time.Hour)) {
				t.Errorf("end: %+v, want 2 logs as they came, 3 attempts and endpoint b", e)
			}
			return first
		}, true},
		{"a second end", func() bool { _, first := s.end(); return first }, false},
		{"a log after the end", func() bool { return s.note(at(2), nil) }, false},
		{"an attempt after the end", func() bool { return s.attempt(4) }, false},
	}
	for _, step := range steps {
		if got := step.do(); got != step.want {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}

func TestEventFields(t *testing.T) {
	e := callctx.Event{Kind: callctx.BreakerRefused, By: "breaker", Attempt: 2, Delay: 1500 * time.Millisecond,
		Endpoint: &callctx.Endpoint{ID: "orders-1", Addr: "10.0.0.1:80"}, Err: errors.New(strings.Repeat("x", 5000)),
		Detail: "/a/B", DryRun: true}
	got := make(map[string]string)
	for _, f := range eventFields(e) {
		got[f.Key()] = strings.TrimSpace(f.String()[len(f.Key())+1:])
	}
	if n := len(got["message"]); n != maxText+3 {
		t.Errorf("a message of %d bytes, want %d", n, maxText+3)
	}
	delete(got, "message")
	want := map[string]string{"event": "breaker_refused", "by": "breaker", "attempt": "2", "delay": "1.5s",
		"endpoint": "orders-1", "detail": "/a/B", "dry_run": "true"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %q, want %q", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("fields %v, want %v", got, want)
	}
}

// A span shows what breakers, limiters and others decided, and what they would have without DryRun.
func TestEveryDecisionIsShown(t *testing.T) {
	for kind := callctx.Retry; kind <= callctx.Returned; kind++ {
		for _, dry := range []bool{false, true} {
			tracing, tracer := newTracing(t, Config{})
			_ = tracing.unaryClient(t.Context(), full("Unary"), nil, nil, nil,
				func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
					callctx.Report(ctx, callctx.Event{Kind: kind, By: "breaker", Detail: "orders open", DryRun: dry})
					return nil
				})
			want := kind.String() + " by=breaker detail=orders open"
			if dry {
				want += " dry_run=true"
			}
			if got := logs(tracer.FinishedSpans()[0]); len(got) != 1 || got[0] != want {
				t.Errorf("logs %q, want %q", got, want)
			}
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"", 0, ""}, {"abc", 3, "abc"}, {"abcd", 3, "abc..."}, {"aü", 2, "a..."}, {"aü", 3, "aü"}, {"日本", 4, "日..."},
		{"日", 1, "..."}, {"\x80\x80\x80", 2, "..."}, {"a\xffb", 3, "a\uFFFDb"}, {"a\xffbc", 3, "a\uFFFDb..."},
	} {
		if got := cut(c.in, c.n); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
		if !utf8.ValidString(cut(c.in, c.n)) {
			t.Errorf("cut(%q, %d) is not made of characters", c.in, c.n)
		}
	}
}

// The names are those by which codes read themselves from JSON.
func TestCodeNames(t *testing.T) {
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		var back codes.Code
		if err := back.UnmarshalJSON([]byte(`"` + codeName(c) + `"`)); err != nil || back != c {
			t.Errorf("%v is called %q, which means %v (%v)", c, codeName(c), back, err)
		}
	}
	if got := codeName(17); got != "Code(17)" {
		t.Errorf("an unknown code is called %q, want Code(17)", got)
	}
}

func TestSideNames(t *testing.T) {
	if Client.String() != "client" || Server.String() != "server" || Side(9).String() != "side(9)" {
		t.Errorf("%v %v %v, want client server side(9)", Client, Server, Side(9))
	}
}
