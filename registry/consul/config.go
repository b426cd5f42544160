package consul

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/consul/api"
)

const (
	defaultWaitTime    = 30 * time.Second
	minWaitTime        = 100 * time.Millisecond
	maxWaitTime        = 10 * time.Minute // Consul shortens what is longer
	defaultTTL         = 15 * time.Second
	defaultInterval    = 5 * time.Second
	defaultTimeout     = 2 * time.Second
	minInterval        = time.Second // Consul lengthens what is shorter
	minDeregisterAfter = time.Minute // Consul lengthens what is shorter
)

// Consistency says how fresh the answers to [Registry.Watch] are, in Consul's own terms. The zero value is
// ConsistencyDefault.
type Consistency uint8

const (
	// ConsistencyDefault asks the leader. During a change of leader an answer may be old by a moment.
	ConsistencyDefault Consistency = iota
	// ConsistencyStale lets any server answer, even without a leader: the least load, and answers that may be
	// old by as long as that server has not heard from the leader.
	ConsistencyStale
	// ConsistencyStrong has the leader ask its followers before every answer ("consistent" in Consul): the most
	// load, and rarely worth it for instances that were found healthy some seconds ago.
	ConsistencyStrong
)

// String returns Consul's name of the mode.
func (c Consistency) String() string {
	switch c {
	case ConsistencyDefault:
		return "default"
	case ConsistencyStale:
		return "stale"
	case ConsistencyStrong:
		return "consistent"
	}
	return fmt.Sprintf("Consistency(%d)", uint8(c))
}

// CheckKind says who tells Consul that an instance is well. The zero value is CheckTTL.
type CheckKind uint8

const (
	// CheckTTL has the instance say so itself, every Interval. It works wherever the instance can reach its agent,
	// and notices a process that hangs or died, not one that nobody can reach.
	CheckTTL CheckKind = iota
	// CheckTCP has the agent open a connection to Addr every Interval.
	CheckTCP
	// CheckGRPC has the agent call grpc.health.v1.Health/Check at Addr every Interval.
	CheckGRPC
)

// String returns "ttl", "tcp" or "grpc".
func (k CheckKind) String() string {
	switch k {
	case CheckTTL:
		return "ttl"
	case CheckTCP:
		return "tcp"
	case CheckGRPC:
		return "grpc"
	}
	return fmt.Sprintf("CheckKind(%d)", uint8(k))
}

// Check is the health check that every registration of a [Registry] carries. The zero value is a TTL check of 15 s
// with a beat every 5 s.
//
// Whatever the kind, a new record is passing at once: the instance has just spoken for itself. What a check finds
// out later stays when the record is updated.
type Check struct {
	// Kind is who checks; zero means CheckTTL.
	Kind CheckKind
	// TTL is how long a CheckTTL instance may be silent before it is critical; 0 means 15 s.
	TTL time.Duration
	// Interval is the time between two beats (CheckTTL, at most half of TTL; 0 means a third of it) or between two
	// probes by the agent (CheckTCP, CheckGRPC, 1 s or more; 0 means 5 s). As often the record is read back.
	Interval time.Duration
	// Timeout is how long a probe may take (CheckTCP, CheckGRPC); 0 means 2 s.
	Timeout time.Duration
	// DeregisterCriticalServiceAfter is how long an instance may be critical before Consul deletes its record; 0
	// means 1 minute, which is also the least that Consul accepts.
	DeregisterCriticalServiceAfter time.Duration
	// GRPCService is the service that CheckGRPC asks for; empty asks for the whole server.
	GRPCService string
	// TLS makes CheckGRPC use TLS, with the certificates of the agent's own configuration.
	TLS bool
	// TLSServerName is the name that the instance's certificate must have for CheckGRPC.
	TLSServerName string
	// TLSSkipVerify has CheckGRPC accept any certificate.
	TLSSkipVerify bool
}

// Config says how to reach Consul. The zero value is the agent on this machine, as Consul's own tools find it: where
// Address, Token, TokenFile, Namespace and TLS are empty, the environment (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN,
// CONSUL_CACERT, ...) decides, and without it 127.0.0.1:8500 without a token.
//
// However it is printed, logged or encoded as JSON, a Config shows neither its token nor its keys. (The one way
// around that is a Config in an unexported field of a struct of yours that is printed: fmt cannot ask it then.)
type Config struct {
	// Address is the agent: host:port, http://host:port, https://host:port or unix:///path.
	Address string
	// Token is the ACL token; see docs/consul.md for the policy it needs.
	Token string
	// TokenFile is a file that holds the token. It is read again for every request, so that a token can be replaced
	// while the process runs; a file that cannot be read then leaves the last token in use. Not with Token.
	TokenFile string
	// Datacenter is where Watch looks; empty means the agent's own. Registrations always go to the agent's own.
	Datacenter string
	// Namespace is where services are registered and watched (Consul Enterprise only).
	Namespace string
	// TLS makes the connection to the agent HTTPS. It is cloned.
	TLS *tls.Config
	// Client is a client of the caller's, in place of the fields above, which must be empty then. Its HTTP client
	// must not have a timeout, which would cut every watch short.
	Client *api.Client

	// Consistency is how fresh a watch's answers are; zero means ConsistencyDefault.
	Consistency Consistency
	// WaitTime is how long Consul keeps a watch's query open when nothing changes, from 100 ms to 10 min; 0 means
	// 30 s. A Consul that does not answer at all is noticed 10 s and a sixteenth after that.
	WaitTime time.Duration
	// Tags are put on every record that this Registry registers, beside what the Instance says. Watchers see
	// them by the rules for tags: "team=web" is the label team of every instance. They do not restrict Watch.
	Tags []string
	// WatchTags restrict Watch to records that carry all of them; case does not matter. Empty means every record.
	WatchTags []string
	// Check is the health check of the registrations.
	Check Check
	// Logger gets one line for each change of state; nil means slog.Default.
	Logger *slog.Logger
}

// withDefaults returns c with its zero values replaced. It does not touch what the environment decides.
func (c Config) withDefaults() Config {
	c.WaitTime = cmp.Or(c.WaitTime, defaultWaitTime)
	c.Check.TTL = cmp.Or(c.Check.TTL, defaultTTL)
	if c.Check.Kind == CheckTTL {
		c.Check.Interval = cmp.Or(c.Check.Interval, c.Check.TTL/3)
	}
	c.Check.Interval = cmp.Or(c.Check.Interval, defaultInterval)
	c.Check.Timeout = cmp.Or(c.Check.Timeout, defaultTimeout)
	c.Check.DeregisterCriticalServiceAfter = cmp.Or(c.Check.DeregisterCriticalServiceAfter, minDeregisterAfter)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// validate judges a Config that has its defaults.
func (c Config) validate() error {
	if c.Client != nil {
		for _, f := range []struct {
			field string
			set   bool
		}{
			{"Address", c.Address != ""}, {"Token", c.Token != ""}, {"TokenFile", c.TokenFile != ""},
			{"Datacenter", c.Datacenter != ""}, {"Namespace", c.Namespace != ""}, {"TLS", c.TLS != nil},
		} {
			if f.set {
				return fmt.Errorf("consul: %s is set beside Client, want one of them: the client decides", f.field)
			}
		}
	}
	if c.Token != "" && c.TokenFile != "" {
		return fmt.Errorf("consul: Token and TokenFile are set, want one of them")
	}
	if !validToken(c.Token) {
		return fmt.Errorf("consul: Token = (not shown), want visible ASCII without spaces")
	}
	if err := c.validateAddress(); err != nil {
		return err
	}
	if c.Consistency > ConsistencyStrong {
		return fmt.Errorf("consul: Consistency = %v, want default, stale or consistent", c.Consistency)
	}
	if c.WaitTime < minWaitTime || c.WaitTime > maxWaitTime {
		return fmt.Errorf("consul: WaitTime = %v, want %v to %v", c.WaitTime, minWaitTime, maxWaitTime)
	}
	for i, tag := range c.Tags {
		if tag == "" || !utf8.ValidString(tag) || strings.HasPrefix(tag, tagPrefix) {
			return fmt.Errorf("consul: Tags[%d] = %q, want non-empty UTF-8 that does not begin with %q", i, tag, tagPrefix)
		}
	}
	for i, tag := range c.WatchTags {
		if tag == "" || !utf8.ValidString(tag) {
			return fmt.Errorf("consul: WatchTags[%d] = %q, want non-empty UTF-8", i, tag)
		}
	}
	return c.Check.validate()
}

// validateAddress keeps credentials out of what is logged: an address stands in errors, a token must not.
func (c Config) validateAddress() error {
	if strings.Contains(c.Address, "@") {
		return fmt.Errorf("consul: Address = (not shown), want no user or password in it: use Token")
	}
	scheme, rest, found := strings.Cut(c.Address, "://")
	switch {
	case !found:
	case rest == "", scheme != "http" && scheme != "https" && scheme != "unix":
		return fmt.Errorf("consul: Address = %q, want host:port, http://..., https://... or unix:///path", c.Address)
	case scheme != "https" && c.TLS != nil:
		return fmt.Errorf("consul: Address = %q with TLS, want host:port or https://", c.Address)
	}
	return nil
}

func (c Check) validate() error {
	if c.Kind > CheckGRPC {
		return fmt.Errorf("consul: Check.Kind = %v, want ttl, tcp or grpc", c.Kind)
	}
	if c.Kind == CheckTTL {
		if c.TTL < minInterval {
			return fmt.Errorf("consul: Check.TTL = %v, want %v or more", c.TTL, minInterval)
		}
		if c.Interval <= 0 || c.Interval > c.TTL/2 {
			return fmt.Errorf("consul: Check.Interval = %v, want at most half of Check.TTL = %v: one beat may get lost",
				c.Interval, c.TTL)
		}
	} else if c.Interval < minInterval {
		return fmt.Errorf("consul: Check.Interval = %v, want %v or more", c.Interval, minInterval)
	}
	if c.Timeout <= 0 {
		return fmt.Errorf("consul: Check.Timeout = %v, want more than 0", c.Timeout)
	}
	if c.DeregisterCriticalServiceAfter < minDeregisterAfter {
		return fmt.Errorf("consul: Check.DeregisterCriticalServiceAfter = %v, want %v or more: Consul accepts no less",
			c.DeregisterCriticalServiceAfter, minDeregisterAfter)
	}
	if c.Kind != CheckGRPC && (c.GRPCService != "" || c.TLS || c.TLSServerName != "" || c.TLSSkipVerify) {
		return fmt.Errorf("consul: Check.GRPCService or a TLS field is set with Kind %v, want %v", c.Kind, CheckGRPC)
	}
	return nil
}

// apiConfig is the API client's configuration. Its Token is what the environment says; ours goes with each request.
func (c Config) apiConfig() *api.Config {
	a := api.DefaultConfig()
	if c.Address != "" {
		a.Address = c.Address
	}
	if c.Token != "" || c.TokenFile != "" {
		a.Token, a.TokenFile = "", ""
	}
	if c.Datacenter != "" {
		a.Datacenter = c.Datacenter
	}
	if c.Namespace != "" {
		a.Namespace = c.Namespace
	}
	if c.TLS != nil {
		a.Scheme = "https"
		a.Transport.TLSClientConfig = c.TLS.Clone()
	}
	return a
}

// readToken reads TokenFile.
func readToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("consul: TokenFile: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || !validToken(token) {
		return "", fmt.Errorf("consul: TokenFile = %q, want a file with a token of visible ASCII without spaces", file)
	}
	return token, nil
}

// validToken reports whether a token can stand in an HTTP header as it is.
func validToken(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// public is a Config without its secrets, in the order that people look for things.
type public struct {
	Address, Token, TokenFile, Datacenter, Namespace string
	TLS, Client                                      bool
	Consistency                                      string
	WaitTime                                         string
	Tags, WatchTags                                  []string
	Check                                            string
}

func (c Config) public() public {
	p := public{
		Address: c.Address, TokenFile: c.TokenFile, Datacenter: c.Datacenter, Namespace: c.Namespace,
		TLS: c.TLS != nil, Client: c.Client != nil, Consistency: c.Consistency.String(), WaitTime: c.WaitTime.String(),
		Tags: c.Tags, WatchTags: c.WatchTags, Check: c.Check.Kind.String(),
	}
	if c.Token != "" {
		p.Token = "(not shown)"
	}
	if strings.Contains(p.Address, "@") { // not validated yet, perhaps
		p.Address = "(not shown)"
	}
	return p
}

// String describes the configuration without its secrets.
func (c Config) String() string { return "consul.Config" + fmt.Sprintf("%+v", c.public()) }

// GoString is String.
func (c Config) GoString() string { return c.String() }

// Format implements [fmt.Formatter]: every verb prints String.
func (c Config) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// LogValue implements [slog.LogValuer].
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON encodes what String shows. A Config is not meant to be read back.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.public()) }
