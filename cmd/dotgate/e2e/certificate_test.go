//go:build linux && e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

func TestAnUpstreamWithAWrongCertificateGetsNoQuery(t *testing.T) {
	t.Parallel()
	f := func(what string, certificate dottest.CertOptions, issuer *dottest.CA, reason string) {
		t.Run(what, func(t *testing.T) {
			good, urls := startUpstreams(t, 10*time.Millisecond)
			bad := startUpstream(t, dottest.Options{Certificate: issuer.Issue(certificate)})
			// It is the first one, so it would be asked.
			g := startGateway(t, append([]string{url(bad.Addr())}, urls...), "DOTGATE_BALANCER_POLICY=ordered")
			dottestLoad(g.addr, "certificate", 2000, 1000).run(t).mustBeWhole(t)
			if s := bad.Stats(); s.Queries > 0 || s.Handshakes > 0 || s.Accepted == 0 {
				t.Errorf("of %d connections, %d completed the handshake and brought %d queries", s.Accepted, s.Handshakes, s.Queries)
			}
			if n := good[0].Stats().Queries; n < 2000 {
				t.Errorf("the other one got only %d queries", n)
			}
			if line := lineWith(g.output.String(), "upstream is down"); !strings.Contains(line, bad.Addr().String()) || !strings.Contains(line, reason) {
				t.Errorf("the log should name %v and %q:\n%s", bad.Addr(), reason, g.output.String())
			}
		})
	}
	name := []string{dottest.ServerName}
	f("another name", dottest.CertOptions{Names: []string{"other.example.com"}}, ca, "not "+dottest.ServerName)
	f("expired", dottest.CertOptions{Names: name, NotAfter: time.Now().Add(-time.Hour)}, ca, "expired")
	f("self-signed", dottest.CertOptions{Names: name, SelfSigned: true}, ca, "unknown authority")
	f("unknown authority", dottest.CertOptions{Names: name}, dottest.NewCA(), "unknown authority")
}

func lineWith(text, part string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			return line
		}
	}
	return ""
}
