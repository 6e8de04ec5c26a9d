package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"dotgate/upstreams"
)

func TestPresets(t *testing.T) {
	t.Parallel()
	f := func(name, serverName string, idle time.Duration, addresses ...string) {
		t.Helper()
		u := mustParse(t, "upstreams: ["+name+"]").Upstreams[0]
		var got []string
		for _, a := range u.Addresses {
			got = append(got, a.Addr().String())
			if a.Port() != 853 {
				t.Errorf("%s: %v", name, a)
			}
		}
		if u.Name != name || u.ServerName != serverName || u.IdleTimeout != idle || !slices.Equal(got, addresses) {
			t.Errorf("%s: got %+v", name, u)
		}
		if u.Weight != 1 || u.Tier != 0 || u.Connections != 4 || u.ConnectTimeout != 0 || u.Log != nil {
			t.Errorf("%s: not the defaults: %+v", name, u)
		}
	}
	f("cloudflare", "cloudflare-dns.com", 8*time.Second, "1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001")
	f("quad9", "dns.quad9.net", 3500*time.Millisecond, "9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9")
	f("google", "dns.google", 8*time.Second, "8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844")
	f("quad9-unfiltered", "dns10.quad9.net", 3500*time.Millisecond, "9.9.9.10", "149.112.112.10", "2620:fe::10", "2620:fe::fe:10")
}

// The addresses, names and paths of presets are those of one service.
func TestPresetsAreWhole(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, name := range Presets() {
		u := mustParse(t, "upstreams: ["+name+"]").Upstreams[0]
		for _, a := range slices.Concat(u.Addresses, u.DoHAddresses) {
			if other := seen[a.String()]; other != "" {
				t.Errorf("%v is in %s and %s", a, other, name)
			}
			seen[a.String()] = name
		}
		v6 := func(a netip.AddrPort) bool { return a.Addr().Is6() }
		if u.Host != "" || !slices.ContainsFunc(u.Addresses, v6) || len(u.DoHAddresses) > 0 && !slices.ContainsFunc(u.DoHAddresses, v6) {
			t.Errorf("%s: %+v", name, u)
		}
		if len(u.DoHAddresses) == 0 && !slices.Contains(u.Transports, upstreams.DoH) {
			t.Errorf("%s is not asked over HTTPS", name)
		}
	}
}

func TestAPresetIsNotShared(t *testing.T) {
	t.Parallel()
	mustParse(t, "").Upstreams[0].Addresses[0] = serverText0
	if a := mustParse(t, "").Upstreams[0].Addresses[0]; a == serverText0 {
		t.Error("a change to one configuration is in the next")
	}
}

var serverText0 = servers("192.0.2.1")[0]

// summary writes what tells upstreams apart.
func summary(u Upstream) string {
	text := fmt.Sprintf("%s: %v", u.Name, u.Addresses)
	if u.Host != "" {
		text = fmt.Sprintf("%s: %s:%d by %v", u.Name, u.Host, u.Port, u.Bootstrap)
	}
	text = fmt.Sprintf("%s #%s w%d t%d", text, u.ServerName, u.Weight, u.Tier)
	if len(u.DoHAddresses) > 0 || slices.Equal(u.Transports, []string{upstreams.DoH}) {
		text += fmt.Sprintf(" doh: %v%s", u.DoHAddresses, u.DoHPath)
	}
	if slices.Contains(u.Transports, upstreams.DoQ) || slices.Contains(u.Transports, upstreams.DoH3) {
		text += fmt.Sprint(" via ", u.Transports)
	}
	if u.DoQPort != 0 {
		text += fmt.Sprint(" doq port ", u.DoQPort)
	}
	return text
}

func TestUpstreamForms(t *testing.T) {
	t.Parallel()
	f := func(entry, want string) {
		t.Helper()
		c := mustParse(t, "bootstrap: [192.0.2.1]\nupstreams:\n  - "+entry+"\n")
		if got := summary(c.Upstreams[0]); got != want {
			t.Errorf("%s: got %s, want %s", entry, got, want)
		}
	}
	f("tls://192.0.2.53:8853#dns.example", "dns.example: [192.0.2.53:8853] #dns.example w1 t0")
	f("tls://192.0.2.53#dns.example.", "dns.example: [192.0.2.53:853] #dns.example w1 t0")
	f("tls://192.0.2.53", "192.0.2.53: [192.0.2.53:853] # w1 t0")
	f("tls://192.0.2.53:8853", "192.0.2.53:8853: [192.0.2.53:8853] # w1 t0")
	f("tls://192.0.2.53#192.0.2.53", "192.0.2.53: [192.0.2.53:853] #192.0.2.53 w1 t0")
	f("tls://[2001:db8::53]", "2001:db8::53: [[2001:db8::53]:853] # w1 t0")
	f("tls://[2001:db8::53]:8853#dns.example", "dns.example: [[2001:db8::53]:8853] #dns.example w1 t0")
	f("tls://dns.example", "dns.example: dns.example:853 by [192.0.2.1] #dns.example w1 t0")
	f("tls://dns.example:8853#other.example", "other.example: dns.example:8853 by [192.0.2.1] #other.example w1 t0")

	// over HTTPS
	f("https://192.0.2.53/dns-query#dns.example", "dns.example: [] #dns.example w1 t0 doh: [192.0.2.53:443]/dns-query")
	f("https://[2001:db8::53]:8443/x{?dns}", "[2001:db8::53]:8443: [] # w1 t0 doh: [[2001:db8::53]:8443]/x")
	f("quic://192.0.2.53#dns.example", "dns.example: [192.0.2.53:853] #dns.example w1 t0 via [doq]")
	f("quic://dns.example:8853", "dns.example: dns.example:8853 by [192.0.2.1] #dns.example w1 t0 via [doq]")
	f("h3://192.0.2.53/dns-query#dns.example", "dns.example: [] #dns.example w1 t0 doh: [192.0.2.53:443]/dns-query via [doh3]")
	f("https://dns.example", "dns.example: dns.example:853 by [192.0.2.1] #dns.example w1 t0 doh: []/dns-query")
	f("{preset: cloudflare, transports: [doh]}", "cloudflare: [1.1.1.1:853 1.0.0.1:853 [2606:4700:4700::1111]:853 [2606:4700:4700::1001]:853] #cloudflare-dns.com w1 t0 doh: [104.16.248.249:443 104.16.249.249:443 [2606:4700::6810:f8f9]:443 [2606:4700::6810:f9f9]:443]/dns-query")
	f("{preset: cloudflare, addresses: [192.0.2.8]}", "cloudflare: [192.0.2.8:853] #cloudflare-dns.com w1 t0")
	f("{preset: cloudflare, transports: [dot]}", "cloudflare: [1.1.1.1:853 1.0.0.1:853 [2606:4700:4700::1111]:853 [2606:4700:4700::1001]:853] #cloudflare-dns.com w1 t0")
	f("{name: both, server_name: dns.example, addresses: [192.0.2.8], doh_addresses: [192.0.2.9], doh_path: /q}", "both: [192.0.2.8:853] #dns.example w1 t0 doh: [192.0.2.9:443]/q")

	f("{preset: controld, transports: [dot]}", "controld: [76.76.2.11:853 76.76.10.11:853 [2606:1a40::11]:853 [2606:1a40:1::11]:853] #p0.freedns.controld.com w1 t0")
	f("{preset: controld, addresses: [192.0.2.8]}", "controld: [192.0.2.8:853] #p0.freedns.controld.com w1 t0")
	f("{preset: google, proxy: 'http://192.0.2.1:3128'}", "google: [8.8.8.8:853 8.8.4.4:853 [2001:4860:4860::8888]:853 [2001:4860:4860::8844]:853] #dns.google w1 t0")

	f("{preset: google}", "google: [8.8.8.8:853 8.8.4.4:853 [2001:4860:4860::8888]:853 [2001:4860:4860::8844]:853] #dns.google w1 t0 via [dot doh doh3]")
	f("{preset: google, weight: 3, tier: 2, addresses: [192.0.2.8], name: g}", "g: [192.0.2.8:853] #dns.google w3 t2")
	f("{url: 'tls://192.0.2.53#dns.example', name: mine}", "mine: [192.0.2.53:853] #dns.example w1 t0")
	f("{url: 'tls://192.0.2.53', server_name: dns.example}", "dns.example: [192.0.2.53:853] #dns.example w1 t0")
	f("{url: 'tls://dns.example', bootstrap: [192.0.2.7, 'tls://192.0.2.9#dns.example']}",
		"dns.example: dns.example:853 by [192.0.2.7 tls://192.0.2.9#dns.example] #dns.example w1 t0")
	f("{host: dns.example, port: 8853}", "dns.example: dns.example:8853 by [192.0.2.1] #dns.example w1 t0")
	f("{addresses: [192.0.2.53, '192.0.2.53:8853', '2001:db8::1', '[2001:db8::1]:854']}",
		"192.0.2.53: [192.0.2.53:853 192.0.2.53:8853 [2001:db8::1]:853 [2001:db8::1]:854] # w1 t0")
	f("{addresses: [192.0.2.53, '2001:db8::1', '192.0.2.53:5353'], protocol: udp}", "192.0.2.53: [192.0.2.53:53 [2001:db8::1]:53 192.0.2.53:5353] # w1 t0")
	f("{protocol: tcp, addresses: [192.0.2.53]}", "192.0.2.53: [192.0.2.53:53] # w1 t0")
	f("{protocol: tls, addresses: [192.0.2.53]}", "192.0.2.53: [192.0.2.53:853] # w1 t0")
}

// Several URLs are one upstream with a ladder in their order.
func TestSeveralURLsAreOneUpstream(t *testing.T) {
	t.Parallel()
	f := func(urls, ladder, want string) {
		t.Helper()
		list := strings.ReplaceAll(strings.ReplaceAll(urls, "|", "', '"), "  ", "")
		for _, c := range []*Config{
			mustParse(t, "bootstrap: [192.0.2.1]", "DOTGATE_UPSTREAMS="+urls),
			mustParse(t, "bootstrap: [192.0.2.1]\nupstreams: [{urls: ['"+list+"']}]"),
			mustParse(t, "bootstrap: [192.0.2.1]\nupstreams: [{url: '"+urls+"'}]"),
		} {
			u := c.Upstreams[0]
			got := strings.Join(u.Transports, " ") + ", " + summary(u)
			if u.DoHName != "" {
				got += " #" + u.DoHName
			}
			if want := ladder + ", " + want; got != want || len(c.Upstreams) != 1 {
				t.Errorf("%s: got %s, want %s", urls, got, want)
			}
			sameAgain(t, c)
		}
	}
	f("tls://dns.example|https://dns.example/q", "dot doh", "dns.example: dns.example:853 by [192.0.2.1] #dns.example w1 t0")
	f("https://dns.example/q|tls://dns.example:8853", "doh dot", "dns.example: dns.example:8853 by [192.0.2.1] #dns.example w1 t0")
	f("tls://192.0.2.1#a.example|tls://192.0.2.2|https://192.0.2.3/q#b.example", "dot doh",
		"a.example: [192.0.2.1:853 192.0.2.2:853] #a.example w1 t0 doh: [192.0.2.3:443]/q #b.example")
	f("tls://192.0.2.1#dns.example|quic://192.0.2.1:8853|h3://192.0.2.1/dns-query", "dot doq doh3",
		"dns.example: [192.0.2.1:853] #dns.example w1 t0 doh: [192.0.2.1:443]/dns-query via [dot doq doh3] doq port 8853")
	f("quic://dns.example|https://dns.example", "doq doh", "dns.example: dns.example:853 by [192.0.2.1] #dns.example w1 t0 via [doq doh] doq port 853")
	f("tls://dns.example|https://192.0.2.3", "dot doh", "dns.example: dns.example:853 by [192.0.2.1] #dns.example w1 t0 doh: [192.0.2.3:443]/dns-query")
	f("tls://192.0.2.1|https://192.0.2.1#dns.example", "dot doh", "dns.example: [192.0.2.1:853] #dns.example w1 t0 doh: [192.0.2.1:443]/dns-query")
	f("udp://10.0.0.53|udp://10.0.0.54", "", "10.0.0.53: [10.0.0.53:53 10.0.0.54:53] # w1 t0")
}

func TestURLsOfOneUpstreamMustAgree(t *testing.T) {
	t.Parallel()
	f := func(urls, want string) {
		t.Helper()
		want = fmt.Sprintf("DOTGATE_UPSTREAMS: upstreams[0]: %q is not an upstream (%s", urls, want)
		if got := problemsOf(t, "", "DOTGATE_UPSTREAMS="+urls); !strings.HasPrefix(got, want) {
			t.Errorf("got %s want %s", got, want)
		}
	}
	f("tls://a.example|https://b.example", "one URL has the host a.example, another one b.example; they must agree)")
	f("tls://192.0.2.1#a.example|tls://192.0.2.2#b.example", "one URL has the server_name a.example, another one b.example; they must agree)")
	f("https://dns.example/a|https://dns.example/b", "one URL has the doh_path /a, another one /b; they must agree)")
	f("tls://dns.example|tls://dns.example:8853", "one URL has the port 853, another one 8853; they must agree)")
	f("tls://192.0.2.1|udp://192.0.2.1", "one URL has the protocol tls, another one udp; they must agree)")
	f("tls://192.0.2.1|quic://192.0.2.2", "no tls:// URL has the address 192.0.2.2 of that with quic://; write an upstream for each)")
	f("quic://192.0.2.1|quic://192.0.2.1:8853", "one URL has the doq_port 853, another one 8853; they must agree)")
	f("tls://192.0.2.1|https://dns.example", "one URL has an address and another one the host dns.example; write an address in each, and the name after #)")
	f("https://192.0.2.1|https://dns.example", "one URL has an address and another one the host dns.example;")
	f("tls://192.0.2.1|quad9", "a preset can't stand beside URLs)")
	f("tls://192.0.2.1|", "it is neither")
	if got, want := problemsOf(t, "upstreams: [{urls: quad9}]"), "dotgate.yaml:1: upstreams[0].urls: is \"quad9\"; it takes the URLs of one upstream, as in [tls://dns.example, https://dns.example/dns-query]\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if got, want := problemsOf(t, "upstreams: [{urls: [tls://192.0.2.1], preset: quad9}]"), "dotgate.yaml:1: upstreams[0].urls: is set, and preset too; remove one of them\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

func TestUnnamedUpstreamsAreToldApart(t *testing.T) {
	t.Parallel()
	f := func(urls string, want ...string) {
		t.Helper()
		if got := upstreamNames(mustParse(t, "", "DOTGATE_UPSTREAMS="+urls)); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", urls, got, want)
		}
	}
	f("tls://192.0.2.1#dns.example,tls://192.0.2.2#dns.example", "dns.example@192.0.2.1", "dns.example@192.0.2.2")
	f("tls://192.0.2.1#dns.example,tls://192.0.2.1:8853#dns.example", "dns.example@192.0.2.1", "dns.example@192.0.2.1:8853")
	f("tls://192.0.2.1,tls://192.0.2.1:8853", "192.0.2.1", "192.0.2.1:8853")
}

func TestUpstreamProblems(t *testing.T) {
	t.Parallel()
	f := func(list string, want ...string) {
		t.Helper()
		got := problemsOf(t, "upstreams:\n"+list)
		lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
		if len(lines) != len(want) {
			t.Errorf("%s: %d problems, want %d:\n%s", list, len(lines), len(want), got)
			return
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, "dotgate.yaml:"+want[i]) {
				t.Errorf("%s: got\n%s\nwant\ndotgate.yaml:%s", list, line, want[i])
			}
		}
	}
	is := func(text, reason string) {
		t.Helper()
		f("- '"+text+"'", fmt.Sprintf("2: upstreams[0]: %q is not an upstream (%s", text, reason))
	}
	is("nothing.one", "it is neither a preset nor a URL); there are the presets adguard, adguard-unfiltered, cloudflare, cloudflare-family, cloudflare-security, controld, google, mullvad, opendns, quad9, quad9-unfiltered, and URLs: tls://ADDRESS[:PORT][#NAME], tls://HOST[:PORT][#NAME], https://HOST[:PORT]/PATH[#NAME], quic://HOST[:PORT][#NAME], h3://HOST[:PORT]/PATH[#NAME], udp://ADDRESS[:PORT], or several of one upstream: URL|URL")
	is("1.1.1.1", "write cloudflare, the preset that has this address, or tls://1.1.1.1)")
	is("[2001:4860:4860::8888]:53", "write google, the preset that has this address, or tls://[2001:4860:4860::8888]:53)")
	is("192.0.2.1", "write tls://192.0.2.1 or, for a server of one's own network without TLS, udp://192.0.2.1)")
	is("10.0.0.1:53", "write tls://10.0.0.1:53 or")
	is("2001:db8::1", "write tls://[2001:db8::1] or")
	is("[2001:db8::1]:853", "write tls://[2001:db8::1]:853 or")
	is("cloudflair", "did you mean cloudflare?)")
	is("Quad9", "did you mean quad9?)")
	is("doq://192.0.2.1", "doq is not supported; tls://, https://, quic:// and h3:// are, and udp:// and tcp:// for servers of your own network)")
	is("HTTPS://dns.example/dns-query", "write https in small letters)")
	is("https://dns.example?dns", "a query needs a path before it, as in /dns-query?key=value)")
	is("https://user@dns.example/", "it must not have a user)")
	is("https://192.0.2.1:0/dns-query", `"0" is not a port)`)
	is("TLS://192.0.2.1", "write tls in small letters)")
	is("tls://user@192.0.2.1", "it must not have a user)")
	is("tls://192.0.2.1/path", "it must not have a path or a query)")
	is("tls://192.0.2.1/", "it must not have a path or a query)")
	is("tls://192.0.2.1?x=y", "it must not have a path or a query)")
	is("tls://", `"" is neither an address nor a host name)`)
	is("tls://192.0.2.300", `"192.0.2.300" is neither`)
	is("tls://dns_.exa mple", `"dns_.exa mple" is neither`)
	is("tls://2001:db8::53", `"2001:db8::53" is not a host; an IPv6 address needs brackets)`)
	is("tls://[2001:db8::53", `"[2001:db8::53" is not`)
	is("tls://[192.0.2.1]", `"[192.0.2.1]" is not an IPv6 address in brackets)`)
	is("tls://[2001:db8::53]853", `"853" is not a port)`)
	is("tls://192.0.2.1:0", `"0" is not a port)`)
	is("tls://192.0.2.1:", `"" is not a port)`)
	is("tls://192.0.2.1:dot", `"dot" is not a port)`)
	is("tls://192.0.2.1#", `"" is not a server name)`)
	is("tls://192.0.2.1#a#b", `"a#b" is not a server name)`)

	f("  cloudflare", `1: upstreams: is "cloudflare"; it takes a list, as in [cloudflare, quad9]`)
	f("", "1: upstreams: is nothing; it takes a list")
	f("-", "2: upstreams[0]: is nothing; it takes a preset, a URL or a mapping")
	f("- [quad9]", "2: upstreams[0]: is a list; it takes")
	f("- 0.0.0.0", "2: upstreams[0]: ")
	f("- quad9\n- google\n- quad9", `4: upstreams[2]: is the same upstream as upstreams[0]; remove one of them`)
	f("- tls://192.0.2.1\n- tls://192.0.2.1", `3: upstreams[1]: is the same upstream as upstreams[0]; remove one of them`)
	f("- quad9\n- addresses: [192.0.2.1]\n  name: quad9", `4: upstreams[1].name: "quad9" is the name of`)

	f("- weight: 2", `2: upstreams[0].addresses: is empty`)
	f("- {}", `2: upstreams[0].addresses: is empty`)
	f("- name: x\n  addresses: []", `3: upstreams[0].addresses: is empty`)
	f("- addresses: [dns.example]", `2: upstreams[0].addresses: "dns.example" is not an address; write 192.0.2.1`)
	f("- addresses: ['192.0.2.1:0', 0.0.0.0]", `2: upstreams[0].addresses: 192.0.2.1:0 is not`, `2: upstreams[0].addresses: 0.0.0.0:853 is not`)
	f("- preset: quad9\n  weigth: 2\n  tier: -1\n  port: 70000\n  connections: 0\n  idle_timeout: 3",
		`3: upstreams[0].weigth: does not exist; did you mean weight?`, `4: upstreams[0].tier: must be between 0 and 1000`,
		`5: upstreams[0].port: 70000 is out of range`, `6: upstreams[0].connections: must be between 1 and 1000`, `7: upstreams[0].idle_timeout: "3" has no unit`)
	f("- {preset: quad9, weight: 0}", "2: upstreams[0].weight: must be between 1 and 1000000")
	f("- {preset: quad9, port: -1}", "2: upstreams[0].port: -1 must not be below 0")
	f("- {host: dns.example, doh_port: 0, port: 0, transports: [dot, doh], bootstrap: [192.0.2.1]}",
		"2: upstreams[0].doh_port: must be between 1 and 65535", "2: upstreams[0].port: must be between 1 and 65535")
	f("- {addresses: [192.0.2.1], port: 854}", "2: upstreams[0].port: has no effect without a host for DNS over TLS or QUIC; a port of addresses goes there, as in")
	f("- {protocol: udp, addresses: [192.0.2.1], port: 54}", "2: upstreams[0].port: has no effect with protocol udp")
	f("- {preset: cloudflare, doh_port: 8443}", "2: upstreams[0].doh_port: has no effect beside doh_addresses; a port goes there, as in")
	f("- host: d ns\n  server_name: a..b\n  doh_name: '*'\n  transports: [dot, doh]\n  bootstrap: [192.0.2.1]", `2: upstreams[0].host: "d ns" is not a host name`,
		`3: upstreams[0].server_name: "a..b" is neither a host name nor an address`, `4: upstreams[0].doh_name: "*" is neither`)
	f("- {preset: quad9, source: 192.0.2.300}", `2: upstreams[0].source: "192.0.2.300" is neither an address nor the name of an interface`)
	f("- {protocol: udp, addresses: [192.0.2.1], source: '::'}", `2: upstreams[0].source: :: is no address that packets can leave from`)
	const badProxy = `2: upstreams[0].proxy: is not the URL of a proxy; write http://ADDRESS:PORT or socks5://ADDRESS:PORT, if necessary with USER:PASSWORD@ before the address`
	for _, url := range []string{"https://192.0.2.1:80", "http://proxy.example:3128", "http://192.0.2.1", "http://192.0.2.1:3128/x", "socks5://u:p%zz@192.0.2.1:1", "192.0.2.1:3128"} {
		f("- {preset: quad9, proxy: '"+url+"'}", badProxy)
	}
	f("- {preset: quad9, transports: [dot, doh3], proxy: 'socks5://192.0.2.1:1080'}", "2: upstreams[0].transports: has doh3, which goes through no proxy; remove it here, or remove proxy")
	f("- {protocol: udp, addresses: [192.0.2.1], proxy: 'socks5://192.0.2.1:1080'}", "2: upstreams[0].proxy: has no effect with protocol udp")
	f("- {preset: quad9, proxy: 'http://a:b@192.0.2.1:1'}\n- {preset: quad9, proxy: 'http://a:c@192.0.2.1:1'}", `3: upstreams[1].name: "quad9" is the name of upstreams[0] too, which is another upstream`)
	f("- {preset: quad9, rate: -1}", "2: upstreams[0].rate: must be between 1 and 100000, or 0")
	f("- {preset: quad9, rate: fast}", "2: upstreams[0].rate: ")
	f("- {preset: quad8}", `2: upstreams[0].preset: "quad8" is not a preset; there are adguard, `)
	f("- {preset: [quad9]}", `2: upstreams[0].preset: a list is not a preset`)
	f("- {preset: quad9, server_name: ''}", `2: upstreams[0].server_name: is empty; remove the key to have the default, dns.quad9.net`)
	f("- preset: quad9\n  url: tls://192.0.2.1", `3: upstreams[0].url: is set, and preset too; remove one of them`)
	f("- preset: quad9\n  host: dns.example", `3: upstreams[0].host: is not needed beside addresses`)
	f("- {url: quad9}", `2: upstreams[0].url: "quad9" is not a URL`)
	f("- {url: 'tls://x y'}", `2: upstreams[0].url: "tls://x y" is not an upstream`)
	f("- url: tls://192.0.2.1#dns.example\n  server_name: a.example\n  addresses: [192.0.2.2]",
		`3: upstreams[0].server_name: is set, and url has it too`, `4: upstreams[0].addresses: is set, and url has it too`)
	f("- tls://dns.example", `2: upstreams[0].bootstrap: is empty, so "dns.example" could not be resolved`)
	f("- url: tls://dns.example\n  bootstrap: [resolver]", `3: upstreams[0].bootstrap: "resolver" `)
	f("- preset: quad9\n  key_file: /nowhere.pem", `3: upstreams[0].cert_file: cert_file and key_file need each other`)
	f("- preset: quad9\n  ca_file: /nowhere.pem", `3: upstreams[0].ca_file: open /nowhere.pem`)
	f("- preset: quad9\n  pins: [x]", `3: upstreams[0].pins: "x" is not`)
}

func TestBootstrapIsReportedOnce(t *testing.T) {
	t.Parallel()
	got := problemsOf(t, "upstreams: [tls://a.example, tls://b.example]\nbootstrap: [resolver]")
	if strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, `dotgate.yaml:2: bootstrap: "resolver" `) {
		t.Errorf("got %s", got)
	}
	got = problemsOf(t, "upstreams: [tls://a.example]\nbootstrap:")
	if strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, `dotgate.yaml:2: bootstrap: has no value`) {
		t.Errorf("got %s", got)
	}
}
