package balancer

import (
	"context"
	"testing"

	"github.com/evenkeel/evenkeel/filters"
)

// bind returns a context with a filter for all services.
func bind(t testing.TB, filter string, services ...string) context.Context {
	t.Helper()
	f, err := filters.Parse(filter)
	if err != nil {
		t.Fatal(err)
	}
	return filters.NewContext(t.Context(), f, services...)
}
