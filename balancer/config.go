package balancer

import (
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/serviceconfig"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// Name is the policy's name in a service config.
const Name = "evenkeel"

// Config configures the policy. Its zero value takes all connected instances in turn, with the blacklist on.
type Config struct {
	// Strategy chooses among the candidates; nil means RoundRobin{}.
	Strategy Strategy
	// Filter is for calls whose context carries none; zero means every instance.
	Filter filters.Filter
	// Require holds for every call, whatever its context carries; zero means every instance.
	Require filters.Filter
	// Blacklist says when a failing instance is taken out; zero means the defaults.
	Blacklist Blacklist
	// Outliers says when an instance is taken out, or gets less, for being worse than the others; zero means the
	// defaults.
	Outliers Outliers
	// Subset bounds to how many instances the client connects; zero means to all.
	Subset Subset
	// SlowStart spares instances that are new, restarted or back from the blacklist; zero means that it does not.
	SlowStart SlowStart
	// Zone keeps calls in the client's own zone as long as that serves them well; zero means that zones do not count.
	Zone Zone
}

// ServiceConfig returns a whole service config that selects the policy, for [grpc.WithDefaultServiceConfig] or
// resolver.WithServiceConfig. It panics on an invalid Config, being a programmer's error; use [LoadBalancingConfig]
// for one that comes from elsewhere.
func ServiceConfig(c Config) string {
	lb, err := LoadBalancingConfig(c)
	if err != nil {
		panic(err)
	}
	return `{"loadBalancingConfig":[` + string(lb) + `]}`
}

// LoadBalancingConfig returns the policy's entry for the list loadBalancingConfig of an existing service config:
// {"evenkeel":{...}}. The error names the field, what was got and what is wanted.
func LoadBalancingConfig(c Config) (json.RawMessage, error) {
	if c.Strategy == nil {
		c.Strategy = RoundRobin{}
	}
	settings, err := json.Marshal(c.Strategy)
	if err != nil {
		return nil, fmt.Errorf("evenkeel: strategy %s: %w", c.Strategy.Name(), err)
	}
	for field, f := range map[string]filters.Filter{"filter": c.Filter, "require": c.Require} {
		if err := f.Err(); err != nil {
			return nil, fmt.Errorf("evenkeel: %s: %w", field, err)
		}
	}
	js, err := json.Marshal(struct {
		Strategy  map[string]json.RawMessage `json:"strategy"`
		Filter    string                     `json:"filter,omitempty"`
		Require   string                     `json:"require,omitempty"`
		Blacklist Blacklist                  `json:"blacklist,omitzero"`
		Outliers  Outliers                   `json:"outliers,omitzero"`
		Subset    Subset                     `json:"subset,omitzero"`
		SlowStart SlowStart                  `json:"slowStart,omitzero"`
		Zone      Zone                       `json:"zone,omitzero"`
	}{map[string]json.RawMessage{c.Strategy.Name(): settings}, c.Filter.String(), c.Require.String(), c.Blacklist,
		c.Outliers, c.Subset, c.SlowStart, c.Zone})
	if err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	if _, err := parseConfig(js); err != nil { // what is sent is what will be accepted
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{Name: js})
}

// settings is a parsed and validated Config, immutable.
type settings struct {
	serviceconfig.LoadBalancingConfig
	strategy Strategy
	measurer Measurer // the strategy, if it is one
	keyFrom  string   // the outgoing metadata that is the key of calls without one; mostly empty
	source   string   // the JSON it was parsed from
	filter   filters.Filter
	require  filters.Filter
	judge    judge
	vigil    *vigil // nil if outliers are not looked for
	subset   Subset
	ramp     ramp
	zone     Zone
	// timed: somebody wants to know how long calls take.
	timed bool
	// plain: a call's end can be judged without knowing the call, so calls without a deadline need no record.
	plain bool
}

func defaultSettings() *settings {
	s, err := parseConfig(json.RawMessage("{}"))
	if err != nil {
		panic(err) // not reachable: a test parses it
	}
	return s
}

// parseConfig reads the policy's JSON.
func parseConfig(js json.RawMessage) (*settings, error) {
	var raw struct {
		Strategy  json.RawMessage `json:"strategy"`
		Filter    string          `json:"filter"`
		Require   string          `json:"require"`
		Blacklist Blacklist       `json:"blacklist"`
		Outliers  Outliers        `json:"outliers"`
		Subset    Subset          `json:"subset"`
		SlowStart SlowStart       `json:"slowStart"`
		Zone      Zone            `json:"zone"`
	}
	if err := strictjson.Unmarshal(js, &raw); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	s := &settings{source: string(js)}
	var err error
	if s.strategy, err = parseStrategyField(raw.Strategy); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	if s.filter, err = filters.Parse(raw.Filter); err != nil {
		return nil, fmt.Errorf("evenkeel: filter: %w", err)
	}
	if s.require, err = filters.Parse(raw.Require); err != nil {
		return nil, fmt.Errorf("evenkeel: require: %w", err)
	}
	if err := filters.All(s.require, s.filter).Err(); err != nil {
		return nil, fmt.Errorf("evenkeel: require and filter together: %w", err)
	}
	if s.judge, err = raw.Blacklist.resolve(); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	if s.vigil, err = raw.Outliers.resolve(&s.judge); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	if err := raw.Subset.validate(); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	s.subset = raw.Subset
	if err := raw.Zone.validate(); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	s.zone = raw.Zone
	if s.ramp, err = raw.SlowStart.resolve(); err != nil {
		return nil, fmt.Errorf("evenkeel: %w", err)
	}
	s.measurer, _ = s.strategy.(Measurer)
	if k, ok := s.strategy.(keyed); ok {
		s.keyFrom = k.metadataKey()
	}
	s.timed = s.measurer != nil || s.vigil.times() || s.zone.Local != ""
	s.plain = !s.timed && raw.Blacklist.Classifier == ""
	return s, nil
}

// parseStrategyField reads an object with one entry, the strategy's name and its settings.
func parseStrategyField(js json.RawMessage) (Strategy, error) {
	if len(js) == 0 || string(js) == "null" {
		return RoundRobin{}, nil
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(js, &entries); err != nil || len(entries) != 1 {
		return nil, fmt.Errorf(`strategy = %.100s, want an object with one entry such as {"least_request":{"choices":2}}`, js)
	}
	for name, s := range entries {
		return parseStrategy(name, s)
	}
	panic("unreachable")
}
