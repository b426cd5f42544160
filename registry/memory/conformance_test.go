package memory_test

import (
	"testing"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/registry/registrytest"
)

func TestConformance(t *testing.T) {
	registrytest.Run(t, registrytest.Harness{
		New: func(*testing.T) registry.Registry { return memory.New() },
		PutMalformed: func(_ *testing.T, r registry.Registry, service string) {
			r.(*memory.Registry).PutForeign(service, registry.Instance{ID: "foreign", Addr: "no port"})
		},
		Restart: func(_ *testing.T, r registry.Registry) { r.(*memory.Registry).Restart() },
		Outage: func(_ *testing.T, r registry.Registry) func() {
			r.(*memory.Registry).Fail(nil)
			return r.(*memory.Registry).Recover
		},
	})
}
