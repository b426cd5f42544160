package trace

import (
	"encoding/json"
	"fmt"

	"github.com/opentracing/opentracing-go"

	"github.com/evenkeel/evenkeel/internal/scope"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// Tags that spans have beside OpenTracing's own (component, span.kind, peer.address, error). Their names are
// OpenTelemetry's where it has one, so that traces of both can be searched alike.
const (
	// TagMethod is the method without the leading slash: "pkg.Service/Method".
	TagMethod = "rpc.method"
	// TagStatus is the gRPC status by its name in the specification: "OK", "UNAVAILABLE".
	TagStatus = "rpc.response.status_code"
	// TagPeer is the address at the other end, as text.
	TagPeer = "peer.address"
	// TagInstance is the ID of the instance that evenkeel's balancer chose last, for the spans of clients.
	TagInstance = "evenkeel.instance"
	// TagFilter is the filter that the caller's context bound to the service, in its canonical form.
	TagFilter = "evenkeel.filter"
	// TagAttempt is the number of an attempt, from 1, on the span of the attempt.
	TagAttempt = "evenkeel.attempt"
	// TagHedge is true on the span of an attempt that was started while another still ran.
	TagHedge = "evenkeel.hedge"
	// TagAttempts is how many attempts were made, on the span of the call, if a retry is in the chain.
	TagAttempts = "evenkeel.attempts"
	// TagLogsDropped is how many logs a span had beyond the 128 that are kept.
	TagLogsDropped = "evenkeel.logs_dropped"
)

// Side is which end of a call a span is of.
type Side uint8

const (
	// Client is the caller's.
	Client Side = iota
	// Server is the handler's.
	Server
)

// String returns "client" or "server".
func (s Side) String() string {
	switch s {
	case Client:
		return "client"
	case Server:
		return "server"
	}
	return fmt.Sprintf("side(%d)", uint8(s))
}

// Policy says what is traced. Its zero value traces calls without their messages. It is a plain value; in JSON its
// fields are "disabled", "payloads" and "maxPayload", and others are an error.
type Policy struct {
	// Disabled makes no spans and sends no tracing context.
	Disabled bool `json:"disabled,omitempty"`
	// Payloads logs requests and replies, each message of a stream. Mind what is in them.
	Payloads bool `json:"payloads,omitempty"`
	// MaxPayload is how many bytes of a message's text are logged; 0 means 1024.
	MaxPayload int `json:"maxPayload,omitempty"`
}

const defaultMaxPayload = 1 << 10

func (p Policy) validate() error {
	if p.MaxPayload < 0 {
		return fmt.Errorf("maxPayload = %d, want 0 or more", p.MaxPayload)
	}
	return nil
}

func (p Policy) maxPayload() int {
	if p.MaxPayload == 0 {
		return defaultMaxPayload
	}
	return p.MaxPayload
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (p *Policy) UnmarshalJSON(js []byte) error {
	type plain Policy
	var v plain
	if err := strictjson.Unmarshal(js, &v); err != nil {
		return err
	}
	if err := Policy(v).validate(); err != nil {
		return err
	}
	*p = Policy(v)
	return nil
}

// Config is what a [Tracing] is made of. Its zero value traces every call but health checks and reflection with the
// global tracer.
type Config struct {
	// Policy holds for the methods that Methods does not name, except those of the health and reflection services.
	Policy
	// Methods has policies of their own for "/pkg.Service/Method", "/pkg.Service/*" or "*".
	Methods map[string]Policy
	// Tracer makes the spans; nil means opentracing.GlobalTracer() at the time of the call. It must be safe for
	// concurrent use, as OpenTracing demands.
	Tracer opentracing.Tracer
	// Sampled reports whether spans of this context are recorded. nil asks the context's method IsSampled() bool, and
	// takes those without one as sampled. It is called at least once a call and must be fast and safe for
	// concurrent use.
	Sampled func(opentracing.SpanContext) bool
	// Payload is the text of a message for the logs, if Payloads is on: the place to leave out secrets. nil means
	// protobuf's JSON. It is called on the goroutine of the call, before a message is sent and after it was received.
	Payload func(method string, message any) string
	// OnEnd is called before a span of a call or an attempt is finished, once, to add tags. It is called without a
	// lock, on whatever goroutine ends the call, and not for calls that are not sampled.
	OnEnd func(opentracing.Span, End)
}

// End describes the end of a call or an attempt to [Config].OnEnd.
type End struct {
	Side    Side
	Method  string // "/pkg.Service/Method"
	Attempt int    // 0 for the call as a whole
	Err     error  // nil if it went well
}

// configJSON is what of a Config can stand in JSON.
type configJSON struct {
	Disabled   bool                       `json:"disabled,omitempty"`
	Payloads   bool                       `json:"payloads,omitempty"`
	MaxPayload int                        `json:"maxPayload,omitempty"`
	Methods    strictjson.Methods[Policy] `json:"methods,omitempty"`
}

// UnmarshalJSON implements [json.Unmarshaler]: the fields of the [Policy], and "methods". Others are an error. Tracer
// and functions, which JSON cannot have, stay as they are.
func (c *Config) UnmarshalJSON(js []byte) error {
	var v configJSON
	if err := strictjson.Unmarshal(js, &v); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	next := *c
	next.Policy, next.Methods = Policy{v.Disabled, v.Payloads, v.MaxPayload}, v.Methods
	if _, err := next.settings(); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	*c = next
	return nil
}

// MarshalJSON implements [json.Marshaler]; Tracer and functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(configJSON{c.Disabled, c.Payloads, c.MaxPayload, c.Methods})
}

// settings is a Config, checked and ready for calls. It is immutable.
type settings struct {
	tracer   opentracing.Tracer // nil: the global one
	policies *scope.Table[Policy]
	isOn     func(opentracing.SpanContext) bool // nil: the method IsSampled
	payload  func(method string, message any) string
	onEnd    func(opentracing.Span, End)
}

func (c Config) settings() (*settings, error) {
	if err := c.Policy.validate(); err != nil {
		return nil, err
	}
	for key, p := range c.Methods {
		if err := p.validate(); err != nil {
			return nil, fmt.Errorf("method %q: %w", key, err)
		}
	}
	table, err := scope.New(c.Policy, c.Methods)
	if err != nil {
		return nil, err
	}
	return &settings{tracer: c.Tracer, policies: table, isOn: c.Sampled, payload: c.Payload, onEnd: c.OnEnd}, nil
}

// active is the tracer, nil if there is none that does anything.
func (s *settings) active() opentracing.Tracer {
	t := s.tracer
	if t == nil {
		t = opentracing.GlobalTracer()
	}
	switch t.(type) {
	case nil, opentracing.NoopTracer, *opentracing.NoopTracer:
		return nil
	}
	return t
}

func (s *settings) sampled(sc opentracing.SpanContext) bool {
	if s.isOn != nil {
		return s.isOn(sc)
	}
	if x, ok := sc.(interface{ IsSampled() bool }); ok {
		return x.IsSampled()
	}
	return true
}

// records reports whether ot, which was just started, is sampled. Should the user's function not return, ot is finished,
// since nobody else knows of it.
func (s *settings) records(ot opentracing.Span) (sampled bool) {
	asked := false
	defer func() {
		if !asked {
			ot.Finish()
		}
	}()
	sampled = s.sampled(ot.Context())
	asked = true
	return sampled
}
