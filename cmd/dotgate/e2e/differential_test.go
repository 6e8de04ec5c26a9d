//go:build linux && e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/upstreams/dottest"
)

// TestTheGatewayAndItsUpstreamAgree asks Unbound directly and through the gateway,
// for names of 12 types: code, flags and data are the same.
func TestTheGatewayAndItsUpstreamAgree(t *testing.T) {
	names := either(500, 10_000)
	u := newUnbound(t, unboundAddrs[0])
	u.start(t)
	g := startGateway(t, []string{url(u.addr)})
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(caFile); err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no authorities", err)
	}
	direct := &dns.Client{Net: "tcp-tls", TLSConfig: &tls.Config{RootCAs: roots, ServerName: dottest.ServerName}, Timeout: startLimit}
	through := &dns.Client{Net: "tcp", Timeout: startLimit}
	types := []uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeTXT, dns.TypeNS, dns.TypeSOA,
		dns.TypeCNAME, dns.TypeSRV, dns.TypeHTTPS, dns.TypeCAA, dns.TypeDS, 65280,
	}
	known := []string{"example.com.", "www.example.com.", "alias.example.com.", "dangling.example.com.", "missing.example.com.", "big.example.com.", "mail.example.com.", "example.org."}
	const workers = 8
	var asking sync.WaitGroup
	for w := range workers {
		asking.Go(func() {
			one, err := direct.Dial(u.addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer one.Close()
			two, err := through.Dial(g.addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer two.Close()
			for i := w; i < names; i += workers {
				name := fmt.Sprintf("n%d.w%d.example.com.", i, i%zones)
				if i < 100 {
					name = known[i%len(known)]
				}
				for _, qtype := range types {
					m := new(dns.Msg).SetQuestion(name, qtype)
					m.SetEdns0(4096, i%2 == 0)
					m.AuthenticatedData, m.CheckingDisabled = true, i%3 == 0
					_ = one.SetDeadline(time.Now().Add(startLimit))
					_ = two.SetDeadline(time.Now().Add(startLimit))
					want, _, err := direct.ExchangeWithConn(m, one)
					if err != nil {
						t.Errorf("%s %s: %v", name, dns.Type(qtype), err)
						return
					}
					got, _, err := through.ExchangeWithConn(m, two)
					if err != nil {
						t.Errorf("%s %s: %v", name, dns.Type(qtype), err)
						return
					}
					if a, b := essence(want), essence(got); a != b {
						t.Errorf("%s %s:\nUnbound says  %s\nthe gateway   %s", name, dns.Type(qtype), a, b)
					}
				}
			}
		})
	}
	asking.Wait()
	t.Logf("%d questions", names*len(types))
}

// essence is the part of a reply that must be equal in both: TTLs count down, records may
// be in any order, and AA is set by authoritative servers only.
func essence(m *dns.Msg) string {
	m = m.Copy()
	m.Id, m.Authoritative = 0, false
	words := []string{strings.Split(m.MsgHdr.String(), "\n")[0], m.Question[0].String()}
	words = append(words, strings.Join(strings.Fields(m.MsgHdr.String()), " "))
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var records []string
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue // it is hop by hop
			}
			rr.Header().Ttl = 0
			records = append(records, rr.String())
		}
		slices.Sort(records)
		words = append(words, strings.Join(records, "|"))
	}
	return strings.Join(words, " / ")
}
