package strictjson

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// located is err, or, if err is encoding/json's about a field that it does not know, one that says where in js that
// stands and what v could have there: encoding/json tells the name alone, and calls it by no type.
func located(err error, js []byte, v any) error {
	quoted, ok := strings.CutPrefix(err.Error(), "json: unknown field ")
	if !ok {
		return err
	}
	name, unquoted := strconv.Unquote(quoted)
	if unquoted != nil {
		return err
	}
	if u := find(js, reflect.TypeOf(v).Elem(), "", name); u != nil {
		return u
	}
	return err // not reachable, as long as find sees what encoding/json does
}

// find looks in js, the JSON of a t at path, which is no pointer, for a field called name where no t has one; nil if there is none.
func find(js []byte, t reflect.Type, path, name string) *Unknown {
	switch t.Kind() {
	case reflect.Struct:
		var parts map[string]json.RawMessage
		if json.Unmarshal(js, &parts) != nil {
			return nil
		}
		known, types := fields(t)
		for _, key := range slices.Sorted(maps.Keys(parts)) {
			i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, key) })
			if i < 0 && key == name {
				return &Unknown{path, name, known}
			}
			if i >= 0 {
				if u := within(parts[key], types[i], join(path, known[i]), name); u != nil {
					return u
				}
			}
		}
	case reflect.Map:
		var parts map[string]json.RawMessage
		if json.Unmarshal(js, &parts) != nil {
			return nil
		}
		for _, key := range slices.Sorted(maps.Keys(parts)) {
			if u := within(parts[key], t.Elem(), fmt.Sprintf("%s[%q]", path, key), name); u != nil {
				return u
			}
		}
	case reflect.Slice, reflect.Array:
		var parts []json.RawMessage
		if json.Unmarshal(js, &parts) != nil {
			return nil
		}
		for i, part := range parts {
			if u := within(part, t.Elem(), fmt.Sprintf("%s[%d]", path, i), name); u != nil {
				return u
			}
		}
	}
	return nil
}

// within is find for a part, unless that decodes itself and so has errors of its own.
func within(js []byte, t reflect.Type, path, name string) *Unknown {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	own := reflect.PointerTo(t)
	if own.Implements(reflect.TypeFor[json.Unmarshaler]()) || own.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return nil
	}
	return find(js, t, path, name)
}

// fields are the names that the struct t has in JSON, and their types, those of embedded structs among them.
func fields(t reflect.Type) (names []string, types []reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		name, _, _ := strings.Cut(tag, ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			n, ts := fields(f.Type)
			names, types = append(names, n...), append(types, ts...)
		case tag == "-" || !f.IsExported():
		case name == "":
			names, types = append(names, f.Name), append(types, f.Type)
		default:
			names, types = append(names, name), append(types, f.Type)
		}
	}
	return names, types
}
