package settings

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"dotgate/configs"
	"dotgate/gateway/access"
	"dotgate/upstreams"
)

const (
	dotPort   = 853 // RFC 7858 section 3.1, and of DoQ: RFC 9250 section 4.1.1
	dohPort   = 443 // RFC 8484 section 4.1
	plainPort = 53
)

func usualPort(protocol string) uint16 {
	switch {
	case protocol == upstreams.TLS, protocol == "quic":
		return dotPort
	case overHTTPS(protocol):
		return dohPort
	}
	return plainPort
}

// listenAddress reads where to listen: IP:port. Without an IP it is all
// addresses of both families, [::], on which Go listens for IPv4 too.
func listenAddress(text string) (netip.AddrPort, error) {
	full := text
	if strings.HasPrefix(text, ":") {
		full = "[::]" + text
	}
	a, err := netip.ParseAddrPort(full)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address to listen on; write IP:port, as in 192.0.2.1:53 or [2001:db8::1]:53, or :53 for all addresses", text)
	}
	return a, nil
}

// serverAddress reads where an upstream answers: an IP, for the usual port, or IP:port.
func serverAddress(text string, usual uint16) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, usual), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address; write 192.0.2.1, 192.0.2.1:%d, 2001:db8::1 or [2001:db8::1]:%[2]d (a name goes into host)", text, usual)
	}
	return a, nil
}

// addressesBy returns a parser of fields of addresses and prefixes. Those with a port are
// read by address.
func addressesBy(address func(string) (netip.AddrPort, error)) configs.Parser {
	return func(field any, text string) (known bool, err error) {
		switch to := field.(type) {
		case *netip.AddrPort:
			*to, err = address(text)
		case *netip.Addr:
			if *to, err = netip.ParseAddr(text); err != nil {
				err = fmt.Errorf("%q is not an address; write 192.0.2.1 or 2001:db8::1", text)
			}
		case *netip.Prefix:
			*to, err = access.ParsePrefix(text)
		default:
			return false, nil
		}
		return true, err
	}
}

// splitPort splits a URL's authority: "192.0.2.1:853", "[2001:db8::1]", or
// "dns.example". The brackets go; a missing port is the usual one.
func splitPort(authority string, usual uint16) (host string, port uint16, err error) {
	rest := authority
	if inner, bracket := strings.CutPrefix(authority, "["); bracket {
		host, rest, _ = strings.Cut(inner, "]")
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() || !strings.Contains(inner, "]") {
			return "", 0, fmt.Errorf("%q is not an IPv6 address in brackets", authority)
		}
	} else if strings.Count(authority, ":") > 1 {
		return "", 0, fmt.Errorf("%q is not a host; an IPv6 address needs brackets", authority)
	} else {
		host, _, _ = strings.Cut(authority, ":")
		rest = authority[len(host):]
	}
	if rest == "" {
		return host, usual, nil
	}
	text, ok := strings.CutPrefix(rest, ":")
	n, err := strconv.ParseUint(text, 10, 16)
	if !ok || err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port", text)
	}
	return host, uint16(n), nil
}
