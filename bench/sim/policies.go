package main

import (
	"github.com/evenkeel/evenkeel/bench/sim/baseline"
	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

func policies() []lb.Maker { return baseline.All() }
