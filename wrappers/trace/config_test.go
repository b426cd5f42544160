package trace

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/opentracing/opentracing-go"
)

func TestConfigJSON(t *testing.T) {
	js := `{"payloads":true,"maxPayload":64,"methods":{"/a.B/*":{"disabled":true},"*":{"maxPayload":8}}}`
	c := Config{Tracer: opentracing.NoopTracer{}, Policy: Policy{Disabled: true}}
	if err := json.Unmarshal([]byte(js), &c); err != nil {
		t.Fatal(err)
	}
	want := Config{Tracer: opentracing.NoopTracer{}, Policy: Policy{Payloads: true, MaxPayload: 64},
		Methods: map[string]Policy{"/a.B/*": {Disabled: true}, "*": {MaxPayload: 8}}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	out, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var again Config
	if err := json.Unmarshal(out, &again); err != nil || !reflect.DeepEqual(again.Methods, c.Methods) || again.Policy != c.Policy {
		t.Errorf("%s became %+v (%v), want the same again", out, again, err)
	}
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct{ js, want string }{
		{`{"payload":true}`, `unknown field "payload"`},
		{`{"methods":{"*":{"payload":true}}}`, `trace: methods["*"]: unknown field "payload", want one of disabled, `},
		{`{"methods":{"*":{"payloads":"yes"}}}`, `trace: methods["*"].payloads = a JSON string, want true or false`},
		{`{"maxPayload":"1k"}`, "trace: maxPayload = a JSON string, want a whole number"},
		{`{"maxPayload":-1}`, "trace: maxPayload = -1, want 0 or more"},
		{`{"methods":{"/a/B":{"maxPayload":-1}}}`, `trace: methods["/a/B"]: maxPayload = -1, want 0 or more`},
		{`{"methods":{"a/B":{}}}`, `trace: method "a/B", want "/pkg.Service/Method"`},
		{`[]`, "trace: the configuration = a JSON array, want an object"},
	} {
		got := Config{Policy: Policy{MaxPayload: 5}}
		err := json.Unmarshal([]byte(c.js), &got)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.js, err, c.want)
		}
		if got.MaxPayload != 5 {
			t.Errorf("%s: the configuration changed to %+v in spite of the error", c.js, got)
		}
	}
	if _, err := New(Config{Methods: map[string]Policy{"/a/B": {MaxPayload: -3}}}); err == nil ||
		err.Error() != `trace: method "/a/B": maxPayload = -3, want 0 or more` {
		t.Errorf("New: %v, want the method, the field, what it is and what is wanted", err)
	}
	bad := Policy{MaxPayload: -1}
	for name, f := range map[string]func(){
		"UnaryClientInterceptor":  func() { UnaryClientInterceptor(bad) },
		"StreamClientInterceptor": func() { StreamClientInterceptor(bad) },
		"UnaryServerInterceptor":  func() { UnaryServerInterceptor(bad) },
		"StreamServerInterceptor": func() { StreamServerInterceptor(bad) },
		"WithPolicy":              func() { WithPolicy(bad) },
	} {
		func() {
			defer func() {
				if err, ok := recover().(error); !ok || !strings.Contains(err.Error(), "maxPayload = -1") {
					t.Errorf("%s: panic %v, want one that names the field", name, err)
				}
			}()
			f()
		}()
	}
}

func TestShorthandsUseTheGlobalTracer(t *testing.T) {
	_, tracer := newTracing(t, Config{})
	before := opentracing.GlobalTracer()
	defer opentracing.SetGlobalTracer(before)
	chain := UnaryClientInterceptor(Policy{})
	_ = chain(t.Context(), "/a/B", nil, nil, nil, well)
	if n := len(tracer.FinishedSpans()); n != 0 {
		t.Errorf("%d spans before there was a tracer, want 0", n)
	}
	opentracing.SetGlobalTracer(tracer)
	_ = chain(t.Context(), "/a/B", nil, nil, nil, well)
	if n := len(tracer.FinishedSpans()); n != 1 {
		t.Errorf("%d spans, want 1 of the global tracer", n)
	}
}
