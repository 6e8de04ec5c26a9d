//go:build linux && lab

package lab

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// roundTrips are the round-trip times of a, b and c.
var roundTrips = [upstreams]time.Duration{10 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond}

// servers is a world of servers of dottest, with faults on request.
type servers struct {
	t      *testing.T
	ca     *dottest.CA
	all    []*dottest.Server
	https  []*dottest.HTTPSServer // none without several transports
	quic   []*dottest.QUICServer  // the same
	best   string                 // transport
	g      *gateway
	mayCut bool
	late   sync.WaitGroup // functions that run later
}

func newServers(t *testing.T, s scenario) *servers {
	t.Helper()
	w := &servers{t: t, ca: dottest.NewCA(), best: DoT, mayCut: s.fault.behaviour.Mangle&dottest.Huge != 0}
	t.Cleanup(w.late.Wait)
	var urls []string
	for i, rtt := range roundTrips {
		o := dottest.Options{
			Addr: samePort(i, w.all), CA: w.ca, RTT: rtt, Certificate: w.certificate("good"), Seed: uint64(i + 1), CountNames: s.special.repeat > 0,
		}
		if s.special.label != "" && !s.special.at(i) {
			o.Handler = plain
		}
		server := dottest.NewServer(t, o)
		w.all = append(w.all, server)
		urls = append(urls, fmt.Sprintf("tls://%s#%s", server.Addr(), dottest.ServerName))
	}
	if s.transports != nil {
		urls = []string{w.addTransports(s)}
	}
	for _, i := range s.on {
		w.startFault(i, s.start)
	}
	file, err := w.ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if s.single {
		urls = urls[:1]
	}
	w.g = newGateway(t, netip.AddrPortFrom(dottest.Loopback(), 5300), file, urls)
	if s.policy != "" {
		w.g.cmd.Env = append(w.g.cmd.Env, "DOTGATE_BALANCER_POLICY="+s.policy)
	}
	if err := w.g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

const (
	DoT  = "dot"
	DoH  = "doh"
	DoQ  = "doq"
	DoH3 = "doh3"
)

// samePort returns another address of this machine, with the port of the first of some
// servers, as a network blocks one port of all.
func samePort[S interface{ Addr() netip.AddrPort }](i int, all []S) string {
	addr := netip.AddrPortFrom(dottest.Loopback(), 0)
	if i > 0 {
		addr = netip.AddrPortFrom(addr.Addr(), all[0].Addr().Port())
	}
	return addr.String()
}

// addTransports adds servers over HTTPS and QUIC, and returns the configuration with all. Those
// over QUIC have the addresses of those over TLS.
func (w *servers) addTransports(s scenario) (file string) {
	var dot, doh [upstreams][]netip.AddrPort
	w.best = s.transports[0]
	https := slices.Contains(s.transports, DoH) || slices.Contains(s.transports, DoH3)
	for i, rtt := range roundTrips {
		server := dottest.NewHTTPSServer(w.t, dottest.HTTPSOptions{
			Addr: samePort(i, w.https), RTT: rtt, Certificate: w.certificate("good"), HTTP3: slices.Contains(s.transports, DoH3),
		})
		w.https = append(w.https, server)
		if https {
			doh[i] = []netip.AddrPort{server.Addr()}
		}
		port := uint16(0)
		if i > 0 {
			port = w.quic[0].Addr().Port()
		}
		w.quic = append(w.quic, dottest.NewQUICServer(w.t, dottest.QUICOptions{
			Addr: netip.AddrPortFrom(w.all[i].Addr().Addr(), port).String(), RTT: rtt, Certificate: w.certificate("good"),
		}))
		if slices.Contains(s.transports, DoT) || slices.Contains(s.transports, DoQ) {
			dot[i] = []netip.AddrPort{w.all[i].Addr()}
		}
	}
	return upstreamsFile(w.t, s, dot, doh, w.quic[0].Addr().Port())
}

func (w *servers) gateway() *gateway { return w.g }

// addr returns the address in the name of upstream i.
func (w *servers) addr(i int) netip.AddrPort {
	if w.best == DoH || w.best == DoH3 {
		return w.https[i].Addr()
	}
	return w.all[i].Addr()
}

func (w *servers) pause() time.Duration { return 100 * time.Millisecond }

// truth asks for AAAA: the answers have 64 bits of the name's hash, so that they differ.
func (w *servers) truth() truth {
	return truth{"AAAA", func(name string) string { return dottest.Address6(name).String() }, w.mayCut}
}

// addressA is the right answer to a query for A. It is the same for one name of 256.
func addressA(name string) string { return dottest.Address(name).String() }

func (w *servers) sample() sample {
	s := sample{at: time.Now()}
	for i, server := range w.all {
		stats := server.Stats()
		s.queries[i], s.dials[i], s.handshakes[i] = stats.Queries, stats.Accepted, stats.Handshakes
		s.best[i] = s.queries[i]
		if w.https == nil {
			continue
		}
		requests, overQUIC, quic := w.https[i].Requests(), w.https[i].RequestsOverQUIC(), w.quic[i].Queries()
		s.queries[i] += requests + quic
		s.dials[i] += w.https[i].Connections() + w.quic[i].Connections()
		switch w.best {
		case DoH:
			s.best[i] = requests - overQUIC
		case DoH3:
			s.best[i] = overQUIC
		case DoQ:
			s.best[i] = quic
		}
	}
	return s
}

func (w *servers) asked(name string) (n int) {
	for _, server := range w.all {
		n += server.Stats().Names[name+"."]
	}
	return n
}

func (w *servers) certificate(which string) tls.Certificate {
	name := []string{dottest.ServerName}
	day := 24 * time.Hour
	switch which {
	case "expired":
		return w.ca.Issue(dottest.CertOptions{Names: name, NotAfter: time.Now().Add(-day)})
	case "future":
		return w.ca.Issue(dottest.CertOptions{Names: name, NotBefore: time.Now().Add(day)})
	case "self":
		return w.ca.Issue(dottest.CertOptions{Names: name, SelfSigned: true})
	case "stranger":
		return dottest.NewCA().Issue(dottest.CertOptions{Names: name})
	case "name":
		return w.ca.Issue(dottest.CertOptions{Names: []string{"another.example.com"}})
	}
	return w.ca.Issue(dottest.CertOptions{Names: name})
}

func (w *servers) startFault(i int, f fault) {
	s := w.all[i]
	if f.certificate != "" {
		s.SetCertificate(w.certificate(f.certificate))
	}
	if f.behaves {
		s.Set(f.behaviour)
	}
	if w.https != nil {
		w.https[i].Set(f.https)
		w.quic[i].Set(f.quic)
	}
	for _, word := range f.words {
		switch word {
		case "stop":
			w.must(s.Stop())
		case "blackhole":
			w.must(s.Blackhole())
		case "freeze":
			s.FreezeConnections()
		case "reset":
			s.CloseConnections(dottest.RST)
		case "restart":
			w.must(s.Stop())
			s.CloseConnections(dottest.RST)
			w.soon(func() { w.must(s.Restart()) })
		case "blip":
			s.Set(dottest.Fault{Delay: blip})
			w.soon(func() { s.Set() })
		}
	}
}

// blip is the duration of faults that happen once.
const blip = 300 * time.Millisecond

func (w *servers) soon(f func()) {
	w.late.Go(func() { time.Sleep(blip); f() })
}

func (w *servers) endFault(i int, f fault) {
	s := w.all[i]
	s.Set()
	if w.https != nil {
		w.https[i].Set(dottest.HTTPSFault{})
		w.quic[i].Set(dottest.QUICFault{})
	}
	if f.certificate != "" {
		s.SetCertificate(w.certificate("good"))
	}
	if f.has("stop") || f.has("blackhole") {
		w.must(s.Restart())
	}
}

func (w *servers) must(err error) {
	if err != nil {
		w.t.Error(err)
	}
}

// plain answers like dottest.Answer, but ignores instructions in names.
func plain(dst, query []byte) ([]byte, time.Duration) {
	const header = 12
	var name []byte
	end := header
	for query[end] != 0 {
		label := query[end+1:][:query[end]]
		name = append(append(name, label...), '.')
		end += 1 + len(label)
	}
	end += 5
	address := dottest.Address6(string(name)).AsSlice()
	if kind := binary.BigEndian.Uint16(query[end-4:]); kind == 1 {
		address = dottest.Address(string(name)).AsSlice()
	}
	dst = append(dst, query[0], query[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0)
	dst = append(dst, query[header:end]...)
	dst = append(dst, 0xc0, header) // the name of the question
	dst = append(dst, query[end-4:end]...)
	dst = append(dst, 0, 0, 1, 44, 0, byte(len(address)))
	return append(dst, address...), 0
}
