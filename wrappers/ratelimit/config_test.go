package ratelimit

import (
	"context"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestInvalid(t *testing.T) {
	second := time.Second
	cases := []struct {
		p    Policy
		want string
	}{
		{Policy{Rate: -1}, "rate = -1, want 0 (no limit) to 1e+12"},
		{Policy{Rate: math.NaN()}, "rate = NaN, want"},
		{Policy{Rate: math.Inf(1)}, "rate = +Inf, want"},
		{Policy{Rate: math.Inf(-1)}, "rate = -Inf, want"},
		{Policy{Rate: 1e13}, "rate = 1e+13, want"},
		{Policy{Rate: 1, Burst: -1}, "burst = -1, want"},
		{Policy{Rate: 1, Burst: math.MaxInt}, "burst = 9223372036854775807, want"},
		{Policy{Rate: 1, Cost: -1}, "cost = -1, want"},
		{Policy{Rate: 1, MessageCost: -1}, "messageCost = -1, want"},
		{Policy{Rate: 1, MaxKeys: -1}, "maxKeys = -1, want"},
		{Policy{Rate: 1, Burst: 2, Cost: 3}, "burst = 2, want at least cost and messageCost, which are 3 and 0"},
		{Policy{Rate: 1, Burst: 2, MessageCost: 3}, "burst = 2, want at least cost and messageCost, which are 1 and 3"},
		{Policy{MaxWait: -second}, "maxWait = -1s, want"},
		{Policy{KeyIdle: math.MaxInt64}, "keyIdle = 2562047h47m16.854775807s, want"},
		{Policy{Key: "ip"}, `key = "ip", want "peer", "metadata:NAME", "func" or nothing`},
		{Policy{Key: "metadata:"}, `key = "metadata:", want`},
		{Policy{Key: "metadata:a b"}, `key = "metadata:a b", want`},
		{Policy{Key: "func"}, `key = "func", want Config.KeyFunc with it`},
		{Policy{Adaptive: Adaptive{Min: -1}}, "adaptive.min = -1, want"},
		{Policy{Adaptive: Adaptive{Min: 5, Max: 4}}, "adaptive.max = 4, want min, which is 5, to"},
		{Policy{Adaptive: Adaptive{Initial: 5, Max: 4}}, "adaptive.initial = 5, want min to max, which are 1 and 4"},
		{Policy{Adaptive: Adaptive{Tolerance: 1}}, "adaptive.tolerance = 1, want 1.1 to 10"},
		{Policy{Adaptive: Adaptive{Tolerance: math.NaN()}}, "adaptive.tolerance = NaN, want"},
		{Policy{Adaptive: Adaptive{ProbeInterval: 1}}, "adaptive.probeInterval = 1ns, want 1s to"},
	}
	for _, c := range cases {
		if _, err := New(Config{Policy: c.p}); err == nil || !strings.HasPrefix(err.Error(), "ratelimit: "+c.want) {
			t.Errorf("%+v: %v, want %s", c.p, err, c.want)
		}
		_, err := New(Config{Methods: map[string]Policy{"/a.A/X": c.p}})
		if err == nil || !strings.HasPrefix(err.Error(), `ratelimit: methods["/a.A/X"].`+c.want) {
			t.Errorf("%+v as a method's: %v, want %s", c.p, err, c.want)
		}
	}
	if _, err := New(Config{Methods: map[string]Policy{"a.A/X": {}}}); err == nil || !strings.Contains(err.Error(), `"a.A/X"`) {
		t.Errorf("method without slash: %v", err)
	}
}

func TestShorthandsPanic(t *testing.T) {
	bad, adaptive := Policy{Rate: -1}, Policy{Adaptive: Adaptive{Enabled: true}}
	for name, f := range map[string]func(){
		"unary client":           func() { UnaryClientInterceptor(bad) },
		"stream client":          func() { StreamClientInterceptor(bad) },
		"unary server":           func() { UnaryServerInterceptor(bad) },
		"stream server":          func() { StreamServerInterceptor(bad) },
		"unary client adaptive":  func() { UnaryClientInterceptor(adaptive) },
		"stream client adaptive": func() { StreamClientInterceptor(adaptive) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
	UnaryClientInterceptor(Policy{})
	StreamClientInterceptor(Policy{})
	UnaryServerInterceptor(adaptive)
	StreamServerInterceptor(adaptive)
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		p     Policy
		burst int
	}{
		{Policy{}, 1}, {Policy{Rate: 100}, 10}, {Policy{Rate: 101}, 11}, {Policy{Rate: 0.1}, 1},
		{Policy{Rate: 10, Cost: 7}, 7}, {Policy{Rate: 10, MessageCost: 8}, 8}, {Policy{Rate: 1e12}, maxTokens},
	} {
		r, err := c.p.resolve(false)
		if err != nil || r.Burst != c.burst || r.Cost != max(1, c.p.Cost) || r.MaxKeys != 10_000 || r.KeyIdle != 10*time.Minute {
			t.Errorf("%+v: %+v, %v, want burst %d", c.p, r.Policy, err, c.burst)
		}
	}
	a, err := Adaptive{Max: 5}.resolve()
	if err != nil || a.initial != 5 || a.min != 1 || a.interval != int64(10*time.Second) {
		t.Errorf("adaptive: %+v, %v", a, err)
	}
	if a, err := (Adaptive{Min: 2000}).resolve(); err != nil || a.initial != 2000 || a.max != 2000 {
		t.Errorf("adaptive with a large min: %+v, %v", a, err)
	}
}

func TestJSON(t *testing.T) {
	const all = `{"rate":100,"burst":10,"wait":true,"maxWait":"1.5s","cost":2,"messageCost":3,"perMethod":true,"key":"peer",` +
		`"maxKeys":5,"keyIdle":"1m0s","adaptive":{"enabled":true,"initial":7,"min":2,"max":50,"tolerance":2,"probeInterval":"5s",` +
		`"ignoreDeadlines":true},"methods":{"/a.A/X":{"rate":1}},"dryRun":true}`
	want := Config{
		Policy: Policy{Rate: 100, Burst: 10, Wait: true, MaxWait: 1500 * ms, Cost: 2, MessageCost: 3, PerMethod: true, Key: "peer",
			MaxKeys: 5, KeyIdle: time.Minute, Adaptive: Adaptive{Enabled: true, Initial: 7, Min: 2, Max: 50, Tolerance: 2,
				ProbeInterval: 5 * time.Second, IgnoreDeadlines: true}},
		Methods: map[string]Policy{"/a.A/X": {Rate: 1}}, DryRun: true,
	}
	var got Config
	if err := json.Unmarshal([]byte(all), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed %+v, %v, want %+v", got, err, want)
	}
	if js, err := json.Marshal(want); err != nil || string(js) != all {
		t.Errorf("written\n%s, %v, want\n%s", js, err, all)
	}
	// Every field of the policy is in it, so that a new one cannot be forgotten.
	for _, v := range []any{want.Policy, want.Policy.Adaptive} {
		for i := range reflect.TypeOf(v).NumField() {
			if reflect.ValueOf(v).Field(i).IsZero() {
				t.Errorf("%T.%s is not in this test", v, reflect.TypeOf(v).Field(i).Name)
			}
		}
	}
	f := func(context.Context, string) string { return "" }
	got = Config{KeyFunc: f, Policy: Policy{Burst: 3}, DryRun: true}
	if err := json.Unmarshal([]byte(`{"rate":1,"key":"func"}`), &got); err != nil || got.KeyFunc == nil || got.Burst != 0 || got.DryRun {
		t.Errorf("%+v, %v, want the function kept and the rest replaced", got, err)
	}
}

func TestJSONErrors(t *testing.T) {
	for js, want := range map[string]string{
		`{"rates":1}`:                          `unknown field "rates"`,
		`{"rate":"1"}`:                         "ratelimit: rate = a JSON string, want a number",
		`{"maxWait":5}`:                        `ratelimit: maxWait = a JSON number, want a text such as "30ms"`,
		`{"maxWait":"5"}`:                      `ratelimit: maxWait = "5", want a text such as "30ms"`,
		`{"adaptive":{"on":true}}`:             `unknown field "on"`,
		`{"adaptive":{"min":1.5}}`:             "ratelimit: adaptive.min = a JSON number 1.5, want a whole number",
		`{"adaptive":{"probeInterval":1}}`:     `ratelimit: adaptive.probeInterval = a JSON number, want a text`,
		`{"methods":{"/a.A/X":{"ratee":1}}}`:   `ratelimit: methods["/a.A/X"]: unknown field "ratee", want one of rate, burst`,
		`{"methods":{"/a.A/X":{"burst":""}}}`:  `ratelimit: methods["/a.A/X"].burst = a JSON string, want a whole number`,
		`{"methods":{"/a.A/X":{"keyIdle":1}}}`: `ratelimit: methods["/a.A/X"].keyIdle = a JSON number, want a text`,
		`{"methods":3}`:                        "ratelimit: methods = a JSON number, want an object",
		`[]`:                                   "ratelimit: the configuration = a JSON array, want an object",
	} {
		var c Config
		if err := json.Unmarshal([]byte(js), &c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", js, err, want)
		}
	}
}

func TestReasonNames(t *testing.T) {
	want := map[Reason]string{Rate: "rate", Cost: "cost", Concurrency: "concurrency", Deadline: "deadline", 77: "reason(77)"}
	for r, name := range want {
		if got := r.String(); got != name {
			t.Errorf("%d = %q, want %q", r, got, name)
		}
	}
}
