package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/balancer"
)

// TestMain runs the tests, or, in a process that a test started, one server.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := serve(role, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRun: the processes start, are called through both kinds of policy, and the table says what happened.
func TestRun(t *testing.T) {
	var out, log strings.Builder
	args := []string{"-policies", "grpc_round_robin,evenkeel_least_request", "-rounds", "1", "-time", "400ms"}
	if err := run(t.Context(), args, &out, &log); err != nil {
		t.Fatal(err, log.String())
	}
	rows := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(rows) != 6 {
		t.Fatalf("%d lines, want a heading, the head of a table and 2 rows:\n%s", len(rows), out.String())
	}
	for i, policy := range []string{"grpc_round_robin", "evenkeel_least_request"} {
		row := rows[4+i]
		if !strings.HasPrefix(row, "| `"+policy+"` |") || strings.Count(row, "|") != 8 {
			t.Errorf("row %d is %s, want one of %s with 7 columns", i, row, policy)
		}
		if strings.Contains(row, "| 0.0 ms |") {
			t.Errorf("no call succeeded: %s", row)
		}
	}
	if strings.Contains(rows[4], "| 0.00 % |") {
		t.Errorf("no call of round_robin failed, although a server fails half of its calls: %s", rows[4])
	}
}

func TestSummarize(t *testing.T) {
	var calls []call
	for i := range 100 {
		c := call{took: time.Duration(i+1) * time.Millisecond, role: normal}
		switch {
		case i < 10:
			c.role, c.err = failing, io.EOF
		case i < 30:
			c.role = slow
		}
		calls = append(calls, c)
	}
	r := summarize(calls)
	if r.calls != 100 || r.p50 != 56*time.Millisecond || r.p99 != 100*time.Millisecond || fmt.Sprintf("%.2f", r.failed) != "0.10" ||
		fmt.Sprintf("%.2f %.2f", r.share[failing], r.share[slow]) != "0.10 0.20" {
		t.Errorf("%+v, want p50 and p99 of the 90 that succeeded, 10 %% failed, and the shares", r)
	}
	if r := summarize(nil); r.calls != 0 || r.failed != 0 {
		t.Errorf("of nothing: %+v", r)
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-policies grpc_robin", `-policies: "grpc_robin", want some of grpc_round_robin,grpc_least_request,evenkeel_`},
		{"-rounds 0", "want positive numbers"},
		{"-rate -1", "want positive numbers"},
		{"-pause 1s", "a pause below 1s"},
		{"x", `"x" is not a flag`},
		{"-nosuch", "flag provided but not defined"},
	} {
		err := run(t.Context(), strings.Fields(tt.args), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.args, err, tt.want)
		}
	}
}

// TestPolicies: there is a row for each strategy, and grpc takes what selects it.
func TestPolicies(t *testing.T) {
	for _, s := range balancer.Strategies() {
		if !slices.Contains(all(), "evenkeel_"+s) {
			t.Errorf("%s has no row: %v", s, all())
		}
	}
	for _, p := range all() {
		conn, err := dial(p, []string{"127.0.0.1:1"})
		if err != nil {
			t.Errorf("%s: %v, of %s", p, err, serviceConfig(p))
			continue
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
