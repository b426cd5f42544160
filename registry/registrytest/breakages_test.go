package registrytest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/evenkeel/evenkeel/registry"
)

// breakage is one way in which a registry can be wrong.
type breakage struct {
	name  string
	fails string // the case that has to notice
	says  string // a regular expression for what the case has to say
	spoil func(*faulty)
}

// each returns a hook that changes every instance that a watcher gets.
func each(change func(*registry.Instance)) func([]registry.Instance) []registry.Instance {
	return func(ins []registry.Instance) []registry.Instance {
		for i := range ins {
			change(&ins[i])
		}
		return ins
	}
}

// values returns a hook that changes every label's value.
func values(change func(string) string) func([]registry.Instance) []registry.Instance {
	return each(func(in *registry.Instance) {
		for k, v := range in.Labels {
			in.Labels[k] = change(v)
		}
	})
}

var breakages = slices.Concat(brokenWatches, brokenRecords, brokenLives, brokenInTrouble)

var brokenWatches = []breakage{
	{"silent while empty", "FirstUpdateComesEvenIfEmpty", "an empty set, of a service that nobody", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			return f.Registry.Watch(ctx, service, func(ins []registry.Instance) {
				if len(ins) > 0 {
					update(ins)
				}
			})
		}
	}},
	{"drops changes", "CurrentSetFirstThenChanges", "not seen within", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			first := true
			return f.Registry.Watch(ctx, service, func(ins []registry.Instance) {
				if first {
					first = false
					update(ins)
				}
			})
		}
	}},
	{"begins with a part", "CurrentSetFirstThenChanges", "want the whole current set", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			first := true
			return f.Registry.Watch(ctx, service, func(ins []registry.Instance) {
				if first && len(ins) > 1 {
					update(ins[:1])
				}
				first = false
				update(ins)
			})
		}
	}},
	{"newest first", "CurrentSetFirstThenChanges", "want the oldest record first", func(f *faulty) {
		f.see = func(ins []registry.Instance) []registry.Instance {
			slices.Reverse(ins)
			return ins
		}
	}},
	{"reports changes only", "CurrentSetFirstThenChanges", "not seen within", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			var last []registry.Instance
			return f.Registry.Watch(ctx, service, func(ins []registry.Instance) {
				update(slices.DeleteFunc(slices.Clone(ins), func(in registry.Instance) bool {
					return slices.ContainsFunc(last, in.Equal)
				}))
				last = ins
			})
		}
	}},
	{"one service for all", "ServicesAreApart", "the record of the (first|second) service|Update.*taken the ID over", func(f *faulty) {
		f.register = func(_ string, in registry.Instance) (registry.Registration, error) {
			return f.Registry.Register(context.Background(), "all", in)
		}
		f.watch = func(ctx context.Context, _ string, update func([]registry.Instance)) error {
			return f.Registry.Watch(ctx, "all", update)
		}
	}},
	{"ignores its context", "WatchEndsWithItsContext", "Watch has not returned", func(f *faulty) {
		f.watch = func(_ context.Context, service string, update func([]registry.Instance)) error {
			return f.Registry.Watch(context.Background(), service, update)
		}
	}},
	{"ends without an error", "WatchEndsWithItsContext",
		"Watch whose context was cancelled = <nil>", func(f *faulty) {
			f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
				f.Registry.Watch(ctx, service, update)
				return nil
			}
		}},
	{"leaves a goroutine", "WatchLeavesNoGoroutine", "20 watches that ended left 20 goroutines", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			go f.Registry.Watch(context.Background(), service, func([]registry.Instance) {})
			return f.Registry.Watch(ctx, service, update)
		}
	}},
	{"shares slices", "UpdatesBelongToTheReceiver", "vandal", func(f *faulty) {
		var mu sync.Mutex
		shared := make(map[string][]string)
		f.see = each(func(in *registry.Instance) {
			mu.Lock()
			defer mu.Unlock()
			if shared[in.ID] == nil {
				shared[in.ID] = in.Services
			}
			in.Services = shared[in.ID]
		})
	}},
	{"a watcher blocks writers", "SlowWatcherHoldsNobodyUp",
		"Register, while another watch is busy", func(f *faulty) {
			var mu sync.RWMutex
			f.register = func(service string, in registry.Instance) (registry.Registration, error) {
				mu.Lock()
				defer mu.Unlock()
				return f.Registry.Register(context.Background(), service, in)
			}
			f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
				return f.Registry.Watch(ctx, service, func(ins []registry.Instance) {
					mu.RLock()
					defer mu.RUnlock()
					update(ins)
				})
			}
		}},
	{"drops what comes while busy", "SlowWatcherHoldsNobodyUp",
		"the latest set, once the slow watch has time", func(f *faulty) {
			f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
				return watchWhile(ctx, f.Registry, service, func(busy *atomic.Bool, ins []registry.Instance, run func(func())) {
					if busy.CompareAndSwap(false, true) {
						run(func() {
							defer busy.Store(false)
							update(ins)
						})
					}
				})
			}
		}},
	{"updates overlap", "SlowWatcherHoldsNobodyUp", "an update while another was being delivered", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			return watchWhile(ctx, f.Registry, service, func(_ *atomic.Bool, ins []registry.Instance, run func(func())) {
				run(func() { update(ins) })
			})
		}
	}},
	{"updates after the end", "FirstUpdateComesEvenIfEmpty", "an update after Watch had returned", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			inner, cancel := context.WithCancel(ctx)
			defer cancel()
			var late []registry.Instance
			f.Registry.Watch(inner, service, func(ins []registry.Instance) {
				update(ins)
				late = ins
				cancel()
			})
			go update(late)
			return errors.New("first update delivered")
		}
	}},
}

// watchWhile watches reg, handing each update to deliver together with a way to run something on a goroutine of its
// own. It waits for those goroutines before it returns.
func watchWhile(ctx context.Context, reg registry.Watcher, service string,
	deliver func(busy *atomic.Bool, ins []registry.Instance, run func(func()))) error {
	var busy atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	return reg.Watch(ctx, service, func(ins []registry.Instance) { deliver(&busy, ins, wg.Go) })
}

var brokenRecords = []breakage{
	{"draining is not seen", "ChangesAreSeen", "it drains", func(f *faulty) {
		f.see = each(func(in *registry.Instance) { in.Draining = false })
	}},
	{"weight is fixed at first", "ChangesAreSeen", "the weight is set", func(f *faulty) {
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			in.Weight = g.first.Weight
			return g.Registration.Update(context.Background(), in)
		}
	}},
	{"labels are merged", "ChangesAreSeen", "a label is removed", func(f *faulty) {
		seen := make(map[string]string)
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			in = in.Clone()
			for k, v := range in.Labels {
				seen[k] = v
			}
			for k, v := range seen {
				if in.Labels != nil {
					in.Labels[k] = v
				}
			}
			return g.Registration.Update(context.Background(), in)
		}
	}},
	{"further addresses are lost", "EveryFieldArrives", "every field as it was registered", func(f *faulty) {
		f.see = each(func(in *registry.Instance) { in.AltAddrs = nil })
	}},
	{"label named like a field is lost", "EveryFieldArrives", "every field as it was registered", func(f *faulty) {
		f.see = each(func(in *registry.Instance) { delete(in.Labels, "addr") })
	}},
	{"values are trimmed", "ValuesArrive", "every value as it was registered", func(f *faulty) {
		f.see = values(strings.TrimSpace)
	}},
	{"values end at a NUL", "ValuesArrive", "every value as it was registered", func(f *faulty) {
		f.see = values(func(v string) string { v, _, _ = strings.Cut(v, "\x00"); return v })
	}},
	{"labels with empty values are lost", "ValuesArrive", "every value as it was registered", func(f *faulty) {
		f.see = each(func(in *registry.Instance) {
			for k, v := range in.Labels {
				if v == "" {
					delete(in.Labels, k)
				}
			}
		})
	}},
	{"only 50 labels", "ManyLabelsArrive", "60 labels", func(f *faulty) {
		f.see = each(func(in *registry.Instance) {
			for k := range in.Labels {
				if len(in.Labels) > 50 {
					delete(in.Labels, k)
				}
			}
		})
	}},
	{"values are cut", "LimitsRefuseNeverTruncate",
		"a value one byte longer than the longest, unchanged", func(f *faulty) {
			f.see = values(func(v string) string { return v[:min(len(v), 512)] })
		}},
	{"weight 0 becomes 100", "WeightZeroIsOne", "weight 0 or 1", func(f *faulty) {
		f.see = each(func(in *registry.Instance) {
			if in.Weight == 0 {
				in.Weight = 100
			}
		})
	}},
	{"keys are cleaned up", "ForbiddenKeysAreRefused",
		`label key "with space": Register accepted it`, func(f *faulty) {
			f.register = func(service string, in registry.Instance) (registry.Registration, error) {
				in = in.Clone()
				for k := range in.Labels {
					if registry.CheckLabelKey(k) != nil {
						delete(in.Labels, k)
					}
				}
				return f.Registry.Register(context.Background(), service, in)
			}
		}},
	{"writes, then refuses", "ForbiddenKeysAreRefused", "only the witness, since this was refused", func(f *faulty) {
		f.register = func(service string, in registry.Instance) (registry.Registration, error) {
			if in.Validate() != nil {
				f.PutForeign(service, registry.Instance{ID: "half", Addr: "127.0.0.1:1"})
			}
			return f.Registry.Register(context.Background(), service, in)
		}
	}},
	{"writes, refuses, tidies up", "InvalidInstancesAreRefused", "was refused, but .* was written", func(f *faulty) {
		var remove []func()
		f.register = func(service string, in registry.Instance) (registry.Registration, error) {
			if in.Validate() != nil {
				remove = append(remove, f.PutForeign(service, registry.Instance{ID: "half", Addr: "127.0.0.1:1"}))
			}
			return f.Registry.Register(context.Background(), service, in)
		}
		f.close = func(g *faultyRegistration) error {
			for _, r := range remove {
				r()
			}
			return g.Registration.Close(context.Background())
		}
		// The witness alone would not show it: hide what was written for as long as the witness is there.
		f.see = func(ins []registry.Instance) []registry.Instance {
			if _, ok := find(ins, "witness"); ok {
				ins = slices.DeleteFunc(ins, func(in registry.Instance) bool { return in.ID == "half" })
			}
			return ins
		}
	}},
	{"refuses with any error", "InvalidInstancesAreRefused",
		"want an error that wraps registry.ErrInvalid", func(f *faulty) {
			f.register = func(service string, in registry.Instance) (registry.Registration, error) {
				g, err := f.Registry.Register(context.Background(), service, in)
				if err != nil {
					return nil, errors.New(err.Error())
				}
				return g, nil
			}
		}},
	{"updates are not judged", "InvalidInstancesAreRefused", "Update = <nil>", func(f *faulty) {
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			g.Registration.Update(context.Background(), in)
			return nil
		}
	}},
	{"addresses can change", "UpdateKeepsIDAndAddresses", "another Addr: Update = <nil>", func(f *faulty) {
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			if in.Addr != g.first.Addr {
				f.PutForeign(g.service, in)
				return nil
			}
			return g.Registration.Update(context.Background(), in)
		}
	}},
}
