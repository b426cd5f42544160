package ratelimit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/internal/scope"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// Config configures a [Limiter]. Its zero value limits nothing.
type Config struct {
	// Policy holds for every method that Methods does not name.
	Policy
	// Methods are other policies, by "/pkg.Service/Method", "/pkg.Service/*" or "*". Each entry has buckets, and
	// an adaptive limit, of its own: all methods of a service that is named by "/pkg.Service/*" share them. Health
	// checks and reflection pass, unless they are named here. An empty Policy lets a method pass.
	Methods map[string]Policy
	// DryRun decides and reports, and lets everything through. No call waits.
	DryRun bool

	// KeyFunc says who is calling, for policies whose Key is "func". It must be safe for concurrent use, and fast:
	// it runs on every call. An empty text is a caller like others.
	KeyFunc func(ctx context.Context, method string) string
	// CostFunc says how many tokens a call takes, instead of Policy.Cost; nil means Policy.Cost. req is the request
	// message of a unary call and nil for a stream. 0 or less is free. It must be safe for concurrent use.
	CostFunc func(ctx context.Context, method string, req any) int
	// OnLimit is told of every refusal, on the goroutine of the call and outside of all locks; nil means nobody.
	OnLimit func(Event)
}

// Policy says how many calls are let through. It is a value: comparable, and the same in JSON, where durations are
// texts such as "1s". Its zero value limits nothing.
type Policy struct {
	// Rate is how many tokens come into a bucket in a second; a call takes one, unless Cost says otherwise. 0 means
	// that there is no limit of rate.
	Rate float64
	// Burst is how many tokens a bucket holds, and so how many calls may come at once. 0 means what Rate gives in a
	// tenth of a second, and at least one call.
	Burst int
	// Wait makes a call wait for its tokens instead of being refused: up to its deadline, and never if that would
	// come first; then it is refused at once. Those who wait are served in order.
	Wait bool
	// MaxWait bounds the wait of every call; 0 means that its deadline alone does, and 10 s if it has none.
	MaxWait time.Duration
	// Cost is how many tokens a call, or the start of a stream, takes; 0 means 1.
	Cost int
	// MessageCost is how many tokens each further request message of a client or bidi stream takes; 0 means none.
	MessageCost int
	// PerMethod gives each method a bucket of its own.
	PerMethod bool
	// Key gives each caller a bucket of its own: "peer" goes by the network address without the port,
	// "metadata:NAME" by the first value of a metadata key, "func" by Config.KeyFunc. Empty means one bucket for
	// all callers. In a client's interceptors "peer" is the target of the connection, and metadata is the outgoing
	// one.
	Key string
	// MaxKeys bounds the number of buckets; 0 means 10,000. Callers beyond it share one more.
	MaxKeys int
	// KeyIdle is how long a caller must have been away to be forgotten although its bucket is not full; 0 means
	// 10 min.
	KeyIdle time.Duration
	// Adaptive limits how many calls a server works on at once, by what it can do.
	Adaptive Adaptive
}

// Adaptive is the adaptive concurrency limit of a server, for unary calls; [Limiter.StreamServerInterceptor] says
// what it means for streams. Client interceptors ignore it. Its zero value is off.
type Adaptive struct {
	// Enabled switches it on.
	Enabled bool
	// Initial is the limit to begin with; 0 means 20, or the nearest that Min and Max permit.
	Initial int
	// Min and Max bound the limit; 0 means 1 and 1000.
	Min, Max int
	// Tolerance is how many times as long as by itself a slow call (the mean and three standard deviations) may take
	// because others are in progress, from 1.1 to 10; 0 means 1.6.
	Tolerance float64
	// ProbeInterval is how often, while a quarter of the calls or more are refused, the limit is lowered for a moment
	// to see what a call takes by itself; 0 means 10 s. It is rarer while fewer are refused.
	ProbeInterval time.Duration
	// IgnoreDeadlines lets calls in that are expected to take longer than their deadline.
	IgnoreDeadlines bool
}

const (
	maxTokens = 1 << 30              // of bursts and costs
	maxRate   = 1e12                 // so that a token takes a measurable time
	maxTime   = 365 * 24 * time.Hour // of all durations, so that their sums do not overflow
	// waitWithout bounds the wait of a call that has no deadline.
	waitWithout = 10 * time.Second
)

// resolved is a validated Policy with its defaults filled in.
type resolved struct {
	Policy
	key      keySource
	metadata string // the metadata key, if that is the source
	adaptive adaptive
}

type keySource uint8

const (
	noKey keySource = iota
	byPeer
	byMetadata
	byFunc
)

// adaptive is a validated Adaptive with its defaults filled in.
type adaptive struct {
	initial, min, max int
	tolerance         float64
	interval          int64 // ns
	ignoreDeadlines   bool
}

func (p Policy) resolve(keyFunc bool) (r resolved, err error) {
	r.Policy = p
	if !(p.Rate >= 0 && p.Rate <= maxRate) { // so written, NaN is caught as well
		return r, fmt.Errorf("rate = %v, want 0 (no limit) to %v calls a second", p.Rate, float64(maxRate))
	}
	r.Cost, r.MaxKeys = cmp.Or(p.Cost, 1), cmp.Or(p.MaxKeys, 10_000)
	r.KeyIdle = cmp.Or(p.KeyIdle, 10*time.Minute)
	for _, f := range []struct {
		name     string
		got, max int
	}{{"burst", p.Burst, maxTokens}, {"cost", p.Cost, maxTokens}, {"messageCost", p.MessageCost, maxTokens},
		{"maxKeys", p.MaxKeys, maxTokens}} {
		if f.got < 0 || f.got > f.max {
			return r, fmt.Errorf("%s = %d, want 0 (the default) to %d", f.name, f.got, f.max)
		}
	}
	if p.Burst == 0 {
		r.Burst = int(min(max(math.Ceil(p.Rate/10), float64(r.Cost), float64(p.MessageCost), 1), maxTokens))
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"maxWait", p.MaxWait}, {"keyIdle", p.KeyIdle}} {
		if f.d < 0 || f.d > maxTime {
			return r, fmt.Errorf("%s = %v, want 0 (the default) to %v", f.name, f.d, maxTime)
		}
	}
	if r.Rate > 0 && max(r.Cost, p.MessageCost) > r.Burst {
		return r, fmt.Errorf("burst = %d, want at least cost and messageCost, which are %d and %d: "+
			"no call could ever pass", p.Burst, r.Cost, p.MessageCost)
	}
	if r.key, r.metadata, err = parseKey(p.Key, keyFunc); err != nil {
		return r, err
	}
	if r.adaptive, err = p.Adaptive.resolve(); err != nil {
		return r, fmt.Errorf("adaptive.%w", err)
	}
	return r, nil
}

func parseKey(key string, keyFunc bool) (keySource, string, error) {
	name, isMetadata := strings.CutPrefix(key, "metadata:")
	switch {
	case key == "":
		return noKey, "", nil
	case key == "peer":
		return byPeer, "", nil
	case key == "func" && keyFunc:
		return byFunc, "", nil
	case key == "func":
		return noKey, "", errors.New(`key = "func", want Config.KeyFunc with it`)
	case isMetadata && name != "" && !strings.ContainsFunc(name, notMetadata):
		return byMetadata, strings.ToLower(name), nil
	}
	return noKey, "", fmt.Errorf(`key = %.100q, want "peer", "metadata:NAME", "func" or nothing`, key)
}

// notMetadata reports whether gRPC does not permit r in a metadata key.
func notMetadata(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.", r))
}

func (a Adaptive) resolve() (r adaptive, err error) {
	r = adaptive{
		min: cmp.Or(a.Min, 1), max: cmp.Or(a.Max, max(1000, a.Min)),
		interval: int64(cmp.Or(a.ProbeInterval, 10*time.Second)), ignoreDeadlines: a.IgnoreDeadlines,
	}
	tolerance := cmp.Or(a.Tolerance, 1.6)
	switch {
	case r.min < 1 || r.min > maxTokens:
		return r, fmt.Errorf("min = %d, want 0 (the default) to %d", a.Min, maxTokens)
	case r.max < r.min || r.max > maxTokens:
		return r, fmt.Errorf("max = %d, want min, which is %d, to %d", a.Max, r.min, maxTokens)
	case a.Initial != 0 && (a.Initial < r.min || a.Initial > r.max):
		return r, fmt.Errorf("initial = %d, want min to max, which are %d and %d", a.Initial, r.min, r.max)
	case !(tolerance >= 1.1 && tolerance <= 10):
		return r, fmt.Errorf("tolerance = %v, want 1.1 to 10", a.Tolerance)
	case r.interval < int64(time.Second) || r.interval > int64(maxTime):
		return r, fmt.Errorf("probeInterval = %v, want 1s to %v", a.ProbeInterval, maxTime)
	}
	r.initial = min(max(cmp.Or(a.Initial, 20), r.min), r.max)
	r.tolerance = tolerance
	return r, nil
}

// everywhere is the name under which the policy for all methods is known.
const everywhere = "*"

// resolve validates the config and returns the policies by scope; "*" is there always.
func (c *Config) resolve() (map[string]resolved, error) {
	policies := make(map[string]resolved, len(c.Methods)+1)
	r, err := c.Policy.resolve(c.KeyFunc != nil)
	if err != nil {
		return nil, fmt.Errorf("ratelimit: %w", err)
	}
	policies[everywhere] = r
	if _, err := scope.New(Policy{}, c.Methods); err != nil {
		return nil, fmt.Errorf("ratelimit: methods: %w", err)
	}
	for name, p := range c.Methods {
		if policies[name], err = p.resolve(c.KeyFunc != nil); err != nil {
			return nil, fmt.Errorf("ratelimit: methods[%q].%w", name, err)
		}
	}
	return policies, nil
}

// policyJSON is a Policy as it stands in JSON.
type policyJSON struct {
	Rate        float64             `json:"rate,omitempty"`
	Burst       int                 `json:"burst,omitempty"`
	Wait        bool                `json:"wait,omitempty"`
	MaxWait     strictjson.Duration `json:"maxWait,omitzero"`
	Cost        int                 `json:"cost,omitempty"`
	MessageCost int                 `json:"messageCost,omitempty"`
	PerMethod   bool                `json:"perMethod,omitempty"`
	Key         string              `json:"key,omitempty"`
	MaxKeys     int                 `json:"maxKeys,omitempty"`
	KeyIdle     strictjson.Duration `json:"keyIdle,omitzero"`
	Adaptive    adaptiveJSON        `json:"adaptive,omitzero"`
}

type adaptiveJSON struct {
	Enabled         bool                `json:"enabled,omitempty"`
	Initial         int                 `json:"initial,omitempty"`
	Min             int                 `json:"min,omitempty"`
	Max             int                 `json:"max,omitempty"`
	Tolerance       float64             `json:"tolerance,omitempty"`
	ProbeInterval   strictjson.Duration `json:"probeInterval,omitzero"`
	IgnoreDeadlines bool                `json:"ignoreDeadlines,omitempty"`
}

// configJSON is a Config as it stands in JSON: a policy, and two fields more.
type configJSON struct {
	policyJSON
	Methods strictjson.Methods[Policy] `json:"methods,omitempty"`
	DryRun  bool                       `json:"dryRun,omitempty"`
}

func (p Policy) toJSON() policyJSON {
	a := p.Adaptive
	return policyJSON{p.Rate, p.Burst, p.Wait, strictjson.Duration(p.MaxWait), p.Cost, p.MessageCost, p.PerMethod, p.Key,
		p.MaxKeys, strictjson.Duration(p.KeyIdle), adaptiveJSON{a.Enabled, a.Initial, a.Min, a.Max, a.Tolerance,
			strictjson.Duration(a.ProbeInterval), a.IgnoreDeadlines}}
}

func (j policyJSON) policy() Policy {
	a := j.Adaptive
	return Policy{j.Rate, j.Burst, j.Wait, time.Duration(j.MaxWait), j.Cost, j.MessageCost, j.PerMethod, j.Key,
		j.MaxKeys, time.Duration(j.KeyIdle), Adaptive{a.Enabled, a.Initial, a.Min, a.Max, a.Tolerance,
			time.Duration(a.ProbeInterval), a.IgnoreDeadlines}}
}

// MarshalJSON implements [json.Marshaler].
func (p Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.toJSON()) }

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (p *Policy) UnmarshalJSON(js []byte) error {
	var j policyJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	*p = j.policy()
	return nil
}

// MarshalJSON implements [json.Marshaler]: the policy's fields, "methods" and "dryRun". Functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(configJSON{c.Policy.toJSON(), c.Methods, c.DryRun})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. Functions stay as they
// are.
func (c *Config) UnmarshalJSON(js []byte) error {
	var j configJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return fmt.Errorf("ratelimit: %w", err)
	}
	c.Policy, c.Methods, c.DryRun = j.policy(), j.Methods, j.DryRun
	return nil
}
