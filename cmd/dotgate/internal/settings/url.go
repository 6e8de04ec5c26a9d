package settings

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"dotgate/configs"
	"dotgate/upstreams"
)

// named returns the upstream that a text alone stands for: a preset, a URL, or several URLs
// with | between them.
func named(text string) (upstreams.Options, error) {
	if o, ok := preset(text); ok {
		return o, nil
	}
	if text == "" {
		return upstreams.Options{}, errors.New("is empty")
	}
	o, err := parseURLs(strings.Split(text, urlSeparator))
	if err != nil {
		return o, fmt.Errorf("%q is not an upstream (%v); there are the presets %s, and URLs: %s", text, err, strings.Join(Presets(), ", "), urlForms)
	}
	return o, nil
}

// urlSeparator is between the URLs of one upstream.
const urlSeparator = "|"

const urlForms = "tls://ADDRESS[:PORT][#NAME], tls://HOST[:PORT][#NAME], https://HOST[:PORT]/PATH[#NAME], quic://HOST[:PORT][#NAME], h3://HOST[:PORT]/PATH[#NAME], udp://ADDRESS[:PORT], or several of one upstream: URL|URL"

// parseURLs reads the URLs of one upstream. Its transports have their order.
func parseURLs(texts []string) (upstreams.Options, error) {
	var all []upstreams.Options
	for _, text := range texts {
		o, err := parseOne(strings.TrimSpace(text))
		if err != nil {
			return o, err
		}
		all = append(all, o)
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return combined(all)
}

func parseOne(text string) (upstreams.Options, error) {
	if problem := schemeProblem(text); problem != "" {
		return upstreams.Options{}, errors.New(problem)
	}
	if stamp, ok := strings.CutPrefix(text, stampScheme+"://"); ok {
		return parseStamp(stamp)
	}
	return parseURL(text)
}

// combined returns the upstream that is asked in all of these ways. A name in one URL is
// that of all which have none.
func combined(all []upstreams.Options) (upstreams.Options, error) {
	var sum upstreams.Options
	mixed := false
	overTLS := serversOverTLS(all)
	for _, o := range all {
		overHTTPS := slices.ContainsFunc(o.Transports, overHTTP)
		o.ServerName = cmp.Or(o.ServerName, o.Host)
		switch {
		case overHTTPS:
			o.DoHName, o.ServerName = o.ServerName, ""
		case slices.Contains(o.Transports, upstreams.DoQ):
			if err := besideTLS(&o, overTLS); err != nil {
				return sum, err
			}
		case o.Protocol == "" && len(o.Transports) == 0:
			o.Protocol, o.Transports = upstreams.TLS, []string{upstreams.DoT}
		}
		o.Protocol = cmp.Or(o.Protocol, upstreams.TLS)
		if err := addTo(&sum, &o); err != nil {
			return sum, err
		}
		mixed = mixed || sum.Host != "" && (len(sum.Addresses) > 0 || overHTTPS && o.Host != "" && len(sum.DoHAddresses) > 0)
	}
	if mixed {
		return sum, fmt.Errorf("one URL has an address and another one the host %s; write an address in each, and the name after #", sum.Host)
	}
	sum.ServerName = cmp.Or(sum.ServerName, sum.DoHName)
	if sum.DoHName == sum.ServerName {
		sum.DoHName = ""
	}
	return sum, nil
}

func overHTTP(transport string) bool {
	return transport == upstreams.DoH || transport == upstreams.DoH3
}

// serversOverTLS returns the addresses of those that are asked over TLS.
func serversOverTLS(all []upstreams.Options) (servers []netip.Addr) {
	for _, o := range all {
		for _, a := range o.Addresses {
			if o.Protocol == "" && len(o.Transports) == 0 {
				servers = append(servers, a.Addr())
			}
		}
	}
	return servers
}

// besideTLS has the port of a server over QUIC stand by itself. Its address is also one of
// those over TLS, if there are any.
func besideTLS(o *upstreams.Options, overTLS []netip.Addr) error {
	if len(o.Addresses) == 0 {
		o.DoQPort, o.Port = o.Port, 0
		return nil
	}
	a := o.Addresses[0]
	o.DoQPort = a.Port()
	switch {
	case slices.Contains(overTLS, a.Addr()):
		o.Addresses = nil
	case len(overTLS) > 0:
		return fmt.Errorf("no tls:// URL has the address %v of that with quic://; write an upstream for each", a.Addr())
	}
	return nil
}

// addTo adds the options of one URL to those of the others, which they must not contradict.
func addTo(sum, o *upstreams.Options) error {
	added := configs.SettingsOf("", o)
	for i, s := range configs.SettingsOf("", sum) {
		field := added[i].Field
		switch {
		case field.Kind() == reflect.Slice:
			for _, element := range field.Seq2() {
				if !contains(s.Field, element) {
					s.Field.Set(reflect.Append(s.Field, element))
				}
			}
		case s.Field.IsZero():
			s.Field.Set(field)
		case !field.IsZero() && !s.Field.Equal(field):
			return fmt.Errorf("one URL has the %s %v, another one %v; they must agree", s.Key, s.Field, field)
		}
	}
	return nil
}

func contains(list, element reflect.Value) bool {
	for _, e := range list.Seq2() {
		if e.Equal(element) {
			return true
		}
	}
	return false
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

// transports are those of URLs with TLS, by their schemes. That of tls is not set: the
// upstream may have others besides.
var transports = map[string]string{
	"https": upstreams.DoH, "h3": upstreams.DoH3, "quic": upstreams.DoQ,
}

func overHTTPS(scheme string) bool { return scheme == "https" || scheme == "h3" }

func isSupported(scheme string) bool {
	return scheme == upstreams.TLS || transports[scheme] != "" || scheme == stampScheme || scheme == upstreams.UDP || scheme == upstreams.TCP
}

// schemeProblem returns why a text is no URL with a scheme of an upstream, or "".
func schemeProblem(text string) string {
	switch scheme, _, isURL := strings.Cut(text, "://"); {
	case isURL && isSupported(scheme):
		return ""
	case isURL && isSupported(strings.ToLower(scheme)):
		return "write " + strings.ToLower(scheme) + " in small letters"
	case isURL:
		return fmt.Sprintf("%s is not supported; tls://, https://, quic:// and h3:// are, and udp:// and tcp:// for servers of your own network", scheme)
	case strings.ContainsAny(text, " \t;"):
		return "write commas between several"
	case presetIn(text) != "":
		return fmt.Sprintf("write %s, the preset that has this address, or tls://%s", presetIn(text), inURL(text))
	case inURL(text) != "":
		return fmt.Sprintf("write tls://%s or, for a server of one's own network without TLS, udp://%[1]s", inURL(text))
	}
	if _, isPreset := presets[text]; isPreset {
		return "a preset can't stand beside URLs"
	}
	if meant := configs.Nearest(text, Presets()); meant != "" {
		return "did you mean " + meant + "?"
	}
	return "it is neither a preset nor a URL"
}

// parseURL reads tls://192.0.2.53:853#dns.example: the server, and after the #
// the name in its certificate. Over HTTPS there is a path before it.
func parseURL(text string) (upstreams.Options, error) {
	var o upstreams.Options
	protocol, rest, _ := strings.Cut(text, "://")
	authority, serverName, hasName := strings.Cut(rest, "#")
	place, ofHost := &o.Addresses, &o.Port
	if via := transports[protocol]; via != "" {
		o.Transports = []string{via}
	}
	if overHTTPS(protocol) {
		authority, o.DoHPath = splitPath(authority)
		place, ofHost = &o.DoHAddresses, &o.DoHPort
	}
	if strings.Contains(authority, "@") {
		return o, errors.New("it must not have a user")
	}
	if overHTTPS(protocol) && strings.Contains(authority, "?") {
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
