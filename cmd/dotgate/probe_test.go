package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs"
	"dotgate/upstreams"
	"dotgate/upstreams/dottest"
)

// designating answers as a resolver that designates the transports in the records, and
// otherwise as dottest.Answer does.
func designating(t *testing.T, records ...string) dottest.Handler {
	return func(dst, query []byte) ([]byte, time.Duration) {
		var m dns.Msg
		if err := m.Unpack(query); err != nil || m.Question[0].Qtype != dns.TypeSVCB {
			return dottest.Answer(dst, query)
		}
		reply := new(dns.Msg).SetReply(&m)
		for _, text := range records {
			record, err := dns.NewRR("_dns.resolver.arpa. 300 SVCB " + text)
			if err != nil {
				t.Error(err)
				continue
			}
			reply.Answer = append(reply.Answer, record)
		}
		packed, err := reply.Pack()
		if err != nil {
			t.Error(err)
		}
		return append(dst, packed...), 0
	}
}

// TestProbeDiscoversTransports designates three transports, of which one has a certificate
// for another name, and writes those that worked as YAML.
func TestProbeDiscoversTransports(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certificate := ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})
	foreign := ca.Issue(dottest.CertOptions{Names: []string{"another.example.com"}})
	https := dottest.NewHTTPSServer(t, dottest.HTTPSOptions{Certificate: certificate})
	stranger := dottest.NewHTTPSServer(t, dottest.HTTPSOptions{Certificate: foreign})
	addr := dottest.Loopback()
	quic := dottest.NewQUICServer(t, dottest.QUICOptions{Addr: netip.AddrPortFrom(addr, 0).String(), Certificate: certificate})
	dot := dottest.NewServer(t, dottest.Options{Addr: netip.AddrPortFrom(addr, 0).String(), Certificate: certificate, Handler: designating(t,
		fmt.Sprintf(`3 dns.example.com. alpn="doq" port=%d`, quic.Addr().Port()),
		fmt.Sprintf(`1 dns.example.com. alpn="h2" port=%d ipv4hint=%s dohpath="/dns-query{?dns}"`, https.Addr().Port(), https.Addr().Addr()),
		fmt.Sprintf(`2 dns.example.com. alpn="h2,unknown" port=%d ipv4hint=%s dohpath="/dns-query{?dns}"`, stranger.Addr().Port(), stranger.Addr().Addr()),
		`4 dns.example.com. mandatory=key99 alpn="dot" key99="x"`,
		`5 dns.example.com. alpn="h2"`)})
	config, err := settings.Load(configs.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	u := settings.Upstream{Options: upstreams.Options{
		Name: "mine", Protocol: upstreams.TLS, ServerName: dottest.ServerName, CAFile: file, Log: slog.New(slog.DiscardHandler),
		Addresses: []netip.AddrPort{dot.Addr()},
	}}
	found := examineAll(t.Context(), config, []settings.Upstream{u}, examination{discover: true})
	var lines []string
	for _, f := range found {
		verdict := "ok"
		if f.Error != "" {
			verdict = "fails"
		}
		lines = append(lines, fmt.Sprint(f.Transport, " ", f.Address, " ", f.Designated, " ", verdict))
	}
	want := []string{
		fmt.Sprintf("dot %v false ok", dot.Addr()), fmt.Sprintf("doh %v true ok", https.Addr()),
		fmt.Sprintf("doh %v true fails", stranger.Addr()), fmt.Sprintf("doq %v true ok", quic.Addr()),
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	var yaml bytes.Buffer
	if err := settings.WriteUpstreams(&yaml, laddersOf([]settings.Upstream{u}, found)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"name: mine", "transports: [dot, doh, doq]", fmt.Sprintf("doq_port: %d", quic.Addr().Port()), https.Addr().String(), dottest.ServerName} {
		if !strings.Contains(yaml.String(), part) {
			t.Errorf("%q is not in\n%s", part, &yaml)
		}
	}
	if strings.Contains(yaml.String(), stranger.Addr().String()) {
		t.Errorf("what was not verified is in\n%s", &yaml)
	}
}

// TestProbeOfHostileDesignations has an upstream designate far too much: it costs few dials.
func TestProbeOfHostileDesignations(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config, err := settings.Load(configs.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	f := func(want int, text string, records ...string) {
		t.Helper()
		dot := dottest.NewServer(t, dottest.Options{Certificate: ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}), Handler: designating(t, records...)})
		u := settings.Upstream{Options: upstreams.Options{
			Name: "mine", Protocol: upstreams.TLS, ServerName: dottest.ServerName, CAFile: file, Log: slog.New(slog.DiscardHandler),
			Addresses: []netip.AddrPort{dot.Addr()},
		}}
		found := examineAll(t.Context(), config, []settings.Upstream{u}, examination{discover: true})
		if len(found) != 1+want || text != "" && !strings.Contains(found[1].Error, text) {
			t.Errorf("%.80q: %d found, want %d more than one", records, len(found), want)
		}
	}
	var hints []string
	for i := range 1000 {
		hints = append(hints, fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250))
	}
	f(65, "more than 64 endpoints", `1 dns.example.com. alpn="dot,doq" port=9 ipv4hint=`+strings.Join(hints, ","))
	f(1, "refused", `1 dns.example.com. alpn="`+strings.Repeat("dot,", 300)+`dot" port=9 ipv4hint=127.1.1.1,0.0.0.0,224.0.0.1,169.254.169.254`)
	f(0, "", `1 dns.example.com. alpn="dot" port=9 ipv4hint=0.0.0.0 ipv6hint=ff02::1`)
}
