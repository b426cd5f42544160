package retry

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func TestPolicyRanges(t *testing.T) {
	for want, p := range map[string]Policy{
		"maxAttempts = -1, want 0 to 20":                     {MaxAttempts: -1},
		"maxAttempts = 21, want 0 to 20":                     {MaxAttempts: 21},
		"attemptTimeout = -1ns, want 0s to 8760h":            {AttemptTimeout: -1},
		"timeout = -1s, want 0s to 8760h":                    {Timeout: -time.Second},
		"timeout = 8760h0m0.000000001s, want 0s to":          {Timeout: maxTimeout + 1},
		"backoff.base = -1ns, want 0s to 1h0m0s":             {Backoff: Backoff{Base: -1}},
		"backoff.max = 1h0m0.000000001s, want 0s to 1h0m0s":  {Backoff: Backoff{Max: time.Hour + 1}},
		"backoff.max = 1ms, want at least backoff.base":      {Backoff: Backoff{Max: time.Millisecond}},
		"hedge.delay = -1ns, want 0s to":                     {Hedge: Hedge{Delay: -1}},
		"hedge.quantile = 0.4, want 0 or 0.5 to 0.999":       {Hedge: Hedge{Quantile: 0.4}},
		"hedge.quantile = 1, want 0 or 0.5 to 0.999":         {Hedge: Hedge{Quantile: 1}},
		"hedge.quantile = NaN, want 0 or 0.5 to 0.999":       {Hedge: Hedge{Quantile: math.NaN()}},
		"hedge.max = -1, want 0 to 19":                       {Hedge: Hedge{Delay: 1, Max: -1}},
		"hedge.max = 20, want 0 to 19":                       {Hedge: Hedge{Delay: 1, Max: 20}},
		"hedge.max = 2 without a delay or a quantile":        {Hedge: Hedge{Max: 2}},
		"codes has OK, want codes other than OK and":         {Codes: []codes.Code{codes.OK}},
		"codes has Canceled, want codes other than":          {Codes: []codes.Code{codes.Unavailable, codes.Canceled}},
		"codes has Code(17), want codes other than OK and":   {Codes: []codes.Code{17}},
		"codes has Code(4294967295), want codes other than ": {Codes: []codes.Code{math.MaxUint32}},
	} {
		if _, err := New(Config{Policy: p}); err == nil || !strings.HasPrefix(err.Error(), "retry: "+want) {
			t.Errorf("%v\nwant retry: %s", err, want)
		}
		_, err := New(Config{Methods: map[string]Policy{"/a.B/*": p}})
		if err == nil || !strings.HasPrefix(err.Error(), `retry: methods["/a.B/*"].`+want) {
			t.Errorf("%v\nwant retry: methods[\"/a.B/*\"].%s", err, want)
		}
		for name, f := range map[string]func(){
			"UnaryClientInterceptor":  func() { UnaryClientInterceptor(p) },
			"StreamClientInterceptor": func() { StreamClientInterceptor(p) },
			"WithPolicy":              func() { WithPolicy(p) },
		} {
			if !panics(f) {
				t.Errorf("%s accepts a policy with %s", name, want)
			}
		}
	}
	_, err := New(Config{Methods: map[string]Policy{"a.B/C": {}}})
	if want := `retry: methods: method "a.B/C", want`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v\nwant %s", err, want)
	}
	for want, b := range map[string][2]float64{
		"budget.percent = -1, want 0 to 1000":      {-1, 0},
		"budget.percent = 1001, want 0 to 1000":    {1001, 0},
		"budget.percent = NaN, want":               {math.NaN(), 0},
		"budget.perSecond = -0.5, want 0 to 1e+06": {20, -0.5},
		"budget.perSecond = +Inf, want 0 to 1e+06": {20, math.Inf(1)},
	} {
		if _, err := NewBudget(b[0], b[1]); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}

// TestDefaults: what the documentation says a zero field means.
func TestDefaults(t *testing.T) {
	zero, err := new(Policy).resolve()
	if err != nil {
		t.Fatal(err)
	}
	spelled := Policy{MaxAttempts: 3, Codes: []codes.Code{codes.Unavailable},
		Backoff: Backoff{Base: 25 * time.Millisecond, Max: time.Second}}
	want, err := spelled.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(zero, want) {
		t.Errorf("%+v, want %+v", zero, want)
	}
	r := newTest(t, Config{})
	if got := r.fallback.String(); got != "20% of calls plus 10 a second" || r.State().Balance != 100 {
		t.Errorf("the budget is %s with %v in it, want 20%% plus 10 a second, 100", got, r.State().Balance)
	}
	none, err := (&Policy{Codes: []codes.Code{}}).resolve()
	if err != nil || none.codes != 0 {
		t.Errorf("codes %b, %v of an empty list, want none", none.codes, err)
	}
	long, err := (&Policy{Backoff: Backoff{Base: time.Minute}}).resolve()
	if err != nil || long.max != int64(time.Minute) {
		t.Errorf("max %v, %v with a base of a minute, want a minute", long.max, err)
	}
}

const everything = `{"maxAttempts":5,"attemptTimeout":"200ms","timeout":"2s","codes":["UNAVAILABLE","ABORTED"],` +
	`"idempotent":true,"backoff":{"base":"10ms","max":"2s"},"budget":{"perSecond":5,"percent":10},` +
	`"hedge":{"delay":"30ms","quantile":0.95,"max":2},"chainStop":true,"dryRun":true}`

func TestJSON(t *testing.T) {
	for _, js := range []string{everything, `{}`, `{"codes":[]}`, `{"budget":{"perSecond":0,"percent":0}}`} {
		var p Policy
		if err := json.Unmarshal([]byte(js), &p); err != nil {
			t.Fatalf("%s: %v", js, err)
		}
		out, err := json.Marshal(p)
		if err != nil || string(out) != js {
			t.Errorf("%s, %v, want %s", out, err, js)
		}
		config := strings.TrimSuffix(js, "}") + `,"methods":{"/a.B/*":` + js + `}}`
		config = strings.Replace(config, "{,", "{", 1)
		var c Config
		if err := json.Unmarshal([]byte(config), &c); err != nil {
			t.Fatalf("%s: %v", config, err)
		}
		out, err = json.Marshal(c)
		if err != nil || string(out) != config {
			t.Errorf("%s, %v, want %s", out, err, config)
		}
		if _, err := New(c); err != nil {
			t.Error(err)
		}
	}
	v := reflect.ValueOf(Policy{})
	var p Policy
	if err := json.Unmarshal([]byte(everything), &p); err != nil {
		t.Fatal(err)
	}
	for i := range v.NumField() {
		if reflect.ValueOf(p).Field(i).IsZero() {
			t.Errorf("field %s is not in the test's JSON", v.Type().Field(i).Name)
		}
	}
	var c Config
	c.OnRetry = func(Event) {}
	if err := json.Unmarshal([]byte(`{"codes":[14]}`), &c); err != nil || c.OnRetry == nil || c.Codes[0] != codes.Unavailable {
		t.Errorf("%+v, %v, want the function kept and the code read", c, err)
	}
}

func TestJSONErrors(t *testing.T) {
	for js, want := range map[string]string{
		`{"maxAttempt":3}`:                             `retry: unknown field "maxAttempt", want one of maxAttempts, `,
		`{"maxAttempts":"3"}`:                          `retry: maxAttempts = a JSON string, want a whole number`,
		`{"timeout":5}`:                                `retry: timeout = a JSON number, want a text such as "30ms"`,
		`{"timeout":"5"}`:                              `retry: timeout = "5", want a text such as "30ms"`,
		`{"codes":["DOWN"]}`:                           `retry: codes has "DOWN", want a status code such as "UNAVAILABLE"`,
		`{"codes":[null]}`:                             `retry: codes has null, want`,
		`{"codes":[99]}`:                               `retry: codes has 99, want`,
		`{"budget":{"percent":-1}}`:                    `retry: budget.percent = -1, want 0 to 1000`,
		`{"budget":{"prozent":1}}`:                     `retry: budget: unknown field "prozent", want one of percent, perSecond`,
		`{"hedge":{"delai":"1s"}}`:                     `retry: hedge: unknown field "delai", want one of delay, quantile, max`,
		`{"methods":{"/a.B/C":{"x":1}}}`:               `retry: methods["/a.B/C"]: unknown field "x", want one of maxAttempts, `,
		`{"budget":5}`:                                 `retry: budget = a JSON number, want an object`,
		`{"budget":{"percent":"1"}}`:                   `retry: budget.percent = a JSON string, want a number`,
		`{"methods":{"/a.B/C":{"hedge":{"delay":5}}}}`: `retry: methods["/a.B/C"].hedge.delay = a JSON number, want`,
		`[]`: `retry: the configuration = a JSON array, want an object`,
	} {
		var c Config
		if err := json.Unmarshal([]byte(js), &c); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", js, err, want)
		}
	}
	var c Config
	if err := c.UnmarshalJSON([]byte(`{} {}`)); err == nil {
		t.Error("text after the end is accepted")
	}
	var b Budget
	if err := json.Unmarshal([]byte(`{}`), &b); err != nil || b.String() != "20% of calls plus 10 a second" {
		t.Errorf("%s, %v of an empty object, want the defaults", &b, err)
	}
}

// TestDeclared: idempotency is read from the linked descriptors.
func TestDeclared(t *testing.T) {
	for method, want := range map[string]bool{
		unaryKind.declared(): true, bidiKind.declared(): true, unaryKind.plain(): false,
		"/evenkeel.retrytest.Declared/None": false, "/evenkeel.retrytest.Declared": false, "": false, "/": false, "//": false,
		"/google.protobuf.StringValue/value": false, "no method": false,
	} {
		if declared(method) != want {
			t.Errorf("%q is declared idempotent = %v, want %v", method, !want, want)
		}
	}
	r := newTest(t, Config{Methods: map[string]Policy{unaryKind.plain(): {Idempotent: true}}})
	s := r.state.Load()
	if !r.method(s, unaryKind.plain()).idempotent || r.method(s, bidiKind.plain()).idempotent {
		t.Error("a policy declares one method, want that one idempotent and no other")
	}
}
