package configs

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"dotgate/upstreams"
)

// named returns the upstream that a text alone stands for: a preset or a URL.
func named(text string) (upstreams.Options, error) {
	if o, ok := preset(text); ok {
		return o, nil
	}
	if text == "" {
		return upstreams.Options{}, errors.New("is empty")
	}
	var reason string
	switch scheme, _, isURL := strings.Cut(text, "://"); {
	case isURL && spoken(scheme):
		o, err := parseURL(text)
		if err == nil {
			return o, nil
		}
		reason = err.Error()
	case isURL && spoken(strings.ToLower(scheme)):
		reason = "write " + strings.ToLower(scheme) + " in small letters"
	case isURL:
		reason = fmt.Sprintf("%s is not spoken, only DNS over TLS, and in one's own network UDP and TCP", scheme)
	case strings.ContainsAny(text, " \t;"):
		reason = "several are separated by commas"
	default:
		reason = "it is neither a preset nor a URL"
		if meant := nearest(text, Presets()); meant != "" {
			reason = "did you mean " + meant + "?"
		}
	}
	return upstreams.Options{}, fmt.Errorf("%q is not an upstream (%s); there are the presets %s, and URLs: tls://ADDRESS[:PORT][#NAME] or tls://HOST[:PORT][#NAME]",
		text, reason, strings.Join(Presets(), ", "))
}

func spoken(scheme string) bool {
	return scheme == upstreams.TLS || scheme == upstreams.UDP || scheme == upstreams.TCP
}

// parseURL reads tls://192.0.2.53:853#dns.example: who is asked, and after the #
// whose certificate it must show.
func parseURL(text string) (upstreams.Options, error) {
	var o upstreams.Options
	protocol, rest, _ := strings.Cut(text, "://")
	authority, serverName, hasName := strings.Cut(rest, "#")
	if strings.Contains(authority, "@") {
		return o, errors.New("there is no user in it")
	}
	if strings.ContainsAny(authority, "/?") {
		return o, errors.New("there is no path or query in it")
	}
	if protocol != upstreams.TLS {
		if o.Protocol = protocol; hasName {
			return o, errors.New("a server that is asked in clear text shows no certificate; leave out the # and what follows")
		}
	}
	host, port, err := splitPort(authority, usualPort(protocol))
	if err != nil {
		return o, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		o.Addresses = []netip.AddrPort{netip.AddrPortFrom(a, port)}
	} else if o.Protocol != "" {
		return o, fmt.Errorf("%q is not an address, which a server needs that is asked in clear text", host)
	} else if o.Host, o.Port = strings.TrimSuffix(host, "."), port; !isHostname(o.Host) {
		return o, fmt.Errorf("%q is neither an address nor a host name", host)
	}
	if !hasName {
		return o, nil
	}
	o.ServerName = strings.TrimSuffix(serverName, ".")
	if _, err := netip.ParseAddr(o.ServerName); err != nil && !isHostname(o.ServerName) {
		return o, fmt.Errorf("%q is not a server name", serverName)
	}
	return o, nil
}
