//go:build linux && e2e

package e2e

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dotgate/upstreams/dottest"
)

// An unbound is an Unbound process that serves DNS over TLS on a loopback address of its
// own. It has the zone example.com, and asks no other server.
type unbound struct {
	*process
	addr   netip.AddrPort
	config string // its file
}

// Each run has addresses of its own, so that several may run at once.
var unboundAddrs = []netip.Addr{dottest.Loopback(), dottest.Loopback(), dottest.Loopback()}

//go:embed testdata/example.com.zone
var exampleZone []byte

//go:embed testdata/unbound.conf
var unboundConfig string

// startUnbounds starts an Unbound on each address.
func startUnbounds(t *testing.T) (all []*unbound, urls []string) {
	t.Helper()
	for _, addr := range unboundAddrs {
		u := newUnbound(t, addr)
		u.start(t)
		all, urls = append(all, u), append(urls, url(u.addr))
	}
	return all, urls
}

// newUnbound writes the files of an Unbound into a directory.
func newUnbound(t *testing.T, addr netip.Addr) *unbound {
	t.Helper()
	dir := t.TempDir()
	u := &unbound{addr: netip.AddrPortFrom(addr, portOf(t, addr)), config: filepath.Join(dir, "unbound.conf")}
	certificate, key := pemOf(t, ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}))
	config := strings.NewReplacer("@ADDR@", addr.String(), "@PORT@", fmt.Sprint(u.addr.Port()), "@DIR@", dir).Replace(unboundConfig)
	for name, data := range map[string][]byte{
		"unbound.conf": []byte(config), "example.com.zone": exampleZone, "cert.pem": certificate, "key.pem": key,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// start starts Unbound, or starts it again at the same address.
func (u *unbound) start(t *testing.T) {
	t.Helper()
	u.process = start(t, nil, program(t, "unbound", "unbound"), "-d", "-p", "-c", u.config)
	u.await(t, "start of service")
}

// freeze stops the process of u: its sockets stay open, and it does not reply.
func (u *unbound) freeze() { u.signal(syscall.SIGSTOP) }

// thaw continues the process.
func (u *unbound) thaw() { u.signal(syscall.SIGCONT) }

// portOf returns 853, or a free port of addr if 853 may not be used.
func portOf(t *testing.T, addr netip.Addr) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, 853).String())
	if errors.Is(err, syscall.EACCES) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// zones is the number of wildcards below example.com, each with an address of its own.
const zones = 10

// unboundName and unboundAddress are the names that testdata/example.com.zone
// has answers for, any number of them.
func unboundName(i int) string { return fmt.Sprintf("n%d.w%d.example.com", i, i%zones) }

func unboundAddress(name string) netip.Addr {
	_, zone, _ := strings.Cut(name, ".w")
	return netip.AddrFrom4([4]byte{192, 0, 2, 100 + zone[0] - '0'})
}
