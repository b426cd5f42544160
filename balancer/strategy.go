package balancer

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// Strategy says how one instance is chosen among several that may serve a call. A strategy is a small exported
// struct of settings, such as [LeastRequest]; its zero value has the defaults. Filters, the blacklist, draining,
// accounting and the avoidance of endpoints already tried are the policy's business, so a strategy sees only
// candidates and says which.
//
// To add one: declare the struct (its fields are its JSON), give it Name and Build, and register a parser for it
// with [RegisterStrategy] in an init function. A strategy that wants to learn how calls ended is a [Measurer] as
// well.
type Strategy interface {
	// Name is the strategy's name in JSON.
	Name() string
	// Build makes the chooser of one candidate set. It is called off the hot path, whenever the members of the
	// set, their weights or the configuration change, and must not block. It is never called with no members.
	Build(Env) Chooser
}

// Env is what a strategy is given to build a [Chooser] with. A strategy reads time and randomness only from here
// and from [Call], so that it can be run in virtual time.
type Env struct {
	// Members are the candidates, at least one. The slice is shared and must not be modified.
	Members []*Endpoint
	// Previous is what Build returned for the same candidate set before, nil at first or after another strategy:
	// a chooser that remembers something about the set, such as whose turn it is, takes it over from there. What
	// is to be remembered about an endpoint belongs into its slot ([Endpoint.Slot]).
	Previous Chooser
	// Rand returns 64 random bits; safe for concurrent use.
	Rand func() uint64
	// now is the time, for a chooser that depends on it; nil in a test of the strategy alone.
	now func() int64
	// Probe asks a member how busy it is, and returns without waiting for the answer, which to hears. now is [Call.Now].
	// It is for Choose and whatever follows from it, not for Build; safe for concurrent use. It is false, and nobody
	// hears anything, if the member has no connection or does not know of probes (that takes server.Load, or the like,
	// there), if one of its probes is under way that is not overdue, and if so many wait that this one would come too
	// late. It is nil where nothing can be probed, as in a test of the strategy alone.
	Probe func(e *Endpoint, now int64, timeout time.Duration, to Answerer) bool
}

// Chooser chooses among the members of one candidate set. It is called for every call from many goroutines at
// once, so it must be safe for concurrent use, allocate nothing and take no lock.
type Chooser interface {
	// Choose returns the index of a member. The policy asks again, with a higher Call.Attempt, if it cannot use
	// that one (its connection was lost a moment ago, or this call was there already); an answer out of range is
	// taken modulo the number of members.
	Choose(Call) int
}

// Call is what a [Chooser] may know about the call to choose for.
type Call struct {
	// Now is the time in nanoseconds of a monotonic clock; set only for strategies that are Measurers.
	Now int64
	// Attempt counts how often the policy has asked for this pick before, from 0.
	Attempt int
	// HashKey is the key to keep affinity by, if HasHashKey.
	HashKey    string
	HasHashKey bool
}

// Measurer is implemented by a [Strategy] that wants to learn how long calls took and how they ended. What it learns
// belongs to the endpoint ([Endpoint.Slot]), where it outlives pickers, reconnects and changes of the configuration.
type Measurer interface {
	// Record is called once at the end of every call that really was sent, from many goroutines at once. A server
	// that reports its load with its answers (ORCA, gRFC A51) is heard in Sample.Report.
	Record(*Endpoint, load.Sample)
}

var strategies = struct {
	sync.RWMutex
	parse map[string]func(json.RawMessage) (Strategy, error)
}{parse: make(map[string]func(json.RawMessage) (Strategy, error))}

// RegisterStrategy makes a strategy known under name, so that a service config can name it. parse gets the JSON
// object of its settings, never empty, and returns an error that names the field, what was got and what is wanted.
// Call it in an init function only. It panics, being a programmer's error, on an empty or taken name or a nil
// parser.
func RegisterStrategy(name string, parse func(json.RawMessage) (Strategy, error)) {
	strategies.Lock()
	defer strategies.Unlock()
	if name == "" || parse == nil {
		panic("balancer: RegisterStrategy: want a name and a parser")
	}
	if _, taken := strategies.parse[name]; taken {
		panic(fmt.Sprintf("balancer: RegisterStrategy: name = %q, want one that is not taken", name))
	}
	strategies.parse[name] = parse
}

func parseStrategy(name string, settings json.RawMessage) (Strategy, error) {
	strategies.RLock()
	parse, ok := strategies.parse[name]
	known := slices.Sorted(maps.Keys(strategies.parse))
	strategies.RUnlock()
	if !ok {
		return nil, fmt.Errorf("strategy = %q, want one of %q", name, known)
	}
	if len(settings) == 0 || string(settings) == "null" {
		settings = json.RawMessage("{}")
	}
	s, err := parse(settings)
	if err != nil {
		return nil, fmt.Errorf("strategy %s: %w", name, err)
	}
	return s, nil
}

// parseSettings is the parser of a strategy whose settings are the fields of S.
func parseSettings[S interface {
	Strategy
	validate() error
}](js json.RawMessage) (Strategy, error) {
	var s S
	if err := strictjson.Unmarshal(js, &s); err != nil {
		return nil, err
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// below returns a random index below n, with a bias of at most n/2^32.
func below(r uint64, n int) int {
	return int((r >> 32) * uint64(n) >> 32)
}
