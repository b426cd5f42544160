package strictjson

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

type key uint8

func (*key) UnmarshalText([]byte) error { return errors.New("key is never right") }

type policyJSON struct {
	N       int      `json:"n,omitempty"`
	X       float64  `json:"x,omitempty"`
	On      bool     `json:"on,omitempty"`
	Name    string   `json:"name,omitempty"`
	List    []string `json:"list,omitempty"`
	Timeout Duration `json:"timeout,omitzero"`
	Key     key      `json:"key,omitzero"`
	Inner   struct {
		Delay Duration `json:"delay,omitzero"`
	} `json:"inner,omitzero"`
	Box box `json:"box,omitzero"`
}

// box decodes itself.
type box struct{ n int }

func (b *box) UnmarshalJSON(js []byte) error {
	var v struct {
		N int `json:"n"`
	}
	err := Unmarshal(js, &v)
	b.n = v.N
	return At("box", err)
}

type policy struct{ policyJSON }

func (p *policy) UnmarshalJSON(js []byte) error { return Unmarshal(js, &p.policyJSON) }

type config struct {
	policyJSON
	Methods Methods[policy] `json:"methods,omitempty"`
}

// TestErrors: they name field, got and want, and no Go type.
func TestErrors(t *testing.T) {
	for js, want := range map[string]string{
		`5`:                                `the configuration = a JSON number, want an object`,
		`[]`:                               `the configuration = a JSON array, want an object`,
		`{"n":"5"}`:                        `n = a JSON string, want a whole number`,
		`{"n":1.5}`:                        `n = a JSON number 1.5, want a whole number`,
		`{"x":"5"}`:                        `x = a JSON string, want a number`,
		`{"on":1}`:                         `on = a JSON number, want true or false`,
		`{"name":1}`:                       `name = a JSON number, want a text`,
		`{"list":1}`:                       `list = a JSON number, want a list`,
		`{"timeout":5}`:                    `timeout = a JSON number, want a text such as "30ms" or "1m30s"`,
		`{"timeout":"5"}`:                  `timeout = "5", want a text such as "30ms" or "1m30s"`,
		`{"timeout":"\n"}`:                 `timeout = "\n", want a text such as "30ms" or "1m30s"`,
		`{"key":5}`:                        `key = a JSON number, want a text`,
		`{"key":"x"}`:                      `key is never right`,
		`{"inner":5}`:                      `inner = a JSON number, want an object`,
		`{"inner":{"delay":"soon"}}`:       `inner.delay = "soon", want a text such as`,
		`{"nn":5}`:                         `unknown field "nn", want one of n, x, on, name, list, timeout, key, inner, box, methods`,
		`{"policyJSON":{}}`:                `unknown field "policyJSON", want one of n, x`,
		`{"N":5,"inner":{"dilay":"5s"}}`:   `inner: unknown field "dilay", want one of delay`,
		`{"box":5}`:                        `box = a JSON number, want an object`,
		`{"box":{"n":"x"}}`:                `box.n = a JSON string, want a whole number`,
		`{"box":{"m":1}}`:                  `box: unknown field "m", want one of n`,
		`{"methods":[]}`:                   `methods = a JSON array, want an object`,
		`{"methods":{"/a.B/C":5}}`:         `methods["/a.B/C"] = a JSON number, want an object`,
		`{"methods":{"/a.B/C":{"n":"5"}}}`: `methods["/a.B/C"].n = a JSON string, want a whole number`,
		`{"methods":{"/a.B/C":{"box":{"n":"x"}}}}`:    `methods["/a.B/C"].box.n = a JSON string, want a whole number`,
		`{"methods":{"/a.B/C":{"nn":5}}}`:             `methods["/a.B/C"]: unknown field "nn", want one of n, x`,
		`{"methods":{"b":{"n":"5"},"a":{"n":false}}}`: `methods["a"].n = a JSON bool, want a whole number`,
		`{} {}`: `the JSON has text after its end`,
		`{`:     `unexpected EOF`,
	} {
		err := Unmarshal([]byte(js), new(config))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", js, err, want)
		}
	}
	long := Unmarshal([]byte(`{"timeout":"`+strings.Repeat("x", 10_000)+`"}`), new(config))
	if long == nil || len(long.Error()) > 200 {
		t.Errorf("an error of %d bytes, want 200 at most", len(long.Error()))
	}
}

// TestUnknownIsFound: an unknown field is named with the path of what has it, through lists, maps and pointers.
func TestUnknownIsFound(t *testing.T) {
	type leaf struct {
		A int `json:"a"`
		B int `json:"-"`
		C int
	}
	var v struct {
		List  []leaf           `json:"list"`
		Table map[string]*leaf `json:"table"`
		Deep  *struct {
			Pair [2]leaf `json:"pair"`
		} `json:"deep"`
		Own   *box     `json:"own"`
		Empty struct{} `json:"empty"`
	}
	for js, want := range map[string]string{
		`{"list":[{"a":1},{"x":1}]}`:                  `list[1]: unknown field "x", want one of a, C`,
		`{"list":[{"B":1}]}`:                          `list[0]: unknown field "B", want one of a, C`,
		`{"table":{"one":{"a":1},"two":{"x":1}}}`:     `table["two"]: unknown field "x", want one of a, C`,
		`{"deep":{"pair":[{"c":1},{"x\ny":1}]}}`:      `deep.pair[1]: unknown field "x\ny", want one of a, C`,
		`{"own":{"m":1}}`:                             `box: unknown field "m", want one of n`,
		`{"empty":{"x":1}}`:                           `empty: unknown field "x", want none`,
		`{"x":1,"list":[{"a":1}],"deep":{"pair":[]}}`: `unknown field "x", want one of list, table, deep, own, empty`,
	} {
		if err := Unmarshal([]byte(js), &v); err == nil || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", js, err, want)
		}
	}
}

// TestValues: what is right is read, and written again as it was.
func TestValues(t *testing.T) {
	var c config
	const js = `{"n":5,"timeout":"1m30s","methods":{"*":{"box":{"n":7}},"/a.B/C":null}}`
	if err := Unmarshal([]byte(js), &c); err != nil {
		t.Fatal(err)
	}
	want := config{policyJSON: policyJSON{N: 5, Timeout: Duration(90 * time.Second)}, Methods: Methods[policy]{
		"*": {policyJSON{Box: box{7}}}, "/a.B/C": {},
	}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v", c, want)
	}
	out, err := json.Marshal(policyJSON{N: 5, Timeout: c.Timeout})
	if err != nil || string(out) != `{"n":5,"timeout":"1m30s"}` {
		t.Errorf("%s, %v", out, err)
	}
	if err := Unmarshal([]byte(`{"methods":null}`), &c); err != nil {
		t.Error(err)
	}
	if At("x", nil) != nil {
		t.Error("At makes an error of none")
	}
}
