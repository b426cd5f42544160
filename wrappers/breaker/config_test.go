package breaker

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestPolicyRanges(t *testing.T) {
	for want, p := range map[string]Policy{
		"window = 1µs, want 1ms to 8760h0m0s":       {Window: time.Microsecond},
		"window = -1s, want 1ms to 8760h0m0s":       {Window: -sec},
		"openFor = 8760h0m0.000000001s, want":       {OpenFor: 365*24*time.Hour + 1},
		"bucketPeriod = -1ns, want":                 {BucketPeriod: -1},
		"bucketPeriod = 11s, want 100ms to 10s":     {BucketPeriod: 11 * sec},
		"bucketPeriod = 99ms, want 100ms to 10s":    {BucketPeriod: 99 * time.Millisecond},
		"slowCall = -1ns, want 1ns to":              {SlowCall: -1},
		"probeTimeout = -1ns, want 1ns to":          {ProbeTimeout: -1},
		"ramp = -1ns, want 1ns to":                  {Ramp: -1},
		"timeout = -1ns, want 1ns to":               {Timeout: -1},
		"consecutiveFailures = -2, want -1 to":      {ConsecutiveFailures: -2},
		"minCalls = -1, want 0 to 1000000":          {MinCalls: -1},
		"probes = 1000001, want 0 to 1000000":       {Probes: 1_000_001},
		"maxConcurrent = -1, want 0 to 1000000":     {MaxConcurrent: -1},
		"failureRatio = 1.5, want above 0 up to 1":  {FailureRatio: 1.5},
		"failureRatio = -0.5, want above 0 up to 1": {FailureRatio: -0.5},
		"failureRatio = NaN, want above 0 up to 1":  {FailureRatio: math.NaN()},
		"slowRatio = -1, want above 0 up to 1":      {SlowRatio: -1},
		"rampFrom = 2, want above 0 up to 1":        {RampFrom: 2},
		`key = key(9), want one of ["method"`:       {Key: 9},
		`classifier = "none", want one of ["`:       {Classifier: "none"},
	} {
		if _, err := New(Config{Policy: p}); err == nil || !strings.HasPrefix(err.Error(), "breaker: "+want) {
			t.Errorf("%v\nwant breaker: %s", err, want)
		}
		_, err := New(Config{Methods: map[string]Policy{"/a.B/*": p}})
		if err == nil || !strings.HasPrefix(err.Error(), `breaker: methods["/a.B/*"].`+want) {
			t.Errorf("%v\nwant breaker: methods[\"/a.B/*\"].%s", err, want)
		}
	}
	for want, c := range map[string]Config{
		"maxBreakers = -1, want 1 to 10000":    {MaxBreakers: -1},
		"maxBreakers = 10001, want 1 to 10000": {MaxBreakers: 10001},
		"idleAfter = -1ns, want 1ns to":        {IdleAfter: -1},
		`methods: method "a.B/C", want "/pkg`:  {Methods: map[string]Policy{"a.B/C": {}}},
	} {
		if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), "breaker: "+want) {
			t.Errorf("%v\nwant breaker: %s", err, want)
		}
	}
}

// TestDefaults: what the documentation says a zero field means.
func TestDefaults(t *testing.T) {
	r, err := (&Policy{}).resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := Policy{ConsecutiveFailures: 10, FailureRatio: 0.5, MinCalls: 20, Window: 10 * sec, BucketPeriod: sec,
		Classifier: "default", SlowRatio: 0.5, OpenFor: 5 * sec, Probes: 1, ProbeTimeout: 5 * sec, Ramp: 10 * sec, RampFrom: 0.1}
	w, err := want.resolve()
	if err != nil {
		t.Fatal(err)
	}
	r.classify, w.classify = nil, nil
	if !reflect.DeepEqual(r, w) {
		t.Errorf("%+v, want %+v", r, w)
	}
}

const everything = `{"disabled":true,"dryRun":true,"key":"service","consecutiveFailures":-1,"failureRatio":0.25,` +
	`"minCalls":7,"window":"30s","bucketPeriod":"500ms","classifier":"default","slowCall":"2s","slowRatio":0.75,` +
	`"openFor":"1m0s","probes":3,"probeTimeout":"4s","ramp":"20s","rampFrom":0.05,"noRamp":true,"maxConcurrent":9,` +
	`"timeout":"1.5s","fallbackFails":true}`

func TestJSON(t *testing.T) {
	var p Policy
	if err := json.Unmarshal([]byte(everything), &p); err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(p)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "Fallback" {
			t.Errorf("%s is zero, want every field to be read from JSON", name)
		}
	}
	js, err := json.Marshal(p)
	if err != nil || string(js) != everything {
		t.Errorf("%s, %v\nwant %s", js, err, everything)
	}
	const config = `{"window":"30s","methods":{"/a.B/*":{"openFor":"1s"}},"maxBreakers":5,"idleAfter":"1m0s"}`
	c := Config{Policy: Policy{Fallback: answer, Probes: 9}, Methods: map[string]Policy{"/a.B/*": {Fallback: answer}},
		OnReject: func(*Error) {}}
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	if c.Fallback == nil || c.OnReject == nil || c.Methods["/a.B/*"].Fallback == nil || c.Probes != 0 {
		t.Errorf("%+v, want the functions kept and everything else from the JSON", c)
	}
	if js, err := json.Marshal(c); err != nil || string(js) != config {
		t.Errorf("%s, %v\nwant %s", js, err, config)
	}
	if js, err := json.Marshal(Config{}); err != nil || string(js) != "{}" {
		t.Errorf("%s, %v, want {}", js, err)
	}
	if _, err := json.Marshal(Policy{Key: 9}); err == nil {
		t.Error("a key that does not exist was written")
	}
}

func TestJSONRefused(t *testing.T) {
	for js, want := range map[string]string{
		`{"windw":"3s"}`:                       `unknown field "windw"`,
		`{"window":3}`:                         `window = a JSON number, want `,
		`{"window":"3"}`:                       `breaker: window = "3", want a text such as "30ms" or "1m30s"`,
		`{"key":"method "}`:                    `key = "method ", want one of ["method" "service" "target"]`,
		`{"probes":"3"}`:                       `breaker: probes = a JSON string, want a whole number`,
		`{"key":3}`:                            `breaker: key = a JSON number, want a text`,
		`{"methods":{"/a.B/C":{"window":3}}}`:  `breaker: methods["/a.B/C"].window = a JSON number, want`,
		`{"probes":3} {}`:                      `after top-level value`,
		`[]`:                                   `breaker: the configuration = a JSON array, want an object`,
		`{"methods":{"/a.B/C":{"probs":1}}}`:   `unknown field "probs"`,
		`{"methods":{"/a.B/C":{"methods":1}}}`: `unknown field "methods"`,
	} {
		var c Config
		if err := json.Unmarshal([]byte(js), &c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", js, err, want)
		}
	}
}

// TestHystrix: every knob has its place, under hystrix-go's own names and with its defaults.
func TestHystrix(t *testing.T) {
	var h Hystrix
	err := json.Unmarshal([]byte(`{"timeout":250,"max_concurrent_requests":7,"request_volume_threshold":4,`+
		`"sleep_window":1500,"error_percent_threshold":25}`), &h)
	if err != nil {
		t.Fatal(err)
	}
	ms := time.Millisecond
	base := Policy{ConsecutiveFailures: -1, Window: 10 * sec, BucketPeriod: sec, Probes: 1, NoRamp: true}
	for _, x := range []struct {
		h                  Hystrix
		timeout, sleep     time.Duration
		concurrent, volume int
		ratio              float64
	}{{h, 250 * ms, 1500 * ms, 7, 4, 0.25}, {Hystrix{}, sec, 5 * sec, 10, 20, 0.5}} {
		want := base
		want.Timeout, want.ProbeTimeout, want.OpenFor = x.timeout, x.timeout, x.sleep
		want.MaxConcurrent, want.MinCalls, want.FailureRatio = x.concurrent, x.volume, x.ratio
		got, err := x.h.Policy()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v: %+v, %v\nwant %+v", x.h, got, err, want)
		}
		if _, err := New(Config{Policy: got}); err != nil {
			t.Errorf("%+v is refused: %v", got, err)
		}
	}
	for want, h := range map[string]Hystrix{
		"breaker: timeout = -1, want 0 to 31536000000":          {Timeout: -1},
		"breaker: error_percent_threshold = 101, want 0 to 100": {ErrorPercentThreshold: 101},
		"breaker: sleep_window = -5, want 0 to 31536000000":     {SleepWindow: -5},
	} {
		if _, err := h.Policy(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestHystrixBehaves: 25 % of 4 calls open it, for 1.5 s, and one good call closes it for all.
func TestHystrixBehaves(t *testing.T) {
	p, err := Hystrix{RequestVolumeThreshold: 4, SleepWindow: 1500, ErrorPercentThreshold: 25}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	play(t, Config{Policy: p}, never, []step{
		{at: 0, n: 3, event: "ok", want: "passed, closed"},
		{at: 1, event: "down", want: "passed, open", told: "closed>open"},
		{at: 1500 * time.Millisecond, event: "ok", want: "turned away, open"},
		{at: 1501 * time.Millisecond, n: 5, event: "ok", want: "passed, closed", told: "open>half-open half-open>closed"},
	})
}

func TestShorthandsPanic(t *testing.T) {
	bad := Policy{Probes: -1}
	for name, f := range map[string]func(Policy){
		"unary client":  func(p Policy) { UnaryClientInterceptor(p) },
		"stream client": func(p Policy) { StreamClientInterceptor(p) },
		"unary server":  func(p Policy) { UnaryServerInterceptor(p) },
		"stream server": func(p Policy) { StreamServerInterceptor(p) },
	} {
		f(Policy{}) // does not
		panicked := true
		survive(func() {
			f(bad)
			panicked = false
		})
		if !panicked {
			t.Errorf("%s: no panic, want one on an invalid policy", name)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		Closed.String(): "closed", Phase(9).String(): "phase(9)", Target.String(): "target", Key(9).String(): "key(9)",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
