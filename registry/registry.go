// Package registry says what an instance of a service is, and how instances are announced and watched.
//
// It is the one place where the server side (which announces), the resolver (which watches) and the balancer
// (which reads an instance's labels and weight) meet; none of them knows another. A registry is anything that
// implements [Registrar], [Watcher] or both: [github.com/evenkeel/evenkeel/registry/memory] is the embedded
// default, [github.com/evenkeel/evenkeel/registry/consul] speaks to Consul, and
// [github.com/evenkeel/evenkeel/registry/registrytest] is the suite that a new one has to pass.
//
// The life of a record: a server calls Register and holds a [Registration]; from then on the registry keeps the
// record alive, and puts it back after an outage, until Close. A client's resolver calls Watch once a service and
// gets the full set of instances whenever it changes. Between the two, an instance may change its labels, weight,
// version, zone or draining mark at any time with Update; watchers see it, and no connection is touched.
//
// Two rules keep an outage of the registry from becoming an outage of the service. An unreachable registry is
// never an empty update: Watch returns an error, and the resolver serves the last set it had. And Register does
// not fail because the registry is away: the Registration keeps trying. What is refused at once is what can never
// work, such as a label key with a space in it.
//
// [SetInstance] and [FromEndpoint] carry an [Instance] through grpc-go's resolver API to the balancer. Do not use
// this package to look instances up for a single call; that is what the resolver and the balancer do together.
package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"

	gresolver "google.golang.org/grpc/resolver"
)

// ErrInvalid is wrapped by every error that says that a record can never be announced.
var ErrInvalid = errors.New("registry: invalid instance")

// Instance is one running copy of a service, as the registry knows it.
//
// The zero value is not valid: ID and Addr are required. An Instance is plain data: it is not safe for concurrent
// modification, and one that has been handed to a registry, or received from it through [FromEndpoint], must not
// be modified at all; use [Instance.Clone].
type Instance struct {
	// ID names this copy within its service, and is new for every start of the process: a new ID at a known
	// Addr is a new instance, whose health starts afresh.
	ID string
	// Addr is the host:port at which clients reach it.
	Addr string
	// Version is a semantic version such as "1.4.2"; empty means unknown, and then no version range matches.
	Version string
	// Zone is the failure domain it runs in; empty means unknown.
	Zone string
	// AltAddrs are further addresses of the same instance (the other IP family); they are tried when Addr does
	// not answer, and never balanced over.
	AltAddrs []string
	// Weight is its capacity relative to other instances; 0 means 1.
	Weight uint32
	// Draining means that it finishes the calls it has and is to get no new ones.
	Draining bool
	// Services are the full names of the gRPC services it serves; empty means unknown.
	Services []string
	// Labels are free-form pairs. Keys match [A-Za-z0-9_-]{1,64} and are not id, version or zone, which mean the
	// fields; values are any UTF-8 text.
	Labels map[string]string
}

// Clone returns a deep copy.
func (in Instance) Clone() Instance {
	in.AltAddrs = slices.Clone(in.AltAddrs)
	in.Services = slices.Clone(in.Services)
	in.Labels = maps.Clone(in.Labels)
	return in
}

// Equal reports whether two instances say the same. A nil slice or map equals an empty one, and a weight of 0
// equals 1.
func (in Instance) Equal(o Instance) bool {
	return in.ID == o.ID && in.Addr == o.Addr && in.Version == o.Version && in.Zone == o.Zone &&
		max(in.Weight, 1) == max(o.Weight, 1) && in.Draining == o.Draining &&
		slices.Equal(in.AltAddrs, o.AltAddrs) && slices.Equal(in.Services, o.Services) && maps.Equal(in.Labels, o.Labels)
}

// Validate says why an instance cannot be announced, or nil. The error names the field, what was got and what is
// wanted.
func (in Instance) Validate() error {
	if in.ID == "" || !utf8.ValidString(in.ID) {
		return fmt.Errorf("%w: ID = %q, want non-empty UTF-8", ErrInvalid, in.ID)
	}
	for i, addr := range append([]string{in.Addr}, in.AltAddrs...) {
		field := "Addr"
		if i > 0 {
			field = "AltAddrs[" + strconv.Itoa(i-1) + "]"
		}
		if err := checkAddr(addr); err != nil {
			return fmt.Errorf("%w: instance %q: %s = %q, want host:port with a port from 1 to 65535: %w", ErrInvalid, in.ID, field, addr, err)
		}
	}
	for field, value := range map[string]string{"Version": in.Version, "Zone": in.Zone} {
		if !utf8.ValidString(value) {
			return fmt.Errorf("%w: instance %q: %s = %q, want UTF-8", ErrInvalid, in.ID, field, value)
		}
	}
	for i, s := range in.Services {
		if s == "" || !utf8.ValidString(s) {
			return fmt.Errorf("%w: instance %q: Services[%d] = %q, want the full name of a gRPC service", ErrInvalid, in.ID, i, s)
		}
	}
	for k, v := range in.Labels {
		if err := CheckLabelKey(k); err != nil {
			return fmt.Errorf("%w: instance %q: Labels: %w", ErrInvalid, in.ID, err)
		}
		if !utf8.ValidString(v) {
			return fmt.Errorf("%w: instance %q: Labels[%q] = %q, want UTF-8", ErrInvalid, in.ID, k, v)
		}
	}
	return nil
}

var labelKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// CheckLabelKey says why key cannot be a label's key, or nil.
func CheckLabelKey(key string) error {
	switch {
	case key == "id", key == "version", key == "zone":
		return fmt.Errorf("key = %q, want another name: it means the instance's field", key)
	case !labelKey.MatchString(key):
		return fmt.Errorf("key = %q, want 1 to 64 of A-Z a-z 0-9 _ -", key)
	}
	return nil
}

// hostName is generous, since names come from many systems; what it keeps out is what cannot be one: spaces, brackets,
// colons, slashes.
var hostName = regexp.MustCompile(`^[\pL\pN_-]([\pL\pN_.-]*[\pL\pN_.-])?$`)

func checkAddr(addr string) error {
	if !utf8.ValidString(addr) {
		return fmt.Errorf("not UTF-8")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if host == "" {
		return fmt.Errorf("empty host")
	}
	if _, err := netip.ParseAddr(host); err != nil && !hostName.MatchString(host) {
		return fmt.Errorf("host %q is neither an IP address nor a name", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q", port)
	}
	return nil
}

// Registrar announces instances.
type Registrar interface {
	// Register announces in as an instance of service, which must have a name. It validates, and returns once the record is accepted or
	// known to be impossible; an unreachable registry is not an error, the Registration keeps trying. ctx bounds
	// this call only, not the registration. The caller closes the Registration.
	Register(ctx context.Context, service string, in Instance) (Registration, error)
}

// Registration is a record that its registry keeps alive, and puts back after the registry forgot it, until Close.
// It is safe for concurrent use.
type Registration interface {
	// Update replaces the record. The ID and the addresses must stay the same; an error names the one that did not.
	// Like Register it fails only for
	// what can never work; when the registry is unreachable the new record is put there as soon as it is back.
	Update(context.Context, Instance) error
	// Close deregisters, and stops keeping the record alive whether or not the registry could be reached before
	// ctx ended, which it says by its error. A second Close does nothing.
	Close(context.Context) error
}

// Watcher follows the instances of a service.
type Watcher interface {
	// Watch blocks until ctx ends, and then returns ctx's error, or until the registry fails, and then returns
	// why. Each update is the full set as the registry reports it, oldest record first and at most one instance
	// for an Addr (the newest record wins); the first one always comes, even empty. Slices and maps in it belong
	// to the receiver. update is never called concurrently with itself, nor after Watch has returned. An outage
	// is an error, never an empty update; a malformed record is left out and logged.
	Watch(ctx context.Context, service string, update func([]Instance)) error
}

// Registry is both sides.
type Registry interface {
	Registrar
	Watcher
}

type instanceKey struct{}

// instanceAttr makes attribute comparison cheap and exact: two attributes are equal if their instances are.
type instanceAttr struct{ in *Instance }

func (a instanceAttr) Equal(o any) bool {
	b, ok := o.(instanceAttr)
	return ok && (a.in == b.in || a.in != nil && b.in != nil && a.in.Equal(*b.in))
}

// SetInstance returns ep with in attached, for a resolver to hand to the balancer. in must not be modified after.
func SetInstance(ep gresolver.Endpoint, in *Instance) gresolver.Endpoint {
	ep.Attributes = ep.Attributes.WithValue(instanceKey{}, instanceAttr{in})
	return ep
}

// FromEndpoint returns the instance that [SetInstance] attached, or nil for an endpoint that another resolver
// made. The instance is shared and must not be modified.
func FromEndpoint(ep gresolver.Endpoint) *Instance {
	a, _ := ep.Attributes.Value(instanceKey{}).(instanceAttr)
	return a.in
}
