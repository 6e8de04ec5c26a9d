package upstreams

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"dotgate/configs/bounds"
	"dotgate/configs/files"
	"dotgate/configs/secret"
)

// Options of an Upstream. A zero field means its default.
type Options struct {
	// Name is the name of the upstream in logs, metrics and commands. The default is the
	// name in its certificate.
	//
	// Required here.
	Name string `config:"name"`
	// Protocol is how the upstream is asked: tls, or udp or tcp, which are clear text and
	// for servers of your own network.
	//
	// UDP is for NewPlain, the others are for New.
	Protocol string `config:"protocol"`
	// Transports are the encrypted ways to ask that are used with protocol tls, the best
	// first: dot (DNS over TLS), doh (DNS over HTTPS, as HTTP/2), doq (DNS over QUIC) and doh3
	// (DNS over HTTPS, as HTTP/3). While one is blocked or out of order, the next one is used.
	// [] is all that the upstream has: dot, and doh if there are doh_addresses.
	Transports []string `config:"transports"`
	// Addresses is where it answers: IP, for port 853 (53 with udp and tcp), or IP:port.
	// Either addresses or host is required, or doh_addresses.
	Addresses []netip.AddrPort `config:"addresses"`
	// DoHAddresses is where it answers over HTTPS: IP, for port 443, or IP:port. With doh or
	// doh3 in transports, the default is addresses or host, with doh_port.
	DoHAddresses []netip.AddrPort `config:"doh_addresses"`
	// DoHPort is the port that goes with host and addresses over HTTPS.
	DoHPort uint16 `config:"doh_port" bounds:"1 65535"`
	// DoHPath is the path of its URL.
	DoHPath string `config:"doh_path"`
	// DoHName is the name that the certificate must be valid for over HTTPS, and the host of
	// its URL. The default is server_name.
	DoHName string `config:"doh_name"`
	// DoQPort is the port that goes with host and addresses over QUIC; 0 stands for that of
	// addresses, or port.
	DoQPort uint16 `config:"doq_port" bounds:"1 65535 0"`
	// Host is a name whose addresses are looked up, through bootstrap, instead of addresses.
	Host string `config:"host"`
	// Port is the port that goes with host, for DNS over TLS and over QUIC.
	Port uint16 `config:"port" bounds:"1 65535"`
	// Bootstrap are the resolvers to ask for host. The default is the section bootstrap.
	//
	// "192.0.2.1:53" is plain DNS, "tls://192.0.2.1:853#dns.example" is DoT.
	Bootstrap []string `config:"bootstrap"`
	// Source is what queries to it leave from: an address of this machine, for addresses of that
	// family, or the name of an interface (on Linux). Empty leaves it to the routes of the
	// system. It does not hold for the resolvers of bootstrap.
	Source string `config:"source"`
	// Proxy is what connections to it are made through: http://ADDRESS:PORT (CONNECT) or
	// socks5://ADDRESS:PORT, with USER:PASSWORD@ before the address if necessary. It is for dot
	// and doh. The resolvers of bootstrap are asked without it.
	Proxy secret.URL `config:"proxy"`
	// Rate is how many queries a second it is to be spared from exceeding: beyond that, other
	// upstreams are asked, and if all are at their limits, the one with the most room. 0 is no
	// limit. Limits that upstreams show by HTTP status 429 or REFUSED are learnt besides.
	//
	// With protocol udp, it holds for each of the addresses, which are asked by turns.
	Rate int `config:"rate" bounds:"1 100000 0"`
	// ServerName is the name that the certificate must be valid for. The default is host or,
	// without it, the address.
	ServerName string `config:"server_name"`
	// CAFile is a PEM file of the authorities to trust, for a service with an authority of
	// its own; empty for those of the system.
	CAFile string `config:"ca_file"`
	// Pins are base64 SHA-256 digests of public keys (SPKI), one of which must be in the
	// verified chain as well. They stop matching when the service changes its keys.
	Pins []string `config:"pins"`
	// CertHashes are hexadecimal SHA-256 digests of certificates without their signatures
	// (TBSCertificate), one of which must be in the verified chain as well. DNS stamps have them.
	CertHashes []string `config:"cert_hashes"`
	// CertFile is a PEM file with a client certificate, for a service that requires one; it
	// needs key_file.
	CertFile string `config:"cert_file"`
	// KeyFile is a PEM file with the key of cert_file.
	KeyFile string `config:"key_file"`
	// Connections is how many connections may be open at once; a further one is opened only
	// when those are busy. Up to eight times as many are made at once while the upstream
	// closes each after a few answers.
	Connections int `config:"connections" bounds:"1 1000"`
	// ConnectTimeout is the longest that the TCP handshake may take; 0s is derived from
	// earlier handshakes, from 1s to 4s or gateway.timeout. If the upstream has been
	// unreachable for some time, some handshakes may take longer.
	//
	// 0 is 1 s, or four times as long as it took before; twice as long after each timeout;
	// and the longest of these for an upstream that was never reached.
	ConnectTimeout time.Duration `config:"connect_timeout" bounds:"10ms 1m 0s"`
	// HandshakeTimeout is the longest that the TLS handshake may take; 0s is derived from
	// earlier handshakes, from 1.5s to 4s or gateway.timeout.
	//
	// If a handshake takes longer than that while queries wait for it, it is continued up to
	// the longest limit, and another one is made beside it.
	HandshakeTimeout time.Duration `config:"handshake_timeout" bounds:"10ms 1m 0s"`
	// IdleTimeout is how long a connection is kept without a query. Keep it below the limit
	// of the server (quad9 has 3.5s).
	IdleTimeout time.Duration `config:"idle_timeout" bounds:"100ms 1h"`

	// Patience is how long a client waits for an answer (gateway.timeout). Limits
	// that are not set grow with what was learnt: up to 4 s, and up to Patience
	// where that is longer.
	Patience time.Duration `config:"-"`
	// Built is when the program was built. While the system's clock is behind it,
	// certificates are verified as of Built. Zero means by the system's clock always.
	Built time.Time `config:"-"`
	// Network is what the upstreams of this machine know together. Default: one of its own.
	Network *Network `config:"-"`
	// Log gets the messages for the operator. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the options with all defaults.
func Defaults() Options { return Options{}.withDefaults() }

// The values of Options.Protocol.
const (
	TLS = "tls"
	UDP = "udp"
	TCP = "tcp"
)

func (o Options) withDefaults() Options {
	o.Protocol = cmp.Or(o.Protocol, TLS)
	o.Port = cmp.Or(o.Port, dotPort)
	o.DoHPort = cmp.Or(o.DoHPort, dohPort)
	o.DoHPath = cmp.Or(o.DoHPath, dohPath)
	o.ServerName = cmp.Or(o.ServerName, o.Host)
	o.Connections = cmp.Or(o.Connections, 4)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 8*time.Second)
	o.Patience = max(o.Patience, patienceLimit)
	o.Log = cmp.Or(o.Log, slog.Default())
	return o
}

// The values of Options.Transports.
const (
	DoT  = "dot"
	DoH  = "doh"
	DoQ  = "doq"
	DoH3 = "doh3"
)

// transports has all that are encrypted.
var transports = []string{DoT, DoH, DoQ, DoH3}

const (
	dotPort = 853          // RFC 7858 section 3.1
	dohPort = 443          // RFC 8484 section 4.1
	dohPath = "/dns-query" // as most services have it
)

// overHTTP reports whether a transport is DNS over HTTPS.
func overHTTP(transport string) bool { return transport == DoH || transport == DoH3 }

// overUDP reports whether the packets of a transport are those of UDP.
func overUDP(transport string) bool { return transport == DoQ || transport == DoH3 || transport == UDP }

// ladder returns the names of all transports but UDP, the best first.
func (o Options) ladder() []string {
	switch {
	case o.Protocol != TLS:
		return []string{TCP}
	case len(o.Transports) > 0:
		return o.Transports
	case len(o.DoHAddresses) == 0:
		return []string{DoT}
	case len(o.Addresses) == 0 && o.Host == "":
		return []string{DoH}
	}
	return []string{DoT, DoH}
}

// placesOf returns where the upstream answers, for each of its transports, if its host has
// these addresses.
func (o Options) placesOf(hosts []netip.Addr) (places [][]netip.AddrPort) {
	for _, transport := range o.ladder() {
		of, port := o.Addresses, o.Port
		switch {
		case overHTTP(transport):
			of, port = o.DoHAddresses, o.DoHPort
		case transport == DoQ && o.DoQPort != 0:
			of, port = nil, o.DoQPort
		}
		if len(of) == 0 {
			for _, a := range o.Addresses {
				of = append(of, netip.AddrPortFrom(a.Addr(), port))
			}
		}
		if len(of) == 0 {
			for _, host := range hosts {
				of = append(of, netip.AddrPortFrom(host, port))
			}
		}
		places = append(places, of)
	}
	return places
}

// Check reports every option that is not valid, by its name. It reads the files that are
// named.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	if o.Name == "" {
		report("name", "is empty")
	}
	switch o.Protocol {
	case TLS:
		o.checkTransports(report)
		o.checkAddresses(report)
		o.checkPorts(report)
		o.checkNames(report)
	case UDP, TCP:
		o.checkPlain(report)
	default:
		report("protocol", fmt.Sprintf("%q does not exist; there are tls, udp, tcp", o.Protocol))
	}
	bounds.Check(o, report)
	if _, err := parseSource(o.Source); err != nil {
		report("source", err.Error())
	}
	o.checkProxy(report)
	if _, err := o.roots(); err != nil {
		report("ca_file", err.Error())
	}
	if _, err := o.pins(); err != nil {
		report("pins", err.Error())
	}
	if _, err := o.certHashes(); err != nil {
		report("cert_hashes", err.Error())
	}
	if _, err := o.certificates(); err != nil {
		report("cert_file", err.Error(), "key_file")
	}
}

// checked returns o with its defaults, or an error that says all that is wrong with it.
// Some protocols are for another function.
func (o Options) checked(other string, protocols ...string) (Options, error) {
	o = o.withDefaults()
	err := bounds.Err("upstream "+o.Name+": ", o.Check)
	if slices.Contains(protocols, o.Protocol) {
		err = errors.Join(err, fmt.Errorf("upstream %s: protocol %s is for %s", o.Name, o.Protocol, other))
	}
	return o, err
}

// checkPlain checks a server without TLS, and reports options that need TLS.
func (o Options) checkPlain(report func(option, problem string, beside ...string)) {
	if len(o.Addresses) == 0 {
		report("addresses", "is empty; a server that is asked in clear text needs one, a name won't do", "protocol")
	}
	o.checkServers(report)
	set := o.setOfDoH()
	if o.DoQPort != 0 {
		set = append(set, "doq_port")
	}
	for _, option := range set {
		report(option, "has no effect with protocol "+o.Protocol+", which is clear text; remove it", "protocol")
	}
	for option, set := range map[string]bool{
		"host": o.Host != "", "server_name": o.ServerName != "", "ca_file": o.CAFile != "", "pins": len(o.Pins) > 0, "cert_hashes": len(o.CertHashes) > 0, "proxy": o.Proxy != "",
		"cert_file": o.CertFile != "", "key_file": o.KeyFile != "", "bootstrap": len(o.Bootstrap) > 0,
		"transports": len(o.Transports) > 0, "port": o.Port != dotPort,
	} {
		if set {
			report(option, "has no effect with protocol "+o.Protocol+", which is clear text without certificates; remove it", "protocol")
		}
	}
}

func (o Options) checkTransports(report func(option, problem string, beside ...string)) {
	for i, t := range o.Transports {
		switch {
		case !slices.Contains(transports, t):
			report("transports", fmt.Sprintf("%q does not exist; there are %s", t, strings.Join(transports, ", ")))
		case slices.Contains(o.Transports[:i], t):
			report("transports", fmt.Sprintf("has %s twice", t))
		}
	}
	if set := o.setOfDoH(); len(set) > 0 && !slices.ContainsFunc(o.ladder(), overHTTP) {
		report("transports", fmt.Sprintf("does not have doh, but %s is set; add doh here, or remove that", strings.Join(set, ", ")), set...)
	}
	if o.DoQPort != 0 && !slices.Contains(o.ladder(), DoQ) {
		report("transports", "does not have doq, but doq_port is set; add doq here, or remove that", "doq_port")
	}
	if !strings.HasPrefix(o.DoHPath, "/") || strings.ContainsFunc(o.DoHPath, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' || r == '{' }) {
		report("doh_path", fmt.Sprintf("%q is not the path of a URL, as /dns-query is", o.DoHPath))
	}
}

func (o Options) checkProxy(report func(option, problem string, beside ...string)) {
	if _, err := parseProxy(o.Proxy); err != nil {
		report("proxy", err.Error())
	}
	if i := slices.IndexFunc(o.Transports, overUDP); o.Proxy != "" && i >= 0 {
		report("transports", fmt.Sprintf("has %s, which goes through no proxy; remove it here, or remove proxy", o.Transports[i]), "proxy")
	}
}

// setOfDoH returns the options for DNS over HTTPS that are set.
func (o Options) setOfDoH() (set []string) {
	for _, option := range []struct {
		name string
		set  bool
	}{
		{"doh_addresses", len(o.DoHAddresses) > 0}, {"doh_name", o.DoHName != ""},
		{"doh_port", o.DoHPort != dohPort}, {"doh_path", o.DoHPath != dohPath},
	} {
		if option.set {
			set = append(set, option.name)
		}
	}
	return set
}

func (o Options) checkPorts(report func(option, problem string, beside ...string)) {
	if o.Port != dotPort && (o.Host == "" || !slices.ContainsFunc(o.ladder(), needsAddresses)) {
		report("port", "has no effect without a host for DNS over TLS or QUIC; a port of addresses goes there, as in 192.0.2.1:8853", "addresses")
	}
	if o.DoHPort != dohPort && len(o.DoHAddresses) > 0 {
		report("doh_port", "has no effect beside doh_addresses; a port goes there, as in 192.0.2.1:8443", "doh_addresses")
	}
}

// checkNames checks the names of servers: a misspelt one would fail each handshake.
func (o Options) checkNames(report func(option, problem string, beside ...string)) {
	if o.Host != "" && !IsHostname(o.Host) {
		report("host", fmt.Sprintf("%q is not a host name", o.Host))
	}
	for option, name := range map[string]string{"server_name": o.ServerName, "doh_name": o.DoHName} {
		if _, err := netip.ParseAddr(name); err != nil && name != "" && !IsHostname(name) && name != o.Host {
			report(option, fmt.Sprintf("%q is neither a host name nor an address", name))
		}
	}
}

// IsHostname reports whether text is a name that a server can have, rather than a
// misspelt address.
func IsHostname(text string) bool {
	labels := strings.Split(strings.TrimSuffix(text, "."), ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, hostLetters) != "" {
			return false
		}
	}
	last := labels[len(labels)-1]
	return len(text) <= 253 && strings.Trim(last, "0123456789") != ""
}

const hostLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

func (o Options) checkServers(report func(option, problem string, beside ...string)) {
	for option, addresses := range map[string][]netip.AddrPort{"addresses": o.Addresses, "doh_addresses": o.DoHAddresses} {
		for _, a := range addresses {
			if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
				report(option, fmt.Sprintf("%s is not the address and port of a server", a))
			}
		}
	}
}

// needsAddresses reports whether a transport can't be used with doh_addresses alone.
func needsAddresses(transport string) bool { return !overHTTP(transport) }

func (o Options) checkAddresses(report func(option, problem string, beside ...string)) {
	switch {
	case len(o.Addresses) == 0 && o.Host == "" && (len(o.DoHAddresses) == 0 || slices.ContainsFunc(o.ladder(), needsAddresses)):
		report("addresses", "is empty, and there is no host to resolve", "host")
	case len(o.Addresses) > 0 && o.Host != "":
		report("host", "is not needed beside addresses; to check the certificate's name, set server_name", "addresses")
	case o.Host != "" && len(o.Bootstrap) == 0:
		report("bootstrap", fmt.Sprintf("is empty, so %q could not be resolved; name a resolver here or give addresses and server_name", o.Host), "host")
	}
	o.checkServers(report)
	for _, b := range o.Bootstrap {
		if _, err := parseBootstrap(b); err != nil {
			report("bootstrap", err.Error())
		}
	}
}

func (o Options) roots() (*x509.CertPool, error) {
	if o.CAFile == "" {
		return nil, nil // crypto/tls uses those of the system then
	}
	return files.Authorities(o.CAFile)
}

// digests are SHA-256 digests, one of which must be that of a part of a certificate.
type digests map[[sha256.Size]byte]bool

func (o Options) certHashes() (digests, error) {
	hashes := make(digests)
	for _, text := range o.CertHashes {
		digest, err := hex.DecodeString(text)
		if err != nil || len(digest) != sha256.Size {
			return nil, fmt.Errorf("%q is not the hexadecimal form of a SHA-256 digest", text)
		}
		hashes[[sha256.Size]byte(digest)] = true
	}
	return hashes, nil
}

func (o Options) pins() (digests, error) {
	pins := make(digests)
	for _, text := range o.Pins {
		digest, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "sha256/"))
		if err != nil || len(digest) != sha256.Size {
			return nil, fmt.Errorf("%q is not the base64 of a SHA-256 digest", text)
		}
		pins[[sha256.Size]byte(digest)] = true
	}
	return pins, nil
}

func (o Options) certificates() ([]tls.Certificate, error) {
	if o.CertFile == "" && o.KeyFile == "" {
		return nil, nil
	}
	if o.CertFile == "" || o.KeyFile == "" {
		return nil, errors.New("cert_file and key_file need each other")
	}
	certificate, err := files.KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the client certificate: %w", err)
	}
	return []tls.Certificate{certificate}, nil
}
