package settings

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"dotgate/configs"
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
	case isURL && isSupported(scheme):
		o, err := parseURL(text)
		if err == nil {
			return o, nil
		}
		reason = err.Error()
	case isURL && isSupported(strings.ToLower(scheme)):
		reason = "write " + strings.ToLower(scheme) + " in small letters"
	case isURL:
		reason = fmt.Sprintf("%s is not supported; tls:// and https:// are, and udp:// and tcp:// for servers of your own network", scheme)
	case strings.ContainsAny(text, " \t;"):
		reason = "write commas between several"
	case presetIn(text) != "":
		reason = fmt.Sprintf("write %s, the preset that has this address, or tls://%s", presetIn(text), inURL(text))
	case inURL(text) != "":
		reason = fmt.Sprintf("write tls://%s or, for a server of one's own network without TLS, udp://%[1]s", inURL(text))
	default:
		reason = "it is neither a preset nor a URL"
		if meant := configs.Nearest(text, Presets()); meant != "" {
			reason = "did you mean " + meant + "?"
		}
	}
	return upstreams.Options{}, fmt.Errorf("%q is not an upstream (%s); there are the presets %s, and URLs: tls://ADDRESS[:PORT][#NAME], tls://HOST[:PORT][#NAME], https://HOST[:PORT]/PATH[#NAME], udp://ADDRESS[:PORT]",
		text, reason, strings.Join(Presets(), ", "))
}

// inURL returns how the address of a server, with or without a port, stands in a URL, or
// "" if text is none.
func inURL(text string) string {
	if a, err := netip.ParseAddr(text); err == nil && a.Is6() {
		text = "[" + text + "]"
	}
	host, _, err := splitPort(text, dotPort)
	if err != nil {
		return ""
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return ""
	}
	return text
}

// presetIn returns the preset that has an address, with or without a port, or "".
func presetIn(text string) string {
	host, _, _ := splitPort(inURL(text), dotPort)
	a, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	return presetOf(a)
}

// httpsScheme is that of URLs of DNS over HTTPS.
const httpsScheme = "https"

func isSupported(scheme string) bool {
	return scheme == upstreams.TLS || scheme == httpsScheme || scheme == upstreams.UDP || scheme == upstreams.TCP
}

// parseURL reads tls://192.0.2.53:853#dns.example: the server, and after the #
// the name in its certificate. Over HTTPS there is a path before it.
func parseURL(text string) (upstreams.Options, error) {
	var o upstreams.Options
	protocol, rest, _ := strings.Cut(text, "://")
	authority, serverName, hasName := strings.Cut(rest, "#")
	place, ofHost := &o.Addresses, &o.Port
	if protocol == httpsScheme {
		o.Transports = []string{upstreams.DoH}
		authority, o.DoHPath = splitPath(authority)
		place, ofHost = &o.DoHAddresses, &o.DoHPort
	}
	if strings.Contains(authority, "@") {
		return o, errors.New("it must not have a user")
	}
	if protocol == httpsScheme && strings.Contains(authority, "?") {
		return o, errors.New("a query needs a path before it, as in /dns-query?key=value")
	}
	if strings.ContainsAny(authority, "/?") {
		return o, errors.New("it must not have a path or a query")
	}
	if protocol == upstreams.UDP || protocol == upstreams.TCP {
		if o.Protocol = protocol; hasName {
			return o, errors.New("a server in clear text has no certificate; remove the # and the name")
		}
	}
	host, port, err := splitPort(authority, usualPort(protocol))
	if err != nil {
		return o, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		*place = []netip.AddrPort{netip.AddrPortFrom(a, port)}
	} else if o.Protocol != "" {
		return o, fmt.Errorf("%q is not an address; a server in clear text needs one", host)
	} else if o.Host, *ofHost = strings.TrimSuffix(host, "."), port; !upstreams.IsHostname(o.Host) {
		return o, fmt.Errorf("%q is neither an address nor a host name", host)
	}
	if hasName {
		o.ServerName, err = serverNameOf(serverName)
	}
	return o, err
}

// splitPath splits "dns.example/dns-query{?dns}", which may be a template (RFC 8484 section 3).
func splitPath(text string) (authority, path string) {
	if at := strings.IndexByte(text, '/'); at >= 0 {
		return text[:at], strings.TrimSuffix(text[at:], "{?dns}")
	}
	return text, ""
}

func serverNameOf(text string) (string, error) {
	name := strings.TrimSuffix(text, ".")
	if _, err := netip.ParseAddr(name); err != nil && !upstreams.IsHostname(name) {
		return "", fmt.Errorf("%q is not a server name", text)
	}
	return name, nil
}
