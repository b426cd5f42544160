package callctx

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// script notes what it hears; attempts get an Observer of their own.
type script struct {
	heard    []Event
	attempts []*script
	numbers  []Attempt
}

func (s *script) Attempt(ctx context.Context, a Attempt) context.Context {
	child := new(script)
	s.attempts, s.numbers = append(s.attempts, child), append(s.numbers, a)
	rec := Copy(ctx)
	rec.Observer = child
	return With(ctx, rec)
}

func (s *script) Event(e Event) { s.heard = append(s.heard, e) }

func TestObserverHearsCallAndAttempts(t *testing.T) {
	top, failure := new(script), errors.New("gone")
	ctx := With(t.Context(), Record{HashKey: "k", HasHashKey: true, Observer: top})

	actx, call := Begin(ctx, Unary, nil)
	actx = StartAttempt(actx, Attempt{Number: 1})
	if From(actx).Call != call || From(actx).HashKey != "k" {
		t.Errorf("the attempt's context lost the record, want call and hash key to stay")
	}
	Report(actx, Event{Kind: BreakerRefused, By: "breaker"})
	EndAttempt(actx, failure)
	Report(ctx, Event{Kind: Retry, Attempt: 2, Err: failure})

	if want := []Event{{Kind: Retry, Attempt: 2, Err: failure}}; !slices.Equal(top.heard, want) {
		t.Errorf("the call's observer heard %v, want %v", top.heard, want)
	}
	if want := []Attempt{{Number: 1}}; !slices.Equal(top.numbers, want) {
		t.Fatalf("attempts %v, want %v", top.numbers, want)
	}
	want := []Event{{Kind: BreakerRefused, By: "breaker"}, {Kind: AttemptEnded, Err: failure}}
	if got := top.attempts[0].heard; !slices.Equal(got, want) {
		t.Errorf("the attempt's observer heard %v, want %v", got, want)
	}
}

func TestNobodyListens(t *testing.T) {
	for name, ctx := range map[string]context.Context{
		"no record":   context.Background(),
		"no observer": With(context.Background(), Record{HashKey: "k"}),
	} {
		if got := StartAttempt(ctx, Attempt{Number: 1}); got != ctx {
			t.Errorf("%s: StartAttempt made a context, want the one it got", name)
		}
		if n := testing.AllocsPerRun(100, func() {
			actx := StartAttempt(ctx, Attempt{Number: 1})
			Report(actx, Event{Kind: Retry, By: "retry", Attempt: 1, Detail: "x"})
			EndAttempt(actx, context.Canceled)
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

func TestEventKindNames(t *testing.T) {
	seen := make(map[string]bool)
	for k := AttemptEnded; k <= Returned; k++ {
		if s := k.String(); s == "" || s[0] == 'k' && k != Kept || seen[s] {
			t.Errorf("kind %d is called %q, want a name of its own", uint8(k), s)
		}
		seen[k.String()] = true
	}
	if got := EventKind(0).String(); got != "kind(0)" {
		t.Errorf("the zero kind is called %q, want kind(0)", got)
	}
	if got := EventKind(200).String(); got != "kind(200)" {
		t.Errorf("an unknown kind is called %q, want kind(200)", got)
	}
}
