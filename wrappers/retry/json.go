package retry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/clock"
)

// policyJSON is a Policy as it stands in JSON, where durations are texts such as "25ms".
type policyJSON struct {
	MaxAttempts    int         `json:"maxAttempts,omitempty"`
	AttemptTimeout duration    `json:"attemptTimeout,omitzero"`
	Timeout        duration    `json:"timeout,omitzero"`
	Codes          []code      `json:"codes,omitzero"` // an empty list means none, a missing one the default
	Idempotent     bool        `json:"idempotent,omitempty"`
	Backoff        backoffJSON `json:"backoff,omitzero"`
	Budget         *Budget     `json:"budget,omitempty"`
	Hedge          hedgeJSON   `json:"hedge,omitzero"`
	ChainStop      bool        `json:"chainStop,omitempty"`
	DryRun         bool        `json:"dryRun,omitempty"`
}

type backoffJSON struct {
	Base duration `json:"base,omitzero"`
	Max  duration `json:"max,omitzero"`
}

type hedgeJSON struct {
	Delay    duration `json:"delay,omitzero"`
	Quantile float64  `json:"quantile,omitempty"`
	Max      int      `json:"max,omitempty"`
}

func (p *Policy) toJSON() policyJSON {
	j := policyJSON{
		MaxAttempts: p.MaxAttempts, AttemptTimeout: duration(p.AttemptTimeout), Timeout: duration(p.Timeout),
		Idempotent: p.Idempotent, Backoff: backoffJSON{duration(p.Backoff.Base), duration(p.Backoff.Max)},
		Budget: p.Budget, Hedge: hedgeJSON{duration(p.Hedge.Delay), p.Hedge.Quantile, p.Hedge.Max},
		ChainStop: p.ChainStop, DryRun: p.DryRun,
	}
	if p.Codes != nil {
		j.Codes = make([]code, 0, len(p.Codes))
	}
	for _, c := range p.Codes {
		j.Codes = append(j.Codes, code(c))
	}
	return j
}

func (p *Policy) setJSON(j *policyJSON) {
	*p = Policy{
		MaxAttempts: j.MaxAttempts, AttemptTimeout: time.Duration(j.AttemptTimeout), Timeout: time.Duration(j.Timeout),
		Idempotent: j.Idempotent, Backoff: Backoff{time.Duration(j.Backoff.Base), time.Duration(j.Backoff.Max)},
		Budget: j.Budget, Hedge: Hedge{time.Duration(j.Hedge.Delay), j.Hedge.Quantile, j.Hedge.Max},
		ChainStop: j.ChainStop, DryRun: j.DryRun,
	}
	if j.Codes != nil {
		p.Codes = make([]codes.Code, 0, len(j.Codes))
	}
	for _, c := range j.Codes {
		p.Codes = append(p.Codes, codes.Code(c))
	}
}

// MarshalJSON implements [json.Marshaler].
func (p Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.toJSON()) }

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. A budget in the JSON is a
// new one: two policies that are loaded with the same numbers share nothing.
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
	Methods map[string]Policy `json:"methods,omitempty"`
}

// MarshalJSON implements [json.Marshaler]. Functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(configJSON{c.Policy.toJSON(), c.Methods})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. Functions stay as they are.
func (c *Config) UnmarshalJSON(js []byte) error {
	var j configJSON
	if err := unmarshalStrict(js, &j); err != nil {
		return fmt.Errorf("retry: %w", err)
	}
	c.Policy.setJSON(&j.policyJSON)
	c.Methods = j.Methods
	return nil
}

// MarshalJSON implements [json.Marshaler]; what the budget has left is not part of it.
func (b *Budget) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]float64{"percent": b.percent, "perSecond": b.perSecond})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. It is for a Budget that
// nobody uses yet.
func (b *Budget) UnmarshalJSON(js []byte) error {
	j := struct {
		Percent   float64 `json:"percent"`
		PerSecond float64 `json:"perSecond"`
	}{defaultPercent, defaultPerSecond}
	if err := unmarshalStrict(js, &j); err != nil {
		return err
	}
	if _, err := NewBudget(j.Percent, j.PerSecond); err != nil {
		return err
	}
	b.set(j.Percent, j.PerSecond, clock.New())
	return nil
}

// codeNames are the names of the status codes in JSON, as gRPC's service config has them.
var codeNames = [...]string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
	"ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
	"UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

// codeName is c's name as JSON and error texts have it.
func codeName(c codes.Code) string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return c.String()
}

// code is a status code that is written "UNAVAILABLE" in JSON; a number is read as well.
type code codes.Code

func (c code) MarshalJSON() ([]byte, error) {
	if int(c) < len(codeNames) {
		return json.Marshal(codeNames[c])
	}
	return json.Marshal(uint32(c))
}

func (c *code) UnmarshalJSON(js []byte) error {
	var known codes.Code
	if string(js) == "null" || known.UnmarshalJSON(js) != nil {
		return fmt.Errorf("codes has %.100s, want a status code such as \"UNAVAILABLE\"", js)
	}
	*c = code(known)
	return nil
}

// unmarshalStrict refuses fields that it does not know, so that a misspelt one is not silently a default.
func unmarshalStrict(js []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(js))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			field := strings.TrimPrefix(wrong.Field, "policyJSON.") // an embedded struct, which JSON does not show
			return fmt.Errorf("%s = a JSON %s, want %s", cmp.Or(field, "policy"), wrong.Value, inJSON(wrong.Type))
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the JSON has text after its end")
	}
	return nil
}

// inJSON is what people write in JSON for a value of type t.
func inJSON(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[duration]():
		return `a text such as "30ms"`
	case t.Kind() == reflect.Slice:
		return "a list"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int || t.Kind() == reflect.Float64:
		return "a number"
	}
	return "an object"
}

// duration is a time.Duration that is written "1.5s" in JSON, as [time.ParseDuration] reads it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration = %.100q, want one such as \"30ms\" or \"1m30s\"", text)
	}
	*d = duration(v)
	return nil
}
