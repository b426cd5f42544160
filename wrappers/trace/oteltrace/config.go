package oteltrace

import (
	"fmt"
	"strings"
	"sync/atomic"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/scope"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// scopeName is what tracers and meters are asked for by.
const scopeName = "github.com/evenkeel/evenkeel/wrappers/trace/oteltrace"

// Config is what a [Tracing] is made of. Its zero value traces and measures every call but health checks and
// reflection with the global providers. In JSON it is what a [trace.Config] is.
type Config struct {
	// Policy holds for the methods that Methods does not name, except those of the health and reflection services.
	// It is the one of package trace. Disabled switches the metrics of calls off too.
	trace.Policy
	// Methods has policies of their own for "/pkg.Service/Method", "/pkg.Service/*" or "*".
	Methods map[string]trace.Policy
	// TracerProvider makes the tracer; nil means otel.GetTracerProvider().
	TracerProvider oteltrace.TracerProvider
	// MeterProvider makes the meter; nil means otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
	// Propagator puts contexts into the metadata and takes them out; nil means W3C Trace Context and Baggage. (Not the
	// global one, which does nothing until it is set.)
	Propagator propagation.TextMapPropagator
	// Payload is the text of a message for the events, if Payloads is on: the place to leave out secrets. nil means
	// protobuf's JSON. It is called on the goroutine of the call.
	Payload func(method string, message any) string
	// OnEnd is called before a span of a call or an attempt ends, once, to add attributes. It is called without a
	// lock, on whatever goroutine ends the call, and only for spans that record.
	OnEnd func(oteltrace.Span, trace.End)
}

// UnmarshalJSON implements [json.Unmarshaler]: the fields of the [trace.Policy], and "methods". Others are an error.
// Providers, propagator and functions, which JSON cannot have, stay as they are.
func (c *Config) UnmarshalJSON(js []byte) error {
	var plain trace.Config
	if err := plain.UnmarshalJSON(js); err != nil {
		return fmt.Errorf("oteltrace: %w", err)
	}
	c.Policy, c.Methods = plain.Policy, plain.Methods
	return nil
}

// MarshalJSON implements [json.Marshaler]; providers, propagator and functions are left out.
func (c Config) MarshalJSON() ([]byte, error) {
	return trace.Config{Policy: c.Policy, Methods: c.Methods}.MarshalJSON()
}

// Tracing traces and measures calls. Make it with [New]; its four interceptors share its configuration. It is safe
// for concurrent use, and has nothing to close: providers belong to whoever made them.
type Tracing struct {
	settings atomic.Pointer[settings]
	open     [2]atomic.Int64 // by trace.Side
}

// settings is a Config, checked and ready for calls. It is immutable.
type settings struct {
	policies   *scope.Table[trace.Policy]
	tracer     oteltrace.Tracer
	silent     bool // the tracer never makes a span
	propagator propagation.TextMapPropagator
	payload    func(method string, message any) string
	onEnd      func(oteltrace.Span, trace.End)

	clientTime rpcconv.ClientCallDuration
	serverTime rpcconv.ServerCallDuration
	attempts   metric.Int64Histogram
	hedgesWon  metric.Int64Counter
}

// New makes a Tracing. An error names the field, what it is and what is wanted.
func New(c Config) (*Tracing, error) {
	t := new(Tracing)
	if err := t.Update(c); err != nil {
		return nil, err
	}
	return t, nil
}

// Update replaces the configuration as a whole, while calls run: those that have started end under the one they
// started with. If it returns an error, nothing has changed.
func (t *Tracing) Update(c Config) error {
	s, err := c.settings()
	if err != nil {
		return fmt.Errorf("oteltrace: %w", err)
	}
	t.settings.Store(s)
	return nil
}

// State is what there is to know about a [Tracing] from outside: the rest is metrics.
type State struct {
	// OpenClient and OpenServer are how many calls, attempts and handlers have started and not ended.
	OpenClient, OpenServer int64
}

// State returns the counts.
func (t *Tracing) State() State {
	return State{OpenClient: t.open[trace.Client].Load(), OpenServer: t.open[trace.Server].Load()}
}

func (c Config) settings() (*settings, error) {
	// Package trace checks what it defines.
	if _, err := trace.New(trace.Config{Policy: c.Policy, Methods: c.Methods}); err != nil {
		return nil, err
	}
	table, err := scope.New(c.Policy, c.Methods)
	if err != nil {
		return nil, err
	}
	s := &settings{policies: table, propagator: c.Propagator, payload: c.Payload, onEnd: c.OnEnd}
	if s.propagator == nil {
		s.propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	}
	tracers, meters := c.TracerProvider, c.MeterProvider
	if tracers == nil {
		tracers = otel.GetTracerProvider()
	}
	if meters == nil {
		meters = otel.GetMeterProvider()
	}
	_, s.silent = tracers.(noop.TracerProvider)
	s.tracer = tracers.Tracer(scopeName)
	return s, s.instruments(meters.Meter(scopeName))
}

func (s *settings) instruments(m metric.Meter) (err error) {
	if s.clientTime, err = rpcconv.NewClientCallDuration(m); err != nil {
		return err
	}
	if s.serverTime, err = rpcconv.NewServerCallDuration(m); err != nil {
		return err
	}
	s.attempts, err = m.Int64Histogram("evenkeel.client.attempts", metric.WithUnit("{attempt}"),
		metric.WithDescription("Attempts per call, hedges included; 1 where nothing retries."),
		metric.WithExplicitBucketBoundaries(1, 2, 3, 4, 5, 7, 10, 20))
	if err != nil {
		return err
	}
	s.hedgesWon, err = m.Int64Counter("evenkeel.client.hedges_won", metric.WithUnit("{call}"),
		metric.WithDescription("Calls that a hedge decided."))
	return err
}

type callPolicy struct {
	grpc.EmptyCallOption
	policy trace.Policy
}

// WithPolicy has p hold for one call, whatever the configuration says, health checks included. It panics if p is not
// valid.
func WithPolicy(p trace.Policy) grpc.CallOption {
	if _, err := trace.New(trace.Config{Policy: p}); err != nil {
		panic(fmt.Errorf("oteltrace: WithPolicy: %w", err))
	}
	return &callPolicy{policy: p}
}

// policyFor is what holds for a call; on is false if it is not to be traced. The last option counts.
func (s *settings) policyFor(method string, opts []grpc.CallOption) (p trace.Policy, on bool) {
	for i := len(opts) - 1; i >= 0; i-- {
		if o, ok := opts[i].(*callPolicy); ok {
			return o.policy, !o.policy.Disabled
		}
	}
	p, on = s.policies.Applies(method)
	return p, on && !p.Disabled
}

// nameOf is a method as the semantic conventions write it.
func nameOf(method string) string { return strings.TrimPrefix(method, "/") }
