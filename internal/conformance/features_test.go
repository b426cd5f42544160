package conformance

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/opentracing/opentracing-go/mocktracer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// Probes of what one call has different, of dry runs, and of servers; see probes.
var moreProbes = map[string]func(t *testing.T, policy string, k kind) string{
	"retry: a server's pushback": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{retry: retrying}})
		defer r.close()
		r.does(func(i int, k kind, s grpc.ServerStream) error {
			if _, err := requests(k, s); err != nil || r.handled() == 1 {
				again(s)
				return errDown
			}
			return send(s, "0")
		})
		_, err := r.try(t.Context(), k, k.plain())
		return word(err == nil)
	},
	"retry: `Budget`": func(t *testing.T, policy string, k kind) string {
		none, err := retry.NewBudget(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		r := failing(t, policy, &retry.Config{Policy: retry.Policy{Budget: none}})
		defer r.close()
		return word(status.Code(r.unsent(k)) == codes.Unavailable && r.handled() == 1)
	},
	"retry: handlers see the attempt's number": func(t *testing.T, policy string, k kind) string {
		var seen []string
		r := failing(t, policy, retrying)
		defer r.close()
		r.does(func(_ int, _ kind, s grpc.ServerStream) error {
			md, _ := metadata.FromIncomingContext(s.Context())
			seen = append(seen, append(md["grpc-previous-rpc-attempts"], "-")[0])
			again(s)
			return errDown
		})
		_ = r.unsent(k)
		return word(slices.Equal(seen, []string{"-", "1", "2"}))
	},
	"retry: the error says what was tried": func(t *testing.T, policy string, k kind) string {
		r := failing(t, policy, retrying)
		defer r.close()
		err := r.unsent(k)
		var tried *retry.Error
		return word(errors.As(err, &tried) && len(tried.Attempts) == 3 && status.Code(err) == codes.Unavailable)
	},
	"retry: `WithPolicy`": func(t *testing.T, policy string, k kind) string {
		r := failing(t, policy, retrying)
		defer r.close()
		err := r.unsent(k, retry.WithPolicy(retry.Policy{MaxAttempts: 2}))
		return word(status.Code(err) == codes.Unavailable && r.handled() == 2)
	},
	"retry: `DryRun`": func(t *testing.T, policy string, k kind) string {
		told := 0
		r := failing(t, policy, &retry.Config{Policy: retry.Policy{DryRun: true}, OnRetry: func(e retry.Event) {
			if e.DryRun {
				told++
			}
		}})
		defer r.close()
		return word(status.Code(r.unsent(k)) == codes.Unavailable && r.handled() == 1 && told == 1)
	},
	"breaker: open, on a server": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, balancer: steady,
			server: chain{breaker: &breaker.Config{Policy: breaker.Policy{ConsecutiveFailures: 1}}}})
		defer r.close()
		r.does(func(int, kind, grpc.ServerStream) error { return errDown })
		_, _ = r.try(t.Context(), k, k.plain())
		_, err := r.try(t.Context(), k, k.plain())
		return refusal(err, codes.Unavailable, r.handled() == 1)
	},
	"breaker: `MaxConcurrent`, on a server": func(t *testing.T, policy string, k kind) string {
		return crowd(t, policy, k, chain{}, chain{breaker: &breaker.Config{
			Policy: breaker.Policy{MaxConcurrent: 1, Key: breaker.Target}}}, k, codes.Unavailable)
	},
	"breaker: `Bypass`": func(t *testing.T, policy string, k kind) string {
		return word(opened(t, policy, k, breaker.Policy{}, breaker.Bypass()) == passes)
	},
	"breaker: `WithKey`": func(t *testing.T, policy string, k kind) string {
		return word(opened(t, policy, k, breaker.Policy{}, breaker.WithKey("another")) == passes)
	},
	"breaker: `WithOverride`": func(t *testing.T, policy string, k kind) string {
		return word(opened(t, policy, k, breaker.Policy{}, breaker.WithOverride(breaker.Override{DryRun: true})) == passes)
	},
	"breaker: `DryRun`": func(t *testing.T, policy string, k kind) string {
		return word(opened(t, policy, k, breaker.Policy{DryRun: true}) == passes)
	},
	"ratelimit: `Wait`, on a server": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, server: chain{
			ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 1, Burst: 1, Wait: true}}}})
		defer r.close()
		r.does(answer)
		began := time.Now()
		_, first := r.try(t.Context(), k, k.plain())
		_, err := r.try(t.Context(), k, k.plain())
		return word(first == nil && err == nil && time.Since(began) == time.Second)
	},
	"ratelimit: `MessageCost`, on a server": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, server: chain{
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
		if err := errors.Join(send(s, "first"), send(s, "second"), s.CloseSend()); err != nil {
			t.Fatal(err)
		}
		_, err = finish(k, s)
		return refusal(err, codes.ResourceExhausted, true)
	},
	"ratelimit: too late for the deadline": tooLate,
	"ratelimit: `WithCost`": func(t *testing.T, policy string, k kind) string {
		return word(spent(t, policy, k, false, ratelimit.WithCost(0)) == passes)
	},
	"ratelimit: `Bypass`": func(t *testing.T, policy string, k kind) string {
		return word(spent(t, policy, k, false, ratelimit.Bypass()) == passes)
	},
	"ratelimit: `DryRun`": func(t *testing.T, policy string, k kind) string {
		return word(spent(t, policy, k, true) == passes)
	},
	"trace: span of the handler": func(t *testing.T, policy string, k kind) string {
		client, server := spans(t, policy, k, trace.Policy{})
		return word(len(client) == 1 && len(server) == 1 && server[0].ParentID == client[0].SpanContext.SpanID &&
			server[0].SpanContext.TraceID == client[0].SpanContext.TraceID)
	},
	"trace: `Payloads`": func(t *testing.T, policy string, k kind) string {
		client, server := spans(t, policy, k, trace.Policy{Payloads: true})
		return word(len(client) == 1 && len(server) == 1 && logged(client[0], `"request"`) && logged(server[0], `"request"`))
	},
	"trace: `WithPolicy`": func(t *testing.T, policy string, k kind) string {
		client, server := spans(t, policy, k, trace.Policy{}, trace.WithPolicy(trace.Policy{Disabled: true}))
		return word(len(client) == 0 && len(server) == 1 && server[0].ParentID == 0)
	},
	"trace: what the others decided": func(t *testing.T, policy string, k kind) string {
		r := newRig(t, setup{policy: policy, client: chain{trace: tracing,
			ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 0.01, Burst: 1}}}})
		defer r.close()
		r.does(answer)
		_, _ = r.try(t.Context(), k, k.plain())
		_, err := r.try(t.Context(), k, k.plain())
		pause(time.Second)
		ended := r.client.tracer.FinishedSpans()
		return word(err != nil && len(ended) == 2 && !logged(ended[0], "limited") && logged(ended[1], "limited"))
	},
	"all: health checks and reflection are exempt": func(t *testing.T, policy string, k kind) string {
		strict := chain{trace: tracing, retry: retrying,
			ratelimit: &ratelimit.Config{Policy: ratelimit.Policy{Rate: 0.01, Burst: 1}},
			breaker:   &breaker.Config{Policy: breaker.Policy{MaxConcurrent: 1, ConsecutiveFailures: 1}}}
		r := newRig(t, setup{policy: policy, client: strict, server: strict})
		defer r.close()
		for range 3 { // that the server has neither is the most one may see
			for _, service := range []string{"/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"} {
				if _, err := r.try(t.Context(), k, service+k.String()); status.Code(err) != codes.Unimplemented {
					return passes
				}
			}
		}
		return word(len(r.client.tracer.FinishedSpans())+len(r.server.tracer.FinishedSpans()) == 0 &&
			len(r.client.breakers.State().Breakers) == 0)
	},
}

// again has a handler ask for its call to be sent again at once.
func again(s grpc.ServerStream) {
	_ = grpc.SetTrailer(s.Context(), metadata.Pairs("grpc-retry-pushback-ms", "0"))
}

// failing is a rig whose handlers read nothing, fail, and ask for the call to be sent again.
func failing(t *testing.T, policy string, c *retry.Config) *rig {
	r := newRig(t, setup{policy: policy, balancer: steady, client: chain{retry: c}})
	r.does(func(_ int, _ kind, s grpc.ServerStream) error {
		again(s)
		return errDown
	})
	return r
}

// unsent makes a call of which, if it may have many requests, none is sent. It returns how it ends.
func (r *rig) unsent(k kind, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	s, err := r.begin(ctx, k, k.plain(), opts...)
	if err == nil && !k.manyRequests() {
		if err = send(s, "request"); err == nil {
			err = s.CloseSend()
		}
	}
	if err == nil {
		_, err = finish(k, s)
	}
	return err
}

// opened tries what becomes of a call with these options after one without has failed, which opens the breaker; a third
// one, again without, shows that it is open, unless p is a dry run.
func opened(t *testing.T, policy string, k kind, p breaker.Policy, opts ...grpc.CallOption) string {
	p.ConsecutiveFailures, p.OpenFor = 1, time.Hour
	r := newRig(t, setup{policy: policy, balancer: steady, client: chain{breaker: &breaker.Config{Policy: p}}})
	defer r.close()
	r.does(func(i int, k kind, s grpc.ServerStream) error {
		if r.handled() == 1 {
			return errDown
		}
		return answer(i, k, s)
	})
	_, _ = r.try(t.Context(), k, k.plain())
	_, err := r.try(t.Context(), k, k.plain(), opts...)
	_, third := r.try(t.Context(), k, k.plain())
	if (third == nil) != p.DryRun {
		t.Errorf("the call without options: %v, so that nothing is shown", third)
	}
	return refusal(err, codes.Unavailable, r.handled() == 1)
}

// spent tries what becomes of a call with these options after one without has taken the only token.
func spent(t *testing.T, policy string, k kind, dry bool, opts ...grpc.CallOption) string {
	r := newRig(t, setup{policy: policy, client: chain{ratelimit: &ratelimit.Config{
		Policy: ratelimit.Policy{Rate: 0.001, Burst: 1}, DryRun: dry}}})
	defer r.close()
	r.does(answer)
	_, _ = r.try(t.Context(), k, k.plain())
	_, err := r.try(t.Context(), k, k.plain(), opts...)
	_, third := r.try(t.Context(), k, k.plain())
	if (third == nil) != dry || dry && r.client.limiter.State().Scopes[0].Refused.Rate != 2 {
		t.Errorf("the call without options: %v, so that nothing is shown", third)
	}
	return refusal(err, codes.ResourceExhausted, r.handled() == 1)
}

// tooLate tries what becomes of a call that has half of the time that such calls take, while another is in progress.
func tooLate(t *testing.T, policy string, k kind) string {
	r := newRig(t, setup{policy: policy, balancer: steady, server: chain{ratelimit: &ratelimit.Config{
		Policy: ratelimit.Policy{Adaptive: ratelimit.Adaptive{Enabled: true}}}}})
	defer r.close()
	r.does(func(i int, k kind, s grpc.ServerStream) error {
		ctx, cancel := context.WithTimeout(s.Context(), 200*time.Millisecond)
		defer cancel()
		if <-ctx.Done(); s.Context().Err() != nil {
			return s.Context().Err()
		}
		return answer(i, k, s)
	})
	if _, err := r.try(t.Context(), k, k.plain()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = r.try(t.Context(), k, k.plain())
	}()
	defer func() { <-ended }()
	pause(time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := r.try(ctx, k, k.plain())
	if status.Code(err) == codes.DeadlineExceeded && r.handled() == 3 {
		return passes
	}
	return refusal(err, codes.ResourceExhausted, r.handled() == 2)
}

// spans are those that a call leaves on the client and on the server, both under p.
func spans(t *testing.T, policy string, k kind, p trace.Policy, opts ...grpc.CallOption) (client, server []*mocktracer.MockSpan) {
	c := chain{trace: &trace.Config{Policy: p}}
	r := newRig(t, setup{policy: policy, client: c, server: c})
	defer r.close()
	r.does(answer)
	if _, err := r.try(t.Context(), k, k.plain(), opts...); err != nil {
		t.Fatal(err)
	}
	pause(time.Second)
	return r.client.tracer.FinishedSpans(), r.server.tracer.FinishedSpans()
}

// logged reports whether a log of the span has text as a value.
func logged(s *mocktracer.MockSpan, text string) bool {
	for _, record := range s.Logs() {
		for _, f := range record.Fields {
			if f.ValueString == text {
				return true
			}
		}
	}
	return false
}

// allProbes is the union of both halves.
func allProbes(t *testing.T) map[string]func(*testing.T, string, kind) string {
	t.Helper()
	all := maps.Clone(probes)
	maps.Copy(all, moreProbes)
	if len(all) != len(probes)+len(moreProbes) {
		t.Fatal("two probes have one name")
	}
	return all
}
