//go:build linux && lab

package lab

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

//go:embed testdata/unbound.conf
var unboundConfig string

// unboundAnswer is the address of every name in testdata/unbound.conf.
const unboundAnswer = "192.0.2.53"

// An unbound is a real resolver in a namespace, with DNS over TLS.
type unbound struct {
	t         *testing.T
	namespace namespace
	dir       string
	cmd       *exec.Cmd
	said      strings.Builder // may be read after the end of the process

	mu     sync.Mutex
	paused bool
	before received // by processes that were killed
	count  received // by the current one
}

// received counts queries, and of these those over HTTPS.
type received struct{ all, https int }

// newUnbound starts one that answers over TLS at addr, and over HTTPS at others.
func newUnbound(t *testing.T, n namespace, addr netip.Addr, https []netip.AddrPort, ca *dottest.CA) *unbound {
	t.Helper()
	u := &unbound{t: t, namespace: n, dir: t.TempDir()}
	chain, key := pemOf(t, ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}))
	config := strings.NewReplacer("@ADDR@", addr.String(), "@DIR@", u.dir, "@ANSWER@", unboundAnswer).Replace(unboundConfig)
	for _, a := range https {
		config += fmt.Sprintf("\nserver:\n\tinterface: %s@%d\n\thttps-port: %[2]d\n", a.Addr(), a.Port())
	}
	for name, data := range map[string][]byte{"unbound.conf": []byte(config), "cert.pem": chain, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(u.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u.start()
	t.Cleanup(u.kill)
	return u
}

func (u *unbound) start() {
	u.cmd = exec.Command("unbound", "-d", "-p", "-c", filepath.Join(u.dir, "unbound.conf"))
	u.said.Reset()
	u.cmd.Stderr = &u.said // with messages about closed connections
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := u.namespace.do(u.cmd.Start); err != nil {
		u.t.Error(err)
	}
}

// kill ends Unbound with SIGKILL, even if it is paused.
func (u *unbound) kill() {
	u.queries() // the count of this process
	_ = u.cmd.Process.Kill()
	_ = u.cmd.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.before, u.count = u.before.plus(u.count), received{}
}

func (u *unbound) pause() {
	u.queries()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.paused = true
	_ = u.cmd.Process.Signal(syscall.SIGSTOP)
}

func (u *unbound) goOn() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.paused = false
	_ = u.cmd.Process.Signal(syscall.SIGCONT)
}

func (u *unbound) waitUntilServing() {
	u.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := u.namespace.do(func() error {
			conn, err := net.Dial("tcp", "127.0.0.1:853")
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			u.kill()
			u.t.Errorf("Unbound does not serve within 10 s: %v; it said:\n%s", err, &u.said)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r received) plus(s received) received { return received{r.all + s.all, r.https + s.https} }

// queries returns the number of queries that u has received, as far as it is known, and of
// these those over TLS.
func (u *unbound) queries() (all, dot int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n, ok := u.ask(); ok {
		u.count = n
	}
	sum := u.before.plus(u.count)
	return sum.all, sum.all - sum.https
}

// ask sends a command to Unbound, as unbound-control does.
func (u *unbound) ask() (n received, ok bool) {
	if u.paused {
		return n, false
	}
	conn, err := net.Dial("unix", filepath.Join(u.dir, "control"))
	if err != nil {
		return n, false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond)) // never fails for a socket
	if _, err := fmt.Fprint(conn, "UBCT1 stats_noreset\n"); err != nil {
		return n, false
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "total.num.queries=%d", &n.all); err == nil {
			ok = true
		}
		fmt.Sscanf(lines.Text(), "num.query.https=%d", &n.https)
	}
	return n, ok
}

func pemOf(t *testing.T, c tls.Certificate) (chain, key []byte) {
	t.Helper()
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
