package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	_ "google.golang.org/grpc/balancer/leastrequest"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
)

// serviceConfig selects a policy by the name that it has here.
func serviceConfig(policy string) string {
	lb := `{"` + strings.TrimPrefix(policy, "grpc_") + `":{}}`
	name, ours := strings.CutPrefix(policy, "evenkeel_")
	strategy, lighter := strings.CutSuffix(name, lighterSuffix)
	switch {
	case ours && lighter:
		lb = `{"evenkeel":{"strategy":{"` + strategy + `":{}},"outliers":{"slow":3}}}`
	case ours:
		lb = `{"evenkeel":{"strategy":{"` + strategy + `":{}}}}`
	case policy == "grpc_least_request":
		lb = `{"least_request_experimental":{}}`
	}
	return `{"loadBalancingConfig":[` + lb + `]}`
}

// lighterSuffix says that instances which are three times as slow as the others get fewer calls ("outliers" with "slow").
const lighterSuffix = "+slow"

// keys are those that calls have for hash, all as popular.
const keys = 1000

// dial connects to the fleet with a policy.
func dial(policy string, addrs []string) (*grpc.ClientConn, error) {
	fixed := manual.NewBuilderWithScheme("fixed")
	var state gresolver.State
	for _, a := range addrs {
		state.Endpoints = append(state.Endpoints, gresolver.Endpoint{Addresses: []gresolver.Address{{Addr: a}}})
	}
	fixed.InitialState(state)
	return grpc.NewClient("fixed:///fleet", grpc.WithResolvers(fixed), grpc.WithDisableServiceConfig(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(serviceConfig(policy)))
}

// result is one turn of one policy.
type result struct {
	calls    int
	p50, p99 time.Duration // of those that succeeded
	failed   float64       // part of the calls
	share    map[string]float64
}

// call is one that has ended.
type call struct {
	took time.Duration
	role string
	err  error
}

// measure gives a policy its turn. The seed decides when calls are due.
func measure(ctx context.Context, policy string, f *fleet, o options, seed uint64) (result, error) {
	conn, err := dial(policy, f.addrs)
	if err != nil {
		return result{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := connected(ctx, conn); err != nil {
		return result{}, err
	}
	turn, end := context.WithCancel(ctx)
	frozen := make(chan error, 1)
	go func() { frozen <- f.freeze(turn, o.pause) }()
	calls := drive(turn, conn, f, o, seed)
	end()
	if err := errors.Join(<-frozen, ctx.Err()); err != nil {
		return result{}, err
	}
	return summarize(calls), nil
}

func connected(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		if !conn.WaitForStateChange(ctx, s) {
			return ctx.Err()
		}
	}
	return nil
}

// drive makes the calls, each when it is due, and returns those that were due after the time to learn.
func drive(ctx context.Context, conn *grpc.ClientConn, f *fleet, o options, seed uint64) []call {
	random := rand.New(rand.NewPCG(seed, 0))
	var (
		mu    sync.Mutex
		calls []call
		under sync.WaitGroup
	)
	next := time.NewTimer(0)
	defer next.Stop()
	began := time.Now()
	for due := time.Duration(0); due < o.warmUp+o.length; due += time.Duration(random.ExpFloat64() / o.rate * 1e9) {
		next.Reset(time.Until(began.Add(due)))
		if wait(ctx, next.C) != nil {
			break
		}
		counts := due >= o.warmUp
		ctx := balancer.WithHashKey(ctx, strconv.Itoa(random.IntN(keys))) // only hash looks at it
		under.Go(func() {
			c := one(ctx, conn, f, began.Add(due), o.deadline)
			if counts {
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, c)
			}
		})
	}
	under.Wait()
	return calls
}

// one makes a call that was due at a moment, and has until a while after it.
func one(ctx context.Context, conn *grpc.ClientConn, f *fleet, due time.Time, deadline time.Duration) call {
	ctx, cancel := context.WithDeadline(ctx, due.Add(deadline))
	defer cancel()
	var from peer.Peer
	_, err := greeter.Hello(ctx, conn, "", grpc.Peer(&from))
	c := call{took: time.Since(due), err: err}
	if from.Addr != nil {
		c.role = f.roles[from.Addr.String()]
	}
	return c
}

func summarize(calls []call) result {
	r := result{calls: len(calls), share: make(map[string]float64)}
	if len(calls) == 0 {
		return r
	}
	part := 1 / float64(len(calls))
	var took []time.Duration
	for _, c := range calls {
		r.share[c.role] += part
		if c.err != nil {
			r.failed += part
			continue
		}
		took = append(took, c.took)
	}
	if len(took) > 0 {
		slices.Sort(took)
		r.p50, r.p99 = took[len(took)/2], took[len(took)*99/100]
	}
	return r
}
