package conformance

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/evenkeel/evenkeel/wrappers/breaker"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// additions are the keys, or their beginnings, of the metadata that a wrapper sends on purpose with a first attempt:
// trace sends its context.
var additions = []string{"mockpfx-"}

// Configurations under which every wrapper is at work and nothing is refused. Codes is empty so that hedging, which is
// for idempotent methods, does not bring retries along.
var (
	tracing  = &trace.Config{Policy: trace.Policy{Payloads: true}}
	limiting = &ratelimit.Config{Policy: ratelimit.Policy{Rate: 1e5, Burst: 1e5, MessageCost: 1}}
	shedding = &ratelimit.Config{Policy: ratelimit.Policy{Rate: 1e5, Burst: 1e5, MessageCost: 1, Key: "peer",
		Adaptive: ratelimit.Adaptive{Enabled: true}}}
	retrying = &retry.Config{}
	hedging  = &retry.Config{Policy: retry.Policy{Idempotent: true, Codes: []codes.Code{},
		Hedge: retry.Hedge{Delay: time.Hour}}}
	breaking = &breaker.Config{Policy: breaker.Policy{ConsecutiveFailures: 1000, FailureRatio: -1, MaxConcurrent: 100}}
)

// combination is a chain on each side.
type combination struct {
	name           string
	client, server chain
	policies       []string
}

// combinations are all of them: the wrappers on the client (retry in two ways), on the server, and on both.
func combinations() (all []combination) {
	for i := range 16 {
		client, parts := pick(i, limiting, retrying)
		all = append(all, combination{name: "client=" + join(parts), client: client, policies: policies})
		if client.retry != nil {
			client.retry = hedging
			all = append(all, combination{name: "client=" + join(parts) + ",hedging", client: client, policies: policies[:1]})
		}
		server, parts := pick(i, shedding, retrying)
		if i != 0 {
			all = append(all, combination{name: "server=" + join(parts), server: server, policies: policies[:1]})
		}
	}
	client, _ := pick(15, limiting, retrying)
	server, _ := pick(15, shedding, retrying)
	all = append(all, combination{name: "both=all", client: client, server: server, policies: policies})
	client.retry = hedging
	return append(all, combination{name: "both=all,hedging", client: client, server: server, policies: policies[:1]})
}

// pick takes the wrappers that are bits of i.
func pick(i int, limit *ratelimit.Config, again *retry.Config) (c chain, parts []string) {
	if i&1 != 0 {
		c.trace, parts = tracing, append(parts, "trace")
	}
	if i&2 != 0 {
		c.ratelimit, parts = limit, append(parts, "ratelimit")
	}
	if i&4 != 0 {
		c.retry, parts = again, append(parts, "retry")
	}
	if i&8 != 0 {
		c.breaker, parts = breaking, append(parts, "breaker")
	}
	return c, parts
}

// TestSemantics runs the table of rows_test.go with every combination.
func TestSemantics(t *testing.T) {
	all := combinations()
	if len(all) != 16+8+15+2 {
		t.Fatalf("%d combinations, want 16 on the client, 8 of them with hedging too, 15 on the server, 2 on both", len(all))
	}
	for _, policy := range policies {
		plain := make(map[kind]map[string]*outcome)
		for _, k := range kinds {
			plain[k] = runRows(t, k, policy, combination{})
			for _, r := range rowsOf(k) {
				r.check(t, k, plain[k][r.name])
			}
		}
		for _, c := range all {
			for _, p := range c.policies {
				if p != policy {
					continue
				}
				for _, k := range kinds {
					t.Run(c.name+"/"+policy+"/"+k.String(), func(t *testing.T) {
						t.Parallel()
						got := runRows(t, k, policy, c)
						for _, r := range rowsOf(k) {
							t.Run(r.name, func(t *testing.T) {
								if got, want := got[r.name].String(), plain[k][r.name].String(); got != want {
									t.Errorf("what was seen, against what is seen without wrappers:\n%s", diff(got, want))
								}
							})
						}
					})
				}
			}
		}
	}
}

// diff is the lines that only one of two texts has.
func diff(got, want string) string {
	var b strings.Builder
	only := func(sign, a, b2 string) {
		other := "\n" + b2 + "\n"
		for line := range strings.SplitSeq(a, "\n") {
			if !strings.Contains(other, "\n"+line+"\n") {
				fmt.Fprintf(&b, "%s %s\n", sign, line)
			}
		}
	}
	only("got ", got, want)
	only("want", want, got)
	if b.Len() == 0 {
		return "the same lines in another order or number:\n" + got + "\nwant:\n" + want
	}
	return b.String()
}

// runRows runs the table with a combination, one call after the other on one connection.
func runRows(t *testing.T, k kind, policy string, c combination) map[string]*outcome {
	t.Helper()
	seen := make(map[string]*outcome)
	bubble(t, func(t *testing.T) {
		r := newRig(t, setup{policy: policy, client: c.client, server: c.server,
			dial: []grpc.DialOption{grpc.WithPerRPCCredentials(token{})}})
		defer r.close()
		for _, row := range rowsOf(k) {
			seen[row.name] = r.run(k, row, c)
		}
	})
	return seen
}

// run runs one row.
func (r *rig) run(k kind, row row, combo combination) *outcome {
	o := new(outcome)
	before := r.handled()
	r.does(func(_ int, k kind, s grpc.ServerStream) error {
		r.writeDown(o, s.Context(), combo)
		return row.serve(o, k, s)
	})
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if row.context != nil {
		ctx, cancel = row.context(ctx)
	}
	defer cancel()
	call := r.start(ctx, k, o)
	call.opts = append(call.opts, row.opts...)
	if row.method != "" {
		call.method = row.method
	}
	if row.call != nil {
		row.call(call)
	} else {
		call.exchange("one", "two", "three")
	}
	o.served("handlers %d", r.handled()-before)
	return o
}

// writeDown notes what a handler finds in its context.
func (r *rig) writeDown(o *outcome, ctx context.Context, combo combination) {
	md, _ := metadata.FromIncomingContext(ctx)
	traced := strings.Contains(listed(md), additions[0])
	if want := combo.client.trace != nil; traced != want {
		o.served("the context of the trace came: %v, want %v", traced, want)
	}
	o.served("metadata %s", listed(md, additions...))
	if d, ok := ctx.Deadline(); ok {
		o.served("deadline in %v", time.Until(d))
	}
	if method, ok := grpc.Method(ctx); ok {
		o.served("method %s", method)
	}
	o.served("request's compression %q", *ctx.Value(observationKey{}).(*observation).request.Load())
}

// token is a credential that goes with each call.
type token struct{}

func (token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer 42"}, nil
}

func (token) RequireTransportSecurity() bool { return false }
