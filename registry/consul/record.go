package consul

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

// How an Instance becomes a Consul record, and back: ADR-0004.
//
// What is neither a field of Consul's nor a label is stored in tags that begin with tagPrefix. A label's key cannot
// contain a colon, so no label, ours or anybody's, can be mistaken for one.
const (
	tagPrefix   = "evenkeel:"
	tagID       = tagPrefix + "id="     // Instance.ID, since a service ID must be unique across the agent's services
	tagAlt      = tagPrefix + "alt="    // one of AltAddrs
	tagServes   = tagPrefix + "serves=" // one of Services
	tagDraining = tagPrefix + "draining"

	metaVersion = "version"
	metaZone    = "zone"
)

// Consul's limits (agent/structs: metaMaxKeyPairs and its neighbours, ValidateWeights).
const (
	maxMeta         = 64
	maxMetaValue    = 512
	maxWeight       = 65535
	reservedMetaKey = "consul-"
	maxServiceName  = 255
)

// serviceID is the ID of an instance's record. Service IDs are unique across all services of an agent, so the
// service is in it; a service's name has no colon, so the first one ends it. The rest is escaped because the ID
// stands in the paths of requests, which HTTP servers tidy up ("a//b", "..").
func serviceID(service, id string) string { return service + ":" + url.PathEscape(id) }

// checkID is the ID of the record's check: the one that Consul would choose itself.
func checkID(serviceID string) string { return "service:" + serviceID }

// checkService says why service cannot be a service's name in a request's path, or nil.
func checkService(service string) error {
	const want = "want 1 to 255 bytes of UTF-8 without '/', spaces and control characters, and not . or .. or *"
	bad := func(r rune) bool { return r == '/' || r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	switch {
	case service == "", service == ".", service == "..", service == "*", len(service) > maxServiceName,
		!utf8.ValidString(service), strings.ContainsFunc(service, bad):
		return fmt.Errorf("%w: service = %q, %s", registry.ErrInvalid, service, want)
	}
	return nil
}

// encode makes the record of in. Its errors wrap registry.ErrInvalid, and nothing that passes is refused by Consul
// for what it says.
func encode(service string, in registry.Instance, tags []string, check Check) (*api.AgentServiceRegistration, error) {
	if err := checkService(service); err != nil {
		return nil, err
	}
	if strings.Contains(service, ":") {
		return nil, fmt.Errorf("%w: service = %q, want a name without ':'", registry.ErrInvalid, service)
	}
	if err := in.Validate(); err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: instance %q: %s", registry.ErrInvalid, in.ID, fmt.Sprintf(format, args...))
	}
	for _, addr := range append([]string{in.Addr}, in.AltAddrs...) {
		if !utf8.ValidString(addr) {
			return nil, refuse("address %q, want UTF-8", addr)
		}
	}
	host, portText, err := net.SplitHostPort(in.Addr)
	if err != nil {
		return nil, refuse("Addr = %q: %v", in.Addr, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, refuse("Addr = %q: %v", in.Addr, err)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return nil, refuse("Addr = %q, want an address that clients can reach: Consul refuses this one", in.Addr)
	}
	if in.Weight > maxWeight {
		return nil, refuse("Weight = %d, want at most %d", in.Weight, maxWeight)
	}
	meta, err := encodeMeta(in)
	if err != nil {
		return nil, refuse("%v", err)
	}
	id := serviceID(service, in.ID)
	return &api.AgentServiceRegistration{
		ID: id, Name: service, Address: host, Port: int(port),
		Tags: encodeTags(in, tags), Meta: meta,
		Weights: &api.AgentWeights{Passing: int(max(in.Weight, 1)), Warning: 1},
		Check:   encodeCheck(id, net.JoinHostPort(host, portText), check),
	}, nil
}

func encodeMeta(in registry.Instance) (map[string]string, error) {
	meta := make(map[string]string, len(in.Labels)+2)
	for k, v := range in.Labels {
		if strings.HasPrefix(k, reservedMetaKey) {
			return nil, fmt.Errorf("Labels: key = %q, want one that does not begin with %q: Consul reserves those",
				k, reservedMetaKey)
		}
		meta[k] = v
	}
	if in.Version != "" {
		meta[metaVersion] = in.Version
	}
	if in.Zone != "" {
		meta[metaZone] = in.Zone
	}
	if len(meta) > maxMeta {
		return nil, fmt.Errorf("%d labels, version and zone included, want at most %d", len(meta), maxMeta)
	}
	for k, v := range meta {
		if len(v) > maxMetaValue {
			return nil, fmt.Errorf("the value of %q has %d bytes, want at most %d", k, len(v), maxMetaValue)
		}
	}
	return meta, nil
}

func encodeTags(in registry.Instance, tags []string) []string {
	out := append(slices.Clone(tags), tagID+in.ID)
	for _, s := range in.Services {
		out = append(out, tagServes+s)
	}
	for _, a := range in.AltAddrs {
		out = append(out, tagAlt+a)
	}
	if in.Draining {
		out = append(out, tagDraining)
	}
	return out
}

func encodeCheck(serviceID, addr string, c Check) *api.AgentServiceCheck {
	out := &api.AgentServiceCheck{
		CheckID:                        checkID(serviceID),
		Name:                           "evenkeel " + c.Kind.String(),
		Status:                         api.HealthPassing,
		DeregisterCriticalServiceAfter: c.DeregisterCriticalServiceAfter.String(),
	}
	if c.Kind == CheckTTL {
		out.TTL = c.TTL.String()
		return out
	}
	out.Interval, out.Timeout = c.Interval.String(), c.Timeout.String()
	switch c.Kind {
	case CheckTCP:
		out.TCP = addr
	case CheckGRPC:
		out.GRPC = addr
		if c.GRPCService != "" {
			out.GRPC += "/" + c.GRPCService
		}
		out.GRPCUseTLS, out.TLSServerName, out.TLSSkipVerify = c.TLS, c.TLSServerName, c.TLSSkipVerify
	}
	return out
}

// sameRecord reports whether the agent has the record as we wrote it.
func sameRecord(want *api.AgentServiceRegistration, got *api.AgentService) bool {
	return got != nil && got.Service == want.Name && got.Address == want.Address && got.Port == want.Port &&
		got.Weights.Passing == want.Weights.Passing && slices.Equal(got.Tags, want.Tags) && maps.Equal(got.Meta, want.Meta)
}

// found is one record of an answer, decoded.
type found struct {
	in     registry.Instance
	node   string
	create uint64
}

// fault is a record of an answer that cannot be an instance.
type fault struct {
	key    string // names the record
	reason string
}

// decodeAll makes the instances of an answer: oldest record first, the newest of those with one address, and no ID
// twice. IDs that others chose are unique on their node only (many tools use the service's name); where several
// instances have one, the node's name makes them differ. What cannot be an instance is reported and left out.
func decodeAll(entries []*api.ServiceEntry) ([]registry.Instance, []fault) {
	var faults []fault
	all := make([]found, 0, len(entries))
	for _, e := range entries {
		f, err := decode(e)
		if err != nil {
			faults = append(faults, fault{key: entryKey(e), reason: err.Error()})
			continue
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.create, b.create), cmp.Compare(a.node, b.node), cmp.Compare(a.in.ID, b.in.ID))
	})
	newest := make(map[string]int, len(all))
	for i, f := range all {
		newest[f.in.Addr] = i
	}
	ids := make(map[string]int, len(all))
	for i, f := range all {
		if newest[f.in.Addr] == i {
			ids[f.in.ID]++
		}
	}
	out := make([]registry.Instance, 0, len(newest))
	for i, f := range all {
		if newest[f.in.Addr] != i {
			continue
		}
		if ids[f.in.ID] > 1 {
			f.in.ID += "@" + f.node
		}
		out = append(out, f.in)
	}
	return out, faults
}

// entryKey names a record in the log, and tells it from the others of its service.
func entryKey(e *api.ServiceEntry) string {
	switch {
	case e == nil:
		return "(nothing)"
	case e.Service == nil:
		return "(no service)"
	case e.Node == nil:
		return e.Service.ID
	}
	return e.Service.ID + " on " + e.Node.Node
}

// decode makes an instance of a record, whoever wrote it.
func decode(e *api.ServiceEntry) (found, error) {
	if e == nil || e.Service == nil {
		return found{}, fmt.Errorf("no service in it")
	}
	s := e.Service
	f := found{create: s.CreateIndex, in: registry.Instance{ID: s.ID}}
	addr := s.Address
	if e.Node != nil {
		f.node = e.Node.Node
		addr = cmp.Or(addr, e.Node.Address)
	}
	if !utf8.ValidString(addr) || !utf8.ValidString(f.node) {
		return found{}, fmt.Errorf("address %q on node %q, want UTF-8", addr, f.node)
	}
	f.in.Addr = net.JoinHostPort(addr, strconv.Itoa(s.DefaultPort()))
	if s.Weights.Passing < 0 || s.Weights.Passing > maxWeight {
		return found{}, fmt.Errorf("Weights.Passing = %d, want 0 to %d", s.Weights.Passing, maxWeight)
	}
	f.in.Weight = uint32(s.Weights.Passing)
	decodeTags(&f.in, s)
	for k, v := range s.Meta { // after the tags: Meta wins
		setLabel(&f.in, k, v)
	}
	for _, alt := range f.in.AltAddrs {
		if !utf8.ValidString(alt) {
			return found{}, fmt.Errorf("alternative address %q, want UTF-8", alt)
		}
	}
	// What Validate says is about an instance of ours; here its sentinel's text would only confuse.
	if err := f.in.Validate(); err != nil {
		return found{}, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), registry.ErrInvalid.Error()+": "))
	}
	return f, nil
}

// decodeTags reads the tags: ours by their prefix, and of everybody's k=v and bare tags as labels. The first of
// several tags with one key counts.
func decodeTags(in *registry.Instance, s *api.AgentService) {
	seen := make(map[string]bool, len(s.Tags))
	for _, tag := range s.Tags {
		if v, ok := strings.CutPrefix(tag, tagServes); ok {
			in.Services = append(in.Services, v)
		} else if v, ok := strings.CutPrefix(tag, tagAlt); ok {
			in.AltAddrs = append(in.AltAddrs, v)
		} else if v, ok := strings.CutPrefix(tag, tagID); ok {
			// A copied tag in a record of somebody else's must not steal our ID.
			if serviceID(s.Service, v) == s.ID {
				in.ID = v
			}
		} else if tag == tagDraining {
			in.Draining = true
		} else if k, v, _ := strings.Cut(tag, "="); !seen[k] {
			seen[k] = true
			setLabel(in, k, v)
		}
	}
}

// setLabel puts one pair where it belongs. A key that cannot be a label's is dropped, and the instance kept.
func setLabel(in *registry.Instance, k, v string) {
	switch {
	case k == metaVersion:
		in.Version = v
	case k == metaZone:
		in.Zone = v
	case registry.CheckLabelKey(k) == nil:
		if in.Labels == nil {
			in.Labels = make(map[string]string)
		}
		in.Labels[k] = v
	}
}
