package access

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dotgate/configs/secret"
)

func digits(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The vectors of RFC 9018 appendix A.
func TestServerCookiesFollowRFC9018(t *testing.T) {
	f := func(secrets, client, server, addr string, at int64, want string, ok bool) {
		t.Helper()
		c, err := newCookies(cookieSecrets(secrets))
		if err != nil {
			t.Fatal(err)
		}
		got, valid := c.CheckCookie(nil, digits(t, client), digits(t, server), netip.MustParseAddr(addr), time.Unix(at, 0))
		if hex.EncodeToString(got) != want || valid != ok {
			t.Errorf("%s: got %x, %t; want %s, %t", addr, got, valid, want, ok)
		}
	}
	const (
		first  = "e5e973e5a6b2a43f48e7dc849e37bfcf"
		second = "dd3bdf9344b678b185a6f5cb60fca715"
		third  = "445536bcd2513298075a5d379663c962"
	)
	// A.1: learning a new server cookie
	f(first, "2464c4abcf10c957", "", "198.51.100.100", 1559731985, "010000005cf79f111f8130c3eee29480", false)
	// A.2: the same client learning a renewed one
	f(first, "2464c4abcf10c957", "010000005cf79f111f8130c3eee29480", "198.51.100.100", 1559734385, "010000005cf7a871d4a564a1442aca77", true)
	// A.3: another client, whose cookie is too old, and has other reserved octets
	f(first, "fc93fc62807ddb86", "01abcdef5cf78f71a314227b6679ebf5", "203.0.113.203", 1559734700, "010000005cf7a9acf73a7810aca2381e", false)
	f(first, "fc93fc62807ddb86", "01abcdef5cf78f71a314227b6679ebf5", "203.0.113.203", 0x5cf78f71, "01abcdef5cf78f71a314227b6679ebf5", true)
	// A.4: IPv6, and a rolled secret
	f(third+" "+second, "22681ab97d52c298", "010000005cf7c57926556bd0934c72f8", "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961, "010000005cf7c609a6bb79d16625507a", true)

	const good = "010000005cf79f111f8130c3eee29480"
	f(first, "2464c4abcf10c957", good, "198.51.100.100", 1559731985+1799, good, true) // good for half an hour as it is
	renewed := func(at int64) string {
		c, _ := newCookies([]secret.Text{first})
		cookie, _ := c.CheckCookie(nil, digits(t, "2464c4abcf10c957"), nil, netip.MustParseAddr("198.51.100.100"), time.Unix(at, 0))
		return hex.EncodeToString(cookie)
	}
	f(first, "2464c4abcf10c957", good, "198.51.100.100", 1559731985+3601, renewed(1559731985+3601), false)
	f(first, "2464c4abcf10c957", good, "198.51.100.100", 1559731985-299, good, true) // a clock that is behind
	f(first, "2464c4abcf10c957", good, "198.51.100.100", 1559731985-301, renewed(1559731985-301), false)
	f(first, "2464c4abcf10c957", good[:30], "198.51.100.100", 1559731985, good, false)
	f(first, "2464c4abcf10c957", "02"+good[2:], "198.51.100.100", 1559731985, good, false)
	f(first, "2464c4abcf10c957", good[:30]+"81", "198.51.100.100", 1559731985, good, false)
	// A cookie for another client is bad.
	other, _ := newCookies([]secret.Text{first})
	if _, ok := other.CheckCookie(nil, digits(t, "2464c4abcf10c957"), digits(t, good), netip.MustParseAddr("198.51.100.101"), time.Unix(1559731985, 0)); ok {
		t.Error("a cookie is good for another address")
	}
}

func TestCookieSecretsAreRandomUnlessTheyAreGiven(t *testing.T) {
	a, _ := newCookies(nil)
	b, _ := newCookies(nil)
	if a.secrets[0] == b.secrets[0] || a.secrets[0] == (cookieSecret{}) {
		t.Error("two processes have the same")
	}
	for _, text := range []string{"", "x", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("g", 32)} {
		if _, err := newCookies([]secret.Text{secret.Text(text)}); err == nil {
			t.Errorf("%q passed", text)
		}
	}
}

func cookieSecrets(texts string) (all []secret.Text) {
	for _, text := range strings.Fields(texts) {
		all = append(all, secret.Text(text))
	}
	return all
}
