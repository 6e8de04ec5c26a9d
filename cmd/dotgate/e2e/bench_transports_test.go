//go:build linux && load

package e2e

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

const transportsEnv = "DOTGATE_E2E_TRANSPORTS"

// missesByTransport are the URLs of the same upstream, and the limits of a miss as multiples
// of one over TLS; 0 means none.
var missesByTransport = []struct {
	name, url string
	bound     float64
}{
	{"TLS", "tls://%s#%s", 0},
	{"HTTPS (HTTP/2)", "https://%s/dns-query#%s", 1.3},
	{"QUIC", "quic://%s#%s", 2},
	{"HTTPS (HTTP/3)", "h3://%s/dns-query#%s", 0},
}

// transportCosts compares the cost of a miss by its transport.
func transportCosts(t *testing.T, rows *loadTable) {
	w := work{name: "every name new at 5 000 a second", network: "udp", links: 8, rate: 5_000, names: fresh(1 << 30)}
	figures := make(map[string][]figure)
	for range runs() {
		for _, m := range missesByTransport {
			f := w.measure(t, over(m.url))
			t.Logf("%-14s %v", m.name, f)
			figures[m.name] = append(figures[m.name], f)
		}
	}
	costs := medians(figures, func(f figure) float64 { return f.cost })
	for _, m := range missesByTransport[1:] {
		bound := ""
		if m.bound > 0 {
			bound = fmt.Sprint(m.bound)
		}
		rows.add(t, "a miss over "+m.name+", in what it costs over TLS ("+w.name+")", "%.2f",
			map[string]float64{"dotgate": costs[m.name] / costs[missesByTransport[0].name]}, bound, m.bound)
	}
}

// over is dotgate with an upstream that has this URL, in a process of its own.
func over(form string) contender {
	return contender{"dotgate", gatewayAlone, func(t *testing.T, listen, _ netip.AddrPort) *process {
		upstream := ownAddr()
		on(t, func() { startTransports(t, upstream, form) }, loadProcessor)
		g := start(t, environment(listen, []string{fmt.Sprintf(form, upstream, dottest.ServerName)}, "DOTGATE_CACHE_SIZE=1GiB"), dotgate, "serve")
		g.await(t, "dotgate is serving")
		return g
	}}
}

// startTransports starts an upstream for URLs of this form.
func startTransports(t *testing.T, addr netip.AddrPort, form string) {
	t.Helper()
	dir := certificateFiles(t)
	scheme, _, _ := strings.Cut(form, ":")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, append(os.Environ(), fmt.Sprintf("%s=%s %s %s", transportsEnv, addr, dir, scheme)), self, "-test.run=^TestTransports$", "-test.timeout=0")
	p.await(t, "the upstream is serving")
}

// TestTransports is the upstream's process.
func TestTransports(t *testing.T) {
	settings := os.Getenv(transportsEnv)
	if settings == "" {
		t.Skip("TestLoad starts it")
	}
	var addr, dir, scheme string
	if _, err := fmt.Sscan(settings, &addr, &dir, &scheme); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(dir+"/cert.pem", dir+"/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	answer := func(dst, query []byte) ([]byte, time.Duration) { return appendAnswer(dst, query), 0 }
	switch scheme {
	case "tls":
		dottest.NewServer(t, dottest.Options{Addr: addr, Certificate: pair, Handler: answer})
	case "quic":
		dottest.NewQUICServer(t, dottest.QUICOptions{Addr: addr, Certificate: pair, Handler: answer, Streams: 4096})
	default:
		dottest.NewHTTPSServer(t, dottest.HTTPSOptions{Addr: addr, Certificate: pair, Handler: answer, HTTP3: true})
	}
	fmt.Println("the upstream is serving")
	select {}
}
