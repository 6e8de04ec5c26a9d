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
	},
	"google": {
		Addresses:  servers("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
		ServerName: "dns.google",
	},
	"quad9": {
		Addresses:   servers("9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9"),
		ServerName:  "dns.quad9.net",
		IdleTimeout: quad9IdleTimeout,
	},
	// Neither blocks names nor validates DNSSEC.
	"quad9-unfiltered": {
		Addresses:   servers("9.9.9.10", "149.112.112.10", "2620:fe::10", "2620:fe::fe:10"),
		ServerName:  "dns10.quad9.net",
		IdleTimeout: quad9IdleTimeout,
	},
}

// Presets lists the names of the presets, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// preset returns the options of a preset, in memory of its own.
func preset(name string) (upstreams.Options, bool) {
	o, ok := presets[name]
	o.Name = name
	o.Addresses = slices.Clone(o.Addresses)
	return o, ok
}

func servers(addresses ...string) []netip.AddrPort {
	list := make([]netip.AddrPort, len(addresses))
	for i, a := range addresses {
		list[i] = netip.AddrPortFrom(netip.MustParseAddr(a), dotPort)
	}
	return list
}
