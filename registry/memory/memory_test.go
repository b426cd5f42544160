package memory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/evenkeel/evenkeel/registry"
)

const orders = "orders"

func instance(id string, port int) registry.Instance {
	return registry.Instance{ID: id, Addr: fmt.Sprintf("127.0.0.1:%d", port)}
}

func register(t *testing.T, r *Registry, in registry.Instance) registry.Registration {
	t.Helper()
	g, err := r.Register(t.Context(), orders, in)
	if err != nil {
		t.Fatalf("Register(%+v) = %v", in, err)
	}
	return g
}

func closeAll(t *testing.T, gs ...registry.Registration) {
	t.Helper()
	for _, g := range gs {
		if err := g.Close(t.Context()); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
}

// history is a watch, inside a bubble, and everything it delivered, as "a b c" for three instances.
type history struct {
	cancel context.CancelFunc
	ended  chan error

	mu   sync.Mutex
	sets []string
	last []registry.Instance
}

// follow watches orders until the test ends. each, if not nil, is called in every update.
func follow(t *testing.T, r *Registry, each func()) *history {
	ctx, cancel := context.WithCancel(t.Context())
	h := &history{cancel: cancel, ended: make(chan error, 1)}
	go func() {
		h.ended <- r.Watch(ctx, orders, func(ins []registry.Instance) {
			h.mu.Lock()
			h.sets = append(h.sets, names(ins))
			h.last = ins
			h.mu.Unlock()
			if each != nil {
				each()
			}
		})
	}()
	synctest.Wait()
	return h
}

func names(ins []registry.Instance) string {
	var ids []string
	for _, in := range ins {
		ids = append(ids, in.ID)
	}
	return strings.Join(ids, " ")
}

// want checks the updates that came since the last call.
func (h *history) want(t *testing.T, sets ...string) {
	t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.sets, sets) {
		t.Errorf("updates = %q, want %q", h.sets, sets)
	}
	h.sets = nil
}

func TestWatchReportsChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		h := follow(t, r, nil)
		h.want(t, "")
		a := register(t, r, instance("a", 1))
		h.want(t, "a")
		b := register(t, r, instance("b", 2))
		h.want(t, "a b")
		if err := a.Update(t.Context(), registry.Instance{ID: "a", Addr: "127.0.0.1:1", Weight: 1}); err != nil {
			t.Error(err)
		}
		h.want(t) // weight 0 was 1 before
		if err := a.Update(t.Context(), registry.Instance{ID: "a", Addr: "127.0.0.1:1", Weight: 2}); err != nil {
			t.Error(err)
		}
		h.want(t, "a b")
		remove := r.PutForeign(orders, registry.Instance{ID: "malformed"})
		h.want(t)
		remove()
		h.want(t)
		if _, err := r.Register(t.Context(), "stock", instance("s", 3)); err != nil {
			t.Error(err)
		}
		h.want(t)
		closeAll(t, a, a, b)
		synctest.Wait()
		if n := len(h.sets); n == 0 || h.sets[n-1] != "" {
			t.Errorf("updates = %q, want an empty one at last", h.sets)
		}
	})
}

func TestSlowWatcherSkipsToTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		gate := make(chan struct{})
		h := follow(t, r, func() { <-gate })
		h.want(t, "") // and it is busy with it
		a, b, c := register(t, r, instance("a", 1)), register(t, r, instance("b", 2)), register(t, r, instance("c", 3))
		closeAll(t, b)
		h.want(t)
		close(gate)
		h.want(t, "a c")
		closeAll(t, a, c)
	})
}

func TestUpdateMayUseTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		var once sync.Once
		h := follow(t, r, func() {
			once.Do(func() {
				register(t, r, instance("a", 1))
				r.Restart()
				r.Fail(nil)
				r.Recover()
			})
		})
		if err := <-h.ended; err == nil || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("Watch = %v, want the outage that its own update began", err)
		}
	})
}

func TestContextThatEndsInTheUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		var h *history
		begun := make(chan struct{})
		h = follow(t, r, func() { <-begun; h.cancel(); register(t, r, instance("a", 1)) })
		close(begun)
		if err := <-h.ended; err != context.Canceled {
			t.Errorf("Watch = %v, want %v", err, context.Canceled)
		}
		h.want(t, "") // and not the change that came with the end
	})
}

func TestCallersMapsAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		in := instance("a", 1)
		in.Labels = map[string]string{"n": "1"}
		g := register(t, r, in)
		in.Labels["n"] = "broken"
		h := follow(t, r, nil)
		if got := h.last[0].Labels["n"]; got != "1" {
			t.Errorf("label = %q after the caller changed his map, want it as registered", got)
		}
		in.Labels["n"] = "2"
		if err := g.Update(t.Context(), in); err != nil {
			t.Error(err)
		}
		in.Labels["n"] = "broken"
		r.Restart()
		afterRestart()
		if got := h.last[0].Labels["n"]; got != "2" {
			t.Errorf("label = %q after the caller changed his map, want it as updated", got)
		}
	})
}

func TestZeroValueIsReady(t *testing.T) {
	var r Registry
	r.Recover()
	r.Restart()
	closeAll(t, register(t, &r, instance("a", 1)))
}

func TestNothingIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		h := follow(t, r, nil)
		older := register(t, r, instance("a", 1))
		newer := register(t, r, instance("a", 2))
		lost := register(t, r, instance("lost", 3))
		remove := r.PutForeign("stock", instance("s", 4))
		unwatched, err := r.Register(t.Context(), "unwatched", instance("u", 5))
		if err != nil {
			t.Fatal(err)
		}
		r.Restart()
		closeAll(t, lost, older, newer, unwatched)
		remove()
		h.cancel()
		<-h.ended
		if len(r.services) != 0 {
			t.Errorf("services = %v after everybody left, want none", r.services)
		}
	})
}

func TestOlderRegistrationOfAnIDIsPowerless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		older := register(t, r, instance("a", 1))
		r.Restart() // a timer for older is running
		newer := register(t, r, instance("a", 2))
		changed := instance("a", 1)
		changed.Version = "2.0.0"
		if err := older.Update(t.Context(), changed); err == nil || !strings.Contains(err.Error(), `instance "a"`) {
			t.Errorf("Update of the older = %v, want an error that names the instance", err)
		}
		h := follow(t, r, nil)
		h.want(t, "a")
		r.Restart()
		h.want(t, "")
		afterRestart()
		h.want(t, "a")
		if h.last[0].Addr != "127.0.0.1:2" {
			t.Errorf("put back: %+v, want the newer", h.last[0])
		}
		closeAll(t, older, newer)
		h.want(t, "")
		// A timer that fires while it is being stopped comes too late.
		for _, g := range []registry.Registration{older, newer} {
			g.(*registration).lost = true
			g.(*registration).putBack()
		}
		h.want(t)
		r.Restart()
		afterRestart()
		h.want(t)
	})
}

// model is the obviously right twin of a service: a list of records, oldest first.
type model []registry.Instance

func (m model) without(id string) model {
	return slices.DeleteFunc(slices.Clone(m), func(in registry.Instance) bool { return in.ID == id })
}

func (m model) visible() (ins []registry.Instance) {
	for i, in := range m {
		hidden := in.Validate() != nil
		for _, newer := range m[i+1:] {
			hidden = hidden || newer.Validate() == nil && newer.Addr == in.Addr
		}
		if !hidden {
			ins = append(ins, in)
		}
	}
	return ins
}

func TestRandomHistoriesAgainstTheModel(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			r := New()
			h := follow(t, r, nil)
			var m model
			owners := make(map[string]registry.Registration)
			for step := range 100 {
				id := fmt.Sprint("i", rnd.IntN(8))
				in := instance(id, 1+rnd.IntN(4)) // few addresses, so that many are shared
				in.Weight = uint32(1 + rnd.IntN(5))
				switch g := owners[id]; rnd.IntN(5) {
				case 0, 1:
					owners[id] = register(t, r, in)
					m = append(m.without(id), in)
				case 2:
					if g != nil {
						closeAll(t, g)
						delete(owners, id)
						m = m.without(id)
					}
				case 3:
					i := slices.IndexFunc(m, func(o registry.Instance) bool { return o.ID == id })
					if g != nil && i >= 0 {
						in.Addr = m[i].Addr
						if err := g.Update(t.Context(), in); err != nil {
							t.Fatalf("seed %d step %d: Update = %v", seed, step, err)
						}
						m[i] = in
					}
				case 4:
					if g == nil {
						if rnd.IntN(2) == 0 {
							in.Addr = "malformed"
						}
						r.PutForeign(orders, in)
						m = append(m.without(id), in)
					}
				}
				synctest.Wait()
				if want := m.visible(); !slices.EqualFunc(h.last, want, registry.Instance.Equal) {
					t.Fatalf("seed %d step %d: %+v, want %+v", seed, step, h.last, want)
				}
			}
			// A restart forgets what nobody owns, and nothing else.
			r.Restart()
			afterRestart()
			m = slices.DeleteFunc(m, func(in registry.Instance) bool { return owners[in.ID] == nil })
			if want := m.visible(); !slices.EqualFunc(h.last, want, registry.Instance.Equal) {
				t.Fatalf("seed %d after a restart: %+v, want %+v", seed, h.last, want)
			}
		})
	}
}

// TestEverybodyAtOnce is for the race detector: registrars, watchers and trouble, all at once, and then the truth.
func TestEverybodyAtOnce(t *testing.T) {
	const registrars, rounds = 8, 50
	synctest.Test(t, func(t *testing.T) {
		r := New()
		watchers := []*history{follow(t, r, nil), follow(t, r, runtime.Gosched)}
		var wg sync.WaitGroup
		for i := range registrars {
			wg.Go(func() {
				in := instance(fmt.Sprint("i", i), i+1)
				for range rounds {
					g := register(t, r, in)
					next := in.Clone()
					next.Weight = 7
					if err := g.Update(t.Context(), next); err != nil {
						t.Errorf("Update = %v", err)
					}
					closeAll(t, g)
				}
				register(t, r, in)
			})
		}
		wg.Go(func() {
			for range rounds {
				r.Restart()
				r.PutForeign(orders, registry.Instance{ID: "malformed"})()
				runtime.Gosched()
			}
		})
		wg.Wait()
		afterRestart()
		for _, h := range watchers {
			if len(h.last) != registrars {
				t.Errorf("at last %q, want all %d", names(h.last), registrars)
			}
			h.cancel()
			<-h.ended
		}
	}) // which fails if a goroutine is left
}
