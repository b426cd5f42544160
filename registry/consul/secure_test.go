package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

// TestACL runs against a server that denies everything by default: with a token that does not exist, with none, with
// the policy that docs/consul.md names, and with a token that is replaced in its file.
func TestACL(t *testing.T) {
	t.Parallel()
	const wrong = "0badc0de-dead-beef-0bad-c0dedeadbeef"
	s := testconsul.Start(t, testconsul.WithACL(testToken))
	admin := s.Client()
	policy, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: "evenkeel", Rules: `
		service "orders" { policy = "write" }
		node_prefix ""   { policy = "read" }`}, nil)
	if err != nil {
		t.Fatal(err)
	}
	made, _, err := admin.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: policy.ID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log logs
	var said []string
	in := registry.Instance{ID: "a", Addr: "h:1"}

	good := newRegistry(t, Config{Address: s.Addr(), Token: made.SecretID, Logger: log.logger()})
	g := register(t, good, "orders", in)
	rec := follow(t, good, "orders")
	rec.Await("it, with the documented policy", haveIDs("a"))

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(wrong+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	denied := newRegistry(t, Config{Address: s.Addr(), TokenFile: file, Logger: log.logger()})
	bad := newRegistry(t, Config{Address: s.Addr(), Token: wrong, Logger: log.logger()})
	useless, _, err := admin.ACL().TokenCreate(&api.ACLToken{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	blind := newRegistry(t, Config{Address: s.Addr(), Token: useless.SecretID, Logger: log.logger()})
	for what, r := range map[string]*Registry{"a wrong token": bad, "a wrong token in a file": denied, "a token without a policy": blind} {
		err := r.Watch(background(t), "orders", func(ins []registry.Instance) {
			t.Errorf("with %s: an update: %v, want an error: what may not be seen is not absent", what, ins)
		})
		if err == nil {
			t.Errorf("with %s: Watch = nil", what)
			continue
		}
		said = append(said, err.Error())
	}
	// Without a token Consul does not say that it hides something.
	follow(t, newRegistry(t, Config{Address: s.Addr(), Logger: log.logger()}), "orders").Await("nothing", haveIDs())
	if !strings.Contains(log.String(), "visible without a token") {
		t.Errorf("the log does not say why there is nothing without a token:\n%s", log.String())
	}
	later := register(t, denied, "orders", registry.Instance{ID: "b", Addr: "h:2"})
	lost := register(t, bad, "orders", registry.Instance{ID: "c", Addr: "h:3"})
	eventually(t, "both denials are logged", 5*time.Second, func() bool {
		return strings.Count(log.String(), "refused and not announced") == 2
	})
	if err := lost.Close(background(t)); err == nil {
		t.Error("Close with a wrong token = nil, want the denial")
	} else {
		said = append(said, err.Error())
	}
	if err := os.WriteFile(file, []byte(made.SecretID), 0o600); err != nil {
		t.Fatal(err)
	}
	rec.Await("the other, once its token is good", haveIDs("a", "b"))
	for _, g := range []registry.Registration{g, later} {
		if err := g.Close(background(t)); err != nil {
			t.Error(err)
		}
	}
	all := log.String() + strings.Join(said, "\n")
	for _, token := range []string{wrong, made.SecretID, useless.SecretID, testToken} {
		if strings.Contains(all, token) {
			t.Errorf("a token is shown in:\n%s", all)
		}
	}
}

// TestTLS speaks HTTPS with a client's certificate to a server that wants one.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newAuthority(t, filepath.Join(dir, "ca.pem"))
	ca.issue(t, filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
	ca.issue(t, filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
	s := testconsul.Start(t, testconsul.WithTLS(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "server.pem"),
		filepath.Join(dir, "server.key")))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	full := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	for _, address := range []string{s.HTTPSAddr(), "https://" + s.HTTPSAddr()} {
		r := newRegistry(t, Config{Address: address, TLS: full})
		g := register(t, r, "tls", registry.Instance{ID: "a", Addr: "h:1"})
		follow(t, r, "tls").Await("it", haveIDs("a"))
		if err := g.Close(background(t)); err != nil {
			t.Error(err)
		}
	}
	for what, cfg := range map[string]*tls.Config{
		"an unknown authority": {Certificates: full.Certificates},
		"no certificate":       {RootCAs: roots},
		"another name":         {RootCAs: roots, Certificates: full.Certificates, ServerName: "other.example"},
	} {
		r := newRegistry(t, Config{Address: s.HTTPSAddr(), TLS: cfg})
		if err := r.Watch(background(t), "tls", func([]registry.Instance) { t.Errorf("%s: an update", what) }); err == nil {
			t.Errorf("with %s: Watch = nil", what)
		}
	}
}

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, file string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, file, "CERTIFICATE", der)
	return authority{cert, key}
}

func (a authority) issue(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", raw)
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEnvironment reads the settings that Consul's own tools read, and keeps the token among them secret.
func TestEnvironment(t *testing.T) {
	var f fake
	f.start(t, func(*fakeCall) (int, string) { return 500, "no leader" })
	t.Setenv(api.HTTPAddrEnvName, f.addr)
	t.Setenv(api.HTTPTokenEnvName, testToken)
	t.Setenv(api.HTTPAuthEnvName, "user:pass-"+testToken)
	t.Setenv(api.HTTPNamespaceEnvName, "env-ns")
	r := newRegistry(t, Config{})
	if err := r.Watch(context.Background(), "orders", nil); err == nil {
		t.Error("Watch = nil, want the server's error")
	}
	c := f.last(t)
	if c.header.Get("X-Consul-Token") != testToken || c.query.Get("ns") != "env-ns" || c.header.Get("Authorization") == "" {
		t.Errorf("asked with %v and %v, want what the environment says", c.query, c.header)
	}
	t.Setenv(api.HTTPAddrEnvName, "user:"+testToken+"@"+f.addr)
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), api.HTTPAddrEnvName) || strings.Contains(err.Error(), testToken) {
		t.Errorf("with a password in the address: New = %v, want an error that names the variable and nothing else", err)
	}
	t.Setenv(api.HTTPAddrEnvName, f.addr)
	own := newRegistry(t, Config{Token: "own"})
	_ = own.Watch(context.Background(), "orders", nil) // what it asked is what counts
	if got := f.last(t).header.Get("X-Consul-Token"); got != "own" {
		t.Errorf("asked with the token %q, want the Config's", got)
	}
	for _, secret := range []string{testToken, "pass-" + testToken} {
		if got := own.secrets.cleanText(secret); strings.Contains(got, testToken) {
			t.Errorf("the environment's secret is shown: %s", got)
		}
	}
}
