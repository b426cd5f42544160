package server

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func ips(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestAdvertised(t *testing.T) {
	const up = net.FlagUp | net.FlagBroadcast
	lo := nic{net.FlagUp | net.FlagLoopback, ips("127.0.0.1", "::1")}
	eth := nic{up, ips("fe80::1", "10.1.2.3", "2001:db8::3")}
	eth4 := nic{up, ips("10.1.2.3", "fe80::1")}
	eth6 := nic{up, ips("fe80::1", "2001:db8::3")}
	public := nic{up, ips("203.0.113.9")}
	docker := nic{up, ips("172.17.0.1")}
	vpn := nic{net.FlagUp | net.FlagPointToPoint, ips("100.64.0.7", "fd00::7")}
	down := nic{net.FlagBroadcast, ips("192.168.9.9", "2001:db8::9")}
	linkLocal := nic{up, ips("169.254.10.1", "fe80::2")}
	mapped := nic{up, ips("::ffff:10.9.9.9")}

	for _, tc := range []struct {
		name, listen string
		nics         []nic
		want         []string
	}{
		{"an address is itself", "10.0.0.1:80", []nic{lo, eth}, []string{"10.0.0.1:80"}},
		{"loopback is itself", "127.0.0.1:80", []nic{lo, eth}, []string{"127.0.0.1:80"}},
		{"IPv6 is itself", "[2001:db8::1]:80", []nic{lo, eth}, []string{"[2001:db8::1]:80"}},
		{"mapped address", "[::ffff:10.0.0.1]:80", nil, []string{"10.0.0.1:80"}},
		{"IPv4 wildcard", "0.0.0.0:80", []nic{lo, eth}, []string{"10.1.2.3:80"}},
		{"both families", "[::]:80", []nic{lo, eth}, []string{"10.1.2.3:80", "[2001:db8::3]:80"}},
		{"no IPv6 but loopback", "[::]:80", []nic{lo, eth4}, []string{"10.1.2.3:80"}},
		{"no IPv4 but loopback", "[::]:80", []nic{lo, eth6}, []string{"[2001:db8::3]:80"}},
		{"the host's own before the bridge", "0.0.0.0:80", []nic{lo, public, docker}, []string{"203.0.113.9:80"}},
		{"VPN last", "[::]:80", []nic{lo, vpn, eth}, []string{"10.1.2.3:80", "[2001:db8::3]:80"}},
		{"VPN before loopback", "0.0.0.0:80", []nic{lo, vpn}, []string{"100.64.0.7:80"}},
		{"interface is down", "[::]:80", []nic{lo, down, eth4}, []string{"10.1.2.3:80"}},
		{"link-local does not count", "0.0.0.0:80", []nic{lo, linkLocal, eth}, []string{"10.1.2.3:80"}},
		{"only loopback, IPv4", "0.0.0.0:80", []nic{lo, linkLocal}, []string{"127.0.0.1:80"}},
		{"only loopback, both", "[::]:80", []nic{lo}, []string{"127.0.0.1:80", "[::1]:80"}},
		{"mapped interface address", "0.0.0.0:80", []nic{mapped}, []string{"10.9.9.9:80"}},
		{"nothing known, IPv4", "0.0.0.0:80", nil, []string{"127.0.0.1:80"}},
		{"nothing known, both", "[::]:80", nil, []string{"[::1]:80"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tc.listen))
			got, err := advertised(addr, tc.nics)
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("advertised(%s) = %q, %v, want %q", tc.listen, got, err, tc.want)
			}
		})
	}
}

func TestAdvertisedCannotBeDerived(t *testing.T) {
	for _, tc := range []struct {
		addr net.Addr
		want string
	}{
		{&net.UnixAddr{Net: "unix", Name: "/run/orders.sock"}, `unix address "/run/orders.sock"`},
		{&net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80}, `udp address "10.0.0.1:80"`},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 80, Zone: "eth0"}, `zone "eth0"`},
	} {
		got, err := advertised(tc.addr, nil)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "Config.Instance.Addr") {
			t.Errorf("advertised(%v) = %q, %v, want an error with %s that names Config.Instance.Addr", tc.addr, got, err, tc.want)
		}
	}
}

func TestMachineHasUsableAddresses(t *testing.T) {
	nics, err := machine()
	if err != nil {
		t.Fatal(err)
	}
	if !firstIP(nics, netip.Addr.Is4).IsValid() && !firstIP(nics, netip.Addr.Is6).IsValid() {
		t.Errorf("machine() = %v, want at least a loopback address", nics)
	}
}
