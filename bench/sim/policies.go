package main

import (
	"slices"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/balancer/outlier"
	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/real"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
	"github.com/evenkeel/evenkeel/wrappers/ratelimit"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// policies are all that the command line knows: ours, those of others, and others' with the parameters of the figures
// that they are published in.
func policies() []lb.Maker {
	return slices.Concat(real.All(), outliers(), baseline.All(), zonePolicies(), hashPolicies(), limits(), retries(), whole(),
		baseline.Figure8(), baseline.Figure9(), baseline.Figure10())
}

// zonePolicies are what S9 is about, beside the strategy that is compared with a preference of zones everywhere.
func zonePolicies() []lb.Maker {
	return []lb.Maker{
		real.InZone("evenkeel/keel+zone", balancer.Config{Strategy: balancer.Keel{}}),
		real.InZone("evenkeel/peak_ewma+zone", balancer.Config{Strategy: balancer.PeakEWMA{}}),
		baseline.SameZone(), baseline.EnvoyZone(scenario.ZonesOfCallers...),
	}
}

// outliers are ways to find an instance that fails more than the others, or is slower, under one strategy; what
// evenkeel/round_robin does is the default.
func outliers() []lb.Maker {
	under := func(name string, o balancer.Outliers) lb.Maker {
		return real.New("evenkeel/round_robin+"+name, balancer.Config{Outliers: o})
	}
	return []lb.Maker{
		under("runs_only", balancer.Outliers{Disabled: true}),
		under("slow", balancer.Outliers{Slow: 3}),
		under("a50", balancer.Outliers{A50: &outlier.A50{SuccessRateEjection: &outlier.SuccessRateEjection{},
			FailurePercentageEjection: &outlier.FailurePercentageEjection{}}}),
	}
}

func hashPolicies() []lb.Maker { return []lb.Maker{baseline.RingHash()} }

// limits are on what servers take, all under one balancer, and ours under those that hear of it from the servers.
func limits() []lb.Maker {
	under := baseline.LeastRequest()
	return append(baseline.Limits(under),
		real.WithLimit(under, "evenkeel_limit", ratelimit.Adaptive{}),
		real.WithLimit(real.New("", balancer.Config{Strategy: balancer.Prequal{}}), "evenkeel/prequal+limit", ratelimit.Adaptive{}),
		real.WithLimit(real.New("", balancer.Config{Strategy: balancer.Keel{}}), "evenkeel/keel+limit", ratelimit.Adaptive{}))
}

// retries are over one balancer.
func retries() []lb.Maker {
	over := baseline.LeastRequest()
	tenth, err := retry.NewBudget(10, 1)
	if err != nil {
		panic(err) // the numbers above are out of range
	}
	return append(baseline.Retries(over),
		real.WithRetry(over, "evenkeel_retry", retry.Policy{Idempotent: true}),
		real.WithRetry(over, "evenkeel_retry+chain_stop", retry.Policy{Idempotent: true, ChainStop: true}),
		real.WithRetry(over, "evenkeel_retry+chain_stop+10%", retry.Policy{Idempotent: true, ChainStop: true, Budget: tenth}),
		real.WithRetry(over, "evenkeel_retry+hedge", retry.Policy{Idempotent: true, Hedge: retry.Hedge{Quantile: 0.98}}))
}

// whole are our balancer and our retries together, as an application has them.
func whole() []lb.Maker {
	plain := balancer.Config{Strategy: balancer.LeastRequest{}}
	return []lb.Maker{
		real.WithRetry(real.New("", plain), "evenkeel/least_request+retry", retry.Policy{Idempotent: true}),
		real.WithRetry(real.New("", plain), "evenkeel/least_request+hedge",
			retry.Policy{Idempotent: true, Hedge: retry.Hedge{Quantile: 0.98}}),
	}
}

// about is what a scenario compares if nobody says otherwise: ours and the published ones, or the parameters of one
// policy where the figure is about them, or what the scenario is about instead of a choice of servers.
func about(scenario string) []string {
	ours, bound := names(real.All()), []string{"omniscient"}
	switch scenario {
	case "S3":
		return slices.Concat(ours, names(baseline.Figure8()), bound)
	case "S4":
		return slices.Concat(ours, names(baseline.Figure9()), bound)
	case "S5", "S6":
		return slices.Concat(ours, names(outliers()), names(whole()), names(baseline.All()))
	case "S7":
		return names(limits())
	case "S9":
		return slices.Concat(ours, []string{"random", "least_request"}, names(zonePolicies()), bound)
	case "S11":
		return names(retries())
	case "S13":
		return slices.Concat(ours, []string{"random", "least_request"}, names(hashPolicies()), bound)
	}
	return slices.Concat(ours, names(baseline.All()))
}

func names(makers []lb.Maker) []string {
	var out []string
	for _, m := range makers {
		out = append(out, m.Name)
	}
	return out
}
