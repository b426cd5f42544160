package resolver

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
)

func TestMistakesAreNamed(t *testing.T) {
	w := new(script)
	for _, tc := range []struct {
		name   string
		b      gresolver.Builder
		target string
		want   []string
	}{
		{"no registry", NewBuilder(nil), "lb:///orders", []string{"registry.Watcher = nil"}},
		{"nil option", NewBuilder(w, nil), "lb:///orders", []string{"option 0 = nil"}},
		{"empty scheme", NewBuilder(w, WithScheme("")), "lb:///orders", []string{`WithScheme = ""`, "want"}},
		{"odd scheme", NewBuilder(w, WithScheme("a b")), "lb:///orders", []string{`WithScheme = "a b"`, "want"}},
		{"service config", NewBuilder(w, WithServiceConfig("bad")), "lb:///orders", []string{`WithServiceConfig = "bad"`, "want", "no supported policies"}},
		{"two slashes", NewBuilder(w), "lb://orders", []string{`"lb://orders"`, "two slashes", "want lb:///SERVICE"}},
		{"no service", NewBuilder(w), "lb:///", []string{"service is empty", "want lb:///SERVICE"}},
		{"four slashes", NewBuilder(w), "lb:////orders", []string{`"/orders"`}},
		{"user", NewBuilder(w), "lb://orders@/stock", []string{"two slashes"}},
		{"query", NewBuilder(w), "lb:///orders?zone=a", []string{`query = "zone=a"`}},
		{"trailing slash", NewBuilder(w, WithScheme("svc")), "svc:///orders/", []string{`"orders/"`, "want svc:///SERVICE"}},
		{"control character", NewBuilder(w), "lb:///or%0Aders", []string{`"or\nders"`}},
		{"not UTF-8", NewBuilder(w), "lb:///or%ffders", []string{`"or\xffders"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := tc.b.Build(target(t, tc.target), new(fakeConn), gresolver.BuildOptions{})
			if err == nil {
				r.Close()
				t.Fatal("Build succeeded")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not contain %q", err, w)
				}
			}
			if status.Code(err) != codes.Unavailable {
				t.Errorf("code = %v, want Unavailable, so that wait-for-ready calls fail too", status.Code(err))
			}
		})
	}
}

func TestScheme(t *testing.T) {
	for opt, want := range map[string]string{"svc": "svc", "Svc": "svc", "a+b-c.1": "a+b-c.1", "1a": "lb", "": "lb"} {
		if got := NewBuilder(new(script), WithScheme(opt)).Scheme(); got != want {
			t.Errorf("WithScheme(%q).Scheme() = %q, want %q", opt, got, want)
		}
	}
	if got := NewBuilder(new(script)).Scheme(); got != "lb" {
		t.Errorf("Scheme() = %q, want lb", got)
	}
}

func TestTargetsThatAreServices(t *testing.T) {
	for tgt, want := range map[string]string{"lb:///orders": "orders", "lb:orders": "orders", "lb:///team/orders": "team/orders", "lb:///gr%C3%BC%C3%9Fe": "grüße"} {
		if got, err := serviceName(target(t, tgt)); err != nil || got != want {
			t.Errorf("%s: service %q, %v, want %q", tgt, got, err, want)
		}
	}
}

func TestHoldOption(t *testing.T) {
	for d, want := range map[time.Duration]time.Duration{0: 30 * time.Second, time.Minute: time.Minute, -1: -1} {
		if got := NewBuilder(new(script), WithHold(d)).(*builder).opts.hold; got != want {
			t.Errorf("WithHold(%v): hold = %v, want %v", d, got, want)
		}
	}
}

// The default is looked up when there is something to log, so that an app may set it after it made the builder.
func TestLoggerIsTheDefaultOfTheMoment(t *testing.T) {
	b := NewBuilder(new(script)).(*builder)
	before := slog.Default()
	defer slog.SetDefault(before)
	after := slog.New(new(journal))
	slog.SetDefault(after)
	if b.logger() != after {
		t.Error("the builder logs to what was the default when it was made")
	}
}
