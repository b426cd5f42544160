// Package registrytest is the conformance suite that every registry passes.
//
// A registry's tests call [Run] with a [Harness], which says how to make one and how to hurt it:
//
//	func TestConformance(t *testing.T) {
//		registrytest.Run(t, registrytest.Harness{
//			New:          func(t *testing.T) registry.Registry { return memory.New() },
//			PutMalformed: ...,
//			Restart:      ...,
//		})
//	}
//
// Each subtest proves one thing that a user of the registry would notice, through nothing but the interfaces of
// package registry: it writes, and waits with a deadline until a watcher sees it. The suite knows what a real
// registry is like. A change may take up to Harness.Timeout to be seen; changes that follow each other may be
// reported as one; a watch that fails in an outage is started again, as the resolver would. It is strict about
// the rest, and checks with every update it receives that updates of one watch do not overlap and come from a watch
// that has not returned, that every instance in it is valid, and that no address is in it twice.
//
// Every subtest uses services of its own, with names that are new in every run (lower case, digits and hyphens, at
// most 63 characters), so that all may share one server. Subtests run one after the other.
//
// [Record] is the suite's watcher. It is exported because the tests of whatever uses a registry need the same: run
// a watch, wait until it has seen something, and say what was seen instead when it does not come.
//
// That the suite can fail is itself tested: it is run against registries that are each broken in one way.
package registrytest

import (
	"cmp"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// Harness is a registry to test. New, PutMalformed and Restart are required.
type Harness struct {
	// New returns the registry, empty as far as services nobody used before are concerned, and cleans up with
	// t.Cleanup. It is called once for every subtest.
	New func(t *testing.T) registry.Registry
	// PutMalformed puts a record of somebody else's into r that is found under service and cannot be an Instance
	// (no address, a label's key with a space, ...), and returns when it is there.
	PutMalformed func(t *testing.T, r registry.Registry, service string)
	// Restart ends the registry behind r and starts it again, reachable as before, without its data, and returns
	// when it answers.
	Restart func(t *testing.T, r registry.Registry)
	// Outage makes the registry behind r unreachable at once (connections break, new ones are refused) and returns
	// when it is; end makes it reachable again, with or without its data, and returns when it answers. Nil leaves
	// the outage tests out: a registry that can be away should not.
	Outage func(t *testing.T, r registry.Registry) (end func())
	// Timeout is how long a change may take to be seen, and a lost record to be put back; 0 means 10 s.
	Timeout time.Duration
	// MaxValue is the length in bytes up to which every label's value can be stored; 0 means 512. A longer value
	// may be refused, but not be cut.
	MaxValue int
}

// Run runs the suite against the registry that h describes.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.New == nil || h.PutMalformed == nil || h.Restart == nil {
		t.Fatal("registrytest: Harness: want New, PutMalformed and Restart")
	}
	h.Timeout = cmp.Or(h.Timeout, 10*time.Second)
	h.MaxValue = cmp.Or(h.MaxValue, 512)
	for _, c := range cases {
		if c.outage && h.Outage == nil {
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.run(newBench(t, h)) })
	}
}
