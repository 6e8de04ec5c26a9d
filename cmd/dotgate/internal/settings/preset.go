package settings

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"dotgate/upstreams"
)

// defaultUpstreams are three operators, so that no single failure takes out all.
var defaultUpstreams = []string{"cloudflare", "quad9", "google"}

// defaultUpstreamsText asks for the default upstreams explicitly.
var defaultUpstreamsText = "upstreams: [" + strings.Join(defaultUpstreams, ", ") + "]"

// Quad9 has been seen to close connections after 4 s without a query.
const quad9IdleTimeout = 3500 * time.Millisecond

// presets are well-known services, as their operators publish them.
var presets = map[string]upstreams.Options{
	"adguard": {
		Addresses:  servers("94.140.14.14", "94.140.15.15", "2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff"),
		ServerName: "dns.adguard-dns.com",
		Transports: allTransports,
	},
	"adguard-unfiltered": {
		Addresses:  servers("94.140.14.140", "94.140.14.141", "2a10:50c0::1:ff", "2a10:50c0::2:ff"),
		ServerName: "unfiltered.adguard-dns.com",
		Transports: bothTransports,
	},
	"cloudflare": {
		Addresses:  servers("1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001"),
		ServerName: "cloudflare-dns.com",
		// Another prefix than that of 1.1.1.1, which has been out of reach as a whole.
		DoHAddresses: serversAt(dohPort, "104.16.248.249", "104.16.249.249", "2606:4700::6810:f8f9", "2606:4700::6810:f9f9"),
		Transports:   withHTTP3,
	},
	"cloudflare-family": {
		Addresses:  servers("1.1.1.3", "1.0.0.3", "2606:4700:4700::1113", "2606:4700:4700::1003"),
		ServerName: "family.cloudflare-dns.com",
		Transports: bothTransports,
	},
	"cloudflare-security": {
		Addresses:  servers("1.1.1.2", "1.0.0.2", "2606:4700:4700::1112", "2606:4700:4700::1002"),
		ServerName: "security.cloudflare-dns.com",
		Transports: bothTransports,
	},
	// That of its services which blocks nothing.
	"controld": {
		Addresses:  servers("76.76.2.11", "76.76.10.11", "2606:1a40::11", "2606:1a40:1::11"),
		ServerName: "p0.freedns.controld.com",
		Transports: bothTransports,
		DoHName:    "freedns.controld.com",
		DoHPath:    "/p0",
	},
	"google": {
		Addresses:  servers("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
		ServerName: "dns.google",
		Transports: withHTTP3,
	},
	// That of its services which blocks nothing.
	"mullvad": {
		Addresses:  servers("194.242.2.2", "2a07:e340::2"),
		ServerName: "dns.mullvad.net",
		Transports: bothTransports,
	},
	"opendns": {
		Addresses:    servers("208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53"),
		ServerName:   "dns.opendns.com",
		DoHAddresses: serversAt(dohPort, "146.112.41.2", "2620:119:fc::2"),
		DoHName:      "doh.opendns.com",
	},
	"quad9": {
		Addresses:   servers("9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9"),
		ServerName:  "dns.quad9.net",
		Transports:  allTransports,
		IdleTimeout: quad9IdleTimeout,
	},
	// Neither blocks names nor validates DNSSEC.
	"quad9-unfiltered": {
		Addresses:   servers("9.9.9.10", "149.112.112.10", "2620:fe::10", "2620:fe::fe:10"),
		ServerName:  "dns10.quad9.net",
		Transports:  bothTransports,
		IdleTimeout: quad9IdleTimeout,
	},
}

// Presets lists the names of the presets, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// presetOf returns the name of the preset that has an address, or "".
func presetOf(a netip.Addr) string {
	for name, o := range presets {
		if slices.ContainsFunc(slices.Concat(o.Addresses, o.DoHAddresses), func(b netip.AddrPort) bool { return b.Addr() == a }) {
			return name
		}
	}
	return ""
}

// preset returns the options of a preset, in memory of its own.
func preset(name string) (upstreams.Options, bool) {
	o, ok := presets[name]
	o.Name = name
	o.Addresses, o.DoHAddresses, o.Transports = slices.Clone(o.Addresses), slices.Clone(o.DoHAddresses), slices.Clone(o.Transports)
	return o, ok
}

// The transports of services, those over UDP last: networks block them more often, and they
// cost more.
var (
	bothTransports = []string{upstreams.DoT, upstreams.DoH}
	withHTTP3      = []string{upstreams.DoT, upstreams.DoH, upstreams.DoH3}
	allTransports  = []string{upstreams.DoT, upstreams.DoH, upstreams.DoQ, upstreams.DoH3}
)

func servers(addresses ...string) []netip.AddrPort { return serversAt(dotPort, addresses...) }

func serversAt(port uint16, addresses ...string) []netip.AddrPort {
	list := make([]netip.AddrPort, len(addresses))
	for i, a := range addresses {
		list[i] = netip.AddrPortFrom(netip.MustParseAddr(a), port)
	}
	return list
}
