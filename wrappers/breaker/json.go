package breaker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// policyJSON is a Policy as it stands in JSON, where durations are texts such as "5s".
type policyJSON struct {
	Disabled            bool     `json:"disabled,omitempty"`
	DryRun              bool     `json:"dryRun,omitempty"`
	Key                 Key      `json:"key,omitzero"`
	ConsecutiveFailures int      `json:"consecutiveFailures,omitempty"`
	FailureRatio        float64  `json:"failureRatio,omitempty"`
	MinCalls            int      `json:"minCalls,omitempty"`
	Window              duration `json:"window,omitzero"`
	BucketPeriod        duration `json:"bucketPeriod,omitzero"`
	Classifier          string   `json:"classifier,omitempty"`
	SlowCall            duration `json:"slowCall,omitzero"`
	SlowRatio           float64  `json:"slowRatio,omitempty"`
	OpenFor             duration `json:"openFor,omitzero"`
	Probes              int      `json:"probes,omitempty"`
	ProbeTimeout        duration `json:"probeTimeout,omitzero"`
	Ramp                duration `json:"ramp,omitzero"`
	RampFrom            float64  `json:"rampFrom,omitempty"`
	NoRamp              bool     `json:"noRamp,omitempty"`
	MaxConcurrent       int      `json:"maxConcurrent,omitempty"`
	Timeout             duration `json:"timeout,omitzero"`
	FallbackFails       bool     `json:"fallbackFails,omitempty"`
}

func (p *Policy) toJSON() policyJSON {
	return policyJSON{p.Disabled, p.DryRun, p.Key, p.ConsecutiveFailures, p.FailureRatio, p.MinCalls,
		duration(p.Window), duration(p.BucketPeriod), p.Classifier, duration(p.SlowCall), p.SlowRatio,
		duration(p.OpenFor), p.Probes, duration(p.ProbeTimeout), duration(p.Ramp), p.RampFrom, p.NoRamp,
		p.MaxConcurrent, duration(p.Timeout), p.FallbackFails}
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
	if err := unmarshalStrict(js, &j); err != nil {
		return err
	}
	p.setJSON(&j)
	return nil
}

// configJSON is a Config as it stands in JSON: the fields of the policy, and beside them its own.
type configJSON struct {
	policyJSON
	Methods     map[string]Policy `json:"methods,omitempty"`
	MaxBreakers int               `json:"maxBreakers,omitempty"`
	IdleAfter   duration          `json:"idleAfter,omitzero"`
}

// MarshalJSON implements [json.Marshaler]. Functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(configJSON{c.Policy.toJSON(), c.Methods, c.MaxBreakers, duration(c.IdleAfter)})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. Functions stay as they
// are, those of Methods by their key.
func (c *Config) UnmarshalJSON(js []byte) error {
	var j configJSON
	if err := unmarshalStrict(js, &j); err != nil {
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

// unmarshalStrict refuses fields that it does not know, so that a misspelt one is not silently a default.
func unmarshalStrict(js []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(js))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return fmt.Errorf("%s = a JSON %s, want %s", cmp.Or(wrong.Field, "policy"), wrong.Value, wrong.Type)
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the JSON has text after its end")
	}
	return nil
}

// duration is a time.Duration that is written "1.5s" in JSON, as [time.ParseDuration] reads it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration = %.100q, want one such as \"30s\" or \"1m30s\"", text)
	}
	*d = duration(v)
	return nil
}
