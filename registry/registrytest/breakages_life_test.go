package registrytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/evenkeel/evenkeel/registry"
)

var brokenLives = []breakage{
	{"never deregisters", "DeregistrationIsSeen", "the other two", func(f *faulty) {
		f.close = func(*faultyRegistration) error { return nil }
	}},
	{"one leaves, all leave", "DeregistrationIsSeen",
		"the other two|without the instance that stayed", func(f *faulty) {
			f.close = func(g *faultyRegistration) error {
				f.mu.Lock()
				all := slices.Clone(f.all)
				f.mu.Unlock()
				for _, g := range all {
					g.Registration.Close(context.Background())
				}
				return nil
			}
		}},
	{"first page only", "HundredAtOnce", "100 instances that were registered at once", func(f *faulty) {
		f.see = func(ins []registry.Instance) []registry.Instance { return ins[:min(len(ins), 50)] }
	}},
	{"oldest wins an address", "SameAddressNewestWins",
		"the newer of two instances at one address", func(f *faulty) {
			unwrapAddrs(f, func(ins []registry.Instance) []registry.Instance {
				seen := make(map[string]bool)
				return slices.DeleteFunc(ins, func(in registry.Instance) bool {
					dup := seen[in.Addr]
					seen[in.Addr] = true
					return dup
				})
			})
		}},
	{"an address twice", "SameAddressNewestWins", "the newer of two instances at one address", func(f *faulty) {
		unwrapAddrs(f, func(ins []registry.Instance) []registry.Instance { return ins })
	}},
	{"a known address stays the old instance", "SameAddressNewestWins",
		"a new ID at a known address|the newer of two", func(f *faulty) {
			var mu sync.Mutex
			known := make(map[string]string)
			f.see = each(func(in *registry.Instance) {
				mu.Lock()
				defer mu.Unlock()
				if known[in.Addr] == "" {
					known[in.Addr] = in.ID
				}
				in.ID = known[in.Addr]
			})
		}},
	{"deregisters by ID", "SameIDNewestWins",
		"the newer record, and a witness|without the newer record", func(f *faulty) {
			f.close = closeByID(f)
		}},
	{"a second Close fails", "CloseTwice", "Close = closed", func(f *faulty) {
		f.close = func(g *faultyRegistration) error {
			if f.is(&g.closed) {
				return errors.New("closed")
			}
			f.set(&g.closed, true)
			return g.Registration.Close(context.Background())
		}
	}},
	{"a second Close removes again", "CloseTwice",
		"a second Close removed another|Update.* =|not seen within", func(f *faulty) {
			f.close = closeByID(f)
		}},
	{"Update works after Close", "UpdateAfterClose", "Update after Close = nil", func(f *faulty) {
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			g.Registration.Update(context.Background(), in)
			return nil
		}
	}},
	{"Update after Close revives", "UpdateAfterClose", "came back after Close|the witness leaves", func(f *faulty) {
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			err := g.Registration.Update(context.Background(), in)
			if err != nil {
				g.again()
			}
			return err
		}
	}},
	{"a late write revives", "UpdatesRaceWithClose",
		"an empty set, after Close among updates|came back after Close", func(f *faulty) {
			f.close = func(g *faultyRegistration) error {
				err := g.Registration.Close(context.Background())
				f.mu.Lock()
				many := g.updates > 8
				f.mu.Unlock()
				if many {
					g.again()
				}
				return err
			}
		}},
}

// closeByID returns a Close that removes whatever has the registration's ID.
func closeByID(f *faulty) func(*faultyRegistration) error {
	return func(g *faultyRegistration) error {
		f.mu.Lock()
		all := slices.Clone(f.all)
		f.mu.Unlock()
		for _, o := range all {
			if o.service == g.service && o.first.ID == g.first.ID {
				o.Registration.Close(context.Background())
			}
		}
		return nil
	}
}

// unwrapAddrs stores every instance under an address of its own, so that nothing is hidden, and has watchers see what
// pick leaves of them.
func unwrapAddrs(f *faulty, pick func([]registry.Instance) []registry.Instance) {
	f.register = func(service string, in registry.Instance) (registry.Registration, error) {
		in.Addr = in.ID + "." + in.Addr
		return f.Registry.Register(context.Background(), service, in)
	}
	f.update = func(g *faultyRegistration, in registry.Instance) error {
		in.Addr = in.ID + "." + in.Addr
		return g.Registration.Update(context.Background(), in)
	}
	f.see = func(ins []registry.Instance) []registry.Instance {
		return pick(each(func(in *registry.Instance) { in.Addr = strings.TrimPrefix(in.Addr, in.ID+".") })(ins))
	}
}

var brokenInTrouble = []breakage{
	{"a malformed record hides others", "MalformedRecordIsSkipped",
		"both instances, beside a malformed record|made another disappear", func(f *faulty) {
			f.see = func(ins []registry.Instance) []registry.Instance {
				if f.is(&f.alien) {
					return nil
				}
				return ins
			}
		}},
	{"a malformed record is served", "MalformedRecordIsSkipped",
		"both instances, beside a malformed record", func(f *faulty) {
			f.see = func(ins []registry.Instance) []registry.Instance {
				if f.is(&f.alien) {
					ins = append(ins, registry.Instance{ID: "foreign", Addr: "no port"})
				}
				return ins
			}
		}},
	{"a malformed record ends the watch", "MalformedRecordIsSkipped",
		"a malformed record ended the watch", func(f *faulty) {
			f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
				inner, cancel := context.WithCancel(ctx)
				defer cancel()
				before := f.is(&f.alien)
				err := f.Registry.Watch(inner, service, func(ins []registry.Instance) {
					update(ins)
					if !before && f.is(&f.alien) {
						cancel()
					}
				})
				if ctx.Err() == nil {
					return fmt.Errorf("cannot parse a record")
				}
				return err
			}
		}},
	{"forgotten is forgotten", "RegistrationOutlivesRestart", "every record, put back", func(f *faulty) {
		f.restart = func() {
			f.mu.Lock()
			all := slices.Clone(f.all)
			f.mu.Unlock()
			for _, g := range all {
				g.Registration.Close(context.Background())
			}
		}
	}},
	{"puts back what was registered first", "RegistrationOutlivesRestart",
		"every record, put back", func(f *faulty) {
			f.restart = func() {
				f.mu.Lock()
				all := slices.Clone(f.all)
				f.mu.Unlock()
				for _, g := range all {
					g.Registration.Update(context.Background(), g.first)
				}
			}
		}},
	{"puts back who left", "RegistrationOutlivesRestart",
		"every record, put back|came back after Close", func(f *faulty) {
			f.restart = func() {
				f.mu.Lock()
				all := slices.Clone(f.all)
				f.mu.Unlock()
				for _, g := range all {
					if g.first.ID == "gone" {
						g.again()
					}
				}
			}
		}},
	{"an outage is an empty set", "OutageIsAnError", "an update in the outage: .*, want none", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			err := f.Registry.Watch(ctx, service, update)
			if ctx.Err() == nil {
				update(nil)
			}
			return err
		}
	}},
	{"waits an outage out", "OutageIsAnError", "no error within .*: the outage ends a watch", func(f *faulty) {
		f.watch = func(ctx context.Context, service string, update func([]registry.Instance)) error {
			err := f.Registry.Watch(ctx, service, update)
			<-ctx.Done()
			return err
		}
	}},
	{"Register fails in an outage", "WritesDuringAnOutageArrive",
		"Register in an outage = unreachable", func(f *faulty) {
			f.register = func(service string, in registry.Instance) (registry.Registration, error) {
				if f.is(&f.down) {
					return nil, errors.New("unreachable")
				}
				return f.Registry.Register(context.Background(), service, in)
			}
		}},
	{"Update is lost in an outage", "WritesDuringAnOutageArrive", "what was written in the outage", func(f *faulty) {
		f.update = func(g *faultyRegistration, in registry.Instance) error {
			if f.is(&f.down) {
				return nil
			}
			return g.Registration.Update(context.Background(), in)
		}
	}},
	{"Close hides an outage", "CloseDuringAnOutageHolds", "Close in an outage = nil", func(f *faulty) {
		f.close = func(g *faultyRegistration) error {
			g.Registration.Close(context.Background())
			return nil
		}
	}},
	{"Close gives up in an outage", "CloseDuringAnOutageHolds",
		"only the instance that was not closed", func(f *faulty) {
			f.close = func(g *faultyRegistration) error {
				if f.is(&f.down) && !f.is(&g.closed) {
					f.set(&g.closed, true)
					return errors.New("unreachable")
				}
				return nil
			}
		}},
}
