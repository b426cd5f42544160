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
