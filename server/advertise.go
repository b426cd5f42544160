package server

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// nic is a network interface as far as choosing an address goes.
type nic struct {
	flags net.Flags
	ips   []netip.Addr
}

// advertised derives from the address that a server listens on the ones at which others reach it, as host:port:
// first the main one, then, for a server that listens on both IP families, one of the other family. nics are the
// machine's interfaces in the order of their index; they matter only for a wildcard.
//
// On a wildcard the first interface that is up wins, since the machine's own comes before the bridges and tunnels
// that were added later; point-to-point links (VPNs) come after all others. Private and public addresses count the
// same: to prefer private ones would advertise a container bridge rather than a host's public address. Loopback is
// what is left when there is nothing else.
func advertised(listen net.Addr, nics []nic) ([]string, error) {
	ap, err := netip.ParseAddrPort(listen.String())
	if err != nil || !strings.HasPrefix(listen.Network(), "tcp") {
		return nil, fmt.Errorf("server: Config.Instance.Addr is empty and cannot be derived from the listener's %s "+
			"address %q, want the host:port at which clients reach this server", listen.Network(), listen.String())
	}
	ip := ap.Addr().Unmap()
	if !ip.IsUnspecified() {
		if ip.Zone() != "" {
			return nil, fmt.Errorf("server: Config.Instance.Addr is empty and the listener's address %q is valid on this "+
				"machine only (zone %q), want the host:port at which clients reach this server", listen, ip.Zone())
		}
		return []string{hostPort(ip, ap.Port())}, nil
	}
	// Go shows a listener on both families and one on IPv6 alone both as [::].
	v4 := firstIP(nics, netip.Addr.Is4)
	if ip.Is4() {
		if !v4.IsValid() {
			v4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return []string{hostPort(v4, ap.Port())}, nil
	}
	v6 := firstIP(nics, netip.Addr.Is6)
	switch {
	case !v4.IsValid() && !v6.IsValid():
		return []string{hostPort(netip.IPv6Loopback(), ap.Port())}, nil
	case !v4.IsValid() || v4.IsLoopback() && v6.IsValid() && !v6.IsLoopback():
		return []string{hostPort(v6, ap.Port())}, nil
	case !v6.IsValid() || v6.IsLoopback() && !v4.IsLoopback():
		return []string{hostPort(v4, ap.Port())}, nil
	}
	return []string{hostPort(v4, ap.Port()), hostPort(v6, ap.Port())}, nil
}

// firstIP is the best address of one family: of a broadcast interface, else of a point-to-point link, else
// loopback; the zero Addr if there is none.
func firstIP(nics []nic, family func(netip.Addr) bool) netip.Addr {
	var best netip.Addr
	bestRank := 3
	for _, n := range nics {
		if n.flags&net.FlagUp == 0 {
			continue
		}
		for _, ip := range n.ips {
			ip = ip.Unmap()
			if !family(ip) || !ip.IsGlobalUnicast() && !ip.IsLoopback() { // link-local is neither
				continue
			}
			rank := 0
			switch {
			case ip.IsLoopback():
				rank = 2
			case n.flags&net.FlagPointToPoint != 0:
				rank = 1
			}
			if rank < bestRank {
				best, bestRank = ip, rank
			}
		}
	}
	return best
}

func hostPort(ip netip.Addr, port uint16) string {
	return netip.AddrPortFrom(ip, port).String()
}

// machine lists this machine's interfaces in the order of their index. An interface whose addresses cannot be read
// is left out.
func machine() ([]nic, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var nics []nic
	for _, i := range ifs {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		n := nic{flags: i.Flags}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				n.ips = append(n.ips, p.Addr())
			}
		}
		nics = append(nics, n)
	}
	return nics, nil
}

// onlyHere reports whether addr is a loopback address although the server listens on a wildcard, and so seems to be
// meant for others.
func onlyHere(listen net.Addr, addr string) bool {
	l, err := netip.ParseAddrPort(listen.String())
	a, err2 := netip.ParseAddrPort(addr)
	return err == nil && err2 == nil && l.Addr().Unmap().IsUnspecified() && a.Addr().IsLoopback()
}

// checkReachable refuses an address that means "every address of this machine" and so names none.
func checkReachable(field, addr string) error {
	host, _, _ := net.SplitHostPort(addr)
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsUnspecified() {
		return fmt.Errorf("server: Config.Instance.%s = %q, want an address that clients can reach, not a wildcard",
			field, addr)
	}
	return nil
}

func altField(i int) string { return "AltAddrs[" + strconv.Itoa(i) + "]" }
