package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/internal/leak"
)

// The tree is read back from a real Jaeger. What differs from run to run is replaced: ports, the trace's ID, the
// random delay of the retry, and which instance of orders was asked first.
const want = `http://127.0.0.1:PORT/api/traces/ID?prettyPrint=true

shop internal buy
  shop client /evenkeel.Greeter/Hello status_code=OK attempts=2 instance=orders-B filter=track=stable
    * retry attempt=2 by=retry delay=DELAY message=rpc error: code = Unavailable desc = warming up
    shop client attempt /evenkeel.Greeter/Hello status_code=UNAVAILABLE attempt=1 instance=orders-A
      * error error.kind=UNAVAILABLE message=warming up
      orders server /evenkeel.Greeter/Hello status_code=UNAVAILABLE
        * error error.kind=UNAVAILABLE message=warming up
    shop client attempt /evenkeel.Greeter/Hello status_code=OK attempt=2 instance=orders-B
      orders server /evenkeel.Greeter/Hello status_code=OK
        orders client /evenkeel.Greeter/Tell status_code=OK attempts=1 instance=stock-1
          orders client attempt /evenkeel.Greeter/Tell status_code=OK attempt=1 instance=stock-1
            stock server /evenkeel.Greeter/Tell status_code=OK
`

func TestTree(t *testing.T) {
	leak.Check(t)
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", "", false); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	for pattern, name := range map[string]string{
		`127\.0\.0\.1:\d+`: "127.0.0.1:PORT", `traces/[0-9a-f]{32}\?`: "traces/ID?", `delay=\S+`: "delay=DELAY",
	} {
		got = regexp.MustCompile(pattern).ReplaceAllString(got, name)
	}
	first := regexp.MustCompile(`attempt=1 instance=(orders-[12])`).FindStringSubmatch(got)
	if first == nil {
		t.Fatalf("no first attempt on an instance of orders in\n%s", got)
	}
	second := map[string]string{"orders-1": "orders-2", "orders-2": "orders-1"}[first[1]]
	got = strings.NewReplacer(first[1], "orders-A", second, "orders-B").Replace(got)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFlagsGoTogether(t *testing.T) {
	for _, c := range [][2]string{{"127.0.0.1:1", ""}, {"", "http://127.0.0.1:1"}} {
		if err := run(t.Context(), new(bytes.Buffer), c[0], c[1], false); err == nil || !strings.Contains(err.Error(), "-query") {
			t.Errorf("-otlp %q -query %q: %v, want an error that names both", c[0], c[1], err)
		}
	}
}

// A Jaeger that is not there: the program says so and ends.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, new(bytes.Buffer), "127.0.0.1:1", "http://127.0.0.1:1", false); err == nil {
		t.Error("got no error after an interrupt, want one")
	}
}
