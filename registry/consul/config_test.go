package consul

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

const testToken = "d9c0ff1e-5ec2-4e7a-9b1d-0123456789ab"

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	client, err := api.NewClient(&api.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  Config
		want string // every word is in the error
	}{
		{Config{Client: client, Address: "a:1"}, "Address Client"},
		{Config{Client: client, Token: testToken}, "Token Client"},
		{Config{Client: client, TokenFile: "f"}, "TokenFile Client"},
		{Config{Client: client, Datacenter: "dc1"}, "Datacenter Client"},
		{Config{Client: client, Namespace: "n"}, "Namespace Client"},
		{Config{Client: client, TLS: &tls.Config{}}, "TLS Client"},
		{Config{Token: testToken, TokenFile: "f"}, "Token TokenFile"},
		{Config{Token: testToken + "\n"}, "Token ASCII"},
		{Config{Token: testToken + "ü"}, "Token ASCII"},
		{Config{TokenFile: "/nowhere/token"}, "TokenFile /nowhere/token"},
		{Config{Address: "user:" + testToken + "@host:8500"}, "Address Token"},
		{Config{Address: "ftp://host"}, "Address ftp://host https://"},
		{Config{Address: "http://"}, "Address http://"},
		{Config{Address: "http://host", TLS: &tls.Config{}}, "Address http://host TLS"},
		{Config{Consistency: 9}, "Consistency(9) stale"},
		{Config{WaitTime: time.Millisecond}, "WaitTime 1ms 100ms"},
		{Config{WaitTime: time.Hour}, "WaitTime 1h0m0s 10m0s"},
		{Config{WaitTime: -1}, "WaitTime -1ns"},
		{Config{Tags: []string{"ok", ""}}, "Tags[1]"},
		{Config{Tags: []string{"\xff"}}, "Tags[0]"},
		{Config{Tags: []string{"evenkeel:draining"}}, "Tags[0] evenkeel:"},
		{Config{WatchTags: []string{""}}, "WatchTags[0]"},
		{Config{Check: Check{Kind: 7}}, "Check.Kind CheckKind(7) grpc"},
		{Config{Check: Check{TTL: time.Millisecond}}, "Check.TTL 1ms 1s"},
		{Config{Check: Check{TTL: 4 * time.Second, Interval: 3 * time.Second}}, "Check.Interval 3s half 4s"},
		{Config{Check: Check{Interval: -time.Second}}, "Check.Interval -1s"},
		{Config{Check: Check{Kind: CheckTCP, Interval: time.Millisecond}}, "Check.Interval 1ms 1s"},
		{Config{Check: Check{Kind: CheckTCP, Timeout: -1}}, "Check.Timeout -1ns"},
		{Config{Check: Check{DeregisterCriticalServiceAfter: time.Second}}, "DeregisterCriticalServiceAfter 1s 1m0s"},
		{Config{Check: Check{GRPCService: "x"}}, "Check.GRPCService ttl grpc"},
		{Config{Check: Check{Kind: CheckTCP, TLS: true}}, "TLS tcp grpc"},
	} {
		r, err := New(c.cfg)
		if err == nil {
			t.Errorf("New(%v) = nil, want an error with %q", c.cfg, c.want)
			_ = r.Close()
			continue
		}
		for _, word := range strings.Fields(c.want) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("New(%v) = %q, want %q in it", c.cfg, err, word)
			}
		}
		if strings.Contains(err.Error(), testToken) {
			t.Errorf("New(%v) = %q: it shows the token", c.cfg, err)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	got := Config{}.withDefaults()
	want := Check{TTL: 15 * time.Second, Interval: 5 * time.Second, Timeout: 2 * time.Second,
		DeregisterCriticalServiceAfter: time.Minute}
	if got.Check != want || got.WaitTime != 30*time.Second || got.Logger == nil || got.validate() != nil {
		t.Errorf("defaults = %v, %+v", got, got.Check)
	}
	if got := (Config{Check: Check{TTL: 3 * time.Second}}).withDefaults().Check.Interval; got != time.Second {
		t.Errorf("a TTL of 3 s: Interval = %v, want a third of it", got)
	}
	if got := (Config{Check: Check{Kind: CheckGRPC}}).withDefaults().Check.Interval; got != 5*time.Second {
		t.Errorf("gRPC: Interval = %v, want 5s", got)
	}
}

// TestSecretsAreNotShown prints a Config and a Registry in every way there is.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	cfg := Config{Address: "127.0.0.1:1", Token: testToken,
		TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{[]byte(testToken)}}}}}
	r := newRegistry(t, cfg)
	var out bytes.Buffer
	for _, v := range []any{cfg, &cfg, r, struct{ C Config }{cfg}, []Config{cfg}, map[string]any{"c": cfg, "r": r},
		struct{ r *Registry }{r}, struct{ r **Registry }{&r}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T", "%10v", "%08.3f", "%c", "%U", "%b", "%o", "%e"} {
			_, _ = fmt.Fprintf(&out, verb+"\n", v)
		}
		_, _ = fmt.Fprintln(&out, v)
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("m", "k", v, slog.Any("any", v), slog.Group("g", "k", v))
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
	}
	out.WriteString(cfg.String() + cfg.GoString() + cfg.LogValue().String() + r.String() + r.GoString() + r.LogValue().String())
	// Hexadecimal verbs print text as bytes.
	for _, form := range []string{testToken, fmt.Sprintf("%x", testToken), fmt.Sprintf("%X", testToken),
		strings.Trim(fmt.Sprint([]byte(testToken)), "[]")} {
		if i := strings.Index(out.String(), form); i >= 0 {
			t.Errorf("the token is shown: ...%s...", out.String()[max(0, i-80):i+10])
		}
	}
	if !strings.Contains(out.String(), "127.0.0.1:1") {
		t.Error("nothing useful is shown either")
	}
}

func TestSecretsClean(t *testing.T) {
	t.Parallel()
	odd := `to"ken/%+1`
	s := &secrets{}
	s.use("first-" + testToken)
	s.hide(odd)
	plain := errors.New("plain")
	if got := s.clean(plain); got != plain {
		t.Errorf("clean(%v) = %v, want it as it is", plain, got)
	}
	if got := s.clean(nil); got != nil {
		t.Errorf("clean(nil) = %v", got)
	}
	for _, text := range []string{"first-" + testToken, odd, "to%22ken%2F%25%2B1", "to%22ken%2F%25+1", `to\"ken/%+1`} {
		if got := s.clean(fmt.Errorf("a %s b", text)).Error(); got != "a (not shown) b" {
			t.Errorf("clean(a %s b) = %q", text, got)
		}
	}
	long := s.clean(errors.New(strings.Repeat("ä", 1000) + testToken)).Error()
	if len(long) > maxErrorText+3 || strings.Contains(long, "\xef\xbf\xbd") {
		t.Errorf("a long error is %d bytes", len(long))
	}
	for i := range 3 * maxSecrets {
		s.use(fmt.Sprint("token", i))
	}
	if len(s.known) != maxSecrets || s.token() != fmt.Sprint("token", 3*maxSecrets-1) {
		t.Errorf("%d secrets are kept, the token is %q", len(s.known), s.token())
	}
}

func TestTokenFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	r := newRegistry(t, Config{TokenFile: file})
	for _, c := range []struct{ write, want string }{{"one\n", "one"}, {"two", "two"}, {"", "two"}, {"a b", "two"}, {"three", "three"}} {
		write(c.write)
		if got := r.secrets.token(); got != c.want {
			t.Errorf("the file says %q: token = %q, want %q", c.write, got, c.want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := r.secrets.token(); got != "three" {
		t.Errorf("without the file: token = %q, want the last", got)
	}
	write("  \n")
	if _, err := New(Config{TokenFile: file}); err == nil || !strings.Contains(err.Error(), "TokenFile") {
		t.Errorf("an empty file: New = %v, want an error that names TokenFile", err)
	}
}
