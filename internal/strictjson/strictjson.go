// Package strictjson reads configurations from JSON, and says what is wrong with them in the words of the person who
// wrote the file.
//
// encoding/json accepts fields that nobody knows, so that a misspelt one is silently a default, and its errors name Go
// types that stand in no file. Here an unknown field is an error, text after the end is one, and an error names the
// field, from the top of the file down, what stands there and what is wanted:
//
//	methods["/shop.Orders/Get"].timeout = "5", want a text such as "30ms" or "1m30s"
//	methods["/shop.Orders/Get"].hedge: unknown field "delai", want one of delay, quantile, max
//
// A type with an UnmarshalJSON of its own, of which encoding/json knows no path, calls [Unmarshal] there, and whoever
// has such a field names it with [At]. Everything here is safe for concurrent use.
package strictjson

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// embedded is what the struct has to be called that a configuration's embeds, if any: encoding/json names it in the paths of its
// errors, though no file does.
const embedded = "policyJSON"

// Error is a value of the wrong sort.
type Error struct {
	Field     string // its path, empty if the whole is meant
	Got, Want string
}

// Error names field, got and want.
func (e *Error) Error() string {
	return fmt.Sprintf("%s = %s, want %s", cmp.Or(e.Field, "the configuration"), e.Got, e.Want)
}

// Unknown is a field that nobody knows.
type Unknown struct {
	Object string // the path of what has the field, empty if the whole is meant
	Name   string
	Known  []string // the fields that it could have
}

// Error names the field, and those that there are.
func (e *Unknown) Error() string {
	want := "none"
	if len(e.Known) > 0 {
		want = "one of " + strings.Join(e.Known, ", ")
	}
	where := ""
	if e.Object != "" {
		where = e.Object + ": "
	}
	return fmt.Sprintf("%sunknown field %q, want %s", where, e.Name, want)
}

// Unmarshal decodes js, one JSON value and nothing else, into v and refuses fields that v does not have.
func Unmarshal(js []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(js))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var wrong *json.UnmarshalTypeError
		if !errors.As(err, &wrong) {
			return located(err, js, v)
		}
		e := &Error{strings.TrimPrefix(wrong.Field, embedded+"."), wrong.Value, inJSON(wrong.Type)}
		if !strings.HasPrefix(e.Got, `"`) {
			e.Got = "a JSON " + e.Got
		}
		return e
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the JSON has text after its end")
	}
	return nil
}

// At returns err, which came of what stands in field, with the field's name before whatever it says already.
func At(field string, err error) error {
	var (
		e *Error
		u *Unknown
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &u):
		return &Unknown{join(field, u.Object), u.Name, u.Known}
	case errors.As(err, &e):
		return &Error{join(field, e.Field), e.Got, e.Want}
	}
	return fmt.Errorf("%s: %w", field, err)
}

// join is the path of field within outer, either of which may be empty.
func join(outer, field string) string {
	if outer == "" || field == "" || field[0] == '[' {
		return outer + field
	}
	return outer + "." + field
}

// inJSON is what people write in JSON for a value of type t.
func inJSON(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[Duration]():
		return `a text such as "30ms" or "1m30s"`
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return "a text"
	}
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "an object"
}

// Methods are policies by method, as the field "methods" of a configuration has them. Its errors name the method.
type Methods[P any] map[string]P

// UnmarshalJSON implements [json.Unmarshaler].
func (m *Methods[P]) UnmarshalJSON(js []byte) error {
	var raw map[string]json.RawMessage
	if err := Unmarshal(js, &raw); err != nil {
		return At("methods", err)
	}
	if raw == nil {
		return nil
	}
	*m = make(Methods[P], len(raw))
	for _, key := range slices.Sorted(maps.Keys(raw)) { // or the same file had now this error and now that
		var p P
		if err := json.Unmarshal(raw[key], &p); err != nil {
			return At(fmt.Sprintf("methods[%q]", key), err)
		}
		(*m)[key] = p
	}
	return nil
}

// Duration is a [time.Duration] that is written "1.5s" in JSON, as [time.ParseDuration] reads it.
type Duration time.Duration

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. Its error is one that encoding/json completes with the field.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		const most = 100 // of a text that may be anything
		return &json.UnmarshalTypeError{Value: strconv.Quote(string(text[:min(len(text), most)])), Type: reflect.TypeFor[Duration]()}
	}
	*d = Duration(v)
	return nil
}
