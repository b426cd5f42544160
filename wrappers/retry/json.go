package retry

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// policyJSON is a Policy as it stands in JSON, where durations are texts such as "25ms".
type policyJSON struct {
	MaxAttempts    int                 `json:"maxAttempts,omitempty"`
	AttemptTimeout strictjson.Duration `json:"attemptTimeout,omitzero"`
	Timeout        strictjson.Duration `json:"timeout,omitzero"`
	Codes          []code              `json:"codes,omitzero"` // an empty list means none, a missing one the default
	Idempotent     bool                `json:"idempotent,omitempty"`
	Backoff        backoffJSON         `json:"backoff,omitzero"`
	Budget         *Budget             `json:"budget,omitempty"`
	Hedge          hedgeJSON           `json:"hedge,omitzero"`
	ChainStop      bool                `json:"chainStop,omitempty"`
	DryRun         bool                `json:"dryRun,omitempty"`
}

type backoffJSON struct {
	Base strictjson.Duration `json:"base,omitzero"`
	Max  strictjson.Duration `json:"max,omitzero"`
}

type hedgeJSON struct {
	Delay    strictjson.Duration `json:"delay,omitzero"`
	Quantile float64             `json:"quantile,omitempty"`
	Max      int                 `json:"max,omitempty"`
}

func (p *Policy) toJSON() policyJSON {
	j := policyJSON{
		MaxAttempts: p.MaxAttempts, AttemptTimeout: strictjson.Duration(p.AttemptTimeout), Timeout: strictjson.Duration(p.Timeout),
		Idempotent: p.Idempotent, Backoff: backoffJSON{strictjson.Duration(p.Backoff.Base), strictjson.Duration(p.Backoff.Max)},
		Budget: p.Budget, Hedge: hedgeJSON{strictjson.Duration(p.Hedge.Delay), p.Hedge.Quantile, p.Hedge.Max},
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
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return err
	}
	p.setJSON(&j)
	return nil
}

// configJSON is a Config as it stands in JSON: the fields of the policy, and beside them its own.
type configJSON struct {
	policyJSON
	Methods strictjson.Methods[Policy] `json:"methods,omitempty"`
}

// MarshalJSON implements [json.Marshaler]. Functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(configJSON{c.Policy.toJSON(), c.Methods})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error. Functions stay as they are.
func (c *Config) UnmarshalJSON(js []byte) error {
	var j configJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
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
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return strictjson.At("budget", err)
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
	if c < codes.Code(len(codeNames)) {
		return codeNames[c]
	}
	return c.String()
}

// code is a status code that is written "UNAVAILABLE" in JSON; a number is read as well.
type code codes.Code

func (c code) MarshalJSON() ([]byte, error) {
	if codes.Code(c) < codes.Code(len(codeNames)) {
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
