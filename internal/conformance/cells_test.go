package conformance

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// The words of the table. A probe finds out which of them is true.
const (
	works   = "works"
	passes  = "passes"  // the call goes through as if the feature were off
	refused = "refused" // the call fails with the reason
)

// word is works or passes.
func word(yes bool) string {
	if yes {
		return works
	}
	return passes
}

// trailers are what a handler's caller is told at the end.
type trailers struct {
	grpc.ServerTransportStream
	md metadata.MD
}

// SetTrailer implements [grpc.ServerTransportStream].
func (s *trailers) SetTrailer(md metadata.MD) error {
	s.md = metadata.Join(s.md, md)
	return nil
}

// probes try the features of the table in docs/wrappers.md, by their names there.
var probes = map[string]func(t *testing.T, policy string, k kind) string{
	"retry: before a request was sent": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{retry: retrying}})
		defer r.close()
		r.does(func(i int, k kind, s grpc.ServerStream) error {
			if r.handled() == 1 {
				_ = grpc.SetTrailer(s.Context(), metadata.Pairs("grpc-retry-pushback-ms", "0"))
				return errDown
			}
			return send(s, "0")
		})
		s, err := r.begin(t.Context(), k, k.plain())
		if err != nil {
			t.Fatal(err)
		}
		if !k.manyRequests() {
			if err := send(s, "request"); err != nil {
				t.Fatal(err)
			}
		}
		_, err = finish(k, s)
		return word(err == nil)
	},
	"retry: after the request": retried,
	"retry: `AttemptTimeout`": func(t *testing.T, policy string, k kind) string {
		return hang(t, policy, k, chain{retry: &retry.Config{Policy: retry.Policy{AttemptTimeout: time.Second, MaxAttempts: 1}}})
	},
	"retry: `Timeout`": func(t *testing.T, policy string, k kind) string {
		return hang(t, policy, k, chain{retry: &retry.Config{Policy: retry.Policy{Timeout: time.Second}}})
	},
	"retry: hedging": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, servers: 2, client: chain{
			retry: &retry.Config{Policy: retry.Policy{Hedge: retry.Hedge{Delay: time.Second}}}}})
		defer r.close()
		r.does(func(i int, k kind, s grpc.ServerStream) error {
			if r.handled() == 1 {
				<-s.Context().Done()
				return s.Context().Err()
			}
			return answer(i, k, s)
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := r.try(ctx, k, k.declared())
		return word(err == nil)
	},
	"retry: another instance": elsewhere,
	"retry: `ChainStop`": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{retry: &retry.Config{Policy: retry.Policy{ChainStop: true}}}})
		defer r.close()
		told := false
		r.does(func(i int, k kind, s grpc.ServerStream) error {
			md, _ := metadata.FromIncomingContext(s.Context())
			told = len(md["evenkeel-answers-retry"]) == 1
			return errDown
		})
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("grpc-previous-rpc-attempts", "1"))
		_, _ = r.try(ctx, k, k.declared())
		return word(told && r.handled() == 1)
	},
	"retry: `ChainStop`, to callers": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{retry: &retry.Config{Policy: retry.Policy{ChainStop: true}}}})
		defer r.close()
		r.does(func(int, kind, grpc.ServerStream) error { return errDown })
		answered := new(trailers)
		ctx := grpc.NewContextWithServerTransportStream(t.Context(), answered)
		_, _ = retry.UnaryServerInterceptor()(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
			_, err := r.try(ctx, k, k.declared())
			return nil, err
		})
		return word(len(answered.md["grpc-retry-pushback-ms"]) == 1)
	},
	"breaker: open": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, balancer: steady,
			client: chain{breaker: &breaker.Config{Policy: breaker.Policy{ConsecutiveFailures: 1}}}})
		defer r.close()
		r.does(func(int, kind, grpc.ServerStream) error { return errDown })
		_, _ = r.try(t.Context(), k, k.plain())
		_, err := r.try(t.Context(), k, k.plain())
		return refusal(err, codes.Unavailable, r.handled() == 1)
	},
	"breaker: `MaxConcurrent`": func(t *testing.T, policy string, k kind) string {
		return crowd(t, policy, k, chain{breaker: &breaker.Config{
			Policy: breaker.Policy{MaxConcurrent: 1, Key: breaker.Target}}}, chain{}, k, codes.Unavailable)
	},
	"breaker: `SlowCall`": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{breaker: &breaker.Config{
			Policy: breaker.Policy{SlowCall: time.Millisecond, SlowRatio: 1, MinCalls: 1}}}})
		defer r.close()
		r.does(func(i int, k kind, s grpc.ServerStream) error {
			pause(time.Second)
			return answer(i, k, s)
		})
		_, _ = r.try(t.Context(), k, k.plain())
		_, err := r.try(t.Context(), k, k.plain())
		return word(err != nil && r.handled() == 1)
	},
	"breaker: `Timeout`": func(t *testing.T, policy string, k kind) string {
		return hang(t, policy, k, chain{breaker: &breaker.Config{Policy: breaker.Policy{Timeout: time.Second}}})
	},
	"breaker: `Fallback`": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{breaker: &breaker.Config{Policy: breaker.Policy{
			Fallback: func(_ context.Context, _ string, _, reply any, _ error) error {
				reply.(*wrapperspb.StringValue).Value = "instead"
				return nil
			}}}}})
		defer r.close()
		r.does(func(int, kind, grpc.ServerStream) error { return errDown })
		got, err := r.try(t.Context(), k, k.plain())
		return word(err == nil && got == "instead")
	},
	"ratelimit: `Rate`": func(t *testing.T, policy string, k kind) string {
		return second(t, policy, k, chain{ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 1, Burst: 1}}}, chain{})
	},
	"ratelimit: `Rate`, on a server": func(t *testing.T, policy string, k kind) string {
		return second(t, policy, k, chain{}, chain{ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 1, Burst: 1}}})
	},
	"ratelimit: `Wait`": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{
			ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 1, Burst: 1, Wait: true}}}})
		defer r.close()
		r.does(answer)
		began := time.Now()
		_, first := r.try(t.Context(), k, k.plain())
		_, err := r.try(t.Context(), k, k.plain())
		return word(first == nil && err == nil && time.Since(began) == time.Second)
	},
	"ratelimit: `MessageCost`": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{
			ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 0.01, Burst: 2, MessageCost: 2}}}})
		defer r.close()
		r.does(answer)
		if !k.manyRequests() {
			_, err := r.try(t.Context(), k, k.plain())
			return refusal(err, codes.ResourceExhausted, true)
		}
		s, err := r.begin(t.Context(), k, k.plain())
		if err != nil {
			t.Fatal(err)
		}
		if err := send(s, "first"); err != nil {
			t.Fatal(err)
		}
		return refusal(send(s, "second"), codes.ResourceExhausted, true)
	},
	"ratelimit: adaptive limit is full": func(t *testing.T, policy string, k kind) string {
		return crowd(t, policy, unary, chain{}, full, k, codes.ResourceExhausted)
	},
	"ratelimit: adaptive limit, takes a place": func(t *testing.T, policy string, k kind) string {
		return word(crowd(t, policy, k, chain{}, full, unary, codes.ResourceExhausted) == refused)
	},
	"trace: span of the call": func(t *testing.T, policy string, k kind) string {
		return word(tags(t, policy, k)["span.kind"] != nil)
	},
	"trace: span of each attempt": func(t *testing.T, policy string, k kind) string {
		return word(tags(t, policy, k)["evenkeel.attempts"] == 1)
	},
	"trace: `peer.address`": func(t *testing.T, policy string, k kind) string {
		return word(tags(t, policy, k)["peer.address"] == "10.0.0.1:1")
	},
	"trace: `evenkeel.instance`": func(t *testing.T, policy string, k kind) string {
		return word(tags(t, policy, k)["evenkeel.instance"] == "i0")
	},
}

// full is a server on which one call at a time is worked on.
var full = chain{ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{
	Adaptive: ratelimit.Adaptive{Enabled: true, Initial: 1, Max: 1}}}}

// refusal is refused if err has the code and what else must hold does, and passes if there is none.
func refusal(err error, code codes.Code, andAlso bool) string {
	switch {
	case err == nil:
		return passes
	case status.Code(err) == code && andAlso:
		return refused
	}
	return "fails: " + describe(err)
}

// retried tries whether a declared method's call is made again after its handler has read the request.
func retried(t *testing.T, policy string, k kind) string {
	r := newRig(t, setup{policy: policy, client: chain{retry: retrying}})
	defer r.close()
	r.does(func(_ int, k kind, s grpc.ServerStream) error {
		if _, err := requests(k, s); err != nil || r.handled() == 1 {
			return errDown
		}
		return send(s, "0")
	})
	_, err := r.try(t.Context(), k, k.declared())
	return word(err == nil)
}

// elsewhere tries whether a retry avoids the instance that failed although it is the next one's turn: another call comes
// between, so that each policy's turn is the dead instance's again.
func elsewhere(t *testing.T, policy string, k kind) string {
	var r *rig
	between := false
	r = newRig(t, setup{policy: policy, balancer: steady, servers: 2, client: chain{retry: &retry.Config{
		Policy: retry.Policy{Idempotent: true, MaxAttempts: 2}, OnRetry: func(retry.Event) {
			if between {
				return
			}
			between = true
			if _, err := r.try(context.Background(), unary, unary.plain()); err != nil {
				t.Errorf("the call between: %v", err)
			}
		}}}})
	defer r.close()
	dead := -1
	r.does(func(i int, k kind, s grpc.ServerStream) error {
		if dead < 0 || i == dead { // the first call finds it
			dead = i
			_ = grpc.SetTrailer(s.Context(), metadata.Pairs("grpc-retry-pushback-ms", "0"))
			return errDown
		}
		return send(s, "0")
	})
	s, err := r.begin(t.Context(), k, k.plain())
	if err != nil {
		t.Fatal(err)
	}
	if !k.manyRequests() {
		if err := send(s, "request"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = finish(k, s)
	if !between {
		t.Error("nothing was retried, so nothing was shown")
	}
	return word(err == nil)
}

// hang tries whether a call that is never answered ends by itself after a second. The caller gives up after a minute.
func hang(t *testing.T, policy string, k kind, client chain) string {
	r := newRig(t, setup{policy: policy, client: client})
	defer r.close()
	r.does(func(_ int, _ kind, s grpc.ServerStream) error {
		<-s.Context().Done()
		return s.Context().Err()
	})
	ctx, cancel := context.WithCancel(t.Context()) // without a deadline, which would take the place of a Timeout
	defer cancel()
	timer := time.AfterFunc(time.Minute, cancel)
	defer timer.Stop()
	began := time.Now()
	_, err := r.try(ctx, k, k.plain())
	switch status.Code(err) {
	case codes.Canceled:
		return passes
	case codes.DeadlineExceeded:
		return word(time.Since(began) == time.Second)
	}
	return "fails: " + describe(err)
}

// crowd tries what becomes of a call of one kind while another is in progress.
func crowd(t *testing.T, policy string, first kind, client, server chain, k kind, code codes.Code) string {
	r := newRig(t, setup{policy: policy, client: client, server: server})
	defer r.close()
	r.does(func(i int, k kind, s grpc.ServerStream) error {
		if r.handled() == 1 {
			<-s.Context().Done()
			return s.Context().Err()
		}
		return answer(i, k, s)
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = r.try(ctx, first, first.plain())
	}()
	defer func() {
		cancel()
		<-ended
	}()
	pause(time.Second)
	_, err := r.try(t.Context(), k, k.plain())
	return refusal(err, code, r.handled() == 1)
}

// second tries what becomes of the second of two calls.
func second(t *testing.T, policy string, k kind, client, server chain) string {
	r := newRig(t, setup{policy: policy, client: client, server: server})
	defer r.close()
	r.does(answer)
	if _, err := r.try(t.Context(), k, k.plain()); err != nil {
		t.Fatal(err)
	}
	_, err := r.try(t.Context(), k, k.plain())
	return refusal(err, codes.ResourceExhausted, r.handled() == 1)
}

// tags are those of the span of a call.
func tags(t *testing.T, policy string, k kind) map[string]any {
	r := newRig(t, setup{policy: policy, client: chain{trace: tracing, retry: retrying}})
	defer r.close()
	r.does(answer)
	if _, err := r.try(t.Context(), k, k.plain()); err != nil {
		t.Fatal(err)
	}
	pause(time.Second) // the end of a stream may come after its last message
	for _, s := range r.client.tracer.FinishedSpans() {
		if s.ParentID == 0 && s.OperationName == k.plain() {
			return s.Tags()
		}
	}
	return nil
}

// TestCells tries each cell of the table in docs/wrappers.md.
func TestCells(t *testing.T) {
	table := readTable(t, "../../docs/wrappers.md")
	probes := allProbes(t)
	for feature := range probes {
		if table[feature] == nil {
			t.Errorf("docs/wrappers.md has no row %q, want one for each probe", feature)
		}
	}
	for feature, cells := range table {
		probe := probes[feature]
		if probe == nil {
			t.Errorf("docs/wrappers.md has the row %q, want a probe for it", feature)
			continue
		}
		for i, policy := range policies {
			for _, k := range kinds {
				t.Run(feature+"/"+policy+"/"+k.String(), func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						if got, want := probe(t, policy, k), cells[4*i+int(k)]; got != want {
							t.Errorf("it %s, and docs/wrappers.md says %s", got, want)
						}
					})
				})
			}
		}
	}
}

// readTable reads the one table of the file that has a cell for each kind under each policy.
func readTable(t *testing.T, file string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const columns = "| feature | unary | server | client | bidi | unary, rr | server, rr | client, rr | bidi, rr |"
	_, after, found := strings.Cut(string(text), columns+"\n")
	if !found {
		t.Fatalf("%s has no table with the head %q", file, columns)
	}
	table := make(map[string][]string)
	for line := range strings.Lines(after) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if strings.HasPrefix(line, "|--") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) != 9 || table[cells[0]] != nil {
			t.Fatalf("%s: line %q, want 9 cells and no feature twice", file, line)
		}
		table[cells[0]] = cells[1:]
	}
	return table
}
