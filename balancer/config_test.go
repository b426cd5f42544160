package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/lbtest"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

func TestParseConfig(t *testing.T) {
	for _, tt := range []struct {
		js   string
		want Strategy
	}{
		{`{}`, RoundRobin{}},
		{`null`, RoundRobin{}},
		{` { } `, RoundRobin{}},
		{`{"strategy":null}`, RoundRobin{}},
		{`{"strategy":{"random":{}}}`, Random{}},
		{`{"strategy":{"random":null}}`, Random{}},
		{`{"strategy":{"weighted":{}}}`, Weighted{}},
		{`{"strategy":{"least_request":{}}}`, LeastRequest{}},
		{`{"strategy":{"least_request":{"choices":10}}}`, LeastRequest{Choices: 10}},
		{`{"strategy":{"peak_ewma":{"choices":3,"decay":"1m","penalty":"500ms"}}}`,
			PeakEWMA{Choices: 3, Decay: time.Minute, Penalty: 500 * time.Millisecond}},
		{`{"strategy":{"hash":{}}}`, Hash{}},
		{`{"strategy":{"hash":{"metadata":"x-user-id","maxLoad":1.5,"tableSize":1000003}}}`,
			Hash{Metadata: "x-user-id", MaxLoad: 1.5, TableSize: 1000003}},
		{`{"strategy":{"hash":{"unbounded":true,"maxLoad":0}}}`, Hash{Unbounded: true}},
		{`{"blacklist":{}}`, RoundRobin{}},
		{`{"blacklist":null}`, RoundRobin{}},
		{`{"filter":"","require":""}`, RoundRobin{}},
	} {
		c, err := lbtest.ParseConfig(Name, tt.js)
		if err != nil {
			t.Errorf("%s: %v", tt.js, err)
			continue
		}
		s := c.(*settings)
		if s.strategy != tt.want || !s.filter.IsZero() || !s.require.IsZero() || s.judge.failures != 3 {
			t.Errorf("%s: %+v, want strategy %+v and defaults", tt.js, s, tt.want)
		}
	}
	c, err := lbtest.ParseConfig(Name, `{"filter":"b=2,a=1","require":"zone in (eu)","blacklist":{"failures":5,"baseEjection":"10s",
		"maxEjection":"1m","maxEjectedPercent":30,"probeTimeout":"1s","classifier":"test-strict"}}`)
	if err != nil {
		t.Fatal(err)
	}
	s := c.(*settings)
	if s.filter.String() != "a=1,b=2" || s.require.String() != "zone=eu" || s.judge.failures != 5 || s.judge.percent != 30 ||
		s.judge.base != 10e9 || s.judge.max != 60e9 || s.judge.probe != 1e9 || s.plain {
		t.Errorf("everything set: %+v", s)
	}
}

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct{ js, want string }{
		{``, `evenkeel: EOF`},
		{`{`, `evenkeel: unexpected EOF`},
		{`[]`, `evenkeel: the configuration = a JSON array, want an object`},
		{`"x"`, `evenkeel: the configuration = a JSON string, want an object`},
		{`{} {}`, `evenkeel: the JSON has text after its end`},
		{`{}}`, `evenkeel: the JSON has text after its end`},
		{`{"stratgy":{}}`, `evenkeel: unknown field "stratgy", want one of strategy, filter, require, blacklist`},
		{`{"strategy":"random"}`, `evenkeel: strategy = "random", want an object with one entry such as {"least_request":{"choices":2}}`},
		{`{"strategy":{}}`, `evenkeel: strategy = {}, want an object with one entry`},
		{`{"strategy":{"random":{},"weighted":{}}}`, `evenkeel: strategy = {"random":{},"weighted":{}}, want an object with one entry`},
		{`{"strategy":{"fastest":{}}}`,
			`evenkeel: strategy = "fastest", want one of ["forgiving" "hash" "keel" "least_request" "peak_ewma" "prequal" "random" "round_robin" `},
		{`{"strategy":{"random":{"choices":2}}}`, `evenkeel: strategy random: unknown field "choices", want none`},
		{`{"strategy":{"random":[]}}`, `evenkeel: strategy random: the configuration = a JSON array, want an object`},
		{`{"strategy":{"least_request":{"choices":1}}}`, `evenkeel: strategy least_request: choices = 1, want 2 to 10`},
		{`{"strategy":{"least_request":{"choices":-1}}}`, `evenkeel: strategy least_request: choices = -1, want 2 to 10`},
		{`{"strategy":{"least_request":{"choices":11}}}`, `evenkeel: strategy least_request: choices = 11, want 2 to 10`},
		{`{"strategy":{"least_request":{"choices":"2"}}}`, `evenkeel: strategy least_request: choices = a JSON string, want a whole number`},
		{`{"strategy":{"least_request":{"choices":2.5}}}`, `evenkeel: strategy least_request: choices = a JSON number 2.5, want a whole number`},
		{`{"strategy":{"least_request":{"choice":2}}}`, `evenkeel: strategy least_request: unknown field "choice", want one of choices`},
		{`{"strategy":{"peak_ewma":{"choices":1}}}`, `evenkeel: strategy peak_ewma: choices = 1, want 2 to 10`},
		{`{"strategy":{"peak_ewma":{"decay":"-1s"}}}`, `evenkeel: strategy peak_ewma: decay = -1s, want a positive duration`},
		{`{"strategy":{"peak_ewma":{"penalty":"-1s"}}}`, `evenkeel: strategy peak_ewma: penalty = -1s, want a positive duration`},
		{`{"strategy":{"peak_ewma":{"decay":10}}}`, `evenkeel: strategy peak_ewma: decay = a JSON number, want a text such as "30ms"`},
		{`{"strategy":{"peak_ewma":{"decay":"10"}}}`, `evenkeel: strategy peak_ewma: decay = "10", want a text such as "30ms" or "1m30s"`},
		{`{"strategy":{"hash":{"maxLoad":0.5}}}`, `evenkeel: strategy hash: maxLoad = 0.5, want 1 to 100`},
		{`{"strategy":{"hash":{"maxLoad":-1}}}`, `evenkeel: strategy hash: maxLoad = -1, want 1 to 100`},
		{`{"strategy":{"hash":{"maxLoad":1e300}}}`, `evenkeel: strategy hash: maxLoad = 1e+300, want 1 to 100`},
		{`{"strategy":{"hash":{"maxLoad":"2"}}}`, `evenkeel: strategy hash: maxLoad = a JSON string, want a number`},
		{`{"strategy":{"hash":{"maxLoad":2,"unbounded":true}}}`, `evenkeel: strategy hash: maxLoad = 2 with unbounded, want one of them`},
		{`{"strategy":{"hash":{"tableSize":100}}}`, `evenkeel: strategy hash: tableSize = 100, want 101 to 5000011`},
		{`{"strategy":{"hash":{"tableSize":5000012}}}`, `evenkeel: strategy hash: tableSize = 5000012, want 101 to 5000011`},
		{`{"strategy":{"hash":{"metadata":"grpc-timeout"}}}`, `evenkeel: strategy hash: metadata = "grpc-timeout", want a name that does not begin with "grpc-"`},
		{`{"strategy":{"hash":{"metadata":"trace-BIN"}}}`, `evenkeel: strategy hash: metadata = "trace-BIN", want a name that does not end in "-bin"`},
		{`{"strategy":{"hash":{"metadata":"user id"}}}`, `evenkeel: strategy hash: metadata = "user id", want a name of letters, digits,`},
		{`{"strategy":{"hash":{"metadata":":path"}}}`, `evenkeel: strategy hash: metadata = ":path", want a name of letters, digits,`},
		{`{"strategy":{"hash":{"key":"x"}}}`, `evenkeel: strategy hash: unknown field "key", want one of metadata, maxLoad, unbounded, tableSize`},
		{`{"strategy":{"keel":{"probeRate":11}}}`, `evenkeel: strategy keel: probeRate = 11, want 0 to 10`},
		{`{"strategy":{"keel":{"probeRate":-1}}}`, `evenkeel: strategy keel: probeRate = -1, want 0 to 10`},
		{`{"strategy":{"keel":{"rifQuantile":1}}}`, `evenkeel: strategy keel: rifQuantile = 1, want above 0 and below 1`},
		{`{"strategy":{"keel":{"maxAge":"1ms"}}}`, `evenkeel: strategy keel: maxAge = 1ms, want 10ms or more`},
		{`{"strategy":{"keel":{"probeTimeout":"-1s"}}}`, `evenkeel: strategy keel: probeTimeout = -1s, want 1ms or more`},
		{`{"strategy":{"keel":{"probes":1}}}`, `evenkeel: strategy keel: unknown field "probes", want one of probeRate, rifQuantile, maxAge, probeTimeout`},
		{`{"strategy":{"prequal":{"poolSize":1}}}`, `evenkeel: strategy prequal: poolSize = 1, want 2 to 64`},
		{`{"strategy":{"prequal":{"poolSize":65}}}`, `evenkeel: strategy prequal: poolSize = 65, want 2 to 64`},
		{`{"strategy":{"prequal":{"removeRate":-1}}}`, `evenkeel: strategy prequal: removeRate = -1, want 0 to 10`},
		{`{"strategy":{"prequal":{"delta":10.5}}}`, `evenkeel: strategy prequal: delta = 10.5, want 0 to 10`},
		{`{"strategy":{"prequal":{"rifQuantile":1.1}}}`, `evenkeel: strategy prequal: rifQuantile = 1.1, want 0 to 1`},
		{`{"strategy":{"prequal":{"probeTimeout":"1us"}}}`, `evenkeel: strategy prequal: probeTimeout = 1µs, want 1ms or more`},
		{`{"filter":"track=canary,,"}`, `evenkeel: filter: filters: column 14 of "track=canary,,": got ","`},
		{`{"require":"zone in (a"}`, `evenkeel: require: filters: column 11 of "zone in (a": got the end`},
		{`{"zone":{"local":"a","tolerence":1}}`, `evenkeel: zone: unknown field "tolerence", want one of local, tolerance, remotePercent`},
		{`{"subset":{"size":"4"}}`, `evenkeel: subset.size = a JSON string, want a whole number`},
		{`{"filter":3}`, `evenkeel: filter = a JSON number, want a text`},
		{`{"blacklist":true}`, `evenkeel: blacklist = a JSON bool, want an object`},
		{`{"blacklist":{"failure":3}}`, `evenkeel: blacklist: unknown field "failure", want one of disabled, failures,`},
		{`{"blacklist":{"failures":"3"}}`, `evenkeel: blacklist.failures = a JSON string, want a whole number`},
		{`{"blacklist":{"failures":-3}}`, `evenkeel: blacklist.failures = -3, want 1 to 1000`},
		{`{"blacklist":{"maxEjectedPercent":200}}`, `evenkeel: blacklist.maxEjectedPercent = 200, want 1 to 100`},
		{`{"blacklist":{"baseEjection":"30"}}`, `evenkeel: blacklist.baseEjection = "30", want a text such as`},
		{`{"blacklist":{"baseEjection":30}}`, `evenkeel: blacklist.baseEjection = a JSON number, want a text such as "30ms"`},
		{`{"blacklist":{"baseEjection":"-30s"}}`, `evenkeel: blacklist.baseEjection = -30s, want 1ns to 8760h0m0s`},
		{`{"blacklist":{"maxEjection":"1s"}}`, `evenkeel: blacklist.maxEjection = 1s, want at least baseEjection, which is 30s`},
		{`{"blacklist":{"classifier":"mine"}}`, `evenkeel: blacklist.classifier = "mine", want one of ["default"`},
	} {
		_, err := lbtest.ParseConfig(Name, tt.js)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s:\n%v, want\n%s", tt.js, err, tt.want)
		}
	}
	var pe *filters.ParseError
	if _, err := lbtest.ParseConfig(Name, `{"filter":"a=1,,"}`); !errors.As(err, &pe) {
		t.Errorf("the error of a filter is a %T, want it to wrap a *filters.ParseError", err)
	}
}

// broken is a strategy that nobody registered; unfit one whose settings its own parser refuses.
type (
	unregistered struct{ Random }
	unfit        struct{ LeastRequest }
)

func (unregistered) Name() string { return "unregistered" }

func (unfit) MarshalJSON() ([]byte, error) { return nil, errRefused }

func TestLoadBalancingConfig(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{}, `{"evenkeel":{"strategy":{"round_robin":{}}}}`},
		{Config{Strategy: LeastRequest{}}, `{"evenkeel":{"strategy":{"least_request":{}}}}`},
		{Config{Strategy: LeastRequest{Choices: 3}}, `{"evenkeel":{"strategy":{"least_request":{"choices":3}}}}`},
		{Config{Strategy: PeakEWMA{Decay: 90 * time.Second}}, `{"evenkeel":{"strategy":{"peak_ewma":{"decay":"1m30s"}}}}`},
		{Config{Strategy: Keel{ProbeRate: 0.5, MaxAge: 2 * time.Second}}, `{"evenkeel":{"strategy":{"keel":{"probeRate":0.5,"maxAge":"2s"}}}}`},
		{Config{Strategy: Prequal{PoolSize: 8, RIFQuantile: 0.75, Reports: true}},
			`{"evenkeel":{"strategy":{"prequal":{"poolSize":8,"rifQuantile":0.75,"reports":true}}}}`},
		{Config{Strategy: Hash{Metadata: "x-user-id", MaxLoad: 1.5}},
			`{"evenkeel":{"strategy":{"hash":{"metadata":"x-user-id","maxLoad":1.5}}}}`},
		{Config{Filter: filter(t, "b=2,a=1"), Require: filters.Zone("eu")},
			`{"evenkeel":{"strategy":{"round_robin":{}},"filter":"a=1,b=2","require":"zone=eu"}}`},
		{Config{Blacklist: Blacklist{Disabled: true}}, `{"evenkeel":{"strategy":{"round_robin":{}},"blacklist":{"disabled":true}}}`},
		{Config{Blacklist: Blacklist{Failures: 5, BaseEjection: time.Second, MaxEjection: time.Minute, MaxEjectedPercent: 10,
			ProbeTimeout: time.Second, Classifier: "default"}},
			`{"evenkeel":{"strategy":{"round_robin":{}},"blacklist":{"failures":5,"baseEjection":"1s","maxEjection":"1m0s",` +
				`"maxEjectedPercent":10,"probeTimeout":"1s","classifier":"default"}}}`},
	} {
		js, err := LoadBalancingConfig(tt.c)
		if err != nil || string(js) != tt.want {
			t.Errorf("%+v: %s (%v), want %s", tt.c, js, err, tt.want)
		}
	}
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Strategy: LeastRequest{Choices: 1}}, "evenkeel: strategy least_request: choices = 1, want 2 to 10"},
		{Config{Strategy: Hash{MaxLoad: math.NaN()}}, "evenkeel: strategy hash: json: unsupported value: NaN"},
		{Config{Strategy: Hash{TableSize: -1}}, "evenkeel: strategy hash: tableSize = -1, want 101 to 5000011"},
		{Config{Strategy: unregistered{}}, `evenkeel: strategy = "unregistered", want one of [`},
		{Config{Strategy: unfit{}}, "evenkeel: strategy least_request: json: error calling MarshalJSON"},
		{Config{Filter: filters.Label("bad key!", "")}, "evenkeel: filter: filters: Label: key"},
		{Config{Require: filters.Label("bad key!", "")}, "evenkeel: require: filters: Label: key"},
		{Config{Blacklist: Blacklist{BaseEjection: -time.Second}}, "evenkeel: blacklist.baseEjection = -1s, want"},
	} {
		if _, err := LoadBalancingConfig(tt.c); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.c, err, tt.want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("ServiceConfig of an invalid Config does not panic")
		}
	}()
	ServiceConfig(Config{Strategy: LeastRequest{Choices: 1}})
}

// reparse reads what LoadBalancingConfig wrote into a Config, as only a test needs to.
func reparse(t testing.TB, js []byte) Config {
	t.Helper()
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(js, &outer); err != nil {
		t.Fatal(err)
	}
	return configOf(t, outer[Name])
}

// configOf is the Config behind a policy's JSON that parseConfig accepts.
func configOf(t testing.TB, js []byte) Config {
	t.Helper()
	s, err := parseConfig(js)
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	var raw struct {
		Blacklist Blacklist
		Outliers  Outliers
		Subset    Subset
		SlowStart SlowStart
		Zone      Zone
	}
	if err := json.Unmarshal(js, &raw); err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	return Config{Strategy: s.strategy, Filter: s.filter, Require: s.require, Blacklist: raw.Blacklist,
		Outliers: raw.Outliers, Subset: raw.Subset, SlowStart: raw.SlowStart, Zone: raw.Zone}
}

// sections are what a policy's JSON consists of, each with what it is wrapped into, by the beginning of its errors. A
// field that is added to one of them is tested from then on.
func sections() map[string]section {
	return map[string]section{
		"":                                  {"%s", struct{ Filter, Require string }{}},
		"blacklist.":                        {`{"blacklist":%s}`, blacklistJSON{}},
		"outliers.":                         {`{"outliers":%s}`, outliersJSON{}},
		"outliers.a50.":                     {`{"outliers":{"a50":%s}}`, a50JSON{}},
		"outliers.a50.successRateEjection.": {`{"outliers":{"a50":{"successRateEjection":%s}}}`, successRateJSON{}},
		"outliers.a50.failurePercentageEjection.": {`{"outliers":{"a50":{"failurePercentageEjection":%s}}}`,
			failurePercentageJSON{}},
		"subset.":                  {`{"subset":%s}`, Subset{}},
		"slowStart.":               {`{"slowStart":%s}`, slowStartJSON{}},
		"zone.":                    {`{"zone":%s}`, Zone{}},
		"strategy weighted: ":      {`{"strategy":{"weighted":%s}}`, weightedJSON{}},
		"strategy least_request: ": {`{"strategy":{"least_request":%s}}`, LeastRequest{}},
		"strategy peak_ewma: ":     {`{"strategy":{"peak_ewma":%s}}`, peakEWMAJSON{}},
		"strategy hash: ":          {`{"strategy":{"hash":%s}}`, Hash{}},
		"strategy prequal: ":       {`{"strategy":{"prequal":%s}}`, prequalJSON{}},
		"strategy keel: ":          {`{"strategy":{"keel":%s}}`, keelJSON{}},
	}
}

type section struct {
	in     string
	fields any
}

// TestConfigErrorsNameEveryField: a value of the wrong sort, or below all that makes sense, is refused whatever field it
// stands in, by an error that names the field, the value and what is wanted.
func TestConfigErrorsNameEveryField(t *testing.T) {
	for path, s := range sections() {
		fields := reflect.TypeOf(s.fields)
		for i := range fields.NumField() {
			f := fields.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				name = strings.ToLower(f.Name)
			}
			check := func(value, got string) {
				t.Helper()
				js := fmt.Sprintf(s.in, fmt.Sprintf(`{%q:%s}`, name, value))
				_, err := parseConfig([]byte(js))
				if err == nil || !strings.HasPrefix(err.Error(), "evenkeel: "+strings.SplitN(path, ".", 2)[0]) ||
					!strings.Contains(err.Error(), name+" = "+got) || !strings.Contains(err.Error(), "want ") {
					t.Errorf("%s: %v, want an error that names %s%s, %s and what is wanted", js, err, path, name, got)
				}
			}
			check("[[]]", "a JSON array")
			kind := f.Type
			if kind.Kind() == reflect.Pointer {
				kind = kind.Elem()
			}
			switch {
			case kind == reflect.TypeFor[strictjson.Duration]():
				check(`"-1s"`, "-1s")
				check(`"soon"`, `"soon"`)
				check(`"1000000000h"`, `"1000000000h"`) // more than 64 bits
				check("5", `a JSON number, want a text such as "30ms"`)
			case kind.Kind() == reflect.Int:
				check("-1", "-1")
				check("2.5", "a JSON number 2.5")
				check("1e30", "a JSON number 1e30")
			case kind.Kind() == reflect.Float64:
				check("-1", "-1")
				check("1e300", "1e+300")
				check("1e999", "a JSON number 1e999")
			case kind.Kind() == reflect.Bool:
				check(`"yes"`, "a JSON string")
			}
		}
		js := fmt.Sprintf(s.in, `{"colour":1}`)
		if _, err := parseConfig([]byte(js)); err == nil || !strings.Contains(err.Error(), `unknown field "colour", want one of `) {
			t.Errorf("%s: %v, want an error that names the fields there are", js, err)
		}
	}
}

// FuzzConfig: no text makes the parser panic, and whatever it accepts can be written and read again without a change.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"strategy":{"random":{}}}`, `{"strategy":{"least_request":{"choices":2}}}`,
		`{"strategy":{"peak_ewma":{"choices":3,"decay":"10s","penalty":"5s"}}}`, `{"strategy":{"weighted":{}},"filter":"track=canary"}`,
		`{"require":"zone in (a,b),version>=1.4.0","filter":"prefer(id(x); !deprecated)"}`,
		`{"blacklist":{"disabled":true,"failures":3,"baseEjection":"30s","maxEjection":"300s","maxEjectedPercent":50,"probeTimeout":"5s"}}`,
		`{"strategy":{"hash":{"metadata":"X-User-ID","maxLoad":1.25,"tableSize":65537}}}`, `{"strategy":{"hash":{"unbounded":true}}}`,
		`{"strategy":{"keel":{"probeRate":0.5,"rifQuantile":0.9,"maxAge":"1s","probeTimeout":"20ms"}}}`,
		`{"strategy":{"prequal":{"poolSize":16,"probeRate":3,"removeRate":0.25,"delta":1,"maxAge":"1s","reports":true}}}`,
		`{"blacklist":{"classifier":"default","baseEjection":"8760h"}}`, `{"filter":"any(a=\"\u00e9\"; not(serves(x.Y)))"}`,
		`{"outliers":{"dryRun":true,"margin":0.1,"oddsRatio":2,"confidence":0.99,"slow":3}}`, `{"outliers":{"disabled":true}}`,
		`{"outliers":{"a50":{"interval":"5s","baseEjectionTime":"10s","maxEjectionTime":"1m","maxEjectionPercent":20,` +
			`"successRateEjection":{"stdevFactor":2000,"enforcementPercentage":50,"minimumHosts":3,"requestVolume":10},` +
			`"failurePercentageEjection":{"threshold":50,"enforcementPercentage":90,"minimumHosts":4,"requestVolume":20}}}}`,
		`{"subset":{"size":3}}`, `{"subset":{"size":2,"client":1,"clients":3}}`, `{"subset":{"size":20,"client":17,"clients":1000}}`,
		`{"slowStart":{"window":"30s","minPercent":5,"aggression":1.5}}`,
		`{"zone":{"local":"a","tolerance":0.5,"remotePercent":2.5},"outliers":{"slow":2}}`,
		`{"strategy":{"weighted":{"load":"orca","blackout":"1s","expiration":"1m","update":"500ms","errorPenalty":2}}}`,
		`{"zone":null,"subset":null,"slowStart":null,"outliers":null}`, `{"outliers":{"a50":null}}`, `{"zone":{"LOCAL":"b"}}`,
		`{"strategy":{"round_robin":null},"blacklist":null,"filter":""}`, `{"FILTER":"a","filter":"b"}`, `{"filter":"func(nope)"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, js []byte) {
		if _, err := parseConfig(js); err != nil {
			return
		}
		want := configOf(t, js)
		out, err := LoadBalancingConfig(want)
		if err != nil {
			t.Fatalf("accepted %s and cannot write it: %v", js, err)
		}
		got := reparse(t, out)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s was read as %+v, written as %s, and read as %+v", js, want, out, got)
		}
		// What is accepted can be put into force, and calls made by it.
		cc := lbtest.New()
		b := lbtest.BuildWith(cc, builder{clock: &fakeClock{now: start}, rand: seeded(1)}, "orders")
		defer b.Close()
		ins := fleet(6)
		for i := range ins {
			ins[i].Zone, ins[i].Labels = string(rune('a'+i%2)), map[string]string{"track": "canary"}
		}
		s, _ := parseConfig(js)
		if err := lbtest.Update(b, s, lbtest.Endpoints(ins...)); err != nil && !errors.Is(err, gbalancer.ErrBadResolverState) {
			t.Fatal(err)
		}
		cc.Settle()
		for range 10 {
			res, err := cc.Picker().Pick(gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/orders.Orders/Get"})
			if err != nil {
				break // no instance is right for it
			}
			res.Done(ended(nil))
			cc.Settle()
		}
	})
}
