package filters

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/evenkeel/evenkeel/registry"
)

var (
	funcMu sync.RWMutex // guards funcs; nothing is called under it
	funcs  = map[string]func(*registry.Instance) bool{}
)

// maxName is the longest name of a function, in bytes.
const maxName = 64

// Register makes fn known as func(name) in text, and as [Func](name). Call it from an init function only. The name
// is 1 to 64 of A-Z a-z 0-9 . _ / -; Register panics, being called by a programmer, on another name, on one that is
// taken, and on a nil fn.
//
// fn must depend on the instance alone, because its answer is kept until the instance changes. It must be fast and
// must not modify the instance, block, panic or call the balancer, which may hold a lock meanwhile; it is called from
// several goroutines at once.
func Register(name string, fn func(*registry.Instance) bool) {
	if name == "" || len(name) > maxName || quoted(name) != name {
		panic(fmt.Sprintf("filters: Register: name = %q, want 1 to %d of A-Z a-z 0-9 . _ / -", name, maxName))
	}
	if fn == nil {
		panic(fmt.Sprintf("filters: Register: fn of %q = nil, want a function", name))
	}
	funcMu.Lock()
	defer funcMu.Unlock()
	if _, taken := funcs[name]; taken {
		panic(fmt.Sprintf("filters: Register: name = %q, want one that is not taken", name))
	}
	funcs[name] = fn
}

// registered returns the function of that name, or nil and the names that there are.
func registered(name string) (fn func(*registry.Instance) bool, known string) {
	funcMu.RLock()
	defer funcMu.RUnlock()
	if fn = funcs[name]; fn != nil {
		return fn, ""
	}
	if len(funcs) == 0 {
		return nil, "there is none"
	}
	return nil, strings.Join(slices.Sorted(maps.Keys(funcs)), ", ")
}
