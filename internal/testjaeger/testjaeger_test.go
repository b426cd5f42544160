package testjaeger

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/internal/leak"
)

func TestStartAndStop(t *testing.T) {
	leak.Check(t)
	s, err := StartProcess(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	roots, n, err := s.Trace(t.Context(), "00000000000000000000000000000001")
	if err != nil || n != 0 || roots != nil {
		t.Errorf("an unknown trace: %v, %d spans, %v, want none of these", roots, n, err)
	}
	if _, _, err := s.Trace(t.Context(), "no id"); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a malformed ID: %v, want what Jaeger says", err)
	}
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := s.Trace(t.Context(), "1"); err == nil {
		t.Error("a stopped server answers")
	}
}

func TestMissing(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("EVENKEEL_JAEGER", "")
	if _, err := StartProcess(t.TempDir()); !errors.Is(err, errMissing) {
		t.Errorf("got %v, want %v", err, errMissing)
	}
	t.Setenv("EVENKEEL_JAEGER", "/no/such/jaeger")
	if _, err := StartProcess(t.TempDir()); err == nil || !strings.Contains(err.Error(), "EVENKEEL_JAEGER") {
		t.Errorf("got %v, want an error that names the variable", err)
	}
}

// A trace as Jaeger tells it: out of order, with a span whose parent is missing.
const told = `{"data":[{"traceID":"ab","processes":{"p1":{"serviceName":"shop"},"p2":{"serviceName":"orders"}},"spans":[
{"spanID":"c","operationName":"second","processID":"p1","startTime":3000,"duration":5,"references":[{"refType":"CHILD_OF","spanID":"a"}],"tags":[{"key":"n","value":2},{"key":"error","value":true}]},
{"spanID":"b","operationName":"first","processID":"p2","startTime":2000,"duration":5,"references":[{"refType":"FOLLOWS_FROM","spanID":"x"},{"refType":"CHILD_OF","spanID":"a"}]},
{"spanID":"d","operationName":"orphan","processID":"p2","startTime":4000,"duration":5,"references":[{"refType":"CHILD_OF","spanID":"lost"}]},
{"spanID":"a","operationName":"root","processID":"p1","startTime":1000,"duration":9,"references":[],
 "logs":[{"timestamp":1002,"fields":[{"key":"event","value":"late"}]},{"timestamp":1001,"fields":[{"key":"event","value":"early"}]}]}]}]}`

func TestQuery(t *testing.T) {
	body, code := told, http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}))
	defer srv.Close()
	q := Query{URL: srv.URL}

	roots, n, err := q.Trace(t.Context(), "ab")
	if err != nil || n != 4 || len(roots) != 2 {
		t.Fatalf("%d roots, %d spans, %v, want 2 and 4", len(roots), n, err)
	}
	a := roots[0]
	if a.Operation != "root" || a.Service != "shop" || len(a.Children) != 2 || a.Children[0].Operation != "first" ||
		a.Children[0].Service != "orders" || a.Children[1].Tags["n"] != "2" || a.Children[1].Tags["error"] != "true" ||
		a.Logs[0].Fields["event"] != "early" || a.Duration != 9*time.Microsecond || roots[1].Operation != "orphan" {
		t.Errorf("got %+v, want the root with two children in the order of their start", a)
	}
	for _, c := range []struct {
		body string
		code int
		want string
	}{
		{`{`, http.StatusOK, "JSON"}, {`{"data":[]}`, http.StatusOK, "got 0 traces"}, {"broken", http.StatusInternalServerError, "500"},
	} {
		body, code = c.body, c.code
		if _, _, err := q.Trace(t.Context(), "ab"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d %s: %v, want an error with %q", c.code, c.body, err, c.want)
		}
	}
	body, code = told, http.StatusOK
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := q.Wait(ctx, "ab", 5); err == nil || !strings.Contains(err.Error(), "has 4 spans, want 5") {
		t.Errorf("Wait: %v, want how many there are and how many there should be", err)
	}
	if roots, err := q.Wait(t.Context(), "ab", 4); err != nil || len(roots) != 2 {
		t.Errorf("Wait: %v, %v, want what Trace says", roots, err)
	}
}
