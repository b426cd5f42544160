package consul

import (
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/registrytest"
	"github.com/hashicorp/consul/api"
)

// TestConformance runs the suite against a real server of its own, which the suite kills and restarts.
func TestConformance(t *testing.T) {
	t.Parallel()
	s := testconsul.Start(t)
	again := func(t *testing.T) {
		if err := s.StartAgain(); err != nil {
			t.Fatal(err)
		}
	}
	registrytest.Run(t, registrytest.Harness{
		New: func(t *testing.T) registry.Registry { return newRegistry(t, Config{Address: s.Addr()}) },
		PutMalformed: func(t *testing.T, _ registry.Registry, service string) {
			put(t, s, &api.AgentServiceRegistration{ID: service + "-foreign", Name: service}) // no port
		},
		Restart: func(t *testing.T, _ registry.Registry) { again(t) },
		Outage: func(t *testing.T, _ registry.Registry) func() {
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			return func() { again(t) }
		},
		Timeout: 15 * time.Second,
	})
}
