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
	"cloudflare": {
		Addresses:  servers("1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001"),
		ServerName: "one.one.one.one",
		// Another prefix than that of 1.1.1.1, which has been out of reach as a whole.
		DoHAddresses: serversAt(dohPort, "104.16.248.249", "104.16.249.249", "2606:4700::6810:f8f9", "2606:4700::6810:f9f9"),
		DoHName:      "cloudflare-dns.com",
	},
	"google": {
		Addresses:  servers("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
		ServerName: "dns.google",
		Transports: bothTransports,
	},
	"quad9": {
		Addresses:   servers("9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9"),
		ServerName:  "dns.quad9.net",
		Transports:  bothTransports,
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

// preset returns the options of a preset, in memory of its own.
func preset(name string) (upstreams.Options, bool) {
	o, ok := presets[name]
	o.Name = name
	o.Addresses, o.DoHAddresses, o.Transports = slices.Clone(o.Addresses), slices.Clone(o.DoHAddresses), slices.Clone(o.Transports)
	return o, ok
}

// bothTransports is for services that have DNS over HTTPS at the same addresses.
var bothTransports = []string{upstreams.DoT, upstreams.DoH}

func servers(addresses ...string) []netip.AddrPort { return serversAt(dotPort, addresses...) }

func serversAt(port uint16, addresses ...string) []netip.AddrPort {
	list := make([]netip.AddrPort, len(addresses))
	for i, a := range addresses {
		list[i] = netip.AddrPortFrom(netip.MustParseAddr(a), port)
	}
	return list
}
