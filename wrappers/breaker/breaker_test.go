package breaker

import (
	"testing"
	"time"
)

const sec = time.Second

func TestScenarios(t *testing.T) {
	for name, x := range map[string]struct {
		p     Policy
		draw  uint64
		steps []step
	}{
		"consecutive failures, and all the way back": {Policy{ConsecutiveFailures: 3}, 0, []step{
			{at: 0, n: 2, event: "down", want: "passed, closed"},
			{at: 1, event: "ok", want: "passed, closed"}, // ends the run
			{at: 2, n: 2, event: "down", want: "passed, closed"},
			{at: 3, event: "down", want: "passed, open", told: "closed>open"},
			{at: 4, event: "ok", want: "turned away, open"},
			{at: 5 * sec, event: "ok", want: "turned away, open"}, // it opened 3 ns after the beginning
			{at: 6 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
			{at: 11 * sec, event: "ok", want: "passed, recovering"},
			{at: 16 * sec, event: "ok", want: "passed, closed", told: "recovering>closed"},
		}},
		"a probe fails": {Policy{ConsecutiveFailures: 1}, 0, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, event: "down", want: "passed, open", told: "open>half-open half-open>open"},
			{at: 10 * sec, event: "ok", want: "turned away, open"},
			{at: 12 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
		}},
		"the ramp turns away, and ends": {Policy{ConsecutiveFailures: 1}, never, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
			{at: 7 * sec, n: 9, event: "ok", want: "turned away, recovering"},
			{at: 16*sec - 1, event: "ok", want: "turned away, recovering"},
			{at: 16 * sec, n: 9, event: "ok", want: "passed, closed", told: "recovering>closed"},
		}},
		"the ramp in its middle": {Policy{ConsecutiveFailures: 1}, 1 << 63, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
			{at: 10 * sec, event: "ok", want: "turned away, recovering"}, // 46 %
			{at: 11 * sec, event: "ok", want: "passed, recovering"},      // 55 %
		}},
		"no ramp": {Policy{ConsecutiveFailures: 1, NoRamp: true}, never, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, n: 9, event: "ok", want: "passed, closed", told: "open>half-open half-open>closed"},
		}},
		"failure during the ramp": {Policy{ConsecutiveFailures: 1}, 0, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
			{at: 7 * sec, event: "down", want: "passed, open", told: "recovering>open"},
		}},
		"ratio with a volume": {Policy{ConsecutiveFailures: -1}, 0, []step{
			{at: 0, n: 19, event: "down", want: "passed, closed"}, // 19 of 19, too few
			{at: 1, n: 20, event: "ok", want: "passed, closed"},
			{at: 2, event: "down", want: "passed, open", told: "closed>open"}, // 20 of 40
		}},
		"ratio: the window moves": {Policy{ConsecutiveFailures: -1, Window: 10 * sec}, 0, []step{
			{at: 0, n: 19, event: "down", want: "passed, closed"},
			{at: 11 * sec, n: 19, event: "down", want: "passed, closed"}, // the first ones are forgotten
			{at: 15 * sec, event: "down", want: "passed, open", told: "closed>open"},
		}},
		"business errors count neither way": {Policy{ConsecutiveFailures: 3}, 0, []step{
			{at: 0, n: 100, event: "notfound", want: "passed, closed"},
			{at: 1, n: 100, event: "canceled", want: "passed, closed"},
			{at: 2, n: 100, event: "exhausted", want: "passed, closed"},
			{at: 3, n: 3, event: "down", want: "passed, open", told: "closed>open"},
		}},
		"a doubtful run needs a witness": {Policy{ConsecutiveFailures: 3}, 0, []step{
			{at: 0, n: 10, event: "ok", want: "passed, closed"},
			{at: 1, n: 9, event: "unknown", want: "passed, closed"},
			{at: 2, event: "unknown", want: "passed, open", told: "closed>open"}, // half of the window now
		}},
		"an answer of any kind passes a probe": {Policy{ConsecutiveFailures: 1}, 0, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, event: "canceled", want: "passed, half-open", told: "open>half-open"},
			{at: 7 * sec, event: "exhausted", want: "passed, half-open"},
			{at: 8 * sec, event: "notfound", want: "passed, recovering", told: "half-open>recovering"},
		}},
		"two probes": {Policy{ConsecutiveFailures: 1, Probes: 2, NoRamp: true}, 0, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 6 * sec, event: "ok", want: "passed, half-open", told: "open>half-open"},
			{at: 7 * sec, event: "ok", want: "passed, closed", told: "half-open>closed"},
		}},
		"slow calls": {Policy{SlowCall: sec, MinCalls: 4, SlowRatio: 0.5}, 0, []step{
			{at: 0, n: 2, event: "ok", want: "passed, closed"},
			{at: 1 * sec, event: "slow", want: "passed, closed"},
			{at: 3 * sec, event: "slow", want: "passed, open", told: "closed>open"},
			{at: 10 * sec, event: "slow", want: "passed, open", told: "open>half-open half-open>open"}, // no good probe
			{at: 20 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
			{at: 40 * sec, n: 3, event: "slow", want: "passed, closed", told: "recovering>closed"}, // afresh
			{at: 44 * sec, event: "slow", want: "passed, open", told: "closed>open"},
		}},
		"slow calls, but they are few": {Policy{SlowCall: sec, MinCalls: 4, SlowRatio: 0.5}, 0, []step{
			{at: 0, n: 8, event: "ok", want: "passed, closed"},
			{at: 1 * sec, n: 7, event: "slow", want: "passed, closed"},
			{at: 9 * sec, event: "slow", want: "passed, open", told: "closed>open"},
		}},
		"slow calls: a breaker that came back has forgotten them": {
			Policy{SlowCall: sec, MinCalls: 2, OpenFor: sec, NoRamp: true, Window: 60 * sec}, 0, []step{
				{at: 0, n: 2, event: "slow", want: "passed, open", told: "closed>open"},
				{at: 4 * sec, event: "ok", want: "passed, closed", told: "open>half-open half-open>closed"},
				{at: 5 * sec, event: "slow", want: "passed, closed"},
				{at: 7 * sec, event: "slow", want: "passed, open", told: "closed>open"},
			}},
		"dry run": {Policy{ConsecutiveFailures: 1, DryRun: true}, never, []step{
			{at: 0, event: "down", want: "passed, open", told: "closed>open"},
			{at: 1 * sec, n: 9, event: "down", want: "passed, open"},
			{at: 6 * sec, event: "ok", want: "passed, recovering", told: "open>half-open half-open>recovering"},
			{at: 7 * sec, n: 9, event: "ok", want: "passed, recovering"},
		}},
		"disabled": {Policy{ConsecutiveFailures: 1, Disabled: true}, 0, []step{
			{at: 0, n: 100, event: "down", want: "passed, closed"},
		}},
		"all criteria switched off": {Policy{ConsecutiveFailures: -1, FailureRatio: -1}, 0, []step{
			{at: 0, n: 1000, event: "down", want: "passed, closed"},
		}},
		"the zero policy": {Policy{}, 0, []step{
			{at: 0, n: 9, event: "down", want: "passed, closed"},
			{at: 1, event: "down", want: "passed, open", told: "closed>open"},
		}},
	} {
		t.Run(name, func(t *testing.T) { play(t, Config{Policy: x.p}, x.draw, x.steps) })
	}
}
