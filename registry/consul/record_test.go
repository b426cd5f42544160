package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

// stored is what Consul gives back for a registration.
func stored(reg *api.AgentServiceRegistration, node string, create uint64) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node: &api.Node{Node: node, Address: "192.0.2.1"},
		Service: &api.AgentService{ID: reg.ID, Service: reg.Name, Address: reg.Address, Port: reg.Port, Tags: reg.Tags,
			Meta: reg.Meta, Weights: *reg.Weights, CreateIndex: create},
	}
}

func labels(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint("k", i)] = "v"
	}
	return m
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, in := range []registry.Instance{
		{ID: "a", Addr: "10.0.0.1:80"},
		{ID: "10.0.0.1:80", Addr: "[2001:db8::1]:443", AltAddrs: []string{"10.0.0.1:443", "[::1]:1"}, Weight: 65535},
		{ID: "../a//b?c#d%2F e\n\x00ü", Addr: "host.example:65535", Version: "1.2.3-rc.1", Zone: "eu-1", Draining: true,
			Services: []string{"pkg.B", "pkg.A", "x=y"}, Labels: map[string]string{"track": "canary", "empty": "", "k": "日本=語"}},
		{ID: "b", Addr: "[fe80::1%eth0]:80", Labels: labels(64)},
		{ID: "c", Addr: "h:1", Version: "1", Zone: "z", Labels: labels(62)},
		{ID: "d", Addr: "h:1", Version: strings.Repeat("v", 512), Labels: map[string]string{strings.Repeat("k", 64): strings.Repeat("ä", 256)}},
	} {
		reg, err := encode("orders", in, nil, Config{}.withDefaults().Check)
		if err != nil {
			t.Errorf("encode(%+v) = %v", in, err)
			continue
		}
		f, err := decode(stored(reg, "n", 1))
		if err != nil || !f.in.Equal(in) {
			t.Errorf("%+v came back as %+v, %v", in, f.in, err)
		}
		if !sameRecord(reg, stored(reg, "n", 1).Service) {
			t.Errorf("%+v is not the same as itself", reg)
		}
	}
}

func TestTagsOfTheRegistry(t *testing.T) {
	t.Parallel()
	in := registry.Instance{ID: "a", Addr: "h:1", Labels: map[string]string{"team": "mine"}}
	reg, err := encode("orders", in, []string{"team=web", "env=prod", "http"}, Config{}.withDefaults().Check)
	if err != nil {
		t.Fatal(err)
	}
	f, err := decode(stored(reg, "n", 1))
	in.Labels = map[string]string{"team": "mine", "env": "prod", "http": ""}
	if err != nil || !f.in.Equal(in) {
		t.Errorf("came back as %+v, %v, want %+v", f.in, err, in)
	}
}

// TestRefused holds what Consul cannot store, and what stands in the way of a request's path.
func TestRefused(t *testing.T) {
	t.Parallel()
	ok := registry.Instance{ID: "a", Addr: "h:1"}
	with := func(f func(*registry.Instance)) registry.Instance {
		in := ok.Clone()
		f(&in)
		return in
	}
	for _, c := range []struct {
		what, service string
		in            registry.Instance
		want          string
	}{
		{"65 labels", "s", with(func(in *registry.Instance) { in.Labels = labels(65) }), "65 64"},
		{"63 labels, version and zone", "s",
			with(func(in *registry.Instance) { in.Labels, in.Version, in.Zone = labels(63), "1", "z" }), "65 64"},
		{"a value of 513 bytes", "s",
			with(func(in *registry.Instance) { in.Labels = map[string]string{"k": strings.Repeat("x", 513)} }), `"k" 513 512`},
		{"a version of 513 bytes", "s", with(func(in *registry.Instance) { in.Version = strings.Repeat("x", 513) }), "version 513"},
		{"a key of Consul's own", "s",
			with(func(in *registry.Instance) { in.Labels = map[string]string{"consul-x": "1"} }), "consul-x reserves"},
		{"a weight of 65536", "s", with(func(in *registry.Instance) { in.Weight = 65536 }), "Weight 65536 65535"},
		{"no address in particular", "s", with(func(in *registry.Instance) { in.Addr = "0.0.0.0:1" }), "Addr 0.0.0.0:1 reach"},
		{"nor in IPv6", "s", with(func(in *registry.Instance) { in.Addr = "[::]:1" }), "Addr reach"},
		{"an address that is not UTF-8", "s", with(func(in *registry.Instance) { in.Addr = "\xff:1" }), "UTF-8"},
		{"an alternative that is not UTF-8", "s", with(func(in *registry.Instance) { in.AltAddrs = []string{"\xff:1"} }), "UTF-8"},
		{"what no registry takes", "s", with(func(in *registry.Instance) { in.Addr = "h" }), "Addr"},
		{"no service", "", ok, "service"},
		{"a path", "a/b", ok, "a/b"},
		{"a parent", "..", ok, "service"},
		{"this", ".", ok, "service"},
		{"every service", "*", ok, "service"},
		{"a space", "a b", ok, "a b"},
		{"a colon, which ends the name in an ID", "a:b", ok, "a:b ':'"},
		{"a control character", "a\x7fb", ok, "service"},
		{"not UTF-8", "a\xff", ok, "service"},
		{"too long", strings.Repeat("s", 256), ok, "255"},
	} {
		reg, err := encode(c.service, c.in, nil, Config{}.withDefaults().Check)
		if !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: encode = %+v, %v, want an error that wraps ErrInvalid", c.what, reg, err)
			continue
		}
		for _, word := range strings.Fields(c.want) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q, want %q in it", c.what, err, word)
			}
		}
	}
}

// TestServiceIDs checks that the record of one instance is never that of another.
func TestServiceIDs(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, service := range []string{"a", "a%3Ab", "a%", "ab"} {
		for _, id := range []string{"b", "a:b", ":b", "b:c", "%3Ab", "", "/", "%2F", ".", "..", "a/../b", "\x00"} {
			sid := serviceID(service, id)
			if other := seen[sid]; other != "" {
				t.Errorf("%q of %q and %s are both %q", id, service, other, sid)
			}
			seen[sid] = fmt.Sprintf("%q of %q", id, service)
			if strings.ContainsAny(sid, "/?# \x00") {
				t.Errorf("%q does not fit into a path", sid)
			}
		}
	}
}

func TestDecodeForeign(t *testing.T) {
	t.Parallel()
	node := &api.Node{Node: "n1", Address: "10.1.1.1"}
	service := func(f func(*api.AgentService)) *api.ServiceEntry {
		s := &api.AgentService{ID: "web-1", Service: "web", Address: "10.0.0.1", Port: 80, Weights: api.AgentWeights{Passing: 1}}
		f(s)
		return &api.ServiceEntry{Node: node, Service: s}
	}
	base := registry.Instance{ID: "web-1", Addr: "10.0.0.1:80", Weight: 1}
	want := func(f func(*registry.Instance)) *registry.Instance {
		in := base.Clone()
		f(&in)
		return &in
	}
	for _, c := range []struct {
		what string
		e    *api.ServiceEntry
		want *registry.Instance // nil: a fault
	}{
		{"as it is", service(func(*api.AgentService) {}), &base},
		{"the node's address", service(func(s *api.AgentService) { s.Address = "" }),
			want(func(in *registry.Instance) { in.Addr = "10.1.1.1:80" })},
		{"IPv6", service(func(s *api.AgentService) { s.Address = "2001:db8::1" }),
			want(func(in *registry.Instance) { in.Addr = "[2001:db8::1]:80" })},
		{"the default one of several ports", service(func(s *api.AgentService) {
			s.Port, s.Ports = 0, api.ServicePorts{{Name: "a", Port: 1}, {Name: "b", Port: 2, Default: true}}
		}), want(func(in *registry.Instance) { in.Addr = "10.0.0.1:2" })},
		{"weight", service(func(s *api.AgentService) { s.Weights.Passing = 7 }), want(func(in *registry.Instance) { in.Weight = 7 })},
		{"no weight", service(func(s *api.AgentService) { s.Weights.Passing = 0 }), &base},
		{"tags are labels", service(func(s *api.AgentService) { s.Tags = []string{"track=canary", "http", "e=", "a=b=c"} }),
			want(func(in *registry.Instance) {
				in.Labels = map[string]string{"track": "canary", "http": "", "e": "", "a": "b=c"}
			})},
		{"the first tag counts", service(func(s *api.AgentService) { s.Tags = []string{"k=1", "k=2", "k"} }),
			want(func(in *registry.Instance) { in.Labels = map[string]string{"k": "1"} })},
		{"Meta wins over tags", service(func(s *api.AgentService) {
			s.Tags, s.Meta = []string{"k=tag", "version=1", "zone=tag"}, map[string]string{"k": "meta", "version": "2"}
		}), want(func(in *registry.Instance) {
			in.Labels, in.Version, in.Zone = map[string]string{"k": "meta"}, "2", "tag"
		})},
		{"keys that cannot be labels are dropped", service(func(s *api.AgentService) {
			s.Tags = []string{"", "=", "=v", "a b", "a.b=c", "id=x", "traefik.http.rule=Host(`x`)", strings.Repeat("k", 65), "ok"}
			s.Meta = map[string]string{"id": "x", strings.Repeat("k", 65): "v", "a.b": "c", "": "v"}
		}), want(func(in *registry.Instance) { in.Labels = map[string]string{"ok": ""} })},
		{"our tags in anybody's record", service(func(s *api.AgentService) {
			s.Tags = []string{"evenkeel:draining", "evenkeel:serves=p.S", "evenkeel:alt=h:1", "evenkeel:future=1"}
		}), want(func(in *registry.Instance) {
			in.Draining, in.Services, in.AltAddrs = true, []string{"p.S"}, []string{"h:1"}
		})},
		{"an ID that was copied", service(func(s *api.AgentService) { s.Tags = []string{"evenkeel:id=other"} }), &base},
		{"nothing", nil, nil},
		{"no service", &api.ServiceEntry{Node: node}, nil},
		{"no node and no address", &api.ServiceEntry{Service: &api.AgentService{ID: "x", Port: 80}}, nil},
		{"no node", &api.ServiceEntry{Service: &api.AgentService{ID: "web-1", Address: "10.0.0.1", Port: 80}}, &base},
		{"no port", service(func(s *api.AgentService) { s.Port = 0 }), nil},
		{"a negative port", service(func(s *api.AgentService) { s.Port = -1 }), nil},
		{"a large port", service(func(s *api.AgentService) { s.Port = 65536 }), nil},
		{"no ID", service(func(s *api.AgentService) { s.ID = "" }), nil},
		{"a negative weight", service(func(s *api.AgentService) { s.Weights.Passing = -1 }), nil},
		{"an address with brackets", service(func(s *api.AgentService) { s.Address = "[::1]" }), nil},
		{"an address that is not UTF-8", service(func(s *api.AgentService) { s.Address = "\xff" }), nil},
		{"a value that is not UTF-8", service(func(s *api.AgentService) { s.Meta = map[string]string{"k": "\xff"} }), nil},
		{"an alternative without a port", service(func(s *api.AgentService) { s.Tags = []string{"evenkeel:alt=h"} }), nil},
		{"a gRPC service without a name", service(func(s *api.AgentService) { s.Tags = []string{"evenkeel:serves="} }), nil},
	} {
		ins, faults := decodeAll([]*api.ServiceEntry{c.e})
		switch {
		case c.want == nil && (len(ins) != 0 || len(faults) != 1 || faults[0].reason == "" || faults[0].key == ""):
			t.Errorf("%s: %+v, %+v, want one fault", c.what, ins, faults)
		case c.want != nil && (len(ins) != 1 || len(faults) != 0 || !ins[0].Equal(*c.want)):
			t.Errorf("%s: %+v, %+v, want %+v", c.what, ins, faults, *c.want)
		}
	}
}

func TestDecodeAll(t *testing.T) {
	t.Parallel()
	entry := func(node, id string, port int, create uint64) *api.ServiceEntry {
		return &api.ServiceEntry{Node: &api.Node{Node: node},
			Service: &api.AgentService{ID: id, Service: "web", Address: "h", Port: port, CreateIndex: create}}
	}
	for _, c := range []struct {
		what    string
		entries []*api.ServiceEntry
		want    string
	}{
		{"nothing", nil, ""},
		{"oldest first", []*api.ServiceEntry{entry("n", "c", 3, 30), entry("n", "a", 1, 10), entry("n", "b", 2, 20)}, "a=h:1 b=h:2 c=h:3"},
		{"one address: the newest", []*api.ServiceEntry{entry("n", "new", 1, 30), entry("n", "old", 1, 10), entry("n", "b", 2, 20)}, "b=h:2 new=h:1"},
		{"one ID on two nodes", []*api.ServiceEntry{entry("n1", "web", 1, 10), entry("n2", "web", 2, 20), entry("n3", "x", 3, 30)},
			"web@n1=h:1 web@n2=h:2 x=h:3"},
		{"one ID and one address on two nodes: it has moved", []*api.ServiceEntry{entry("n1", "web", 1, 10), entry("n2", "web", 1, 20)}, "web=h:1"},
		{"of one age", []*api.ServiceEntry{entry("n2", "a", 2, 1), entry("n1", "b", 1, 1), entry("n1", "a", 3, 1)}, "a@n1=h:3 b=h:1 a@n2=h:2"},
		{"with a fault", []*api.ServiceEntry{entry("n", "a", 1, 1), entry("n", "b", 0, 2), nil}, "a=h:1"},
	} {
		ins, _ := decodeAll(c.entries)
		var got []string
		for _, in := range ins {
			got = append(got, in.ID+"="+in.Addr)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.what, s, c.want)
		}
	}
}

// FuzzRecord feeds decodeAll whatever JSON the health endpoint might send. It never panics, and what comes out can
// be announced: every instance is valid, no address is there twice, and a record that we write for it
// comes back as it was.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`[{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"a","Service":"web","Port":80,` +
		`"Tags":["k=v","t","evenkeel:id=a","evenkeel:alt=h:1","evenkeel:serves=p.S","evenkeel:draining"],` +
		`"Meta":{"version":"1","zone":"z","k":"w"},"Weights":{"Passing":3},"CreateIndex":7}}]`))
	f.Add([]byte(`[null,{},{"Service":{}},{"Service":{"ID":"a","Address":"::1","Port":1}},{"Service":{"ID":"a","Address":"::1","Port":2}}]`))
	f.Add([]byte(`[{"Service":{"ID":"web:a","Service":"web","Address":"h","Port":1,"Tags":["evenkeel:id=a","=","a=\u0000"]}}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var entries []*api.ServiceEntry
		if json.Unmarshal(data, &entries) != nil {
			return
		}
		ins, faults := decodeAll(entries)
		if len(ins)+len(faults) > len(entries) {
			t.Errorf("%d entries gave %d instances and %d faults", len(entries), len(ins), len(faults))
		}
		addrs := map[string]bool{}
		for _, in := range ins {
			if err := in.Validate(); err != nil {
				t.Errorf("%+v: %v", in, err)
			}
			if addrs[in.Addr] {
				t.Errorf("%s is there twice", in.Addr)
			}
			addrs[in.Addr] = true
			reg, err := encode("web", in, nil, Config{}.withDefaults().Check)
			if err != nil {
				continue // too much of something
			}
			if back, err := decode(stored(reg, "n", 1)); err != nil || !back.in.Equal(in) {
				t.Errorf("%+v came back as %+v, %v", in, back.in, err)
			}
		}
	})
}
