package main

import (
	"slices"

	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/real"
)

// policies are all that the command line knows: ours, those of others, and others' with the parameters of the figures
// that they are published in.
func policies() []lb.Maker {
	return slices.Concat(real.All(), baseline.All(), baseline.Figure8(), baseline.Figure9(), baseline.Figure10())
}

// about is what a scenario compares if nobody says otherwise: ours and the published ones, or the parameters of one
// policy where the figure is about them.
func about(scenario string) []string {
	ours, bound := names(real.All()), []string{"omniscient"}
	switch scenario {
	case "S3":
		return slices.Concat(ours, names(baseline.Figure8()), bound)
	case "S4":
		return slices.Concat(ours, names(baseline.Figure9()), bound)
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
