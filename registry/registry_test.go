package registry_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"google.golang.org/grpc/attributes"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/registry"
)

// full returns an instance with every field set.
func full() registry.Instance {
	return registry.Instance{
		ID: "orders-1", Addr: "192.0.2.1:443", Version: "1.4.2", Zone: "eu-1", AltAddrs: []string{"[2001:db8::1]:443"},
		Weight: 3, Draining: true, Services: []string{"pkg.Orders"}, Labels: map[string]string{"track": "canary"},
	}
}

func TestValidate(t *testing.T) {
	notUTF8 := "a\xffb"
	for name, c := range map[string]struct {
		change func(*registry.Instance)
		want   []string // parts of the error; none if it is valid
	}{
		"every field":         {func(*registry.Instance) {}, nil},
		"ID and Addr only":    {func(in *registry.Instance) { *in = registry.Instance{ID: "a", Addr: "h:1"} }, nil},
		"zero value":          {func(in *registry.Instance) { *in = registry.Instance{} }, []string{`ID = ""`, "non-empty UTF-8"}},
		"ID not UTF-8":        {func(in *registry.Instance) { in.ID = notUTF8 }, []string{`ID = "a\xffb"`, "UTF-8"}},
		"ID with signs":       {func(in *registry.Instance) { in.ID = "pod 7/é\n" }, nil},
		"Addr with a space":   {func(in *registry.Instance) { in.Addr = "10.0.0.9 :1" }, []string{`"orders-1"`, `Addr = "10.0.0.9 :1"`}},
		"Addr with a scheme":  {func(in *registry.Instance) { in.Addr = "[http://10.0.0.9]:1" }, []string{"neither an IP address nor a name"}},
		"Addr with two ports": {func(in *registry.Instance) { in.Addr = "[10.0.0.9:80]:1" }, []string{"neither an IP address nor a name"}},
		"no Addr":             {func(in *registry.Instance) { in.Addr = "" }, []string{`"orders-1"`, `Addr = ""`, "host:port"}},
		"Addr without port":   {func(in *registry.Instance) { in.Addr = "192.0.2.1" }, []string{`Addr = "192.0.2.1"`, "missing port"}},
		"Addr without host":   {func(in *registry.Instance) { in.Addr = ":443" }, []string{`Addr = ":443"`, "empty host"}},
		"port 0":              {func(in *registry.Instance) { in.Addr = "h:0" }, []string{`Addr = "h:0"`, "1 to 65535"}},
		"port 1":              {func(in *registry.Instance) { in.Addr = "h:1" }, nil},
		"port 65535":          {func(in *registry.Instance) { in.Addr = "h:65535" }, nil},
		"port 65536":          {func(in *registry.Instance) { in.Addr = "h:65536" }, []string{`Addr = "h:65536"`, "1 to 65535"}},
		"port -1":             {func(in *registry.Instance) { in.Addr = "h:-1" }, []string{`Addr = "h:-1"`}},
		"port +1":             {func(in *registry.Instance) { in.Addr = "h:+1" }, []string{`Addr = "h:+1"`}},
		"named port":          {func(in *registry.Instance) { in.Addr = "h:https" }, []string{`Addr = "h:https"`}},
		"IPv6":                {func(in *registry.Instance) { in.Addr = "[::1]:443" }, nil},
		"IPv6 with a zone":    {func(in *registry.Instance) { in.Addr = "[fe80::1%eth0]:443" }, nil},
		"IPv6 bare":           {func(in *registry.Instance) { in.Addr = "::1:443" }, []string{`Addr = "::1:443"`, "too many colons"}},
		"second AltAddr": {func(in *registry.Instance) { in.AltAddrs = []string{"h:1", "h"} },
			[]string{`AltAddrs[1] = "h"`, "missing port"}},
		"empty AltAddr":     {func(in *registry.Instance) { in.AltAddrs = []string{""} }, []string{`AltAddrs[0] = ""`}},
		"Version not UTF-8": {func(in *registry.Instance) { in.Version = notUTF8 }, []string{`Version = "a\xffb"`, "UTF-8"}},
		"Version any text":  {func(in *registry.Instance) { in.Version = "nightly" }, nil},
		"Zone not UTF-8":    {func(in *registry.Instance) { in.Zone = notUTF8 }, []string{`Zone = "a\xffb"`, "UTF-8"}},
		"empty service":     {func(in *registry.Instance) { in.Services = []string{"a", ""} }, []string{`Services[1] = ""`}},
		"service not UTF-8": {func(in *registry.Instance) { in.Services = []string{notUTF8} }, []string{`Services[0] = "a\xffb"`}},
		"label not UTF-8": {func(in *registry.Instance) { in.Labels = map[string]string{"k": notUTF8} },
			[]string{`Labels["k"] = "a\xffb"`, "UTF-8"}},
		"label with any UTF-8": {func(in *registry.Instance) { in.Labels = map[string]string{"k": "\x00 é\n"} }, nil},
		"label key": {func(in *registry.Instance) { in.Labels = map[string]string{"with space": "x"} },
			[]string{`"orders-1"`, "Labels", `key = "with space"`}},
		"reserved label key": {func(in *registry.Instance) { in.Labels = map[string]string{"zone": "x"} },
			[]string{"Labels", `key = "zone"`, "field"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := full()
			c.change(&in)
			err := in.Validate()
			if c.want == nil {
				if err != nil {
					t.Errorf("Validate() = %v, want nil", err)
				}
				return
			}
			if !errors.Is(err, registry.ErrInvalid) {
				t.Fatalf("Validate() = %v, want an error that wraps ErrInvalid", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("Validate() = %q, want %q in it", err, part)
				}
			}
		})
	}
}

func TestCheckLabelKey(t *testing.T) {
	for _, key := range []string{"a", "A-Z_0-9", "Id", "ids", "VERSION", "weight", "_", "-", strings.Repeat("k", 64)} {
		if err := registry.CheckLabelKey(key); err != nil {
			t.Errorf("CheckLabelKey(%q) = %v, want nil", key, err)
		}
	}
	for _, key := range []string{"", "id", "version", "zone", "with space", "a.b", "a/b", "a=b", "é", "a\n", "\na", "\xff",
		strings.Repeat("k", 65)} {
		if err := registry.CheckLabelKey(key); err == nil {
			t.Errorf("CheckLabelKey(%q) = nil, want an error", key)
		}
	}
}

func TestEqual(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*registry.Instance)
		want   bool
	}{
		"the same":           {func(*registry.Instance) {}, true},
		"ID":                 {func(in *registry.Instance) { in.ID = "other" }, false},
		"Addr":               {func(in *registry.Instance) { in.Addr = "192.0.2.1:444" }, false},
		"Version":            {func(in *registry.Instance) { in.Version = "" }, false},
		"Zone":               {func(in *registry.Instance) { in.Zone = "eu-2" }, false},
		"Weight":             {func(in *registry.Instance) { in.Weight = 4 }, false},
		"Draining":           {func(in *registry.Instance) { in.Draining = false }, false},
		"AltAddrs":           {func(in *registry.Instance) { in.AltAddrs[0] = "h:1" }, false},
		"AltAddrs gone":      {func(in *registry.Instance) { in.AltAddrs = nil }, false},
		"Services":           {func(in *registry.Instance) { in.Services = append(in.Services, "pkg.Stock") }, false},
		"Labels value":       {func(in *registry.Instance) { in.Labels["track"] = "stable" }, false},
		"Labels key":         {func(in *registry.Instance) { in.Labels = map[string]string{"trak": "canary"} }, false},
		"Labels empty value": {func(in *registry.Instance) { in.Labels["x"] = "" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := full(), full()
			c.change(&b)
			if a.Equal(b) != c.want || b.Equal(a) != c.want {
				t.Errorf("Equal = %v and %v, want %v: %+v, %+v", a.Equal(b), b.Equal(a), c.want, a, b)
			}
		})
	}

	bare := registry.Instance{ID: "a", Addr: "h:1"}
	same := registry.Instance{ID: "a", Addr: "h:1", Weight: 1, AltAddrs: []string{}, Services: []string{},
		Labels: map[string]string{}}
	if !bare.Equal(same) || !same.Equal(bare) {
		t.Error("Equal = false, want empty to equal nil and weight 0 to equal 1")
	}
}

func TestClone(t *testing.T) {
	in := full()
	c := in.Clone()
	if !c.Equal(in) {
		t.Fatalf("Clone() = %+v, want %+v", c, in)
	}
	c.AltAddrs[0], c.Services[0], c.Labels["track"] = "h:1", "changed", "changed"
	if !in.Equal(full()) {
		t.Errorf("a change of the clone changed the original: %+v", in)
	}
	empty := registry.Instance{ID: "a", Addr: "h:1"}.Clone()
	if empty.AltAddrs != nil || empty.Services != nil || empty.Labels != nil {
		t.Errorf("Clone() = %#v, want nil slices and maps to stay nil", empty)
	}
}

type foreignKey struct{}

func TestEndpointCarriesInstance(t *testing.T) {
	in := full()
	foreign := attributes.New(foreignKey{}, "foreign")
	bare := gresolver.Endpoint{Addresses: []gresolver.Address{{Addr: in.Addr}}, Attributes: foreign}
	ep := registry.SetInstance(bare, &in)
	if got := registry.FromEndpoint(ep); got != &in {
		t.Errorf("FromEndpoint = %p, want the instance that was set, %p", got, &in)
	}
	if got := ep.Attributes.Value(foreignKey{}); got != "foreign" || len(ep.Addresses) != 1 {
		t.Errorf("endpoint = %v, want its addresses and other attributes kept", ep)
	}
	if got := registry.FromEndpoint(bare); got != nil {
		t.Errorf("FromEndpoint of the endpoint that it was made from = %+v, want nil: it was not to change", got)
	}
	if got := registry.FromEndpoint(gresolver.Endpoint{}); got != nil {
		t.Errorf("FromEndpoint of a foreign endpoint = %+v, want nil", got)
	}
	other := full()
	other.ID = "other"
	if got := registry.FromEndpoint(registry.SetInstance(ep, &other)); got != &other {
		t.Errorf("FromEndpoint after a second SetInstance = %+v, want the second", got)
	}
	if got := registry.FromEndpoint(registry.SetInstance(bare, nil)); got != nil {
		t.Errorf("FromEndpoint after SetInstance(nil) = %+v, want nil", got)
	}
}

// gRPC compares attributes to see whether an update says anything new.
func TestEndpointAttributesCompareByContent(t *testing.T) {
	set := func(in *registry.Instance) *attributes.Attributes {
		return registry.SetInstance(gresolver.Endpoint{}, in).Attributes
	}
	a, same, other := full(), full(), full()
	other.Labels = maps.Clone(other.Labels)
	other.Labels["track"] = "stable"
	for name, c := range map[string]struct {
		x, y *registry.Instance
		want bool
	}{
		"itself":              {&a, &a, true},
		"an equal instance":   {&a, &same, true},
		"a changed label":     {&a, &other, false},
		"no instance":         {&a, nil, false},
		"no instance on both": {nil, nil, true},
	} {
		if got := set(c.x).Equal(set(c.y)); got != c.want {
			t.Errorf("%s: Equal = %v, want %v", name, got, c.want)
		}
		if got := set(c.y).Equal(set(c.x)); got != c.want {
			t.Errorf("%s, the other way: Equal = %v, want %v", name, got, c.want)
		}
	}
	if set(&a).Equal(attributes.New(foreignKey{}, "x")) {
		t.Error("attributes with an instance equal foreign ones")
	}
}
