package evenkeel_test

import (
	"strings"
	"testing"
)

// TestRulesCatch feeds the rules small files that break them, and some that look as if they did.
func TestRulesCatch(t *testing.T) {
	const im = `import "` + module + "/"
	cases := []struct {
		rule, path, src string
		want            string // in the finding's text; empty means that there is none
	}{
		{"layers", "resolver/x.go", im + `server"`, `imports "server"`},
		{"layers", "server/x.go", im + `resolver"`, `imports "resolver"`},
		{"layers", "server/x.go", im + `registry"`, ""},
		{"layers", "registry/x.go", im + `outcome"`, `imports "outcome"`},
		{"layers", "registry/memory/x.go", im + `registry/consul"`, `imports "registry/consul"`},
		{"layers", "balancer/x.go", im + `registry/memory"`, `imports "registry/memory"`},
		{"layers", "balancer/x.go", im + `internal/leak"`, `imports "internal/leak"`},
		{"layers", "balancer/x.go", im + `balancer/load"`, ""},
		{"layers", "balancer/load/x.go", im + `balancer"`, `imports "balancer"`},
		{"layers", "wrappers/retry/x.go", im + `wrappers/breaker"`, `imports "wrappers/breaker"`},
		{"layers", "wrappers/retry/x.go", im + `balancer"`, `imports "balancer"`},
		{"layers", "wrappers/retry/x.go", im + `outcome"`, ""},
		{"layers", "internal/callctx/x.go", im + `filters"`, `imports "filters"`},
		{"layers", "filters/x.go", `import "` + module + `"`, `imports ""`},
		{"layers", "filters/x.go", `import "google.golang.org/grpc"`, ""},
		{"layers", "examples/quickstart/x.go", im + `server"`, ""},
		{"layers", "novel/x.go", "", "no row"},
		{"layers", "balancer/x_test.go", im + `resolver"`, ""},
		{"layers", "bench/peers/x.go", im + `novel"`, ""},

		{"nested", "bench/x_test.go", im + `bench/peers/kratos"`, "nested module " + module + "/bench/peers"},
		{"nested", "bench/x.go", im + `bench/peers"`, "nested module"},
		{"nested", "bench/x.go", im + `bench/peersandmore"`, ""},
		{"nested", "bench/peers/x.go", im + `bench/peers/kratos"`, ""},

		{"heavy", "resolver/x.go", `import "github.com/hashicorp/consul/api"`, "want that only in"},
		{"heavy", "registry/consul/x.go", `import "github.com/hashicorp/consul/api"`, ""},
		{"heavy", "wrappers/retry/x.go", `import "github.com/sony/gobreaker/v2"`, "want that only in"},

		{"no grpc", "balancer/load/x.go", `import "google.golang.org/grpc"`, "no grpc but codes"},
		{"no grpc", "wrappers/retry/core.go", `import "google.golang.org/grpc/status"`, "no grpc but codes"},
		{"no grpc", "wrappers/retry/core.go", `import "google.golang.org/grpc/codes"`, ""},
		{"no grpc", "wrappers/retry/interceptor.go", `import "google.golang.org/grpc"`, ""},

		{"grpc names", "resolver/x.go", `import "google.golang.org/grpc/resolver"`, "without the name gresolver"},
		{"grpc names", "resolver/x_test.go", `import b "google.golang.org/grpc/balancer"`, "without the name gbalancer"},
		{"grpc names", "resolver/x.go", `import gresolver "google.golang.org/grpc/resolver"`, ""},

		{"clock", "balancer/x.go", `import "time"; var x = time.Now()`, "time.Now"},
		{"clock", "balancer/load/x.go", `import t "time"; var x = t.Since`, "time.Since"},
		{"clock", "outcome/x.go", `import . "time"; var x = Now()`, "with a dot"},
		{"clock", "filters/x.go", `import "math/rand/v2"; var x = rand.Uint64()`, "rand/v2.Uint64"},
		{"clock", "balancer/x.go", `import "math/rand"; var x = rand.Intn(3)`, "rand.Intn"},
		{"clock", "balancer/x.go", `import "crypto/rand"; var x = rand.Reader`, "crypto/rand.Reader"},
		{"clock", "wrappers/retry/core.go", `import "context"; var x = context.WithTimeout`, "context.WithTimeout"},
		{"clock", "wrappers/retry/core.go", `import "time"; var x = time.AfterFunc`, "time.AfterFunc"},
		{"clock", "wrappers/retry/interceptor.go", `import "time"; var x = time.Now`, ""},
		{"clock", "balancer/x.go", `import "math/rand/v2"; var x = rand.New(rand.NewPCG(1, 2))`, ""},
		{"clock", "balancer/x.go", `import "time"; var x = time.Second`, ""},
		{"clock", "balancer/x_test.go", `import "time"; var x = time.Now`, ""},

		{"sleep", "server/x_test.go", `import "time"; func f() { time.Sleep(1) }`, "sleeps"},
		{"sleep", "server/x_test.go", `import "time"; var f = time.Sleep`, "sleeps"},
		{"sleep", "server/x_test.go", `import "time"; func f() { <-time.After(1) }`, "sleeps"},
		{"sleep", "bench/peers/x_test.go", `import "time"; func f() { time.Sleep(1) }`, "sleeps"},
		{"sleep", "server/x_test.go", bubble + `func f() { synctest.Test(nil, func() {}); time.Sleep(1) }`, "sleeps"},
		{"sleep", "server/x_test.go", bubble + `func f() { _ = func() { synctest.Wait() }; time.Sleep(1) }`, "sleeps"},
		{"sleep", "server/x_test.go", bubble + `func f() { synctest.Wait(); go func() { time.Sleep(1) }() }`, "sleeps"},
		{"sleep", "server/x_test.go", bubble + `func f() { synctest.Test(nil, func() { go func() { time.Sleep(1) }() }) }`, ""},
		{"sleep", "server/x_test.go", bubble + `func f() { time.Sleep(1); synctest.Wait() }`, ""},
		{"sleep", "server/x_test.go", poll + `; <-time.After(1) } }`, ""},
		{"sleep", "server/x_test.go", poll + `; time.Sleep(1) } }`, "sleeps"},
		{"sleep", "server/x_test.go", poll + ` }; <-time.After(1) }`, "sleeps"},
		{"sleep", "server/x_test.go", poll + `; func() { <-time.After(1) }() } }`, "sleeps"},
		{"sleep", "server/x_test.go", `import "time"; func f() { for range 3 { <-time.After(1) } }`, "sleeps"},
		{"sleep", "server/x_test.go", `import "time"; func f() { for { <-time.After(1) } }`, "sleeps"},
		{"sleep", "server/x_test.go", `import "time"; func f() { select { case <-time.After(1): } }`, ""},
		{"sleep", "server/x.go", `import "time"; func f() { time.Sleep(1) }`, ""},

		{"root", "helpers.go", `func f() {}`, "a declaration"},
		{"root", "doc.go", ``, ""},
	}
	caught := make(map[string]bool)
	for _, c := range cases {
		s, err := parse(c.path, "package x; "+c.src, []string{"bench/peers"}, []string{module + "/bench/peers"})
		if err != nil {
			t.Fatalf("%s: %s: %v", c.rule, c.src, err)
		}
		got := findings(t, c.rule, s)
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s: %s: %s: got %q, want no finding", c.rule, c.path, c.src, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s: %s: %s: got %q, want one finding with %q", c.rule, c.path, c.src, got, c.want)
		}
		caught[c.rule] = caught[c.rule] || len(got) > 0
	}
	for _, r := range rules {
		if !caught[r.name] {
			t.Errorf("no case shows that rule %q catches anything", r.name)
		}
	}
}

const (
	bubble = `import ("testing/synctest"; "time"); `
	poll   = `import "time"; func f() { for end := time.Now(); ; { _ = time.Now().After(end)`
)

// findings is what the rule called name says of s, if s is in its scope.
func findings(t *testing.T, name string, s *source) (texts []string) {
	t.Helper()
	for _, r := range rules {
		if r.name != name {
			continue
		}
		if r.scope(s) {
			for _, f := range r.find(s) {
				texts = append(texts, f.text)
			}
		}
		return texts
	}
	t.Fatalf("no rule is called %q", name)
	return nil
}

func TestRulesExceptions(t *testing.T) {
	for file, want := range map[string]bool{
		"internal/clock/clock.go":  true,
		"internal/clock/rand.go":   true,
		"internal/clockwork/x.go":  false,
		"balancer/internal/clock/": false,
	} {
		if got := exceptionFor("clock", file) >= 0; got != want {
			t.Errorf("exceptionFor(clock, %s) = %v, want %v", file, got, want)
		}
		if exceptionFor("sleep", file) >= 0 {
			t.Errorf("exceptionFor(sleep, %s) is one, want none: an exception is of one rule", file)
		}
	}
}
