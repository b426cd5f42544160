// Package scope says which policy of a wrapper holds for a method.
//
// The wrappers share one notion of scope: a policy for everything, and others for "*", for a service
// ("/pkg.Service/*") or for one method ("/pkg.Service/Method"), the most exact winning. [Table] validates such a map
// once and answers by method with one or two map lookups and no allocation. Health checks and reflection pass every wrapper ([Exempt]), unless a
// policy names them: a limiter that rejects health checks takes the server out of service.
package scope

import (
	"fmt"
	"strings"

	"github.com/evenkeel/evenkeel/internal/probe"
)

// Table finds what holds for a method. It is immutable as far as callers see, and safe for concurrent use. Make it
// with [New]; replace it as a whole to change a policy.
type Table[V any] struct {
	exact    map[string]V // "/pkg.Service/Method"
	services map[string]V // "/pkg.Service/"
	all      V
}

// New makes a table of what holds everywhere else and what holds for some methods, by "/pkg.Service/Method",
// "/pkg.Service/*" or "*", which replaces all. An error names the key.
func New[V any](all V, methods map[string]V) (*Table[V], error) {
	t := &Table[V]{all: all, exact: make(map[string]V), services: make(map[string]V)}
	for key, v := range methods {
		service, method, ok := split(key)
		switch {
		case key == "*":
			t.all = v
		case !ok:
			return nil, fmt.Errorf(`method %q, want "/pkg.Service/Method", "/pkg.Service/*" or "*"`, key)
		case method == "*":
			t.services["/"+service+"/"] = v
		default:
			t.exact[key] = v
		}
	}
	return t, nil
}

// split takes "/pkg.Service/Method" apart.
func split(method string) (service, name string, ok bool) {
	rest, ok := strings.CutPrefix(method, "/")
	if !ok {
		return "", "", false
	}
	i := strings.LastIndexByte(rest, '/')
	if i <= 0 || i == len(rest)-1 {
		return "", "", false
	}
	return rest[:i], rest[i+1:], true
}

// For returns what holds for the full method name, and whether a policy names the method or its service.
func (t *Table[V]) For(method string) (v V, named bool) {
	if v, ok := t.exact[method]; ok {
		return v, true
	}
	if len(t.services) > 0 {
		if i := strings.LastIndexByte(method, '/'); i > 0 {
			if v, ok := t.services[method[:i+1]]; ok {
				return v, true
			}
		}
	}
	return t.all, false
}

// Applies reports whether a wrapper is to act on method at all: health checks and reflection pass unless named.
func (t *Table[V]) Applies(method string) (v V, ok bool) {
	v, named := t.For(method)
	return v, named || !Exempt(method)
}

// Exempt reports whether method belongs to the health or the reflection service, or is the probe of a server's load.
func Exempt(method string) bool {
	return strings.HasPrefix(method, "/grpc.health.") || strings.HasPrefix(method, "/grpc.reflection.") ||
		method == probe.Method
}
