package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/internal/testconsul"
)

// The demonstration is the README's first command: it must hold on both registries, and end by itself.
func TestRun(t *testing.T) {
	for _, row := range []struct {
		name  string
		where func(*testing.T) string
	}{
		{"memory", func(*testing.T) string { return "memory" }},
		{"consul", func(t *testing.T) string { return "consul://" + testconsul.Start(t).Addr() }},
	} {
		t.Run(row.name, func(t *testing.T) {
			where := row.where(t)
			var out strings.Builder
			began := time.Now()
			err := run(t.Context(), &out, false, where)
			t.Log(out.String())
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %v, want less than 30 s", took)
			}
			if strings.Contains(out.String(), "\x1b") {
				t.Error("control characters in a pipe")
			}
			if n := strings.Count(out.String(), "ok  "); n != 4 {
				t.Errorf("%d acts are ok, want 4", n)
			}
		})
	}
}

func TestRegistryFlag(t *testing.T) {
	for _, where := range []string{"", "etcd://x", "consul://"} {
		if err := run(t.Context(), io.Discard, false, where); err == nil || !strings.Contains(err.Error(), "-registry") {
			t.Errorf("-registry = %q: error %v, want one that names the flag", where, err)
		}
	}
}
