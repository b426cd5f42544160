package retry_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/wrappers/retry"
)

// manual is a clock that stands still until it is moved.
type manual struct {
	clock.Clock
	now int64
}

func (m *manual) Now() int64 { return m.now }

func core(t *testing.T, p retry.Policy) (*retry.Core, *manual) {
	t.Helper()
	c := &manual{now: 1}
	core, err := retry.NewCore(p, c, func() uint64 { return 1 << 63 })
	if err != nil {
		t.Fatal(err)
	}
	return core, c
}

// TestSteps: a call by itself goes as the policy says.
func TestSteps(t *testing.T) {
	const base = 25 * time.Millisecond
	for name, c := range map[string]struct {
		policy   retry.Policy
		deadline int64
		chained  bool
		code     codes.Code
		unsent   bool
		waits    []time.Duration
		why      retry.Reason
	}{
		"three attempts, with full jitter": {retry.Policy{Idempotent: true}, 0, false, codes.Unavailable, false,
			[]time.Duration{base / 2, base}, retry.Exhausted},
		"not idempotent":        {retry.Policy{}, 0, false, codes.Unavailable, false, nil, retry.NotRetryable},
		"nothing was sent":      {retry.Policy{MaxAttempts: 2}, 0, false, codes.Unavailable, true, []time.Duration{base / 2}, retry.Exhausted},
		"a code of its own":     {retry.Policy{Idempotent: true}, 0, false, codes.NotFound, false, nil, retry.NotRetryable},
		"no time for it":        {retry.Policy{Idempotent: true}, int64(base / 4), false, codes.Unavailable, false, nil, retry.NoTime},
		"part of another retry": {retry.Policy{Idempotent: true, ChainStop: true}, 0, true, codes.Unavailable, false, nil, retry.Exhausted},
	} {
		core, _ := core(t, c.policy)
		s := core.Begin(c.deadline, c.chained)
		for i := range len(c.waits) + 1 {
			s.Began()
			wait, why := s.Failed(retry.Failure{Code: c.code, Unsent: c.unsent})
			switch {
			case i < len(c.waits) && (why != "" || wait != c.waits[i]):
				t.Errorf("%s: attempt %d: wait %v, %q; want %v", name, i+1, wait, why, c.waits[i])
			case i == len(c.waits) && why != c.why:
				t.Errorf("%s: after %d attempts: wait %v, %q; want %q", name, i+1, wait, why, c.why)
			}
		}
	}
}

// TestStepsEndChain: what nobody further up is to repeat.
func TestStepsEndChain(t *testing.T) {
	down, unsent := retry.Failure{Code: codes.Unavailable}, retry.Failure{Code: codes.Unavailable, Unsent: true}
	stop := retry.Failure{Code: codes.Unavailable, Stop: true}
	on := retry.Policy{Idempotent: true, ChainStop: true}
	one, dry, poor := on, on, on
	one.MaxAttempts, dry.DryRun, poor.Budget = 1, true, new(retry.Budget)
	for name, c := range map[string]struct {
		policy   retry.Policy
		chained  bool
		failures []retry.Failure
		why      retry.Reason
		want     bool
	}{
		"without it":                 {retry.Policy{Idempotent: true}, false, []retry.Failure{down, down, down}, retry.Exhausted, false},
		"three attempts":             {on, false, []retry.Failure{down, down, down}, retry.Exhausted, true},
		"nothing got through":        {on, false, []retry.Failure{unsent, unsent, unsent}, retry.Exhausted, false},
		"one got through":            {on, false, []retry.Failure{unsent, down, unsent}, retry.Exhausted, true},
		"told not to":                {on, false, []retry.Failure{stop}, retry.PushedBack, true},
		"told not to, one attempt":   {one, false, []retry.Failure{stop}, retry.PushedBack, true},
		"told not to, dry run":       {dry, false, []retry.Failure{stop}, retry.PushedBack, false},
		"one attempt":                {one, false, []retry.Failure{down}, retry.Exhausted, false},
		"part of another retry":      {on, true, []retry.Failure{down}, retry.Exhausted, false},
		"over budget":                {poor, false, []retry.Failure{down}, retry.OverBudget, true},
		"over budget, none sent":     {poor, false, []retry.Failure{unsent}, retry.OverBudget, false},
		"a code that is not retried": {on, false, []retry.Failure{down, {Code: codes.NotFound}}, retry.NotRetryable, false},
	} {
		core, _ := core(t, c.policy)
		s := core.Begin(0, c.chained)
		var why retry.Reason
		for i, f := range c.failures {
			if s.Began(); why != "" {
				t.Fatalf("%s: no attempt follows %d, because of %q", name, i, why)
			}
			_, why = s.Failed(f)
		}
		if why != c.why || s.EndsChain() != c.want {
			t.Errorf("%s: ended because of %q, for all: %v; want %q, %v", name, why, s.EndsChain(), c.why, c.want)
		}
	}
	c, _ := core(t, on)
	s := c.Begin(int64(10*time.Millisecond), false)
	s.Began()
	if _, why := s.Failed(down); why != retry.NoTime || !s.EndsChain() {
		t.Errorf("ended because of %q, for all: %v; want %q, true", why, s.EndsChain(), retry.NoTime)
	}
}

// TestStepsExperience: those further up may repeat what this layer cannot while most retries help, and only then.
func TestStepsExperience(t *testing.T) {
	b, err := retry.NewBudget(1000, 0)
	if err != nil {
		t.Fatal(err)
	}
	down := retry.Failure{Code: codes.Unavailable}
	core, clock := core(t, retry.Policy{Idempotent: true, ChainStop: true, Budget: b})
	// call ends as its attempts do, the last of them repeatedly; nothing means well.
	call := func(attempts ...retry.Failure) *retry.Steps {
		s := core.Begin(0, false)
		for i := 0; ; i++ {
			s.Began()
			f := attempts[min(i, len(attempts)-1)]
			if f == (retry.Failure{}) {
				s.Succeeded()
				return s
			}
			if _, why := s.Failed(f); why != "" {
				return s
			}
		}
	}
	many := func(attempts ...retry.Failure) {
		for range 60 {
			call(attempts...)
		}
	}
	notFound, stop, well := retry.Failure{Code: codes.NotFound}, retry.Failure{Code: codes.Unavailable, Stop: true}, retry.Failure{}
	for _, step := range []struct {
		what   string
		before []retry.Failure // 60 calls of this kind
		quiet  time.Duration   // after them
		ends   bool            // whether it then ends the chain that three attempts fail
	}{
		{"first attempts say nothing", []retry.Failure{well}, 0, true},
		{"retries help", []retry.Failure{down, well}, 0, false},
		{"an answer to a retry says nothing against them", []retry.Failure{down, notFound}, 0, false},
		{"retries fail", []retry.Failure{down}, 0, true},
		{"retries help again", []retry.Failure{down, well}, time.Minute, false},
		{"retries are not wanted", []retry.Failure{down, stop}, 0, true},
		{"retries helped some time ago", []retry.Failure{down, well}, 5 * time.Minute, true},
	} {
		many(step.before...)
		clock.now += int64(step.quiet)
		if got := call(down).EndsChain(); got != step.ends {
			t.Errorf("%s: ends the chain: %v, want %v", step.what, got, step.ends)
		}
		late := core.Begin(clock.now+int64(10*time.Millisecond), false)
		late.Began()
		if _, why := late.Failed(down); why != retry.NoTime || late.EndsChain() != step.ends {
			t.Errorf("%s: a late call ended because of %q, and the chain: %v, want %q, %v", step.what, why, late.EndsChain(),
				retry.NoTime, step.ends)
		}
		if !call(stop).EndsChain() {
			t.Errorf("%s: a stop is not passed on", step.what)
		}
	}
}

// TestStepsBudget: while everything fails, calls are tried again as often as the budget pays for, on the given clock.
func TestStepsBudget(t *testing.T) {
	b, err := retry.NewBudget(10, 0)
	if err != nil {
		t.Fatal(err)
	}
	core, clock := core(t, retry.Policy{Idempotent: true, MaxAttempts: 2, Budget: b})
	retries := 0
	for range 1000 {
		clock.now += int64(time.Millisecond)
		s := core.Begin(0, false)
		s.Began()
		if _, why := s.Failed(retry.Failure{Code: codes.Unavailable}); why == "" {
			retries++
		} else if why != retry.OverBudget {
			t.Fatal(why)
		}
	}
	if retries < 98 || retries > 100 {
		t.Errorf("%d of 1000 calls were tried again, want a tenth", retries)
	}
	if b.Balance() != 0 {
		t.Error("the account of the policy's own budget was used")
	}
}

// TestStepsHedge: the delay follows the latencies of first attempts, and the budget pays for hedges.
func TestStepsHedge(t *testing.T) {
	b, err := retry.NewBudget(0, 0.1) // one in ten seconds
	if err != nil {
		t.Fatal(err)
	}
	core, clock := core(t, retry.Policy{Idempotent: true, Budget: b, Hedge: retry.Hedge{Quantile: 0.9}})
	for range 200 {
		s := core.Begin(0, false)
		if d := s.Began(); d != 0 {
			break
		}
		clock.now += int64(10 * time.Millisecond)
		s.Succeeded()
	}
	s := core.Begin(0, false)
	if d := s.Began(); d < 10*time.Millisecond || d > 11*time.Millisecond {
		t.Fatalf("a hedge after %v where all calls take 10 ms", d)
	}
	if !s.Hedge() {
		t.Fatal("no hedge, with a budget for one")
	}
	if d := s.Began(); d != 0 {
		t.Errorf("a second hedge after %v, want none", d)
	}
	s.Succeeded()
	s = core.Begin(0, false)
	if s.Began(); s.Hedge() {
		t.Error("a hedge that the budget does not pay for")
	}
}

func TestNewCoreRejects(t *testing.T) {
	_, err := retry.NewCore(retry.Policy{MaxAttempts: 21}, &manual{now: 1}, nil)
	if err == nil || errors.Unwrap(err) == nil {
		t.Errorf("error %v, want one about maxAttempts", err)
	}
}

// A call outside of gRPC is tried again as the interceptors would.
func ExampleNewCore() {
	core, err := retry.NewCore(retry.Policy{Idempotent: true}, &manual{now: 1}, func() uint64 { return 1 << 63 })
	if err != nil {
		panic(err)
	}
	call := core.Begin(0, false)
	for {
		call.Began()
		wait, why := call.Failed(retry.Failure{Code: codes.Unavailable})
		if why != "" {
			fmt.Println(why)
			break
		}
		fmt.Println("again after", wait)
	}
	// Output:
	// again after 12.5ms
	// again after 25ms
	// attempts exhausted
}
