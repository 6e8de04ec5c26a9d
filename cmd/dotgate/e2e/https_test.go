//go:build linux && e2e

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// Upstreams over HTTPS are real servers: Unbound, and dnsdist in front of it.
func TestRealServersOverHTTPS(t *testing.T) {
	u := newUnbound(t, dottest.Loopback())
	https := freePort(t, u.addr.Addr())
	appendTo(t, u.config, fmt.Sprintf("\nserver:\n\tinterface: %s@%d\n\thttps-port: %[2]d\n", https.Addr(), https.Port()))
	u.start(t)
	t.Run("Unbound", func(t *testing.T) { loadOverHTTPS(t, https) })
	t.Run("dnsdist", func(t *testing.T) {
		loadOverHTTPS(t, startDnsdist(t, filepath.Dir(u.config), u.addr))
	})
}

func loadOverHTTPS(t *testing.T, server netip.AddrPort) {
	t.Helper()
	g := startGateway(t, []string{fmt.Sprintf("https://%s/dns-query#%s", server, dottest.ServerName)})
	unboundLoad(g, 2000, 1000).run(t).mustBeWhole(t)
}

// startDnsdist starts dnsdist for DNS over HTTPS, with the certificate in dir, in front of
// an upstream.
func startDnsdist(t *testing.T, dir string, upstream netip.AddrPort) netip.AddrPort {
	t.Helper()
	addr := dottest.Loopback()
	https, plain := freePort(t, addr), freePort(t, addr)
	config := filepath.Join(dir, "dnsdist.conf")
	appendTo(t, config, fmt.Sprintf(`
setLocal(%q)
setACL("127.0.0.0/8")
setSecurityPollSuffix("")
addDOHLocal(%q, %q, %q, "/dns-query")
newServer({address=%q, tls="openssl", caStore=%q, subjectName=%q, validateCertificates=true}):setUp()
`, plain, https, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), upstream, caFile, dottest.ServerName))
	start(t, nil, program(t, "dnsdist", "dnsdist"), "--supervised", "--disable-syslog", "-C", config)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", https.String())
		if err == nil {
			conn.Close()
			return https
		}
		if time.Now().After(end) {
			t.Fatalf("dnsdist does not listen at %v: %v", https, err)
		}
	}
}

// freePort returns a port of addr that is free over TCP.
func freePort(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
