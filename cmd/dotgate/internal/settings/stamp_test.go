package settings

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// stampOf returns a DNS stamp of these fields, each behind its length.
func stampOf(kind byte, fields ...string) string {
	payload := append([]byte{kind}, make([]byte, 8)...)
	for _, field := range fields {
		payload = append(append(payload, byte(len(field))), field...)
	}
	return "sdns://" + base64.RawURLEncoding.EncodeToString(payload)
}

func TestDNSStampsAreUpstreams(t *testing.T) {
	t.Parallel()
	f := func(stamp, want string, hashes ...string) {
		t.Helper()
		c := mustParse(t, "bootstrap: [192.0.2.1]", "DOTGATE_UPSTREAMS="+stamp)
		u := c.Upstreams[0]
		if got := fmt.Sprint(u.Transports, " ", summary(u)); got != want || strings.Join(u.CertHashes, " ") != strings.Join(hashes, " ") {
			t.Errorf("%s: got %s %v, want %s", stamp, got, u.CertHashes, want)
		}
		sameAgain(t, c)
	}
	// As published.
	f("sdns://AgcAAAAAAAAADjE4NS4yMTYuMjcuMTQyID4aGg9sU_PpekktVwhLW5gHBZ7gV6sVBYdv2D_aPbg4CmRvaC40MmwuZnIKL2Rucy1xdWVyeQ",
		"[doh] doh.42l.fr: [] #doh.42l.fr w1 t0 doh: [185.216.27.142:443]/dns-query", "3e1a1a0f6c53f3e97a492d57084b5b9807059ee057ab1505876fd83fda3db838")
	f("sdns://AgIAAAAAAAAAAAAPZG5zLmV4YW1wbGUuY29tCi9kbnMtcXVlcnk", "[doh] dns.example.com: dns.example.com:853 by [192.0.2.1] #dns.example.com w1 t0 doh: []/dns-query")

	f(stampOf(0x03, "192.0.2.53", "", "dns.example"), "[] dns.example: [192.0.2.53:853] #dns.example w1 t0")
	f(stampOf(0x04, "192.0.2.53:8853", "", "dns.example"), "[doq] dns.example: [192.0.2.53:8853] #dns.example w1 t0 via [doq]")
	f(stampOf(0x03, "[2001:db8::1]:8853", "", "dns.example"), "[] dns.example: [[2001:db8::1]:8853] #dns.example w1 t0")
	f(stampOf(0x03, "", "", "bücher.example:8853"), "[] xn--bcher-kva.example: xn--bcher-kva.example:8853 by [192.0.2.1] #xn--bcher-kva.example w1 t0")
	f(stampOf(0x03, ":8853", "", "dns.example", "192.0.2.9"), "[] dns.example: dns.example:8853 by [192.0.2.1] #dns.example w1 t0")
	f(stampOf(0x02, "192.0.2.53:8443", "", "192.0.2.53", "/q")+"==", "[doh] 192.0.2.53: [] #192.0.2.53 w1 t0 doh: [192.0.2.53:8443]/q")
	two := strings.Repeat("\x11", 32) + "\x20" + strings.Repeat("\x22", 32)
	payload := "\x03\x07\x00\x00\x00\x00\x00\x00\x00\x0a192.0.2.53\xa0" + two + "\x0bdns.example"
	f("sdns://"+base64.RawURLEncoding.EncodeToString([]byte(payload)), "[] dns.example: [192.0.2.53:853] #dns.example w1 t0", strings.Repeat("11", 32), strings.Repeat("22", 32))
	f("tls://192.0.2.53|"+stampOf(0x02, "192.0.2.53", "", "dns.example", "/q"), "[dot doh] dns.example: [192.0.2.53:853] #dns.example w1 t0 doh: [192.0.2.53:443]/q")
}

func TestDNSStampsThatAreRefused(t *testing.T) {
	t.Parallel()
	f := func(stamp, want string) {
		t.Helper()
		want = fmt.Sprintf("DOTGATE_UPSTREAMS: upstreams[0]: %q is not an upstream (%s); there are", stamp, want)
		if got := problemsOf(t, "", "DOTGATE_UPSTREAMS="+stamp); !strings.HasPrefix(got, want) {
			t.Errorf("got %s want %s", got, want)
		}
	}
	const notSupported = ", which is not supported; those of DNS over HTTPS, TLS and QUIC are"
	f(stampOf(0x00, "192.0.2.1"), "it is a DNS stamp of plain DNS"+notSupported)
	f(stampOf(0x01, "192.0.2.1"), "it is a DNS stamp of DNSCrypt"+notSupported)
	f(stampOf(0x05, "192.0.2.1"), "it is a DNS stamp of an Oblivious DoH target"+notSupported)
	f(stampOf(0x81, "192.0.2.1"), "it is a DNS stamp of a DNSCrypt relay"+notSupported)
	f(stampOf(0x85, "192.0.2.1"), "it is a DNS stamp of an Oblivious DoH relay"+notSupported)
	f(stampOf(0x42), "it is a DNS stamp of the unknown protocol 0x42"+notSupported)
	f("sdns://", "it is not the base64url of a DNS stamp")
	f("sdns://a!", "it is not the base64url of a DNS stamp")
	f("SDNS://AwAA", "write sdns in small letters")
	whole := stampOf(0x02, "192.0.2.53", "", "dns.example", "/q")
	for end := len("sdns://") + 4; end < len(whole)-1; end += 4 {
		f(whole[:end], "the DNS stamp ends too early")
	}
	f(stampOf(0x03, "192.0.2.53", "", "dns.example", "", "more"), "the DNS stamp has 5 octets too many")
	f(stampOf(0x02, "192.0.2.53", "", "dns.example", "q"), `the DNS stamp has the path "q", which does not begin with /`)
	f(stampOf(0x03, "dns", "", "dns.example"), `the DNS stamp has the address "dns", which is none`)
	f(stampOf(0x03, "192.0.2.53:0", "", "dns.example"), `the address of the DNS stamp: "0" is not a port`)
	f(stampOf(0x03, "192.0.2.53:1", "", "dns.example:2"), "the DNS stamp has the port 1 with its address, and 2 with its host")
	f(stampOf(0x03, "192.0.2.53", "", ""), `"" is not a server name`)
	f(stampOf(0x03, "", "", "a b"), `"a b" is not a server name`)
	want := "DOTGATE_UPSTREAMS: upstreams[0].cert_hashes: \"6162\" is not the hexadecimal form of a SHA-256 digest\n"
	if got := problemsOf(t, "", "DOTGATE_UPSTREAMS="+stampOf(0x03, "192.0.2.53", "ab", "dns.example")); got != want {
		t.Errorf("got %s want %s", got, want)
	}
	want = "dotgate.yaml:1: upstreams[0].server_name: is set, and url has it too; remove one of them\n"
	if got := problemsOf(t, "upstreams: [{url: '"+whole+"', server_name: a.example}]"); got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

// Any text is an upstream or an error, and an upstream is the same when it is written out.
func FuzzStamp(f *testing.F) {
	f.Add(stampOf(0x02, "192.0.2.53", "", "dns.example", "/q", "192.0.2.9"))
	f.Add(stampOf(0x03, "[2001:db8::1]:8853", strings.Repeat("h", 32), "dns.example"))
	f.Add(stampOf(0x00, "192.0.2.1"))
	f.Add("sdns://AwD_")
	f.Fuzz(func(t *testing.T, stamp string) {
		o, err := parseStamp(strings.TrimPrefix(stamp, "sdns://"))
		if err == nil && o.Host == "" && len(o.Addresses)+len(o.DoHAddresses) != 1 {
			t.Errorf("got %+v", o)
		}
		c, err := parse("bootstrap: [192.0.2.1]\nupstreams: ['" + strings.ReplaceAll(stamp, "'", "") + "']")
		if err == nil {
			sameAgain(t, c)
		}
	})
}
