package breaker

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
)

// key identifies a breaker.
type key struct {
	which  which
	target string
	name   string // "/pkg.Service/Method", "/pkg.Service/" or, for Target, nothing
}

// which is the number of the configuration's entry, since a breaker has one policy; the policy's Key (2 bits);
// whether the name is from WithKey; and whether it is a server's.
type which uint64

const (
	serverBit which = 1 << iota
	customBit
	keyShift   = iota
	scopeShift = keyShift + 2
)

func (w which) server() bool  { return w&serverBit != 0 }
func (w which) custom() bool  { return w&customBit != 0 }
func (w which) key() Key      { return Key(w >> keyShift & 3) }
func (w which) scope() uint32 { return uint32(w >> scopeShift) }

// keyFor is the key of the breaker for a call, but for the target. custom is from WithKey; side is serverBit or 0.
// The parts of a key travel one by one in each call: the compiler keeps a struct of this size in memory and copies
// it about, which costs 20 ns of 230 (BenchmarkSuccess).
func (r *rule) keyFor(method string, side which, custom string) (w which, name string) {
	w = which(r.scope)<<scopeShift | side
	switch {
	case custom != "":
		return w | customBit, custom
	case r.key == Service:
		name = method[:strings.LastIndexByte(method, '/')+1]
	case r.key == Method:
		name = method
	}
	return w | which(r.key)<<keyShift, name
}

// text is how people call it, such as "/pkg.Service/Method on lb:///orders".
func (k key) text(r *rule) string {
	name := k.name
	switch {
	case k.which.custom():
		name = "key " + k.name
	case k.which.key() == Service:
		name += "*"
	}
	place, under := k.target, ""
	if k.which.server() {
		place = "this server"
	}
	if r.scopeText != name && r.scopeText != "*" && r.scopeText != "" {
		under = "under " + r.scopeText
	}
	if name != "" && place != "" {
		place = "on " + place
	}
	return strings.Join(slices.DeleteFunc([]string{name, place, under}, func(s string) bool { return s == "" }), " ")
}

// table has the breakers by name, and those of one name (of several targets, as a rule) in a list. A map by the
// whole key would be simpler; its lookup, in every call, takes twice as long (BenchmarkSuccess). A table that
// others can see is not changed any more. The zero table is empty, and not to be changed; clone it.
type table struct {
	byName map[string][]*breaker
	n      int
}

func (t *table) find(w which, target, name string) *breaker {
	for _, b := range t.byName[name] {
		if b.key.which == w && b.key.target == target {
			return b
		}
	}
	return nil
}

func (t *table) clone() *table {
	if t.byName == nil {
		return &table{byName: make(map[string][]*breaker)}
	}
	return &table{maps.Clone(t.byName), t.n}
}

// add puts b in, which is not there yet. Lists are shared with other tables, so they are replaced.
func (t *table) add(b *breaker) {
	t.byName[b.key.name] = append(slices.Clip(t.byName[b.key.name]), b)
	t.n++
}

// remove takes b out, which is there.
func (t *table) remove(b *breaker) {
	list := slices.DeleteFunc(slices.Clone(t.byName[b.key.name]), func(x *breaker) bool { return x == b })
	if t.n--; len(list) > 0 {
		t.byName[b.key.name] = list
		return
	}
	delete(t.byName, b.key.name)
}

// all are the breakers in no order. Removing the one at hand is fine.
func (t *table) all() iter.Seq[*breaker] {
	return func(yield func(*breaker) bool) {
		for _, list := range t.byName {
			for _, b := range list {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// routes note, for some methods, which policy holds under one configuration and which breaker was found last, so that
// most calls need not look into three maps (BenchmarkSuccess). A method has one place, which it may have to leave to
// another that was there before. The zero value is empty; it is safe for concurrent use.
type routes [32]atomic.Pointer[route]

// route is immutable. Its breaker may be gone; whoever takes it has to look.
type route struct {
	side           which
	method, target string
	rule           *rule
	breaker        *breaker
}

// place is the method's.
func (rs *routes) place(side which, method string) *atomic.Pointer[route] {
	h := uint(side)
	if n := uint(len(method)); n > 0 {
		h += n + 3*uint(method[n-1]) + 7*uint(method[n/2])
	}
	return &rs[h%uint(len(rs))]
}

// find is what is noted, nil if nothing is.
func (rs *routes) find(side which, method, target string) *route {
	x := rs.place(side, method).Load()
	if x == nil || x.method != method || x.target != target || x.side != side {
		return nil
	}
	return x
}

// note keeps what was found, unless another has the place. That one stays, or the two would put each other out with
// every call.
func (rs *routes) note(side which, method, target string, r *rule, b *breaker) {
	p := rs.place(side, method)
	if old := p.Load(); old == nil || old.breaker.gone.Load() {
		p.CompareAndSwap(old, &route{side, method, target, r, b})
	}
}

// forget takes back a note of b.
func (rs *routes) forget(side which, method string, b *breaker) {
	p := rs.place(side, method)
	if old := p.Load(); old != nil && old.breaker == b {
		p.CompareAndSwap(old, nil)
	}
}
