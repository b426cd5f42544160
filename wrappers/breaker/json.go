package breaker

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// policyJSON is a Policy as it stands in JSON, where durations are texts such as "5s".
type policyJSON struct {
	Disabled            bool                `json:"disabled,omitempty"`
	DryRun              bool                `json:"dryRun,omitempty"`
	Key                 Key                 `json:"key,omitzero"`
	ConsecutiveFailures int                 `json:"consecutiveFailures,omitempty"`
	FailureRatio        float64             `json:"failureRatio,omitempty"`
	MinCalls            int                 `json:"minCalls,omitempty"`
	Window              strictjson.Duration `json:"window,omitzero"`
	BucketPeriod        strictjson.Duration `json:"bucketPeriod,omitzero"`
	Classifier          string              `json:"classifier,omitempty"`
	SlowCall            strictjson.Duration `json:"slowCall,omitzero"`
	SlowRatio           float64             `json:"slowRatio,omitempty"`
	OpenFor             strictjson.Duration `json:"openFor,omitzero"`
	Probes              int                 `json:"probes,omitempty"`
	ProbeTimeout        strictjson.Duration `json:"probeTimeout,omitzero"`
	Ramp                strictjson.Duration `json:"ramp,omitzero"`
	RampFrom            float64             `json:"rampFrom,omitempty"`
	NoRamp              bool                `json:"noRamp,omitempty"`
	MaxConcurrent       int                 `json:"maxConcurrent,omitempty"`
	Timeout             strictjson.Duration `json:"timeout,omitzero"`
	FallbackFails       bool                `json:"fallbackFails,omitempty"`
}

func (p *Policy) toJSON() policyJSON {
	return policyJSON{p.Disabled, p.DryRun, p.Key, p.ConsecutiveFailures, p.FailureRatio, p.MinCalls,
		strictjson.Duration(p.Window), strictjson.Duration(p.BucketPeriod), p.Classifier, strictjson.Duration(p.SlowCall), p.SlowRatio,
		strictjson.Duration(p.OpenFor), p.Probes, strictjson.Duration(p.ProbeTimeout), strictjson.Duration(p.Ramp), p.RampFrom, p.NoRamp,
		p.MaxConcurrent, strictjson.Duration(p.Timeout), p.FallbackFails}
}

// setJSON takes everything but the Fallback, which JSON cannot have, from j.
func (p *Policy) setJSON(j *policyJSON) {
	*p = Policy{j.Disabled, j.DryRun, j.Key, j.ConsecutiveFailures, j.FailureRatio, j.MinCalls,
		time.Duration(j.Window), time.Duration(j.BucketPeriod), j.Classifier, time.Duration(j.SlowCall), j.SlowRatio,
		time.Duration(j.OpenFor), j.Probes, time.Duration(j.ProbeTimeout), time.Duration(j.Ramp), j.RampFrom,
		j.NoRamp, j.MaxConcurrent, time.Duration(j.Timeout), p.Fallback, j.FallbackFails}
}

// MarshalJSON implements [json.Marshaler]. Fallback is left out.
func (p Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.toJSON()) }

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. Fallback stays as it is.
func (p *Policy) UnmarshalJSON(js []byte) error {
	var j policyJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	p.setJSON(&j)
	return nil
}

// configJSON is a Config as it stands in JSON: the fields of the policy, and beside them its own.
type configJSON struct {
	policyJSON
	Methods     strictjson.Methods[Policy] `json:"methods,omitempty"`
	MaxBreakers int                        `json:"maxBreakers,omitempty"`
	IdleAfter   strictjson.Duration        `json:"idleAfter,omitzero"`
}

// MarshalJSON implements [json.Marshaler]. Functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(configJSON{c.Policy.toJSON(), c.Methods, c.MaxBreakers, strictjson.Duration(c.IdleAfter)})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. Functions stay as they
// are, those of Methods by their key.
func (c *Config) UnmarshalJSON(js []byte) error {
	var j configJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return fmt.Errorf("breaker: %w", err)
	}
	for key, p := range j.Methods {
		p.Fallback = c.Methods[key].Fallback
		j.Methods[key] = p
	}
	c.Policy.setJSON(&j.policyJSON)
	c.Methods, c.MaxBreakers, c.IdleAfter = j.Methods, j.MaxBreakers, time.Duration(j.IdleAfter)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) {
	if int(k) >= len(keyNames) {
		return nil, fmt.Errorf("key = %v, want one of %q", k, keyNames)
	}
	return []byte(keyNames[k]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(text []byte) error {
	i := slices.Index(keyNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("key = %.100q, want one of %q", text, keyNames)
	}
	*k = Key(i)
	return nil
}
